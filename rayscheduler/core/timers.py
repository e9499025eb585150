"""The instants at which something becomes due, without a clock: a heap that is asked, never waits.

Two kinds. A *condition* only makes another plan possible (patience, staleness, the end of a back-off): it
holds in every pass from its instant on. An *action* (a deadline, an idle timeout) is carried out after
everything else of its instant, so that news of the same instant comes first: it is due when `Woken`
arrives at that instant, or at any event after it.
"""

from __future__ import annotations

from heapq import heappop, heappush
from typing import Any


class Timers:
    def __init__(self) -> None:
        self._conditions: list[tuple[int, int, Any]] = []
        self._actions: list[tuple[int, int, Any]] = []
        self._count = 0

    def condition(self, at_ms: int, what: object) -> None:
        self._count += 1
        heappush(self._conditions, (at_ms, self._count, what))

    def action(self, at_ms: int, what: object) -> None:
        self._count += 1
        heappush(self._actions, (at_ms, self._count, what))

    def due_conditions(self, now_ms: int) -> list[Any]:
        return _popped(self._conditions, now_ms)

    def due_actions(self, until_ms: int) -> list[Any]:
        return _popped(self._actions, until_ms)

    def next_ms(self) -> int | None:
        tops = [heap[0][0] for heap in (self._conditions, self._actions) if heap]
        return min(tops) if tops else None


def _popped(heap: list[tuple[int, int, Any]], until_ms: int) -> list[Any]:
    due = []
    while heap and heap[0][0] <= until_ms:
        due.append(heappop(heap)[2])
    return due
