"""Turns to start an engine: on each device, one at a time of those that profile its free memory.

    take(a, {0}) ─► has it     take(b, {0, 1}) ─► waits     take(c, {1}) ─► waits: b was there before     end(a) ─► b

Rules of this file: asyncio, no I/O. Turns go by arrival, and nobody overtakes who waits for a device of his, so
each is served when those before it have ended. What ends twice, or never began, changes nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field

from rayscheduler.core.types import ReplicaId


@dataclass
class _Turn:
    replica: ReplicaId
    indices: frozenset[int]
    granted: bool = False
    settled: asyncio.Event = field(default_factory=asyncio.Event)


class StartTurns:
    def __init__(self) -> None:
        self._turns: list[_Turn] = []  # in order of arrival; those that have it are among them

    async def take(self, replica: ReplicaId, indices: Iterable[int]) -> bool:
        """Wait for a turn on all of these devices. False: it was ended while it waited."""
        turn = next((turn for turn in self._turns if turn.replica == replica), None)
        if turn is None:
            turn = _Turn(replica, frozenset(indices))
            self._turns.append(turn)
            self._grant()
        await turn.settled.wait()
        return turn.granted

    def adopt(self, replica: ReplicaId, indices: Iterable[int]) -> None:
        """It has its turn already, from somebody who did the same before."""
        self._turns.insert(0, _Turn(replica, frozenset(indices), granted=True))

    def end(self, replica: ReplicaId) -> None:
        """It does not need its turn any more, or does not wait for one."""
        for turn in [turn for turn in self._turns if turn.replica == replica]:
            self._turns.remove(turn)
            turn.settled.set()
        self._grant()

    def having(self) -> list[ReplicaId]:
        """Those that have their turn."""
        return [turn.replica for turn in self._turns if turn.granted]

    def _grant(self) -> None:
        taken: set[int] = set()
        for turn in self._turns:
            if not turn.granted and taken.isdisjoint(turn.indices):
                turn.granted = True
                turn.settled.set()
            taken |= turn.indices
