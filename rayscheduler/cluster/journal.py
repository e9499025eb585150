"""The last decisions, each with its reason, as people and programs read them.

Rules of this file: the keys are those of `simulate --json`, and `serial`, `number`, `at`, `why`, `refusals`.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from heapq import merge
from itertools import islice
from typing import Any

from rayscheduler.core.decisions import Decision, Grant, Reject, SleepReplica, StartReplica, StopReplica, WakeReplica
from rayscheduler.core.types import StopReason
from rayscheduler.simulation.lines import line_of
from rayscheduler.simulation.simulate import refusal_object

KEPT_MAX = 1_000
REASONS = {
    StopReason.EVICTED: "its room is wanted for another model",
    StopReason.IDLE: "nobody has used it for its idle_timeout",
    StopReason.UNLOADED: "an operator unloaded its model",
    StopReason.MODEL_REMOVED: "its model is not in the catalog any more",
    StopReason.NODE_LOST: "its node is gone",
    StopReason.DEVICE_LOST: "its device is gone",
    StopReason.LOAD_FAILED: "it could not be loaded",
    StopReason.CRASHED: "it ended unasked",
    StopReason.MEMORY_PRESSURE: "other programs took memory of its device",
    StopReason.SHUTDOWN: "the service is shutting down",
    StopReason.ABANDONED: "nobody waits for it any more and its room is wanted",
}


_COUNTERS = {
    StartReplica: "starts",
    StopReplica: "stops",
    SleepReplica: "sleeps",
    WakeReplica: "wakes",
    Grant: "grants",
    Reject: "rejects",
}


@dataclass(frozen=True, slots=True)
class Entry:
    """Put into words only when somebody asks: a hundred starts at once are decided in no more time."""

    serial: int
    number: int
    at: float
    decision: Decision

    def told(self) -> dict[str, Any]:
        return {"serial": self.serial, "number": self.number, "at": self.at, **_told(self.decision)}


class Journal:
    """Grants are many, and kept apart: they must not push out what was loaded and evicted, and why."""

    def __init__(self) -> None:
        self._entries: deque[Entry] = deque(maxlen=KEPT_MAX)
        self._grants: deque[Entry] = deque(maxlen=KEPT_MAX)
        self._count = 0
        self.counters: dict[str, int] = dict.fromkeys((*_COUNTERS.values(), "evictions"), 0)

    def note(self, decision: Decision, serial: int) -> None:
        self.counters[_COUNTERS[type(decision)]] += 1
        if isinstance(decision, StopReplica) and decision.reason is StopReason.EVICTED:
            self.counters["evictions"] += 1
        self._count += 1
        kept = self._grants if isinstance(decision, Grant) else self._entries
        kept.append(Entry(serial, self._count, round(time.time(), 3), decision))

    def latest(self, limit: int, subject: str | None) -> list[dict[str, Any]]:
        """The last ones, newest first. `subject`: only those about this model, replica or request."""
        newest_first = merge(
            reversed(self._entries), reversed(self._grants), key=lambda entry: entry.number, reverse=True
        )
        found = (entry for entry in newest_first if subject is None or _is_about(entry.decision, subject))
        return [entry.told() for entry in islice(found, max(0, limit))]


def _is_about(decision: Decision, subject: str) -> bool:
    """A model's decisions are those about its replicas, too: also the stop of another that makes way for one."""
    if subject == decision.model:
        return True
    match decision:
        case StartReplica() | WakeReplica():
            return subject == decision.replica or subject in decision.evicts
        case StopReplica() | SleepReplica():
            way = decision.makes_way_for or ""
            return subject in (decision.replica, way, way.rpartition("#")[0])
        case Grant():
            return subject in (decision.request, decision.replica)
        case Reject():
            return subject == decision.request


def _told(decision: Decision) -> dict[str, Any]:
    line = line_of(decision, 0)
    del line["at_ms"]
    match decision:
        case StartReplica() | WakeReplica():
            told = {"refusals": [refusal_object(refusal) for refusal in decision.refusals]} if decision.refusals else {}
            return {**line, **told, "why": decision.why}
        case SleepReplica():
            return {**line, "why": decision.why}
        case StopReplica():
            return {**line, "why": decision.why or REASONS[decision.reason]}
        case Grant(_, replica, model):
            return {**line, "model": model, "why": f"{replica} had a free lease"}
        case Reject():
            return {**line, "model": decision.model, "why": decision.message}
