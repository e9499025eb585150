"""`fifo`: by priority, then arrival; requests for one model join one load; memory alone decides who may stay."""

from __future__ import annotations

from rayscheduler.core.types import ModelName


class Fifo:
    strict = False
    has_rivals = False

    def rivals(self, loading: ModelName, other: ModelName) -> bool:
        return False
