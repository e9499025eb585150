"""What one node lends, as its agent tells the allocator.

Rules of this file: values only; runners import it, and have to be quick.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from rayscheduler.core.types import Backend


@dataclass(frozen=True, slots=True)
class LentDevice:
    """A device and how much of it is lent. `uuid` is what an engine's environment names it by.

    `whole_mib`: all that it has, lent or not; 0 if it is pretended.
    `is_slice`: it is a part of a GPU (MIG). `compute_capability`: `9.0` or `gfx942`, "" unknown.
    """

    index: int
    lent_mib: int
    uuid: str = ""
    type: str = ""
    whole_mib: int = 0
    is_slice: bool = False
    compute_capability: str = ""


@dataclass(frozen=True, slots=True)
class NodeInventory:
    """All that one node lends: the devices that its resources name and that were there when it was first looked at.

    `missing`: those that cannot be used now, by index, and why. `driver`: as `NVIDIA 580.65.06`.
    """

    hostname: str
    backend: Backend
    devices: tuple[LentDevice, ...]
    simulated: bool = False
    memory_bytes: int | None = None
    missing: Mapping[int, str] = field(default_factory=dict)
    driver: str = ""

    @property
    def kind(self) -> str:
        return "cpu" if self.backend is Backend.CPU else "gpu"
