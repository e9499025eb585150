"""Measuring on NVIDIA GPUs, through the real `pynvml`, against a stand-in for NVIDIA's library.

Rules of this file: each test writes what the machine is like, changes it, and looks at what the agent reports
and at what the core would hear of it.
"""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rayscheduler.cluster.inventory import NodeInventory
from rayscheduler.cluster.membership import Membership
from rayscheduler.cluster.reports import AgentReport, Measured, Watched
from rayscheduler.cluster.resources import resources_json
from rayscheduler.core.events import DeviceLost, DeviceReturned, Event, MemoryObserved, NodeJoined
from rayscheduler.core.types import DeviceId, ReplicaId
from rayscheduler.engines.orphans import mark_for
from rayscheduler.engines.protocol import MARK_ENV
from tests.fake_nvml.driver import COMPILER, GIB, NO_COMPILER, Card, FakeDriver
from tests.fake_nvml.observer import Observer

pytestmark = pytest.mark.skipif(COMPILER is None, reason=NO_COMPILER)

MIB = 2**20
A = ReplicaId("a#1")
GPU_IS_LOST = 15
NOBODY = 2**22 + 5  # no process has such a number: it is beyond the kernel's highest (2^22)


@pytest.fixture
def driver(tmp_path: Path) -> FakeDriver:
    """Two cards of 80 GiB, of which the driver keeps 1 GiB each."""
    return FakeDriver(tmp_path, *(Card(f"GPU-{name}", reserved=GIB) for name in "ab"))


@pytest.fixture
def observer(driver: FakeDriver) -> Iterator[Observer]:
    with Observer(driver) as made:
        yield made


@pytest.fixture
def sleeper() -> Iterator[Callable[..., int]]:
    """Processes that hold (pretended) memory: `sleeper()` starts one and says its pid."""
    started: list[subprocess.Popen[bytes]] = []

    def start(**environment: str) -> int:
        started.append(subprocess.Popen(["sleep", "600"], env={**os.environ, **environment}))
        return started[-1].pid

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture
def engine() -> Iterator[Watched]:
    """An engine below its supervisor, with 20 GiB reserved on device 0."""
    program = "import subprocess; p = subprocess.Popen(['sleep', '600']); print(p.pid, flush=True); p.wait()"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as supervisor:
        assert supervisor.stdout is not None
        pid = int(supervisor.stdout.readline())
        yield Watched(A, "one", os.getpid(), pid, {0: 20 * GIB})
        subprocess.run(["kill", "-9", str(pid)], check=True)


class News:
    """What the core hears of a node, report by report."""

    def __init__(self, inventory: NodeInventory) -> None:
        self.members = Membership()
        entry = {
            "NodeID": "n", "Alive": True, "NodeManagerAddress": "10.0.0.1", "NodeManagerPort": 1,
            "NodeManagerHostname": "one", "Resources": resources_json(inventory), "Labels": {},
        }  # fmt: skip
        self.members.observe([entry], 0)

    def of(self, report: AgentReport) -> list[Event]:
        return self.members.reported("n", report, 0)


# -- sizes ----------------------------------------------------------------------------------------


def test_what_a_card_is(driver: FakeDriver, observer: Observer) -> None:
    driver.cards[0].used = 3 * GIB
    driver.write()
    first, second = observer.gpus()
    assert (first.uuid, first.name, first.compute_capability) == ("GPU-a", "NVIDIA H100 80GB HBM3", "9.0")
    assert (first.total_bytes, first.used_bytes) == (79 * GIB, 3 * GIB), "the driver's own share is nobody's"
    assert (second.index, second.used_bytes, second.recovery) == (1, 0, None)
    assert observer.version() == "NVIDIA 580.65.06"
    lent = observer.inventory()
    assert resources_json(lent) == {"gpu-0-mib": 79 * 1024, "gpu-1-mib": 79 * 1024}
    assert [(device.type, device.compute_capability) for device in lent.devices] == [("H100", "9.0")] * 2


def test_an_old_driver_tells_less(driver: FakeDriver, observer: Observer, sleeper: Callable[..., int]) -> None:
    pid = sleeper()
    driver.cards[0].hold(pid, 2 * GIB)
    driver.system = ["driver 470.57.02", "lacks nvmlDeviceGetMemoryInfo_v2", "lacks nvmlDeviceGetFieldValues"]
    driver.system += ["lacks nvmlDeviceGetComputeRunningProcesses_v3", "lacks nvmlDeviceGetGraphicsRunningProcesses_v3"]
    driver.write()
    gpu = observer.gpus()[0]
    assert (gpu.total_bytes, gpu.used_bytes) == (80 * GIB, 3 * GIB), "its own share counts as used"
    assert (gpu.held_bytes, gpu.tells_processes) == ({pid: 2 * GIB}, True)
    driver.system.append("lacks nvmlDeviceGetComputeRunningProcesses_v2")
    driver.write()
    assert (observer.gpus()[0].held_bytes, observer.gpus()[0].tells_processes) == ({}, False)


def test_a_library_without_a_driver_is_no_gpu(driver: FakeDriver) -> None:
    driver.system = ["init_error 9"]
    driver.write()
    with Observer(driver) as observer:
        assert observer.gpus() == ()
        assert observer.version() == ""
        assert list(resources_json(observer.inventory())) == ["cpu-0-mib"]


# -- who holds what -------------------------------------------------------------------------------


def test_memory_changes(driver: FakeDriver, observer: Observer, engine: Watched) -> None:
    card = driver.cards[0]
    news = News(observer.inventory())
    assert [type(event) for event in news.of(observer.take([engine]))] == [NodeJoined]
    card.hold(engine.engine_pid, 15 * GIB)
    driver.write()
    report = observer.take([engine])
    assert report.measured == {A: Measured({0: 15 * GIB})}, "and nothing is known of device 1, where it is not"
    assert [reading.free_bytes for reading in report.readings] == [64 * GIB, 79 * GIB]
    assert news.of(report) == []
    card.used += 5 * GIB
    driver.write()
    assert news.of(observer.take([engine])) == [MemoryObserved(DeviceId("one/0"), 5 * GIB)]
    card.used -= 5 * GIB
    driver.write()
    assert news.of(observer.take([engine])) == [MemoryObserved(DeviceId("one/0"), 0)]


def test_a_foreign_process_is_named(driver: FakeDriver, observer: Observer, sleeper: Callable[..., int]) -> None:
    computes, draws = sleeper(), sleeper()
    driver.cards[1].hold(computes, 7 * GIB)
    driver.cards[1].drawing[draws] = GIB
    driver.cards[1].used += GIB
    driver.write()
    news = News(observer.inventory())
    report = observer.take()
    assert [(each.index, each.pid, each.name, each.held_bytes) for each in report.foreign] == [
        (1, computes, "sleep", 7 * GIB),
        (1, draws, "sleep", GIB),
    ]
    assert report.foreign[0].user == pwd.getpwuid(os.getuid()).pw_name
    assert news.of(report)[1:] == [MemoryObserved(DeviceId("one/1"), 8 * GIB)]


def test_an_escaped_child_is_its_replicas(
    driver: FakeDriver, observer: Observer, engine: Watched, sleeper: Callable[..., int]
) -> None:
    """It is below no supervisor any more, and still carries the mark."""
    child = sleeper(**{MARK_ENV: mark_for(A, "nonce")})
    left = sleeper(**{MARK_ENV: mark_for("b#9", "nonce")})
    driver.cards[0].hold(engine.engine_pid, 10 * GIB)
    driver.cards[0].hold(child, 4 * GIB)
    driver.cards[0].hold(left, GIB)
    driver.write()
    report = observer.take([engine])
    assert report.measured == {A: Measured({0: 14 * GIB})}
    assert [(each.pid, each.replica) for each in report.foreign] == [(left, "b#9")]
    assert report.readings[0].used_by_others_bytes == GIB


def test_a_driver_that_does_not_tell_how_much_a_process_holds(
    driver: FakeDriver, observer: Observer, engine: Watched
) -> None:
    driver.cards[0].hold(engine.engine_pid, None)
    driver.cards[0].used = 18 * GIB
    driver.write()
    report = observer.take([engine])
    assert report.measured == {A: Measured({})}
    assert report.readings[0].used_by_others_bytes == 0, "20 GiB are reserved: that may be ours"


@pytest.mark.parametrize("listed", [True, False], ids=["numbered otherwise", "not listed"])
def test_another_process_namespace(driver: FakeDriver, engine: Watched, listed: bool) -> None:
    if listed:
        driver.cards[0].hold(NOBODY, 18 * GIB)
    else:
        driver.cards[0].used = 18 * GIB
    driver.cards[0].used += 4 * GIB
    driver.write()
    with Observer(driver, alike=False) as observer:
        (reading, _) = observer.take([engine]).readings
        assert reading.used_by_others_bytes == 2 * GIB, "of 22 GiB, 20 are reserved"
        assert reading.measured_bytes == 0


# -- devices that vanish or fail ------------------------------------------------------------------


@pytest.mark.parametrize("answers", [True, False], ids=["answers with an error", "is not there"])
def test_a_device_vanishes_and_returns(driver: FakeDriver, observer: Observer, answers: bool) -> None:
    news = News(observer.inventory())
    news.of(observer.take())
    first = driver.cards[0]
    if answers:
        first.error = GPU_IS_LOST
    else:
        driver.cards.remove(first)
    driver.write()
    report = observer.take()
    assert news.of(report) == [DeviceLost(DeviceId("one/0"))]
    assert [reading.index for reading in report.readings] == [1], "the other one keeps its number"
    assert report.inventory.missing == {0: "its driver does not show it any more"}
    assert news.of(observer.take()) == []
    first.error = 0
    driver.cards[:] = [first, driver.cards[-1]]
    driver.write()
    assert news.of(observer.take()) == [DeviceReturned(DeviceId("one/0"))]
    assert news.of(observer.take()) == []


def test_a_fatal_xid_loses_a_device_until_it_was_reset(driver: FakeDriver, observer: Observer) -> None:
    news = News(observer.inventory())
    news.of(observer.take())
    card, other = driver.cards

    def is_seen(report: AgentReport) -> bool:
        """The observer may not listen yet: say it again."""
        if not report.inventory.missing:
            card.report(79)
            driver.write()
        return bool(report.inventory.missing)

    report = observer.take_until(is_seen)
    assert news.of(report) == [DeviceLost(DeviceId("one/0"))]
    assert report.inventory.missing == {0: "Xid 79, the GPU has fallen off the bus"}
    assert news.of(observer.take()) == [], "it can be read, and is of no use"
    # What else card 0 had said is heard before this: events come in the order of the cards.
    other.report(79)
    driver.write()
    assert news.of(observer.take_until(lambda now: 1 in now.inventory.missing)) == [DeviceLost(DeviceId("one/1"))]
    driver.cards.clear()
    driver.write()
    assert news.of(observer.take()) == []
    driver.cards += [card, other]
    driver.write()
    assert news.of(observer.take()) == [DeviceReturned(DeviceId("one/0")), DeviceReturned(DeviceId("one/1"))]


def test_the_xid_of_an_application_is_no_fault(driver: FakeDriver, observer: Observer) -> None:
    """31 is a page fault: the program's mistake. The fatal one that follows shows that both were heard."""
    observer.take()

    def fatal_is_seen(report: AgentReport) -> bool:
        driver.cards[1].report(31)
        driver.write()
        driver.cards[0].report(95)
        driver.write()
        return bool(report.inventory.missing)

    assert list(observer.take_until(fatal_is_seen).inventory.missing) == [0]


def test_a_driver_that_asks_for_a_reset(driver: FakeDriver, observer: Observer) -> None:
    driver.cards[0].recovery = driver.cards[1].recovery = 0
    driver.write()
    news = News(observer.inventory())
    news.of(observer.take())
    driver.cards[1].recovery = 1
    driver.write()
    report = observer.take()
    assert news.of(report) == [DeviceLost(DeviceId("one/1"))]
    assert report.inventory.missing == {1: "its driver asks for a reset of the GPU"}
    driver.cards[1].recovery = 0
    driver.write()
    assert news.of(observer.take()) == [DeviceReturned(DeviceId("one/1"))]


# -- slices ---------------------------------------------------------------------------------------


@pytest.fixture
def sliced(tmp_path: Path) -> FakeDriver:
    """A card in MIG mode with two slices, one of which has two compute instances; and a whole card."""
    name = "NVIDIA H100 80GB HBM3 MIG {}"
    slices = [
        Card("MIG-1", name.format("3g.40gb"), 40 * GIB, instance=(1, 0)),
        Card("MIG-2", name.format("2c.3g.40gb"), 40 * GIB, instance=(2, 0)),
        Card("MIG-3", name.format("1c.3g.40gb"), 40 * GIB, instance=(2, 1)),
    ]
    return FakeDriver(tmp_path, Card("GPU-a", mig=True, slices=slices), Card("GPU-b"))


def test_slices_are_devices_and_their_card_is_none(sliced: FakeDriver) -> None:
    with Observer(sliced) as observer:
        lent = observer.inventory()
    assert [(d.index, d.uuid, d.type, d.lent_mib, d.is_slice) for d in lent.devices] == [
        (0, "MIG-1", "H100-MIG-3g.40gb", 40 * 1024, True),
        (1, "MIG-2", "H100-MIG-2c.3g.40gb", 40 * 1024, True),  # MIG-3 shares its memory
        (2, "GPU-b", "H100", 80 * 1024, False),
    ]


def test_memory_and_processes_of_slices(sliced: FakeDriver, engine: Watched, sleeper: Callable[..., int]) -> None:
    first, second, _ = sliced.cards[0].slices
    stranger = sleeper()
    first.hold(engine.engine_pid, 12 * GIB)
    second.hold(stranger, 3 * GIB)
    sliced.write()
    with Observer(sliced) as observer:
        report = observer.take([engine])
    assert report.measured == {A: Measured({0: 12 * GIB})}
    assert [(each.index, each.pid) for each in report.foreign] == [(1, stranger)]
    assert [reading.free_bytes // GIB for reading in report.readings] == [28, 37, 80]
    joined = News(report.inventory).of(report)[0]
    assert isinstance(joined, NodeJoined)
    assert [device.is_slice for device in joined.node.devices] == [True, True, False]


def test_what_befalls_a_card_befalls_its_slices(sliced: FakeDriver) -> None:
    with Observer(sliced) as observer:
        news = News(observer.inventory())
        news.of(observer.take())
        sliced.cards[0].recovery = 1
        sliced.write()
        assert news.of(observer.take()) == [DeviceLost(DeviceId("one/0")), DeviceLost(DeviceId("one/1"))]
        sliced.cards[0].recovery = 0
        sliced.write()
        assert len(news.of(observer.take())) == 2
        sliced.cards[0].slices.pop(0)
        sliced.write()
        assert news.of(observer.take()) == [DeviceLost(DeviceId("one/0"))], "somebody made other slices of it"
