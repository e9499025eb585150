"""Decisions as the JSON lines of a scenario's answer (the public format), one dictionary each."""

from __future__ import annotations

from typing import Any

from rayscheduler.core.decisions import Decision, Grant, Reject, SleepReplica, StartReplica, StopReplica, WakeReplica


def line_of(decision: Decision, at_ms: int) -> dict[str, Any]:
    """The decision as one line of `simulate --json`; bytes are whole, times in milliseconds."""
    match decision:
        case StartReplica(replica, model, placement, evicts) | WakeReplica(replica, model, placement, evicts=evicts):
            nodes = placement.nodes
            return {
                "at_ms": at_ms,
                "decision": "start" if isinstance(decision, StartReplica) else "wake",
                "replica": replica,
                "model": model,
                "node": nodes[0] if len(nodes) == 1 else list(nodes),
                "devices": list(placement.devices),
                "bytes": list(placement.device_bytes),
                "evicts": list(evicts),
            }
        case StopReplica(replica, model, reason, makes_way_for):
            line = {"at_ms": at_ms, "decision": "stop", "replica": replica, "model": model, "reason": reason.value}
            if makes_way_for is not None:
                line["for"] = makes_way_for
            return line
        case SleepReplica(replica, model, makes_way_for=makes_way_for):
            line = {"at_ms": at_ms, "decision": "sleep", "replica": replica, "model": model}
            if makes_way_for is not None:
                line["for"] = makes_way_for
            return line
        case Grant(request, replica):
            return {"at_ms": at_ms, "decision": "grant", "request": request, "replica": replica}
        case Reject(request, _, code, message):
            return {
                "at_ms": at_ms,
                "decision": "reject",
                "request": request,
                "code": code.value,
                "status": decision.status,
                "message": message,
            }
