"""Waiting with a bound that never loses a cancellation.

`asyncio.wait_for` does before Python 3.12: cancelled in the moment in which its work is done, it returns the
result and the cancellation is gone. A request whose client has hung up would go on as if nothing had happened.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

T = TypeVar("T")


async def within(seconds: float | None, work: Awaitable[T]) -> T:
    """The result of `work`. asyncio.TimeoutError when it takes longer (None: it never does); it is cancelled then."""
    task = asyncio.ensure_future(work)
    try:
        done, _ = await asyncio.wait({task}, timeout=seconds)
    except asyncio.CancelledError:
        task.add_done_callback(_looked_at)
        task.cancel()
        raise
    if not done:
        task.cancel()
        raise asyncio.TimeoutError
    return task.result()


def _looked_at(task: asyncio.Future[T]) -> None:
    """What failed in the moment in which nobody wanted it any more is no news."""
    if not task.cancelled():
        task.exception()
