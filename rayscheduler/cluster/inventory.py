"""What one node lends, as its agent tells the allocator.

Rules of this file: values only; runners import it, and have to be quick.
"""

from __future__ import annotations

from dataclasses import dataclass

from rayscheduler.core.types import Backend


@dataclass(frozen=True, slots=True)
class LentDevice:
    """A device and how much of it is lent. `uuid` is what an engine's environment names it by.

    `whole_mib`: all that it has, lent or not; 0 if it is pretended.
    """

    index: int
    lent_mib: int
    uuid: str = ""
    type: str = ""
    whole_mib: int = 0


@dataclass(frozen=True, slots=True)
class NodeInventory:
    """All that one node lends. `missing`: devices that its resources name and its hardware does not have."""

    hostname: str
    backend: Backend
    devices: tuple[LentDevice, ...]
    simulated: bool = False
    memory_bytes: int | None = None
    missing: tuple[int, ...] = ()

    @property
    def kind(self) -> str:
        return "cpu" if self.backend is Backend.CPU else "gpu"
