"""`ask_plan`: where one more replica would go, and if nowhere, why; it changes nothing."""

from __future__ import annotations

import pytest

from rayscheduler.core.explain import PlanAnswer, Verdict
from rayscheduler.core.types import ModelName, RefusalReason
from tests.core.story import GIB, Story

SCENE = """
    node  n1  2x80GiB
    node  n2  24GiB
    model a     60GiB   gpus=1
    model b     50GiB
    model c     70GiB   pinned=yes
    model huge  400GiB
    > found b#1 n1/0 50GiB idle_ms=60000  ->
    > found c#1 n1/1 70GiB idle_ms=60000  ->
"""


def asked(story: Story, name: str) -> PlanAnswer:
    before = story.scheduler.snapshot(story.now_ms)
    answer = story.scheduler.ask_plan(ModelName(name), story.now_ms)
    assert story.scheduler.snapshot(story.now_ms) == before, "a question changed something"
    story.scheduler.validate()
    assert answer is not None
    return answer


def reasons(answer: PlanAnswer) -> dict[str, str]:
    return {refusal.node: refusal.reason.value for refusal in answer.refusals}


def test_placed_with_victims_and_refusals() -> None:
    """The example of SCENARIOS.md."""
    answer = asked(Story().tell(SCENE), "a")
    assert answer.verdict is Verdict.PLACED
    assert answer.plan is not None
    assert answer.plan.placement.devices == ("n1/0",)
    assert answer.plan.evictions == ("b#1",)
    (refusal,) = answer.refusals
    assert (refusal.node, refusal.reason) == ("n2", RefusalReason.MEMORY)
    assert (refusal.needed_bytes, refusal.free_bytes) == (60 * GIB, 24 * GIB)
    assert answer.message == "a goes to n1/0 (60.0 GiB), evicting b#1 (idle 60 s)"


def test_never() -> None:
    """"it does not fit this cluster even when it is empty of everything unpinned"."""
    answer = asked(Story().tell(SCENE), "huge")
    assert (answer.verdict, answer.plan) == (Verdict.NEVER, None)
    assert set(reasons(answer)) == {"n1", "n2"}


def test_wait_says_what_for() -> None:
    """"`wait` (could fit once something ends; `message` says what)"."""
    story = Story().tell(SCENE).tell("> request b r1 -> grant r1 b#1")
    answer = asked(story, "a")
    assert (answer.verdict, answer.plan) == (Verdict.WAIT, None)
    assert "b#1" in answer.message
    assert reasons(answer) == {"n1": "memory", "n2": "memory"}


def test_it_never_drains_and_asks_for_one_more_whatever_the_most() -> None:
    """"`plan` asks for one more replica whatever `replicas.max` says, and never drains"."""
    story = Story(patience_ms=0).tell(
        """
        node  n1  2x80GiB
        model a   60GiB  gpus=1
        model b   60GiB
        > found a#1 n1/0 60GiB leases=q1  ->
        """
    )
    one_more = asked(story, "a")
    assert one_more.plan is not None
    assert one_more.plan.placement.devices == ("n1/1",)
    story.tell("> found b#1 n1/1 60GiB leases=q2 ->")
    assert asked(story, "a").verdict is Verdict.WAIT


def test_every_node_is_named_once_in_the_order_of_names() -> None:
    story = Story().tell(
        """
        node  n3  80GiB
        node  n1  80GiB
        node  n2  80GiB
        model a   60GiB
        """
    )
    answer = asked(story, "a")
    assert answer.plan is not None
    assert answer.plan.placement.nodes == ("n1",)
    assert reasons(answer) == {"n2": "ranked_lower", "n3": "ranked_lower"}
    assert [refusal.node for refusal in answer.refusals] == ["n2", "n3"]


@pytest.mark.parametrize(
    ("node", "model", "reason"),
    [
        ("80GiB backend=rocm", "60GiB backend=nvidia", "backend"),
        ("80GiB type=L4", "60GiB types=H100", "type"),
        ("80GiB", "60GiB labels=zone:a", "labels"),
        ("80GiB cpus=4", "60GiB cpus=8", "cpus"),
        ("80GiB", "60GiB gpus=2", "devices"),
        ("80GiB", "60GiB device_memory=90GiB", "device_memory"),
        ("80GiB", "60GiB total_device_memory=90GiB", "total_device_memory"),
        ("80GiB memory=32GiB", "60GiB host_memory=64GiB", "host_memory"),
        ("80GiB", "90GiB gpus=1", "memory"),
    ],
)
def test_the_reasons(node: str, model: str, reason: str) -> None:
    story = Story().tell(f"node n1 {node}\nmodel a {model}")
    assert reasons(asked(story, "a")) == {"n1": reason}


def test_exclusive_is_a_reason_of_its_own() -> None:
    story = Story().tell(
        """
        node  n1  80GiB
        model a   20GiB  exclusive=yes
        model f   1GiB
        > found f#1 n1/0 1GiB leases=q1  ->
        """
    )
    assert reasons(asked(story, "a")) == {"n1": "exclusive"}


def test_memory_is_told_at_the_largest_count_the_node_offers() -> None:
    """"those of one device at the largest count that the node offers, free being the least free among as many
    freest devices, nobody evicted"."""
    story = Story().tell(
        """
        node  n1  3x40GiB
        model a   90GiB  gpus=1,2,4
        model f   1GiB   pinned=yes
        > found f#1 n1/0 10GiB  ->
        > found f#2 n1/1 5GiB   ->
        > found f#3 n1/2 20GiB  ->
        """
    )
    (refusal,) = asked(story, "a").refusals
    assert refusal.reason is RefusalReason.MEMORY
    assert (refusal.needed_bytes, refusal.free_bytes) == (45 * GIB, 30 * GIB)


def test_before_the_first_node_it_waits() -> None:
    answer = asked(Story().tell("model a 60GiB"), "a")
    assert (answer.verdict, answer.refusals) == (Verdict.WAIT, ())
    assert "waits for a node" in answer.message


def test_a_pinned_model_in_its_place() -> None:
    story = Story().tell(
        """
        node  n1  2x80GiB
        node  n2  80GiB
        model a   60GiB  pinned=yes pin=n1/1
        """
    )
    answer = asked(story, "a")
    assert answer.plan is not None
    assert answer.plan.placement.devices == ("n1/1",)
    assert reasons(answer) == {"n2": "devices"}


def test_an_unknown_model_has_no_answer() -> None:
    assert Story().scheduler.ask_plan(ModelName("nobody"), 0) is None


def test_every_start_says_why_in_one_sentence() -> None:
    """DESIGN 2.5: "Every decision can be explained"."""
    story = Story().tell(SCENE).tell("> request a r1 -> stop b#1 evicted for a#1")
    assert story.decided[0].why == "makes way for a#1"  # type: ignore[union-attr]
    story.tell("> stopped b#1 -> start a#1 n1/0")
    assert story.decided[0].why == "a goes to n1/0 (60.0 GiB), evicting b#1 (idle 60 s)"  # type: ignore[union-attr]
