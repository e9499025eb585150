"""What the agent of a node does for engines that are about to start there: turns, and memory that is really back,
also from engines that have gone to sleep.

Rules of this file: a turn ends when its runner says so or dies. An agent that was restarted learns from the
allocator's first answer who has a turn; those who waited ask again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

from rayscheduler.cluster.deaths import Deaths
from rayscheduler.cluster.reports import AgentReport, Watched
from rayscheduler.cluster.room import in_words, lost, not_given_back, shortages
from rayscheduler.cluster.start_turns import StartTurns
from rayscheduler.core.types import ReplicaId

FIRST_LOOK_S, LOOK_PAUSE_MAX_S = 0.020, 0.500


class EngineStarts:
    """`take_reading` blocks for some milliseconds; `watched` are the runners that the agent knows of."""

    def __init__(
        self, take_reading: Callable[[Sequence[Watched]], AgentReport], watched: Callable[[], Sequence[Watched]]
    ) -> None:
        self._take_reading = take_reading
        self._watched = watched
        self._turns = StartTurns()
        self._deaths: Deaths[ReplicaId] = Deaths(self._turns.end)
        self._adopted: set[ReplicaId] | None = None  # None: nobody has said yet who has a turn

    async def take_turn(self, replica: ReplicaId, runner_pid: int, indices: Iterable[int]) -> bool:
        """Wait until no engine that came before is starting on any of these devices. False: it was ended."""
        self._deaths.forget(replica)
        self._deaths.watch(replica, runner_pid)
        return await self._turns.take(replica, indices)

    def end_turn(self, replica: ReplicaId) -> None:
        self._deaths.forget(replica)
        self._turns.end(replica)

    def now_watched(self, watched: Sequence[Watched]) -> None:
        """What the allocator says: of a new agent, who has a turn; later, who of those has it no longer."""
        profiling = {each.replica: each for each in watched if each.profiling}
        if self._adopted is None:
            self._adopted = set(profiling)
            for each in profiling.values():
                self._turns.adopt(each.replica, each.device_bytes)
                self._deaths.watch(each.replica, each.runner_pid)
        for replica in self._adopted - profiling.keys():
            self.end_turn(replica)
        self._adopted &= profiling.keys()

    async def await_room(self, replica: ReplicaId, needed: Mapping[int, int], timeout_s: float) -> str:
        """Wait until `needed` (bytes by device index) is free for it. "", or after the time why it is not."""
        begun_s = time.monotonic()
        pause_s = FIRST_LOOK_S
        while True:
            watched = self._watched()
            report = await asyncio.to_thread(self._take_reading, watched)
            if gone := lost(report, needed):
                index, why = next(iter(gone.items()))
                return f"{replica} was to start on device {index}, which is lost: {why}"
            short = shortages(report, replica, needed, watched)
            waited_s = time.monotonic() - begun_s
            if not short:
                return ""
            if waited_s >= timeout_s:
                return in_words(short[0], report, replica, watched, waited_s)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, LOOK_PAUSE_MAX_S)

    async def await_shrunk(self, replica: ReplicaId, kept: Mapping[int, int], timeout_s: float) -> str:
        """Wait until it holds no more than `kept` (bytes by device index). "", or after the time how much it does."""
        begun_s = time.monotonic()
        pause_s = FIRST_LOOK_S
        while True:
            watched = self._watched()
            report = await asyncio.to_thread(self._take_reading, watched)
            too_much = not_given_back(report, replica, kept, watched)
            if not too_much or time.monotonic() - begun_s >= timeout_s:
                return too_much
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, LOOK_PAUSE_MAX_S)
