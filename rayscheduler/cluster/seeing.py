"""What is seen of one model in a snapshot: by who waits for its load, and by who is told when to come back.

Rules of this file: pure.
"""

from __future__ import annotations

from typing import Any

from rayscheduler.core.lifecycle import COMING, State
from rayscheduler.core.types import ModelName, Snapshot


def seen(snapshot: Snapshot, name: ModelName) -> dict[str, Any]:
    """Its replicas and its failures. `there`: it runs or will; `error`: why it does not."""
    model = next((model for model in snapshot.models if model.model.name == name), None)
    mine = [replica for replica in snapshot.replicas if replica.model == name]
    return {
        "there": any(replica.state in (*COMING, State.RUNNING) for replica in mine),
        "running": [replica.id for replica in mine if replica.state == State.RUNNING],
        "failures": model.failures if model else 0,
        "wanted": model is not None and model.wanted,
        "backoff_until_ms": model.backoff_until_ms if model else None,
        "error": model.last_error if model else "it is not in the catalog any more",
    }
