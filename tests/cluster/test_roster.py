"""What runners, agents and the executor say in any order, and what the core hears of it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace

import pytest

from rayscheduler.cluster.mailbox import Mailbox
from rayscheduler.cluster.reports import Launch, Measured, RunnerReport, RunnerState, Turn, Verdict
from rayscheduler.cluster.roster import Roster
from rayscheduler.core.events import (
    Event,
    FailureKind,
    ReplicaFailed,
    ReplicaSlept,
    ReplicaStarted,
    ReplicaStopped,
    ReplicaWoke,
)
from rayscheduler.core.types import DeviceId, ModelName, NodeName, Placement, ReplicaId
from rayscheduler.engines import EngineRequest

A = ReplicaId("a#1")
LAUNCH = Launch(
    A, ModelName("a"), Placement((NodeName("n"),), (DeviceId("n/0"),), (100,)), "simulated", EngineRequest("a", A), 10.0
)

KEEPS = replace(LAUNCH.placement, device_bytes=(30,), host_bytes=70)
TO_SLEEP, TO_WAKE = Turn(True, 1, KEEPS), Turn(False, 1, KEEPS)


@dataclass
class Story:
    """One replica `a#1`, started; `news` is what the core has heard since it was asked last."""

    suspected: list[str] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)
    asleep: list[RunnerReport] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.mailbox = Mailbox()
        self.roster = Roster(self.mailbox, self.suspected.append, self.ended.append, self.asleep.append)
        self.roster.start(LAUNCH)

    def says(self, state: RunnerState, incarnation: str = "one", **more: object) -> Verdict:
        report = RunnerReport(LAUNCH, incarnation, state, "node", 7)
        return self.roster.reported(replace(report, **more))  # type: ignore[arg-type]

    def news(self) -> list[Event]:
        return self.mailbox.now_there()

    @property
    def forgotten(self) -> bool:
        return A not in self.roster.records


@pytest.fixture
def story() -> Story:
    return Story()


def test_a_good_life(story: Story) -> None:
    assert story.says(RunnerState.ANNOUNCED) is Verdict.GO
    assert story.says(RunnerState.LOADING, engine_pid=8) is Verdict.GO
    assert story.news() == []
    assert story.says(RunnerState.RUNNING, load_ms=5) is Verdict.GO
    assert story.says(RunnerState.RUNNING, load_ms=5) is Verdict.GO, "said twice"
    assert story.news() == [ReplicaStarted(A, 5)]
    story.roster.stop(A)
    assert story.says(RunnerState.STOPPED) is Verdict.STAND_DOWN
    assert (story.ended, story.news()) == ([A], []), "its placement group is not gone"
    story.roster.group_gone(A)
    assert story.news() == [ReplicaStopped(A)]
    assert story.forgotten
    assert story.says(RunnerState.STOPPED) is Verdict.STAND_DOWN
    story.roster.group_gone(A)
    assert story.news() == []


def test_what_is_held_elsewhere_is_told_to_the_nodes_agent(story: Story) -> None:
    story.says(RunnerState.LOADING, engine_pid=8)
    story.says(RunnerState.RUNNING, engine_pid=8, held_elsewhere_bytes=60)
    (watched,) = story.roster.watched("node")
    assert (watched.engine_pid, watched.device_bytes, watched.held_elsewhere_bytes) == (8, {0: 100}, 60)


def test_the_group_may_be_gone_before_the_runner_was_heard(story: Story) -> None:
    story.says(RunnerState.ANNOUNCED)
    story.roster.stop(A)
    story.roster.group_gone(A)
    assert (story.suspected, story.news()) == ([A], []), "who knows whether its engine is gone"
    story.roster.died(A, "one", "node")
    assert story.news() == [ReplicaStopped(A)]


def test_stopped_before_its_runner_was_there(story: Story) -> None:
    story.roster.stop(A)
    assert story.says(RunnerState.ANNOUNCED) is Verdict.STAND_DOWN
    story.roster.group_gone(A)
    assert story.news() == [ReplicaStopped(A)]


def test_stopped_and_its_runner_never_came(story: Story) -> None:
    story.roster.stop(A)
    story.roster.group_gone(A)
    assert story.news() == [ReplicaStopped(A)]


@pytest.mark.parametrize(("state", "kind"), [("failed", FailureKind.LOAD), ("crashed", FailureKind.CRASH)])
def test_a_failure_is_told_once(story: Story, state: str, kind: FailureKind) -> None:
    story.says(RunnerState.ANNOUNCED)
    assert story.says(RunnerState(state), detail="why") is Verdict.STAND_DOWN
    assert story.news() == [ReplicaFailed(A, kind, "why")]
    story.roster.died(A, "one", "node")
    story.roster.stop(A)
    story.says(RunnerState.STOPPED)
    story.roster.group_gone(A)
    assert (story.news(), story.ended) == ([], [A])
    assert story.forgotten


def test_a_dead_runner_is_a_crash_and_the_next_incarnation_stands_down(story: Story) -> None:
    story.says(RunnerState.ANNOUNCED)
    story.says(RunnerState.RUNNING)
    story.news()
    story.roster.died(A, "another", "node")
    assert story.news() == []
    assert story.says(RunnerState.ANNOUNCED, incarnation="two") is Verdict.STAND_DOWN
    assert (story.suspected, story.news()) == ([A], [])
    story.roster.died(A, "one", "node")
    (failed,) = story.news()
    assert isinstance(failed, ReplicaFailed)
    assert failed.kind is FailureKind.CRASH


def test_a_runner_that_dies_while_it_leaves_has_left(story: Story) -> None:
    story.says(RunnerState.ANNOUNCED)
    story.roster.stop(A)
    story.roster.died(A, "one", "node")
    story.roster.group_gone(A)
    assert story.news() == [ReplicaStopped(A)]


def test_serve_did_not_start_it(story: Story) -> None:
    story.roster.start_failed(A, "no")
    assert story.news() == [ReplicaFailed(A, FailureKind.LOAD, "no")]


def test_nobody_waits_for_a_runner_on_a_lost_node(story: Story) -> None:
    story.says(RunnerState.ANNOUNCED)
    story.roster.only_alive({"node"})
    assert story.ended == []
    story.roster.only_alive({"other"})
    assert (story.ended, story.roster.watched("node")) == ([A], [])
    story.roster.stop(A)  # the core has heard of the node, too
    story.roster.group_gone(A)
    assert story.news() == [ReplicaStopped(A)]
    assert story.forgotten


async def test_orders(story: Story) -> None:
    assert await story.roster.orders(A, "one") is Verdict.ANNOUNCE
    assert await story.roster.orders(ReplicaId("b#1"), "one") is Verdict.ANNOUNCE
    story.says(RunnerState.ANNOUNCED)
    assert await story.roster.orders(A, "two") is Verdict.STAND_DOWN
    waiting = asyncio.ensure_future(story.roster.orders(A, "one"))
    story.roster.stop(A)
    assert await waiting is Verdict.STAND_DOWN


def test_what_is_watched_is_what_may_hold_memory(story: Story) -> None:
    assert story.roster.watched("node") == []
    story.says(RunnerState.LOADING, engine_pid=8)
    (watched,) = story.roster.watched("node")
    assert (watched.runner_pid, watched.engine_pid, watched.device_bytes) == (7, 8, {0: 100})
    assert story.roster.watched("other") == []
    story.says(RunnerState.CRASHED)
    assert story.roster.watched("node") == []


def test_one_that_profiles_free_memory_while_it_loads_is_told_to_its_nodes_agent(story: Story) -> None:
    on_gpu = replace(LAUNCH.request, visible_devices=("GPU-1",))
    for engine, request, profiles in (
        ("command", on_gpu, True), ("command", LAUNCH.request, False), ("llama-cpp", on_gpu, False)
    ):  # fmt: skip
        launch = replace(LAUNCH, engine=engine, request=request)
        for state in (RunnerState.QUEUED, RunnerState.LOADING, RunnerState.RUNNING):
            story.says(state, launch=launch)
            (watched,) = story.roster.watched("node")
            assert watched.profiling is (profiles and state is RunnerState.LOADING)


def test_what_is_measured_is_known_device_by_device(story: Story) -> None:
    record = story.roster.records[A]
    record.launch = replace(LAUNCH, placement=Placement(
        (NodeName("n"), NodeName("m")), tuple(map(DeviceId, ("n/0", "n/1", "m/0"))), (100, 100, 100)
    ))  # fmt: skip
    assert (record.measured_bytes, record.measured_device_bytes()) == (None, [None] * 3)
    story.roster.measured(NodeName("n"), {A: Measured({0: 7, 1: 8}), ReplicaId("b#1"): Measured({0: 1})})
    assert (record.measured_bytes, record.measured_device_bytes()) == (15, [7, 8, None])
    story.roster.measured(NodeName("m"), {A: Measured({0: 9})})
    assert (record.measured_bytes, record.measured_device_bytes()) == (24, [7, 8, 9])
    story.roster.measured(NodeName("n"), {A: Measured({}, host_bytes=5)})
    assert (record.measured_bytes, record.measured_device_bytes()) == (14, [None, None, 9])


def test_who_waits_for_its_turn_is_not_late_and_its_load_begins_after_it(story: Story) -> None:
    record = story.roster.records[A]
    story.says(RunnerState.QUEUED)
    record.since_ms -= 10**9
    assert (story.roster.silent_s(), story.roster.hung()) == ({}, [])
    story.says(RunnerState.LOADING)
    assert story.roster.hung() == []


def test_who_is_late_is_found(story: Story) -> None:
    record = story.roster.records[A]
    assert (story.roster.silent_s(), story.roster.hung()) == ({}, [])
    record.since_ms -= 10**9
    assert story.roster.silent_s()[A] >= 10**6
    story.says(RunnerState.LOADING)
    assert (story.roster.silent_s(), story.roster.hung()) == ({}, [A])
    story.says(RunnerState.RUNNING)
    assert story.roster.hung() == []
    story.roster.stop(A)
    assert story.roster.hung() == []
    assert record.leaving_since_ms is not None
    record.leaving_since_ms -= 10**6
    assert story.roster.hung() == [A]


# -- sleep ----------------------------------------------------------------------------------------


def running(story: Story) -> None:
    story.says(RunnerState.ANNOUNCED)
    story.says(RunnerState.RUNNING)
    story.news()


async def test_it_sleeps_for_the_core_when_ray_holds_less_and_wakes_when_ray_holds_all(story: Story) -> None:
    running(story)
    waiting = asyncio.ensure_future(story.roster.orders(A, "one", None))
    story.roster.sleep(A, 1, KEEPS)
    assert await waiting == TO_SLEEP
    assert await story.roster.orders(A, "one", None) == TO_SLEEP, "until it has taken it"
    story.says(RunnerState.SUSPENDING, turn=TO_SLEEP)
    assert (story.asleep, story.news()) == ([], [])
    story.says(RunnerState.ASLEEP, turn=TO_SLEEP, turn_ms=3)
    assert ([report.holds for report in story.asleep], story.news()) == ([KEEPS], [])
    story.roster.devices_held(A, TO_SLEEP)
    assert story.news() == [ReplicaSlept(A, 1)]
    (watched,) = story.roster.watched("node")
    assert watched.device_bytes == {0: 30}, "the rest is nobody's promise"

    waiting = asyncio.ensure_future(story.roster.orders(A, "one", TO_SLEEP))
    await asyncio.sleep(0)
    assert not waiting.done()
    story.roster.devices_held(A, TO_WAKE)
    assert await waiting == TO_WAKE
    story.says(RunnerState.WAKING, turn=TO_WAKE)
    (watched,) = story.roster.watched("node")
    assert watched.device_bytes == {0: 100}
    story.says(RunnerState.RUNNING, turn=TO_WAKE, turn_ms=5)
    story.says(RunnerState.RUNNING, turn=TO_WAKE, turn_ms=5)
    assert story.news() == [ReplicaWoke(A, 1, 5)]


async def test_one_that_leaves_is_not_told_to_sleep_or_to_wake(story: Story) -> None:
    running(story)
    story.roster.sleep(A, 1, KEEPS)
    story.roster.stop(A)
    assert await story.roster.orders(A, "one", None) is Verdict.STAND_DOWN
    assert story.says(RunnerState.ASLEEP, turn=TO_SLEEP) is Verdict.STAND_DOWN
    story.roster.devices_held(A, TO_SLEEP)
    story.roster.devices_held(A, TO_WAKE)
    assert (story.asleep, story.news()) == ([], [])


async def test_what_fails_on_the_way_is_a_crash_told_once(story: Story) -> None:
    running(story)
    story.roster.sleep(A, 1, KEEPS)
    story.says(RunnerState.SUSPENDING, turn=TO_SLEEP)
    story.says(RunnerState.CRASHED, turn=TO_SLEEP, detail="HTTP 500")
    story.says(RunnerState.CRASHED, turn=TO_SLEEP, detail="HTTP 500")
    assert story.news() == [ReplicaFailed(A, FailureKind.CRASH, "HTTP 500")]


@pytest.mark.parametrize("turn", [TO_SLEEP, TO_WAKE])
async def test_an_adopted_runner_is_told_nothing_that_it_has_done(story: Story, turn: Turn) -> None:
    state = RunnerState.ASLEEP if turn.asleep else RunnerState.RUNNING
    story.roster.adopt(RunnerReport(LAUNCH, "one", state, "node", 7, turn=turn))
    story.roster.devices_held(A, turn)
    waiting = asyncio.ensure_future(story.roster.orders(A, "one", turn))
    await asyncio.sleep(0)
    assert not waiting.done()
    story.roster.sleep(A, 2, KEEPS)
    assert await waiting == Turn(True, 2, KEEPS)


async def test_a_turn_that_is_never_taken_or_never_done_is_hung(story: Story) -> None:
    running(story)
    record = story.roster.records[A]
    story.roster.sleep(A, 1, KEEPS)
    assert story.roster.hung() == []
    record.since_ms -= 10**9
    assert story.roster.hung() == [A]
    story.says(RunnerState.SUSPENDING, turn=TO_SLEEP)
    assert story.roster.hung() == [A]
    story.says(RunnerState.ASLEEP, turn=TO_SLEEP)
    assert story.roster.hung() == []
