"""AMD devices as AMD SMI tells them, for machines that have its Python package (`amdsmi`, part of ROCm).

Rules of this file: as of nvml.py. `amdsmi` comes with the driver and not from our dependencies, so it is looked
for when it is needed; whatever it raises means that it does not know.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any

from rayscheduler.cluster.gpu import Gpu
from rayscheduler.core.types import Backend

_lock = threading.Lock()
_loaded: ModuleType | None = None
_looked = False


def gpus() -> tuple[Gpu, ...]:
    """All devices that can be read right now, by index; () without a driver."""
    with _lock:
        smi = _library()
        if smi is None:
            return ()
        handles = _told(smi.amdsmi_get_processor_handles, [])
        found = (_read(smi, handle, index) for index, handle in enumerate(handles))
        return tuple(gpu for gpu in found if gpu is not None)


def driver_version() -> str:
    """`6.12.12`; "" without a driver."""
    with _lock:
        smi = _library()
        handles = [] if smi is None else _told(smi.amdsmi_get_processor_handles, [])
        if smi is None or not handles:
            return ""
        return str(_told(lambda: smi.amdsmi_get_gpu_driver_info(handles[0])["driver_version"], ""))


def _library() -> ModuleType | None:
    global _loaded, _looked
    if not _looked:
        _looked = True
        try:
            _loaded = importlib.import_module("amdsmi")
            _loaded.amdsmi_init()
        except Exception:  # there is no package, no driver, or no device
            _loaded = None
    return _loaded


def _read(smi: ModuleType, handle: Any, index: int) -> Gpu | None:
    memory = smi.AmdSmiMemoryType.VRAM
    total_bytes = _told(lambda: int(smi.amdsmi_get_gpu_memory_total(handle, memory)), None)
    used_bytes = _told(lambda: int(smi.amdsmi_get_gpu_memory_usage(handle, memory)), None)
    if total_bytes is None or used_bytes is None:
        return None
    asic = _told(lambda: dict(smi.amdsmi_get_gpu_asic_info(handle)), {})
    held = _told(lambda: dict(map(_holding, smi.amdsmi_get_gpu_process_list(handle))), None)
    return Gpu(
        index=index,
        uuid=_uuid(smi, handle, asic, index),
        name=str(asic.get("market_name", "AMD GPU")),
        total_bytes=total_bytes,
        used_bytes=used_bytes,
        held_bytes=held or {},
        backend=Backend.ROCM,
        tells_processes=held is not None,
        compute_capability=str(asic.get("target_graphics_version", "")),
    )


def _uuid(smi: ModuleType, handle: Any, asic: dict[str, Any], index: int) -> str:
    """As ROCR_VISIBLE_DEVICES takes it: `GPU-` and the 16 hex digits of the device's unique id, or its index."""
    told = str(_told(lambda: smi.amdsmi_get_gpu_enumeration_info(handle)["hip_uuid"], ""))
    if told.startswith("GPU-"):
        return told
    serial = str(asic.get("asic_serial", "")).lower().removeprefix("0x")
    is_id = 0 < len(serial) <= 16 and all(digit in "0123456789abcdef" for digit in serial)
    return f"GPU-{serial.zfill(16)}" if is_id else str(index)


def _holding(process: Any) -> tuple[int, int | None]:
    held = process.get("memory_usage", {}).get("vram_mem", process.get("mem"))
    return int(process["pid"]), held if isinstance(held, int) else None


def _told(ask: Callable[[], Any], unknown: Any) -> Any:
    try:
        return ask()
    except Exception:
        return unknown
