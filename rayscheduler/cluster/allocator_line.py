"""The line from the actors on the nodes to the allocator: a call is repeated until it was answered.

Rules of this file: whatever is sent must be harmless when it arrives twice.
"""

from __future__ import annotations

import asyncio
from typing import Any

import ray
from ray.exceptions import RayActorError

from rayscheduler.cluster.names import ALLOCATOR, NAMESPACE

PAUSE_MIN_S, PAUSE_MAX_S = 0.02, 1.0


class AllocatorAway(Exception):
    """The allocator is restarting, or there is none."""


class AllocatorLine:
    def __init__(self) -> None:
        self._handle: Any = None

    async def ask_once(self, method: str, *args: object) -> Any:
        """One call. AllocatorAway if it was not answered."""
        try:
            if self._handle is None:
                self._handle = ray.get_actor(ALLOCATOR, namespace=NAMESPACE)
            return await getattr(self._handle, method).remote(*args)
        except (RayActorError, ValueError) as problem:  # ValueError: there is no actor of that name
            self._handle = None
            raise AllocatorAway(str(problem)) from None

    async def ask(self, method: str, *args: object) -> Any:
        """Call until it is answered, however long the allocator is away."""
        pause_s = PAUSE_MIN_S
        while True:
            try:
                return await self.ask_once(method, *args)
            except AllocatorAway:
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, PAUSE_MAX_S)
