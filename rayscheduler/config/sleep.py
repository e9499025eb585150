"""The key `sleep:` of a model: what a replica keeps while its weights rest in host memory, or that it never sleeps.

Rules of this file: how long sleeping and waking take is not said here, but by whoever knows: a scenario's
`simulate:`, or the engine.
"""

from __future__ import annotations

from typing import Any

from pydantic import ConfigDict, Field, model_validator

from rayscheduler.config.fields import Flag, Section, SizeOrZero, flag
from rayscheduler.config.values import Wrong, shown
from rayscheduler.core.types import SleepTraits


def _flag_or_mapping(schema: dict[str, Any]) -> None:
    mapping = dict(schema)
    schema.clear()
    schema["anyOf"] = [{"type": "boolean"}, mapping]


class SleepSection(Section):
    """What a replica keeps while its weights rest in host memory; `sleep: false`: it never sleeps."""

    model_config = ConfigDict(json_schema_extra=_flag_or_mapping)

    allowed: Flag = Field(default=True, examples=["true"])
    """May it sleep? `sleep: false` is short for `allowed: false`."""
    residue: SizeOrZero | None = None
    """Stays on each device while it sleeps; if left out, what its engine is known to keep, in scenarios nothing."""
    host_memory: SizeOrZero | None = None
    """What its weights take of each node's host memory; if left out, as much as its devices there give back."""

    @model_validator(mode="before")
    @classmethod
    def _short(cls, data: Any) -> Any:
        if isinstance(data, (dict, cls)):
            return data
        try:
            return {"allowed": flag(data)}
        except Wrong:
            what = f"{shown(data)} is neither true, false nor a mapping"
            raise Wrong(what, "write false, or for example {residue: 512MiB}") from None

    def traits(self, sleep_ms: int | None, wake_ms: int | None, residue_bytes: int = 0) -> SleepTraits | None:
        """As the core has them; None where it must not sleep, or nobody said that it can (both times are None).
        `residue_bytes`: what stays on each device where the entry does not say it."""
        if not self.allowed or (sleep_ms is None and wake_ms is None):
            return None
        residue = residue_bytes if self.residue is None else self.residue
        return SleepTraits(sleep_ms or 0, wake_ms or 0, residue, self.host_memory)
