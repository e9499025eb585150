"""The last decisions, each with its reason, as people and programs read them.

Rules of this file: the keys are those of `simulate --json` (SCENARIOS.md), and `serial`, `at`, `why`.
"""

from __future__ import annotations

import time
from collections import deque
from itertools import islice
from typing import Any

from rayscheduler.core.decisions import Decision, Grant, Reject, StartReplica, StopReplica
from rayscheduler.core.types import StopReason

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


class Journal:
    def __init__(self) -> None:
        self._entries: deque[dict[str, Any]] = deque(maxlen=KEPT_MAX)
        self.counters: dict[str, int] = {"starts": 0, "stops": 0, "evictions": 0, "grants": 0, "rejects": 0}

    def note(self, decision: Decision, serial: int) -> None:
        entry = _told(decision)
        self.counters[f"{entry['decision']}s"] += 1
        if entry.get("reason") == StopReason.EVICTED:
            self.counters["evictions"] += 1
        self._entries.append({"serial": serial, "at": round(time.time(), 3), **entry})

    def latest(self, limit: int, subject: str | None) -> list[dict[str, Any]]:
        """The last ones, newest first. `subject`: only those about this model, replica or request."""
        found = (entry for entry in reversed(self._entries) if subject is None or _is_about(entry, subject))
        return list(islice(found, max(0, limit)))


def _is_about(entry: dict[str, Any], subject: str) -> bool:
    return subject in (entry.get(key) for key in ("model", "replica", "request", "for")) or subject in entry.get(
        "evicts", ()
    )


def _told(decision: Decision) -> dict[str, Any]:
    if isinstance(decision, StartReplica):
        place = decision.placement
        return {
            "decision": "start",
            "replica": decision.replica,
            "model": decision.model,
            "node": place.nodes[0] if len(place.nodes) == 1 else list(place.nodes),
            "devices": list(place.devices),
            "bytes": list(place.device_bytes),
            "evicts": list(decision.evicts),
            "why": decision.why,
        }
    if isinstance(decision, StopReplica):
        way = {"for": decision.makes_way_for} if decision.makes_way_for else {}
        why = decision.why or REASONS[decision.reason]
        head = {"decision": "stop", "replica": decision.replica, "model": decision.model}
        return {**head, "reason": str(decision.reason), **way, "why": why}
    if isinstance(decision, Grant):
        head = {"decision": "grant", "request": decision.request, "replica": decision.replica}
        return {**head, "model": decision.model, "why": f"{decision.replica} had a free lease"}
    assert isinstance(decision, Reject)
    return {
        "decision": "reject",
        "request": decision.request,
        "model": decision.model,
        "code": str(decision.code),
        "status": decision.status,
        "message": decision.message,
        "why": decision.message,
    }
