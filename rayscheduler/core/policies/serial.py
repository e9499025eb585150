"""`serial`: strict arrival order, one request in the system at a time, one model loaded at a time."""

from __future__ import annotations

from rayscheduler.core.types import ModelName


class Serial:
    strict = True
    has_rivals = True

    def rivals(self, loading: ModelName, other: ModelName) -> bool:
        return loading != other
