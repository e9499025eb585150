"""Turns to start engines, and the memory that has to be back before one starts."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import pytest

from rayscheduler.cluster.engine_starts import EngineStarts
from rayscheduler.cluster.inventory import NodeInventory
from rayscheduler.cluster.reports import AgentReport, DeviceReading, ForeignProcess, Measured, Watched
from rayscheduler.cluster.room import Shortage, in_words, shortages
from rayscheduler.cluster.start_turns import StartTurns
from rayscheduler.core.types import Backend, ReplicaId

GIB = 2**30
MIB = 2**20
A, B, C, D = (ReplicaId(f"{name}#1") for name in "abcd")
WITHIN_S = 10.0


class Waiting:
    """One that asks for its turn."""

    def __init__(self, turns: StartTurns, replica: ReplicaId, *indices: int) -> None:
        self._asking = asyncio.ensure_future(turns.take(replica, indices))

    async def answer(self) -> bool:
        return await asyncio.wait_for(self._asking, WITHIN_S)

    async def waits(self) -> bool:
        """Whether it has not been answered once everybody had a chance to."""
        for _ in range(5):
            await asyncio.sleep(0)
        return not self._asking.done()


# -- turns ----------------------------------------------------------------------------------------


async def test_one_at_a_time_on_a_device() -> None:
    turns = StartTurns()
    first, second, elsewhere = Waiting(turns, A, 0), Waiting(turns, B, 0), Waiting(turns, C, 1)
    assert await first.answer()
    assert await elsewhere.answer()
    assert await second.waits()
    turns.end(A)
    assert await second.answer()


async def test_nobody_overtakes_who_waits_for_a_device_of_his() -> None:
    """B waits for 0 and 1; without a queue, C and whoever comes after would keep 1 for ever."""
    turns = StartTurns()
    await Waiting(turns, A, 0).answer()
    both, late = Waiting(turns, B, 0, 1), Waiting(turns, C, 1)
    assert await both.waits()
    assert await late.waits()
    turns.end(A)
    assert await both.answer()
    assert await late.waits()
    turns.end(B)
    assert await late.answer()


async def test_one_that_gives_up_is_told_so_and_makes_way() -> None:
    turns = StartTurns()
    await Waiting(turns, A, 0).answer()
    second, third = Waiting(turns, B, 0), Waiting(turns, C, 0)
    assert await second.waits()
    turns.end(B)
    assert not await second.answer()
    turns.end(A)
    assert await third.answer()


async def test_to_ask_or_to_end_twice_changes_nothing() -> None:
    turns = StartTurns()
    await Waiting(turns, A, 0).answer()
    assert await Waiting(turns, A, 0).answer()
    second = Waiting(turns, B, 0)
    turns.end(C)
    assert await second.waits()
    turns.end(A)
    turns.end(A)
    assert await second.answer()
    assert turns.having() == [B]


# -- room -----------------------------------------------------------------------------------------


def report(free: int, measured: dict[ReplicaId, int] | None = None, *foreign: ForeignProcess) -> AgentReport:
    """One device of 80 GiB."""
    inventory = NodeInventory("here", Backend.NVIDIA, ())
    held = {replica: Measured({0: size}) for replica, size in (measured or {}).items()}
    return AgentReport(inventory, (DeviceReading(0, 0, 0, free),), held, foreign)


def runs(replica: ReplicaId, reserved: int, engine_pid: int = 7) -> Watched:
    return Watched(replica, "x", 6, engine_pid, {0: reserved})


def test_room_is_what_is_free_and_promised_to_nobody() -> None:
    loading, loaded = runs(B, 30 * GIB), runs(C, 20 * GIB)
    seen = report(50 * GIB, {B: 10 * GIB, C: 21 * GIB})
    assert shortages(seen, A, {0: 30 * GIB}, [loading, loaded]) == []
    assert shortages(seen, A, {0: 31 * GIB}, [loading, loaded]) == [Shortage(0, 31 * GIB, 50 * GIB, 20 * GIB)]
    assert shortages(seen, B, {0: 50 * GIB}, [loading, loaded]) == [], "what is promised to itself is no obstacle"


def test_room_is_signed() -> None:
    """What is promised may exceed what is free: that is a shortage, and no huge number."""
    (short,) = shortages(report(GIB, {B: 0}), A, {0: GIB}, [runs(B, 40 * GIB)])
    assert short.free_bytes - short.promised_bytes - short.needed_bytes == -40 * GIB


def test_what_the_ledger_does_not_hear_of_is_no_shortage() -> None:
    assert shortages(report(80 * GIB - 64 * MIB), A, {0: 80 * GIB}, []) == []
    assert len(shortages(report(80 * GIB - 65 * MIB), A, {0: 80 * GIB}, [])) == 1


def test_engines_that_do_not_run_yet_or_are_not_told_of_promise_nothing() -> None:
    others = [runs(B, 40 * GIB, engine_pid=0), runs(C, 40 * GIB)]
    assert shortages(report(30 * GIB), A, {0: 30 * GIB}, others) == []


def test_who_holds_what_is_said_in_one_line() -> None:
    programs = [
        ForeignProcess(0, 9, 20 * GIB, "python3", "bob"),
        ForeignProcess(0, 10, None),
        ForeignProcess(0, 11, GIB, "worker", "root", "old#3"),
        *(ForeignProcess(0, 20 + n, n, "x", "y") for n in range(2)),
        ForeignProcess(1, 99, 50 * GIB, "elsewhere"),
    ]
    seen = report(10 * GIB, {B: 30 * GIB}, *programs)
    watched = [runs(B, 40 * GIB), runs(A, 25 * GIB), runs(D, 5 * GIB)]
    (short,) = shortages(seen, A, {0: 25 * GIB}, watched)
    assert in_words(short, seen, A, watched, 30.2) == (
        "a#1 needs 25.0 GiB of device 0, where 10.0 GiB are free, 10.0 GiB of them promised to engines that do not "
        "hold them yet after 30 s of waiting: b#1 holds 30.0 GiB of 40.0 GiB reserved; d#1 holds an unknown part of "
        "5.0 GiB reserved; python3 (pid 9, user bob) holds 20.0 GiB; worker (pid 11, left by old#3) holds 1.0 GiB; "
        "x (pid 21, user y) holds 0 MiB; 2 more programs hold memory; end what should not be there, or lend less of "
        "the device (rayscheduler resources --lend)"
    )


# -- the agent's side -----------------------------------------------------------------------------


@dataclass
class Node:
    """The starts of one node; `reports` are read one after the other, the last one for ever."""

    reports: list[AgentReport] = field(default_factory=list)
    watched: list[Watched] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.starts = EngineStarts(self.take, lambda: self.watched)

    def take(self, watched: Sequence[Watched]) -> AgentReport:
        return self.reports.pop(0) if len(self.reports) > 1 else self.reports[0]


@pytest.fixture
def runner() -> Iterator[subprocess.Popen[bytes]]:
    """A process that can die."""
    process = subprocess.Popen(["sleep", "600"])
    yield process
    process.kill()
    process.wait()


async def test_memory_that_comes_back_is_waited_for() -> None:
    node = Node([report(10 * GIB), report(19 * GIB), report(60 * GIB)])
    assert await node.starts.await_room(A, {0: 20 * GIB}, WITHIN_S) == ""
    assert len(node.reports) == 1


async def test_memory_that_does_not_come_back_is_said() -> None:
    node = Node([report(10 * GIB, {}, ForeignProcess(0, 9, 70 * GIB, "python3", "bob"))])
    why = await node.starts.await_room(A, {0: 20 * GIB}, 0.05)
    assert "a#1 needs 20.0 GiB of device 0, where 10.0 GiB are free" in why
    assert "python3 (pid 9, user bob) holds 70.0 GiB" in why
    assert "\n" not in why


async def test_a_lost_device_is_not_waited_for() -> None:
    inventory = NodeInventory("here", Backend.NVIDIA, (), missing={0: "Xid 79, the GPU has fallen off the bus"})
    why = await Node([AgentReport(inventory)]).starts.await_room(A, {0: GIB}, WITHIN_S)
    assert why == "a#1 was to start on device 0, which is lost: Xid 79, the GPU has fallen off the bus"


async def test_pretended_devices_have_room() -> None:
    inventory = NodeInventory("here", Backend.NVIDIA, (), simulated=True)
    assert await Node([AgentReport(inventory)]).starts.await_room(A, {0: GIB}, WITHIN_S) == ""


async def test_the_turn_of_a_runner_that_dies_ends(runner: subprocess.Popen[bytes]) -> None:
    starts = Node().starts
    assert await starts.take_turn(A, runner.pid, [0])
    second = asyncio.ensure_future(starts.take_turn(B, runner.pid, [0]))
    await asyncio.sleep(0)
    assert not second.done()
    starts.end_turn(B)
    assert not await asyncio.wait_for(second, WITHIN_S)
    waiting = asyncio.ensure_future(starts.take_turn(C, 1, [0]))
    runner.kill()
    assert await asyncio.wait_for(waiting, WITHIN_S)
    starts.end_turn(C)


async def test_a_new_agent_learns_who_has_a_turn(runner: subprocess.Popen[bytes]) -> None:
    starts = Node().starts
    loading = replace(runs(A, GIB), profiling=True, runner_pid=runner.pid)
    starts.now_watched([loading, runs(B, GIB)])
    waiting = asyncio.ensure_future(starts.take_turn(C, runner.pid, [0]))
    await asyncio.sleep(0)
    assert not waiting.done()
    starts.now_watched([loading])
    await asyncio.sleep(0)
    assert not waiting.done()
    starts.now_watched([replace(loading, profiling=False)])
    assert await asyncio.wait_for(waiting, WITHIN_S)
    starts.now_watched([replace(loading, profiling=True)])
    starts.now_watched([])
    assert starts._turns.having() == [C], "later answers are no news of turns"
    starts.end_turn(C)
