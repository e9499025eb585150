"""The allocator's mailbox: what has happened since it last looked, in the order in which it came.

Rules of this file: any number may put, one takes; all on one event loop. Nothing is dropped.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable

from rayscheduler.core.events import Event, Woken


def now_ms() -> int:
    """Milliseconds on this machine's monotonic clock: the only clock that the scheduler sees."""
    return time.monotonic_ns() // 1_000_000


class Mailbox:
    def __init__(self) -> None:
        self._events: list[Event] = []
        self._something_came = asyncio.Event()

    def put(self, *events: Event) -> None:
        self.put_all(events)

    def put_all(self, events: Iterable[Event]) -> None:
        self._events.extend(events)
        if self._events:
            self._something_came.set()

    async def take(self, wake_at_ms: int | None) -> list[Event]:
        """Everything that came; waits for something, or until `wake_at_ms`: then it is `Woken`."""
        if not self._events:
            timeout_s = None if wake_at_ms is None else max(0, wake_at_ms - now_ms()) / 1000
            try:
                await asyncio.wait_for(self._something_came.wait(), timeout_s)
            except asyncio.TimeoutError:
                return [Woken()]
        return self.now_there()

    def now_there(self) -> list[Event]:
        """Everything that came, without waiting."""
        events, self._events = self._events, []
        self._something_came.clear()
        return events
