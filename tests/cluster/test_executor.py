"""The executor's thread against a Serve and a Ray of a few lines: the order of things, and what fails."""

from __future__ import annotations

import queue
from collections.abc import Iterator

import pytest
import ray

from rayscheduler.cluster import executor as module
from rayscheduler.cluster.agreement import HeldGroup
from rayscheduler.cluster.executor import EngineEnded, Executor, Start, Stop
from rayscheduler.cluster.names import replica_of_app
from rayscheduler.cluster.placement_groups import Bundle
from rayscheduler.cluster.reports import Launch
from rayscheduler.core.types import DeviceId, ModelName, NodeName, Placement, ReplicaId
from rayscheduler.engines import EngineRequest

A, B = ReplicaId("a#1"), ReplicaId("b#2")
WITHIN_S = 10.0


class FakeRay:
    """Applications are there as long as their groups, unless `stubborn`: then somebody has to remove the group."""

    def __init__(self) -> None:
        self.said: queue.SimpleQueue[tuple[str, str]] = queue.SimpleQueue()
        self.groups: set[ReplicaId] = set()
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
        return {replica: [HeldGroup(replica, "CREATED", (), ())] for replica in self.groups}

    def remove(self, group: str) -> None:
        self.calls.append(("remove", (group,)))
        self.groups.discard(ReplicaId(group))

    def write_serial(self, model: str, serial: int) -> None:
        self.calls.append(("serial", (f"{model}#{serial}",)))

    # what the executor says
    def start_failed(self, replica: ReplicaId, detail: str) -> None:
        self.said.put((replica, detail))

    def group_gone(self, replica: ReplicaId) -> None:
        self.said.put((replica, "gone"))

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
