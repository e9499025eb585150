"""What the stories of sleep begin with: one device, two models that can sleep, and one of them that does."""

from __future__ import annotations

from tests.core.story import GIB, Story

ONE_DEVICE = """
    node  n1 80GiB memory=200GiB
    model a  60GiB sleep=300
    model b  60GiB sleep=300
"""


def story_with_a_asleep(text: str = ONE_DEVICE) -> Story:
    """`a#1` has been put to sleep for `b#1`, which runs and serves nobody."""
    return Story().tell(
        text
        + """
        > request a r1 -> start a#1 n1/0
        > started a#1  -> grant r1 a#1
        > ended r1     ->
        > request b r2 -> sleep a#1 for b#1
        > slept a#1    -> start b#1 n1/0
        > started b#1  -> grant r2 b#1
        > ended r2     ->
        """
    )


def states(story: Story) -> dict[str, str]:
    return {replica.id: replica.state for replica in story.scheduler.snapshot(story.now_ms).replicas}


def held(story: Story, replica: str) -> tuple[int, int]:
    """GiB on its first device, and of host memory."""
    place = next(r.holds for r in story.scheduler.snapshot(story.now_ms).replicas if r.id == replica)
    return place.device_bytes[0] // GIB, place.host_bytes // GIB
