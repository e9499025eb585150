"""NVIDIA devices as NVML tells them: names, sizes, what is held on them and by which process.

Rules of this file: a machine without NVIDIA's library has no GPUs, which is no error. A device that NVML
cannot read any more is missing from the answer. Processes whose memory NVML does not tell count as 0.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

import pynvml


@dataclass(frozen=True, slots=True)
class Gpu:
    """`total_bytes`: what processes can have, without what the driver keeps for itself.
    `held_bytes`: by process id, as this machine's driver numbers processes."""

    index: int
    uuid: str
    name: str
    total_bytes: int
    used_bytes: int
    held_bytes: dict[int, int] = field(default_factory=dict)


_lock = threading.Lock()
_initialised = False


def gpus() -> tuple[Gpu, ...]:
    """All devices that can be read right now, by index; () without a driver."""
    with _lock:
        if not _initialise():
            return ()
        try:
            count = pynvml.nvmlDeviceGetCount()
        except pynvml.NVMLError:
            return ()
        found = (_read(index) for index in range(count))
        return tuple(gpu for gpu in found if gpu is not None)


def _initialise() -> bool:
    global _initialised
    if not _initialised:
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError:
            return False
        _initialised = True
    return True


def _read(index: int) -> Gpu | None:
    try:
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        total_bytes, used_bytes = _memory(handle)
        held: dict[int, int] = {}
        for process in pynvml.nvmlDeviceGetComputeRunningProcesses(handle):
            held[process.pid] = held.get(process.pid, 0) + (process.usedGpuMemory or 0)
        return Gpu(
            index, _text(pynvml.nvmlDeviceGetUUID(handle)), _text(pynvml.nvmlDeviceGetName(handle)),
            total_bytes, used_bytes, held,
        )  # fmt: skip
    except pynvml.NVMLError:
        return None


def _memory(handle: object) -> tuple[int, int]:
    """Total and used bytes, both without the driver's own share where the driver tells it."""
    try:
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2)
        return memory.total - memory.reserved, memory.used
    except (pynvml.NVMLError, AttributeError):
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
        return memory.total, memory.used


def _text(value: str | bytes) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
