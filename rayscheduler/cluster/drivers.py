"""Whose GPUs this machine has: NVIDIA's if there is a driver of theirs, else AMD's.

Rules of this file: one node has one backend, as a node of the core has. A machine with both lends NVIDIA's.
"""

from __future__ import annotations

from rayscheduler.cluster import amd, nvml
from rayscheduler.cluster.gpu import Gpu


def gpus() -> tuple[Gpu, ...]:
    """All devices that can be read right now, by index; () without a driver."""
    return nvml.gpus() or amd.gpus()


def driver_version() -> str:
    """`NVIDIA 580.65.06`; "" without a driver."""
    for name, driver in (("NVIDIA", nvml), ("AMD", amd)):
        if version := driver.driver_version():
            return f"{name} {version}"
    return ""
