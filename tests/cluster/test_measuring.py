"""What is ours and what is others' on a device, from readings that are made up."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import pytest

from rayscheduler.cluster import attribution, measuring
from rayscheduler.cluster.attribution import Who
from rayscheduler.cluster.gpu import Gpu
from rayscheduler.cluster.gpu_faults import GpuFaults
from rayscheduler.cluster.measuring import Measuring
from rayscheduler.cluster.reports import DeviceReading, ForeignProcess, Measured, Watched
from rayscheduler.core.types import ReplicaId

MIB = 2**20
GIB = 2**30
A = ReplicaId("a#1")
OURS = Watched(A, "x", 400, 501, {0: 20 * GIB})
LENT = {"gpu-0-mib": 81920.0}


@pytest.fixture
def see(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Measuring]:
    """A node with one GPU; `ours`: the engine's processes, `visible`: those that can be seen from here."""

    def made(
        used: int,
        held: dict[int, int | None],
        ours: list[int],
        visible: dict[int, Who],
        lent: float = 81920.0,
        **more: object,
    ) -> Measuring:
        gpu = Gpu(0, "GPU-0", "H100", 80 * GIB, used, held, **more)  # type: ignore[arg-type]
        monkeypatch.setattr(GpuFaults, "watch", lambda self: None)
        monkeypatch.setattr(measuring, "gpus", lambda: (gpu,))
        monkeypatch.setattr(measuring, "driver_version", lambda: "")
        monkeypatch.setattr(attribution, "parent_of", lambda pid: 500)
        monkeypatch.setattr(attribution, "descendants", lambda pid: ours)
        monkeypatch.setattr(attribution, "start_time", lambda pid: 1 if pid in visible else 0)
        monkeypatch.setattr(attribution, "_look_at", visible.__getitem__)
        return Measuring({"gpu-0-mib": lent})

    return made


def test_what_others_hold_on_a_gpu(see: Callable[..., Measuring]) -> None:
    held = {501: 10 * GIB, 502: 5 * GIB, 9: 20 * GIB}
    taken = see(35 * GIB, held, [501, 502], {9: Who("python", "bob")}).take([OURS])
    assert taken.readings == (DeviceReading(0, 20 * GIB, 15 * GIB, 45 * GIB),)
    assert taken.measured == {A: Measured({0: 15 * GIB})}
    assert taken.foreign == (ForeignProcess(0, 9, 20 * GIB, "python", "bob"),)


def test_what_a_daemon_holds_for_a_replica_is_not_what_others_hold(see: Callable[..., Measuring]) -> None:
    """The engine is an adapter that holds nothing; process 9 is a daemon that hosts its model and others."""
    borrowed = replace(OURS, held_elsewhere_bytes=24 * GIB)
    taken = see(29 * GIB, {9: 29 * GIB}, [501], {9: Who("ollama")}).take([borrowed])
    assert taken.readings == (DeviceReading(0, 5 * GIB, 24 * GIB, 51 * GIB),)
    assert taken.measured == {A: Measured({0: 24 * GIB})}


def test_what_is_not_lent_is_theirs_to_take(see: Callable[..., Measuring]) -> None:
    taken = see(20 * GIB, {9: 20 * GIB}, [], {9: Who()}, lent=61440.0).take([])
    assert taken.readings[0].used_by_others_bytes == 0


def test_an_engine_that_holds_nothing_yet_is_measured_as_that(see: Callable[..., Measuring]) -> None:
    taken = see(3 * GIB, {9: 3 * GIB}, [501], {9: Who()}).take([OURS])
    assert taken.readings[0].used_by_others_bytes == 3 * GIB
    assert taken.measured == {A: Measured({0: 0})}


def test_processes_that_cannot_be_seen_may_be_ours(see: Callable[..., Measuring]) -> None:
    """Another process namespace: ours is what is reserved."""
    taken = see(35 * GIB, {12: 15 * GIB, 13: 20 * GIB}, [501], {}).take([OURS])
    assert taken.readings[0].used_by_others_bytes == 15 * GIB
    assert taken.measured == {A: Measured({})}, "how much it holds is not known"
    assert [process.name for process in taken.foreign] == ["", ""]


def test_of_what_is_reserved_only_what_somebody_holds_is_ours(see: Callable[..., Measuring]) -> None:
    taken = see(12 * GIB, {12: 12 * GIB}, [501], {}).take([OURS])
    assert taken.readings[0].used_by_others_bytes == 0
    beside = see(12 * GIB, {12: 5 * GIB, 9: 7 * GIB}, [501], {9: Who("python")}).take([OURS])
    assert beside.readings[0].used_by_others_bytes == 7 * GIB, "that one can be seen, and is not ours"


def test_a_driver_that_does_not_tell_how_much(see: Callable[..., Measuring]) -> None:
    taken = see(30 * GIB, {501: None, 9: None}, [501], {9: Who("python")}).take([OURS])
    assert taken.readings[0].used_by_others_bytes == 10 * GIB
    assert taken.measured == {A: Measured({})}
    assert taken.foreign == (ForeignProcess(0, 9, None, "python"),)
    nobody = see(30 * GIB, {}, [501], {}, tells_processes=False).take([OURS])
    assert nobody.readings[0].used_by_others_bytes == 10 * GIB


@pytest.mark.parametrize(("alike", "others"), [(True, 30 * GIB), (False, 10 * GIB)])
def test_a_container_whose_driver_lists_nobody(
    see: Callable[..., Measuring], monkeypatch: pytest.MonkeyPatch, alike: bool, others: int
) -> None:
    monkeypatch.setattr(measuring, "in_first_pid_namespace", lambda: alike)
    assert see(30 * GIB, {}, [501], {}).take([OURS]).readings[0].used_by_others_bytes == others


def test_an_escaped_process_is_known_by_its_mark(see: Callable[..., Measuring]) -> None:
    visible = {9: Who("worker", "root", "a#1"), 10: Who("worker", "root", "gone#7")}
    taken = see(35 * GIB, {501: 10 * GIB, 9: 5 * GIB, 10: 20 * GIB}, [501], visible).take([OURS])
    assert taken.measured == {A: Measured({0: 15 * GIB})}
    assert taken.foreign == (ForeignProcess(0, 10, 20 * GIB, "worker", "root", "gone#7"),)


def test_a_process_is_looked_at_once(see: Callable[..., Measuring], monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[int] = []
    measures = see(GIB, {9: GIB}, [], {9: Who("python")})
    monkeypatch.setattr(attribution, "_look_at", lambda pid: looked.append(pid) or Who("python"))
    for _ in range(3):
        measures.take([])
    monkeypatch.setattr(attribution, "start_time", lambda pid: 2)
    measures.take([])
    assert looked == [9, 9], "and again when its number is another's"


def test_a_hiccup_of_the_driver_loses_no_device(see: Callable[..., Measuring], monkeypatch: pytest.MonkeyPatch) -> None:
    measures = see(GIB, {9: GIB}, [], {9: Who("python")})
    before = measures.take([])
    monkeypatch.setattr(measuring, "gpus", lambda: ())
    assert measures.take([]) == before
    later_s = time.monotonic() + measuring.UNREAD_S + 1
    monkeypatch.setattr(measuring.time, "monotonic", lambda: later_s)
    assert measures.take([]).inventory.missing == {0: "its driver does not show it any more"}


def test_what_others_hold_of_lent_ram(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "gpus", lambda: ())
    monkeypatch.setattr(attribution, "parent_of", lambda pid: 500)
    monkeypatch.setattr(attribution, "descendants", lambda pid: [501])
    monkeypatch.setattr(measuring, "held_bytes", lambda pid: 300 * MIB)
    ours = Watched(A, "x", 400, 501, {0: 400 * MIB})
    for available, others in ((900, 0), (700, 0), (500, 200)):
        monkeypatch.setattr(measuring, "available_memory_bytes", lambda available=available: available * MIB)
        taken = Measuring({"cpu-0-mib": 1000.0}).take([ours])
        assert taken.readings == (DeviceReading(0, others * MIB, 300 * MIB, available * MIB),)
        assert taken.measured == {A: Measured({0: 300 * MIB})}
    pretended = Measuring({"gpu-0-mib": 1000.0, "simulated-devices": 1.0}).take([ours])
    assert (pretended.readings, pretended.measured) == ((), {A: Measured({}, 300 * MIB)})
