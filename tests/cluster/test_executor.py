"""The executor's thread against a Serve and a Ray of a few lines: the order of things, and what fails."""

from __future__ import annotations

import queue
from collections.abc import Iterator

import pytest
import ray

from rayscheduler.cluster import executor as module
from rayscheduler.cluster.agreement import HeldGroup
from rayscheduler.cluster.executor import EngineEnded, Executor, Hold, Start, Stop
from rayscheduler.cluster.names import replica_of_app, replica_of_placement_group
from rayscheduler.cluster.placement_groups import Bundle
from rayscheduler.cluster.reports import Launch, Turn
from rayscheduler.core.types import DeviceId, ModelName, NodeName, Placement, ReplicaId
from rayscheduler.engines import EngineRequest

A, B = ReplicaId("a#1"), ReplicaId("b#2")
WITHIN_S = 10.0


class FakeRay:
    """Applications are there as long as their groups, unless `stubborn`: then somebody has to remove the group."""

    def __init__(self) -> None:
        self.said: queue.SimpleQueue[tuple[str, str]] = queue.SimpleQueue()
        self.groups: set[ReplicaId] = set()
        self.device_groups: dict[str, str] = {}  # by name, the state
        self.full = False
        self.ran: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.calls: list[tuple[str, tuple[str, ...]]] = []
        self.stubborn = False
        self.refusal: Exception | None = None
        self.deletes_lost = 0

    # what the executor calls
    def run_many(self, targets: list[module.serve.RunTarget], **_: object) -> None:
        names = [str(replica_of_app(target.name)) for target in targets]
        self.calls.append(("run", tuple(names)))
        if self.refusal is not None:
            raise self.refusal
        self.groups.update(map(ReplicaId, names))
        for name in names:
            self.ran.put(name)

    def delete(self, app: str, _blocking: bool) -> None:
        assert not _blocking
        replica = ReplicaId(str(replica_of_app(app)))
        self.calls.append(("delete", (replica,)))
        if self.deletes_lost:
            self.deletes_lost -= 1
            raise RuntimeError("no controller")
        if not self.stubborn:
            self.groups.discard(replica)

    def held(self) -> dict[ReplicaId, list[HeldGroup]]:
        held = {replica: [HeldGroup(replica, "CREATED", (), ())] for replica in self.groups}
        for name, state in self.device_groups.items():
            replica = replica_of_placement_group(name)
            assert replica is not None
            held.setdefault(replica, []).append(HeldGroup(name, state, (), (), name))
        return held

    def make(self, name: str, bundle: Bundle) -> None:
        self.calls.append(("make", (name,)))
        self.device_groups[name] = "PENDING" if self.full else "CREATED"

    def remove(self, group: str) -> None:
        self.calls.append(("remove", (group,)))
        self.groups.discard(ReplicaId(group))
        self.device_groups.pop(group, None)

    def write_serial(self, model: str, serial: int) -> None:
        self.calls.append(("serial", (f"{model}#{serial}",)))

    # what the executor says
    def start_failed(self, replica: ReplicaId, detail: str) -> None:
        self.said.put((replica, detail))

    def group_gone(self, replica: ReplicaId) -> None:
        self.said.put((replica, "gone"))

    def devices_held(self, replica: ReplicaId, turn: Turn | None) -> None:
        self.said.put((replica, f"held {turn.nap if turn else 0}"))

    def hold_failed(self, replica: ReplicaId, detail: str) -> None:
        self.said.put((replica, detail))

    def hears(self) -> tuple[str, str]:
        return self.said.get(timeout=WITHIN_S)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    fake = FakeRay()
    monkeypatch.setattr(module.serve, "run_many", fake.run_many)
    monkeypatch.setattr(module.serve, "delete", fake.delete)
    monkeypatch.setattr(module, "held_groups", fake.held)
    monkeypatch.setattr(module, "listed_replicas", lambda: frozenset(fake.groups))
    monkeypatch.setattr(module, "remove_group", fake.remove)
    monkeypatch.setattr(module, "make_group", fake.make)
    return fake


@pytest.fixture
def executor(fake: FakeRay) -> Iterator[Executor]:
    executor = Executor(fake, fake)  # type: ignore[arg-type]
    yield executor
    executor.close()


def start(replica: ReplicaId) -> Start:
    placement = Placement((NodeName("n"),), (DeviceId("n/0"),), (100,))
    model = ModelName(replica.rpartition("#")[0])
    launch = Launch(replica, model, placement, "simulated", EngineRequest(model, replica), 1.0)
    return Start(launch, [Bundle("aa", {"cpu-0-mib": 1.0})])


def test_all_that_starts_at_once_is_one_call_after_its_serials_are_kept(fake: FakeRay, executor: Executor) -> None:
    executor.order([start(A), start(B), Stop(ReplicaId("c#3"), clean=True)])
    assert fake.hears() == ("c#3", "gone")
    assert fake.calls == [("delete", ("c#3",)), ("serial", (A,)), ("serial", (B,)), ("run", (A, B))]


def test_what_is_stopped_before_it_was_started_is_not_started(fake: FakeRay) -> None:
    executor = Executor(fake, fake, [start(A), Stop(A, clean=False)])  # type: ignore[arg-type]
    assert fake.hears() == (A, "gone")
    assert fake.calls == [("delete", (A,))]
    executor.close()


@pytest.mark.parametrize("clean", [True, False])
def test_a_group_that_stays_is_removed_once_its_engine_is_gone(
    fake: FakeRay, executor: Executor, monkeypatch: pytest.MonkeyPatch, clean: bool
) -> None:
    monkeypatch.setattr(module, "FORCE_AFTER_S", 0.02)
    fake.groups, fake.stubborn = {A}, True
    executor.order([Stop(A, clean), EngineEnded(A)])
    assert fake.hears() == (A, "gone")
    assert ("remove", (A,)) in fake.calls


def test_a_group_whose_engine_may_live_is_left_alone(fake: FakeRay, executor: Executor) -> None:
    fake.groups, fake.stubborn = {A, B}, True
    executor.order([Stop(A, clean=True), Stop(B, clean=True), EngineEnded(B)])
    assert fake.hears() == (B, "gone")
    fake.groups.discard(A)
    assert fake.hears() == (A, "gone")
    assert ("remove", (A,)) not in fake.calls


def test_what_serve_remembers_for_long_is_gone_all_the_same(
    fake: FakeRay, executor: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SETTLED_AFTER_S", 0.02)
    monkeypatch.setattr(module, "listed_replicas", lambda: frozenset({A}))
    executor.order([Stop(A, clean=False)])
    assert fake.hears() == (A, "gone")


def test_an_engine_that_ended_by_itself_is_remembered(fake: FakeRay, executor: Executor) -> None:
    fake.groups, fake.stubborn = {A}, True
    executor.order([EngineEnded(A)])
    executor.order([Stop(A, clean=True)])
    assert fake.hears() == (A, "gone")


def test_serve_is_asked_again_until_it_deletes(
    fake: FakeRay, executor: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "DELETE_AGAIN_S", 0.05)
    fake.groups, fake.deletes_lost = {A}, 2
    executor.order([Stop(A, clean=True)])
    assert fake.hears() == (A, "gone")
    assert [call for call, _ in fake.calls].count("delete") >= 3


def test_a_start_that_serve_refuses_is_told_for_each(fake: FakeRay, executor: Executor) -> None:
    fake.refusal = ray.exceptions.RaySystemError("no")
    executor.order([start(A)])
    replica, detail = fake.hears()
    assert replica == A
    assert "Ray Serve did not start its runner" in detail
    fake.refusal = None
    executor.order([start(B), Stop(A, clean=False)])
    assert fake.hears() == (A, "gone")


# -- what can sleep -------------------------------------------------------------------------------

KEEPS = Placement((NodeName("n"),), (DeviceId("n/0"),), (30,), 70)
AWAKE, FIRST, SECOND = (f"rayscheduler::{what}::a#1" for what in ("awake", "asleep-1", "asleep-2"))


def hold(turn: Turn | None = None) -> Hold:
    return Hold(A, Bundle("aa", {"gpu-0-mib": 1.0}), turn)


def start_of_a_sleeper() -> Start:
    asked = start(A)
    return Start(asked.launch, asked.bundles, hold())


def test_its_devices_are_held_before_it_starts_and_anew_for_each_turn(fake: FakeRay, executor: Executor) -> None:
    executor.order([start_of_a_sleeper()])
    assert fake.ran.get(timeout=WITHIN_S) == A
    for turn in (Turn(True, 1, KEEPS), Turn(False, 1, KEEPS), Turn(True, 2, KEEPS), Turn(True, 2, KEEPS)):
        executor.order([hold(turn)])
        assert fake.hears() == (A, f"held {turn.nap}")
    assert fake.calls == [
        ("make", (AWAKE,)), ("serial", (A,)), ("run", (A,)),
        ("remove", (AWAKE,)), ("make", (FIRST,)),
        ("remove", (FIRST,)), ("make", (AWAKE,)),
        ("remove", (AWAKE,)), ("make", (SECOND,)),
    ], "what is there already is not made again"  # fmt: skip


def test_what_ray_cannot_hold_yet_keeps_nobody_waiting(fake: FakeRay, executor: Executor) -> None:
    fake.full = True
    executor.order([start_of_a_sleeper()])
    executor.order([start(B), Stop(ReplicaId("c#3"), clean=True)])
    assert fake.hears() == ("c#3", "gone")
    assert fake.ran.get(timeout=WITHIN_S) == B
    fake.device_groups[AWAKE] = "CREATED"
    assert fake.ran.get(timeout=WITHIN_S) == A


@pytest.mark.parametrize("starts", [True, False])
def test_what_ray_never_holds_is_told(
    fake: FakeRay, executor: Executor, monkeypatch: pytest.MonkeyPatch, starts: bool
) -> None:
    monkeypatch.setattr(module, "HOLD_WITHIN_S", 0.05)
    fake.full = True
    executor.order([start_of_a_sleeper() if starts else hold(Turn(False, 1, KEEPS))])
    replica, detail = fake.hears()
    assert (replica, fake.device_groups) == (A, {})
    assert "Ray did not hold 1 of gpu-0-mib for a#1" in detail
    assert ("run", (A,)) not in fake.calls


def test_an_engine_that_ended_gives_its_devices_back_at_once(fake: FakeRay, executor: Executor) -> None:
    """Its runner may take its time, and what starts next must not wait for that."""
    fake.groups, fake.stubborn, fake.device_groups = {A}, True, {AWAKE: "CREATED"}
    executor.order([EngineEnded(A), Hold(B, Bundle("aa", {}), None)])
    assert fake.hears() == (B, "held 0")
    assert (AWAKE in fake.device_groups, A in fake.groups) == (False, True)


def test_what_is_left_of_one_without_a_runner_is_removed(fake: FakeRay, executor: Executor) -> None:
    fake.device_groups = {FIRST: "CREATED"}
    executor.order([Stop(A, clean=True)])
    assert fake.hears() == (A, "gone")
    assert fake.device_groups == {}


def test_nothing_is_held_for_one_that_leaves(fake: FakeRay, executor: Executor) -> None:
    fake.groups, fake.stubborn = {A}, True
    executor.order([Stop(A, clean=True)])
    executor.order([hold(Turn(False, 1, KEEPS)), EngineEnded(A)])
    assert fake.hears() == (A, "gone")
    assert ("make", (AWAKE,)) not in fake.calls
