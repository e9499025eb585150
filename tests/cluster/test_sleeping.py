"""Sleep on the Ray side: who can, what is held of a sleeper, what is found again, and whether its memory is back."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rayscheduler.cluster.adapters import Adapters
from rayscheduler.cluster.agreement import HeldGroup, differences
from rayscheduler.cluster.catalog import Catalog, core_model
from rayscheduler.cluster.dispatch import Dispatch
from rayscheduler.cluster.engine_starts import EngineStarts
from rayscheduler.cluster.executor import Hold, Order, Start
from rayscheduler.cluster.figure_book import FigureBook
from rayscheduler.cluster.inventory import LentDevice, NodeInventory
from rayscheduler.cluster.journal import Journal
from rayscheduler.cluster.lease_book import LeaseBook
from rayscheduler.cluster.mailbox import Mailbox
from rayscheduler.cluster.membership import Membership
from rayscheduler.cluster.names import device_group_name, replica_of_placement_group
from rayscheduler.cluster.placement_groups import RayNode, bundles_of, device_bundle, runner_bundle
from rayscheduler.cluster.progress import Progress
from rayscheduler.cluster.recovery import Recovery
from rayscheduler.cluster.reports import AgentReport, Measured, RunnerReport, RunnerState, Turn, Watched
from rayscheduler.cluster.room import not_given_back
from rayscheduler.cluster.roster import Roster
from rayscheduler.config.service import config_from_text
from rayscheduler.core.decisions import SleepReplica, StartReplica, WakeReplica
from rayscheduler.core.events import ModelDeployed, NodeJoined, ReplicaFound
from rayscheduler.core.scheduler import Scheduler
from rayscheduler.core.types import (
    Backend,
    Device,
    DeviceId,
    ModelName,
    Node,
    NodeName,
    Placement,
    ReplicaId,
    Rest,
    Settings,
    SleepTraits,
)

MIB, GIB = 2**20, 2**30
A, N = ReplicaId("org/a#1"), NodeName("n")
CATALOG = """
models:
- {name: org/a, engine: simulated, memory: 600MiB, cpus: 2, sleep: {residue: 100MiB}, simulate: {wake: 10ms}}
- {name: never, engine: simulated, memory: 600MiB, sleep: false, simulate: {wake: 10ms}}
- {name: plain, engine: simulated, memory: 600MiB}
- {name: wide, engine: simulated, memory: 600MiB, across_nodes: true, simulate: {wake: 10ms}}
- {name: v, engine: vllm, source: org/v, memory: 80GiB, gpus: [1]}
- {name: v2, engine: vllm, source: org/v, memory: 80GiB, sleep: {residue: 1GiB, host_memory: 9GiB}}
- {name: v8, engine: vllm, source: org/v, memory: 80GiB}
- {name: cpu, engine: vllm, source: org/v, memory: 80GiB, requires: {backend: cpu}}
- {name: l, engine: llama-cpp, source: l.gguf, memory: 1GiB}
"""
AWAKE = Placement((N,), (DeviceId("n/0"),), (600 * MIB,), 0, 2000)
KEEPS = replace(AWAKE, device_bytes=(100 * MIB,), host_bytes=500 * MIB)
NODES = {N: RayNode("aa", "10.0.0.1", Backend.NVIDIA, False)}
GPU = NodeInventory("n", Backend.NVIDIA, (LentDevice(0, 1000, "GPU-0"),), memory_bytes=64 * GIB)


def catalog() -> Catalog:
    return Catalog(config_from_text(CATALOG))


def traits(name: str) -> SleepTraits | None:
    (entry,) = (entry for entry in catalog() if entry.name == name)
    return core_model(entry, entry.bytes_by_count()).sleep


def test_who_can_sleep_does_unless_its_entry_says_otherwise() -> None:
    assert traits("org/a") == SleepTraits(0, 10, 100 * MIB, None)
    assert [name for name in ("never", "plain", "wide", "cpu", "l") if traits(name) is not None] == []
    one, several, said = traits("v"), traits("v8"), traits("v2")
    assert one is not None
    assert several is not None
    assert said is not None
    assert 0 < one.residue_bytes < several.residue_bytes < 8 * GIB
    assert (said.residue_bytes, said.host_bytes) == (GIB, 9 * GIB)


@pytest.mark.parametrize(("backend", "sleeps"), [(Backend.NVIDIA, True), (Backend.CPU, False)])
def test_an_engine_is_started_so_that_it_can_sleep_where_it_may(backend: Backend, sleeps: bool) -> None:
    node = replace(GPU, backend=backend)
    assert catalog().launch(A, ModelName("org/a"), AWAKE, [node]).request.sleep is sleeps
    assert not catalog().launch(A, ModelName("never"), AWAKE, [node]).request.sleep
    nowhere = replace(AWAKE, devices=(), device_bytes=())
    assert not catalog().launch(A, ModelName("org/a"), nowhere, [node]).request.sleep, "it has no device to give back"


# -- what Ray holds -------------------------------------------------------------------------------


def test_the_two_groups_of_a_replica_are_its_vector() -> None:
    (whole,) = bundles_of(AWAKE, NODES)
    runner, devices = runner_bundle(AWAKE, NODES), device_bundle(AWAKE, NODES)
    assert {**runner.resources, **devices.resources} == dict(whole.resources)
    assert (dict(runner.resources), dict(devices.resources)) == ({"CPU": 2.0}, {"gpu-0-mib": 600.0})
    assert dict(device_bundle(KEEPS, NODES).resources) == {"gpu-0-mib": 100.0}, "host memory is the ledger's alone"
    assert list(runner_bundle(replace(AWAKE, millicpus=0), NODES).resources) == ["node:10.0.0.1"]
    assert replica_of_placement_group(device_group_name(A, "asleep-3")) == A


def scheduler_with(rest: Rest) -> Scheduler:
    scheduler = Scheduler(Settings())
    scheduler.handle(NodeJoined(Node(N, Backend.NVIDIA, (Device(DeviceId("n/0"), 1000 * MIB),))), 0)
    (entry,) = (entry for entry in catalog() if entry.name == "org/a")
    scheduler.handle(ModelDeployed(core_model(entry, entry.bytes_by_count())), 0)
    scheduler.handle(ReplicaFound(A, ModelName("org/a"), AWAKE, True, rest=rest, keeps=KEEPS, nap=1), 0)
    return scheduler


def group(bundle: object, name: str = "") -> HeldGroup:
    return HeldGroup(name, "CREATED", (bundle.resources,), ("aa",), name)  # type: ignore[attr-defined]


def test_ray_and_the_ledger_agree_awake_and_asleep() -> None:
    runner = group(runner_bundle(AWAKE, NODES))
    full = group(device_bundle(AWAKE, NODES), device_group_name(A, "awake"))
    little = group(device_bundle(KEEPS, NODES), device_group_name(A, "asleep-1"))

    def compared(rest: Rest, *held: HeldGroup) -> int:
        return len(differences(scheduler_with(rest).snapshot(0), {A: held}, NODES))

    assert compared(Rest.AWAKE, full, runner) == compared(Rest.ASLEEP, runner, little) == 0
    assert compared(Rest.AWAKE, runner, little) == compared(Rest.ASLEEP, runner, full) == 1
    assert compared(Rest.AWAKE, runner) == compared(Rest.ASLEEP, runner) == 1
    assert compared(Rest.AWAKE, runner, full, little) == 2, "too much, and too many"
    assert compared(Rest.SUSPENDING, runner) == compared(Rest.WAKING, runner, little) == 0, "on the way"


def test_what_is_ordered_of_the_executor() -> None:
    mailbox, membership, orders = Mailbox(), Membership(), list[Order]()
    membership.ray_nodes = lambda: dict(NODES)  # type: ignore[method-assign]
    membership.inventories = lambda names: [GPU]  # type: ignore[method-assign]
    roster = Roster(mailbox, lambda replica: None, lambda replica: None, lambda report: dispatch.hold(report))
    figures = FigureBook(None, None, list, None, lambda name: None)  # type: ignore[arg-type]
    leases = LeaseBook(mailbox)
    adapters = Adapters(leases, roster, Progress())
    books = (leases, roster, membership, Journal(), figures, adapters)
    dispatch = Dispatch(*books, orders.extend, lambda model: 0)
    model = ModelName("org/a")

    dispatch.carry_out([StartReplica(A, model, AWAKE)], catalog(), 1)
    (start,) = orders
    assert isinstance(start, Start)
    assert (start.bundles, start.hold) == ([runner_bundle(AWAKE, NODES)], Hold(A, device_bundle(AWAKE, NODES)))
    report = RunnerReport(start.launch, "one", RunnerState.ANNOUNCED, "aa", 7)
    for state in (RunnerState.ANNOUNCED, RunnerState.RUNNING):
        roster.reported(replace(report, state=state))
    dispatch.carry_out([SleepReplica(A, model, KEEPS, 1)], catalog(), 2)
    assert roster.records[A].turn == Turn(True, 1, KEEPS)
    roster.reported(replace(report, state=RunnerState.ASLEEP, turn=Turn(True, 1, KEEPS)))
    dispatch.carry_out([WakeReplica(A, model, AWAKE, 1)], catalog(), 3)
    assert orders[1:] == [
        Hold(A, device_bundle(KEEPS, NODES), Turn(True, 1, KEEPS)),
        Hold(A, device_bundle(AWAKE, NODES), Turn(False, 1, KEEPS)),
    ]
    roster.stop(A)
    dispatch.carry_out([WakeReplica(A, model, AWAKE, 1)], catalog(), 4)
    assert len(orders) == 3, "it has ended meanwhile"


@pytest.mark.parametrize(
    ("state", "rest"),
    [("running", Rest.AWAKE), ("suspending", Rest.SUSPENDING), ("asleep", Rest.ASLEEP), ("waking", Rest.WAKING)],
)
def test_a_new_allocator_finds_it_where_it_is(state: str, rest: Rest) -> None:
    launch = catalog().launch(A, ModelName("org/a"), AWAKE, [GPU])
    turn = Turn(rest is not Rest.WAKING, 2, KEEPS)
    report = RunnerReport(launch, "one", RunnerState(state), "aa", 7, turn=turn)
    (found,) = Recovery().found([report])
    assert (found.rest, found.keeps, found.nap, found.running) == (rest, KEEPS, 2, rest is Rest.AWAKE)
    assert report.holds == (KEEPS if rest is Rest.ASLEEP else AWAKE)


# -- is its memory back? --------------------------------------------------------------------------


def reading(held: int | None) -> AgentReport:
    return AgentReport(GPU, measured={} if held is None else {A: Measured({0: held * MIB})})


def watched(engine_pid: int = 8) -> list[Watched]:
    return [Watched(A, "one", 7, engine_pid, {0: 600 * MIB})]


def test_one_that_sleeps_holds_no_more_than_it_keeps() -> None:
    def told(report: AgentReport, *seen: Watched) -> str:
        return not_given_back(report, A, {0: 100 * MIB}, seen)

    assert told(reading(150), *watched()) == "", "64 MiB more are no news to the ledger either"
    assert "still holds 300 MiB of device 0 asleep" in told(reading(300), *watched())
    assert "sleep: {residue: 300MiB}" in told(reading(300), *watched())
    assert told(reading(None), *watched()) == "", "nobody can tell"
    assert "does not know org/a#1 yet" in told(reading(100))
    assert "does not know org/a#1 yet" in told(reading(100), *watched(engine_pid=0))


async def test_it_is_waited_for_and_not_for_ever() -> None:
    seen = iter([reading(600), reading(400), reading(100)])
    starts = EngineStarts(lambda _: next(seen), watched)
    assert await starts.await_shrunk(A, {0: 100 * MIB}, timeout_s=10.0) == ""
    stuck = EngineStarts(lambda _: reading(600), watched)
    assert "still holds 600 MiB" in await stuck.await_shrunk(A, {0: 100 * MIB}, timeout_s=0.05)
