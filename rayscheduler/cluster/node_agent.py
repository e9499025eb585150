"""The agent of a node: it measures what engines and other programs hold, and sees runners die.

Rules of this file: it decides nothing. A death is reported when everything that the dead runner started
is gone. It forgets nothing that matters when it is restarted: the allocator's answer to each report is
the whole list of what to watch.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress

from rayscheduler.cluster.allocator_line import AllocatorAway, AllocatorLine
from rayscheduler.cluster.deaths import Deaths
from rayscheduler.cluster.drivers import gpus
from rayscheduler.cluster.engine_starts import EngineStarts
from rayscheduler.cluster.inventory import NodeInventory
from rayscheduler.cluster.measuring import Measuring
from rayscheduler.cluster.reports import AgentReport, SizeAnswer, SizeQuestion, Watched
from rayscheduler.cluster.sizing import size_up
from rayscheduler.cluster.warm_workers import keep_one
from rayscheduler.core.types import ReplicaId
from rayscheduler.engines.containers import sweep
from rayscheduler.engines.orphans import marked_processes, start_time

REPORT_EVERY_S = 1.0
WARM_EVERY_S = 5.0
FIRST_LOOK_S, LOOK_PAUSE_MAX_S = 0.010, 0.250

logger = logging.getLogger(__name__)


class NodeAgent:
    """An actor on each node that lends. `resources`: the node's totals in Ray."""

    async def __init__(  # type: ignore[misc]
        self, node_id: str, raylet_address: str, resources: Mapping[str, float]
    ) -> None:
        self._node_id = node_id
        self._raylet_pid = os.getppid()
        self._raylet_address = raylet_address
        self._line = AllocatorLine()
        self._measuring = Measuring(resources, await self._known())
        self._watched: dict[tuple[ReplicaId, str], Watched] = {}
        self._deaths: Deaths[tuple[ReplicaId, str]] = Deaths(lambda key: self._spawn(self._died(key)))
        self._starts = EngineStarts(self._measuring.take, lambda: list(self._watched.values()))
        self._tasks: set[asyncio.Task[None]] = set()
        await asyncio.to_thread(sweep)
        self._spawn(self._report_forever())
        self._spawn(self._keep_warm())

    async def warm_up(self) -> None:
        """See to it that the next runner on this node finds a worker process."""
        await asyncio.to_thread(keep_one, self._raylet_address)

    async def kill(self, runner_pid: int, runner_started: int) -> None:
        """End a runner or follower that does not obey, with SIGKILL; its death is then reported like any other."""
        with suppress(ProcessLookupError):
            if start_time(runner_pid) == runner_started:
                os.kill(runner_pid, signal.SIGKILL)

    async def size_up(self, question: SizeQuestion) -> SizeAnswer:
        """What a replica would take, by what the model's files on this node say."""
        return await asyncio.to_thread(size_up, question)

    async def confirm_gone(self, replica: ReplicaId, runner_pid: int, runner_started: int) -> bool:
        """Whether this runner or follower is gone, and all of its engine; what it left behind is ended."""
        return await asyncio.to_thread(_is_gone, replica, runner_pid, runner_started)

    async def take_turn(self, replica: ReplicaId, runner_pid: int, indices: Sequence[int]) -> bool:
        """Wait for the turn of an engine that profiles free memory to start on these devices; see start_turns.py."""
        return await self._starts.take_turn(replica, runner_pid, indices)

    async def end_turn(self, replica: ReplicaId) -> None:
        self._starts.end_turn(replica)

    async def await_room(self, replica: ReplicaId, needed: Mapping[int, int], timeout_s: float) -> str:
        """Wait until so many bytes are free on these devices: "", or after the time why they are not."""
        return await self._starts.await_room(replica, needed, timeout_s)

    async def await_shrunk(self, replica: ReplicaId, kept: Mapping[int, int], timeout_s: float) -> str:
        """Wait until it holds no more than that on these devices: "", or after the time how much it does."""
        return await self._starts.await_shrunk(replica, kept, timeout_s)

    async def memory_back(self, pids: Sequence[int], timeout_s: float) -> bool:
        """Whether no GPU counts any of these dead processes any more, within the time."""
        gone = set(pids)
        deadline_s = time.monotonic() + timeout_s
        pause_s = FIRST_LOOK_S
        while any(not gone.isdisjoint(gpu.held_bytes) for gpu in await asyncio.to_thread(gpus)):
            if time.monotonic() > deadline_s:
                return False
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, LOOK_PAUSE_MAX_S)
        return True

    async def _known(self) -> NodeInventory | None:
        """What an agent before this one told of the node: its devices keep their numbers."""
        try:
            known: NodeInventory | None = await self._line.ask_once("known_inventory", self._node_id)
        except AllocatorAway:
            return None
        return known

    async def _keep_warm(self) -> None:
        """Others start workers, too, and may take the one that was kept."""
        while True:
            await self.warm_up()
            await asyncio.sleep(WARM_EVERY_S)

    async def _report_forever(self) -> None:
        while True:
            due_s = time.monotonic() + REPORT_EVERY_S
            try:
                report: AgentReport = await asyncio.to_thread(self._measuring.take, list(self._watched.values()))
                self._watch(await self._line.ask_once("node_report", self._node_id, report))
            except AllocatorAway:
                pass
            except Exception:
                logger.exception("a report of node %s failed", self._node_id)
            await asyncio.sleep(max(0.05, due_s - time.monotonic()))

    def _watch(self, wanted: Sequence[Watched]) -> None:
        """From now on watch exactly these."""
        now = {(watched.replica, watched.incarnation): watched for watched in wanted}
        for key in self._deaths.watched - now.keys():
            self._deaths.forget(key)
        for key in now.keys() - self._deaths.watched:
            self._deaths.watch(key, now[key].runner_pid)
        self._watched = now
        self._starts.now_watched(wanted)

    async def _died(self, key: tuple[ReplicaId, str]) -> None:
        await asyncio.to_thread(sweep)
        if os.getppid() == self._raylet_pid:  # else the node dies, which is for Ray to say
            await self._line.ask("runner_died", *key, self._node_id)

    def _spawn(self, work: object) -> None:
        task = asyncio.ensure_future(work)  # type: ignore[call-overload]
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _is_gone(replica: ReplicaId, runner_pid: int, runner_started: int) -> bool:
    if start_time(runner_pid) == runner_started:
        return False  # it might start an engine yet
    sweep()
    return not any(each.replica == replica and each.runner_pid == runner_pid for each in marked_processes())
