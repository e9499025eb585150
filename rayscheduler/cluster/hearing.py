"""What the executor finds out, in its thread, brought to the allocator's loop.

Rules of this file: nothing is decided here.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from rayscheduler.cluster.reports import Turn
from rayscheduler.cluster.roster import Roster
from rayscheduler.core.types import ReplicaId

logger = logging.getLogger(__name__)


class Hearing:
    """`end` ends a replica that runs: its devices cannot be held for it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, roster: Roster, end: Callable[[ReplicaId], None]) -> None:
        self._loop = loop
        self._roster = roster
        self._end = end

    def start_failed(self, replica: ReplicaId, detail: str) -> None:
        self._loop.call_soon_threadsafe(self._roster.start_failed, replica, detail)

    def group_gone(self, replica: ReplicaId) -> None:
        self._loop.call_soon_threadsafe(self._roster.group_gone, replica)

    def devices_held(self, replica: ReplicaId, turn: Turn | None) -> None:
        self._loop.call_soon_threadsafe(self._roster.devices_held, replica, turn)

    def hold_failed(self, replica: ReplicaId, detail: str) -> None:
        logger.error("%s is ended: %s", replica, detail)
        self._loop.call_soon_threadsafe(self._end, replica)
