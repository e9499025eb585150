"""How many events the scheduler has handled, for those who wait for something new instead of sleeping."""

from __future__ import annotations

import asyncio
import time


class Progress:
    def __init__(self) -> None:
        self.serial = 0
        self._moved = asyncio.Event()

    def advance(self, count: int) -> None:
        self.serial += count
        moved, self._moved = self._moved, asyncio.Event()
        moved.set()

    async def next(self) -> None:
        """Returns when the scheduler has handled all that is in its mailbox now."""
        await self._moved.wait()

    async def past(self, serial: int, timeout_s: float) -> bool:
        """Whether more than `serial` events have been handled; waits for it up to `timeout_s`."""
        deadline_s = time.monotonic() + timeout_s
        while self.serial <= serial:
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                return False
            try:
                await asyncio.wait_for(self._moved.wait(), left_s)
            except asyncio.TimeoutError:
                return False
        return True
