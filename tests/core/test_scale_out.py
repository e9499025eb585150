"""`replicas.max`: another replica only when more wait than the running and coming ones can serve."""

from __future__ import annotations

from tests.core.story import Story


def test_one_replica_is_the_default_most() -> None:
    Story().tell(
        """
        node  n1  2x80GiB
        model a   60GiB  gpus=1
        > request a r1  -> start a#1 n1/0
        > request a r2  ->
        > started a#1   -> grant r1 a#1
        > request a r3  ->
        """
    )


def test_another_only_beyond_the_free_concurrency() -> None:
    """DESIGN 3: "only when waiting requests exceed the free concurrency of those running and starting"."""
    Story().tell(
        """
        node  n1  3x80GiB
        model a   60GiB  gpus=1 concurrency=2 replicas_max=3
        > request a r1  -> start a#1 n1/0
        > request a r2  ->
        > request a r3  -> start a#2 n1/1
        > started a#1   -> grant r1 a#1; grant r2 a#1
        > request a r4  ->
        > request a r5  -> start a#3 n1/2
        > request a r6  ->
        > request a r7  ->
        > started a#3   -> grant r3 a#3; grant r4 a#3
        > started a#2   -> grant r5 a#2; grant r6 a#2
        """
    )


def test_many_at_once_start_as_many_as_they_need() -> None:
    story = Story().tell(
        """
        node  n1  4x80GiB
        model a   60GiB  gpus=1 concurrency=2 replicas_max=4
        """
    )
    story.send_batch(*(story.event(["request", "a", f"r{i}"]) for i in range(5)))
    assert [d.replica for d in story.decided] == ["a#1", "a#2", "a#3"]  # type: ignore[union-attr]


def test_draining_and_stopping_replicas_do_not_count_towards_the_most() -> None:
    """Loads: "Draining and stopping replicas do not count towards `replicas.max`"."""
    Story(patience_ms=1000).tell(
        """
        node  n1  80GiB
        node  n2  60GiB
        model a   60GiB
        model b   80GiB
        model f   60GiB
        > found a#1 n1/0 60GiB leases=q1  ->
        > request b r1  ->
        +1000
        > wake          ->
        > request a r2  -> start a#2 n2/0
        > ended q1      -> stop a#1 evicted for b#1
        > request a r3  ->
        """
    )


def test_an_idle_replica_leaves_for_another_model_to_scale_out() -> None:
    Story().tell(
        """
        node  n1  2x80GiB
        model a   60GiB  gpus=1 replicas_max=2
        model b   60GiB  gpus=1
        > found b#1 n1/1 60GiB  ->
        > request a r1  -> start a#1 n1/0
        > request a r2  -> stop b#1 evicted for a#2
        > stopped b#1   -> start a#2 n1/1
        """
    )


def test_room_that_is_missing_for_another_blocks_nobody() -> None:
    Story().tell(
        """
        node  n1  80GiB
        model a   50GiB  replicas_max=2
        model b   30GiB
        > request a r1  -> start a#1 n1/0
        > started a#1   -> grant r1 a#1
        > request a r2  ->
        > request b r3  -> start b#1 n1/0
        > ended r1      -> grant r2 a#1
        """
    )
