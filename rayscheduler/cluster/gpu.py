"""A GPU, or a slice of one, as its driver tells of it.

Rules of this file: values only; nvml.py and amd.py make them, drivers.py says whose this machine has.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from rayscheduler.core.types import Backend


@dataclass(frozen=True, slots=True)
class Gpu:
    """What can be lent as one device: a card, or a MIG device of one.

    `total_bytes`: what processes can have, without what the driver keeps for itself.
    `held_bytes`: by process id, as this machine's driver numbers processes; None: it does not tell how much.
    `tells_processes`: False where the driver does not say at all who uses the device.
    `compute_capability`: `9.0` on NVIDIA, `gfx942` on AMD, "" unknown.
    `slice_of`: the UUID of the card that this is a part of, "" for a whole one.
    `recovery`: what the driver wants before the device is of use again, "" nothing, None: it does not say.
    """

    index: int
    uuid: str
    name: str
    total_bytes: int
    used_bytes: int
    held_bytes: Mapping[int, int | None] = field(default_factory=dict)
    backend: Backend = Backend.NVIDIA
    tells_processes: bool = True
    compute_capability: str = ""
    slice_of: str = ""
    recovery: str | None = None

    @property
    def card(self) -> str:
        """The UUID of the card: faults and resets are a matter of the whole card."""
        return self.slice_of or self.uuid
