"""NVIDIA devices as NVML tells them: names, sizes, what is held on them and by which process; and their faults.

    a card                     one device
    a card in MIG mode         one device for each of its GPU instances, and none for the card itself

Rules of this file: a machine without NVIDIA's library has no GPUs, which is no error. A device that NVML
cannot read any more is missing from the answer. What an older driver does not offer is told as unknown; process
lists are asked for by version, since pynvml refuses the plain names on drivers older than itself. NVML learns
of cards that came back only when it is initialised anew, which is done while some card is missing.
"""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pynvml

from rayscheduler.cluster.gpu import Gpu

AGAIN_AFTER_S, AGAIN_AFTER_MAX_S = 5.0, 160.0

# Of `nvmlDeviceGpuRecoveryAction_t` (nvml.h), those without which the device is of no use. Draining peer-to-peer
# traffic alone (3) leaves it usable.
_RECOVERY = {
    1: "a reset of the GPU",
    2: "a reboot of the machine",
    4: "a drain and a reset of the GPU",
    6: "a reset of its bus",
    7: "a reboot of the system",
}


class StaleWatch(Exception):
    """Events do not come to this watch any more: make another."""


class _Library:
    """The one NVML of this process, its locks, and when it was last initialised anew."""

    def __init__(self) -> None:
        self.reading = threading.Lock()
        self.waiting = threading.Lock()  # held while somebody waits for events: NVML must not be shut down then
        self.closing = False  # whoever waits for events is to stop
        self.initialised = False
        self.generation = 0
        self._cards_max = 0
        self._again_s = 0.0
        self._pause_s = AGAIN_AFTER_S

    def initialise(self) -> bool:
        if not self.initialised:
            try:
                pynvml.nvmlInit()
            except pynvml.NVMLError:
                return False
            self.initialised = True
            self.generation += 1
        return True

    def count_cards(self, readable: int) -> None:
        """If a card is missing that was there before: begin anew next time, less and less often."""
        if readable >= self._cards_max:
            self._cards_max, self._pause_s, self._again_s = readable, AGAIN_AFTER_S, 0.0
            return
        now_s = time.monotonic()
        if not self._again_s:
            self._again_s = now_s + self._pause_s
        elif now_s >= self._again_s:
            self.closing = True
            with self.waiting, suppress(pynvml.NVMLError):
                pynvml.nvmlShutdown()
            self.initialised = self.closing = False
            self._pause_s = min(2 * self._pause_s, AGAIN_AFTER_MAX_S)
            self._again_s = now_s + self._pause_s


_library = _Library()


def gpus() -> tuple[Gpu, ...]:
    """All devices that can be read right now, by index; () without a driver."""
    with _library.reading:
        if not _library.initialise():
            return ()
        try:
            count = pynvml.nvmlDeviceGetCount()
        except pynvml.NVMLError:
            return ()
        found: list[Gpu] = []
        index = readable = 0
        for card in range(count):
            devices = _devices(card, index)
            found += devices or ()
            readable += devices is not None
            index += max(1, len(devices or ()))
        _library.count_cards(readable)
        return tuple(found)


def driver_version() -> str:
    """`580.65.06`; "" without a driver."""
    with _library.reading:
        if not _library.initialise():
            return ""
        return str(_told(lambda: _text(pynvml.nvmlSystemGetDriverVersion()), ""))


class XidWatch:
    """Hears of the critical errors ("Xid") of all cards that are readable when it is made.

    Not for two threads at a time. StaleWatch: NVML was initialised anew, or gave up on a card.
    """

    def __init__(self) -> None:
        with _library.reading:
            if not _library.initialise():
                raise StaleWatch
            self._generation = _library.generation
            self._cards: dict[int, str] = {}
            try:
                self._set = pynvml.nvmlEventSetCreate()
                for card in range(pynvml.nvmlDeviceGetCount()):
                    with suppress(pynvml.NVMLError):  # it is lost, or too old to tell
                        self._register(pynvml.nvmlDeviceGetHandleByIndex(card))
            except pynvml.NVMLError as problem:
                raise StaleWatch from problem

    def wait(self, timeout_ms: int) -> tuple[str, int] | None:
        """The next error: UUID of the card and number of the Xid; None if there is none within the time."""
        if _library.closing:
            raise StaleWatch
        with _library.waiting:
            if not self._is_of_now():
                raise StaleWatch
            try:
                event = pynvml.nvmlEventSetWait(self._set, timeout_ms)
            except pynvml.NVMLError_Timeout:
                return None
            except pynvml.NVMLError as problem:
                raise StaleWatch from problem
        card = self._cards.get(_address(event.device), "")
        return (card, int(event.eventData)) if event.eventType == pynvml.nvmlEventTypeXidCriticalError else None

    @property
    def cards(self) -> frozenset[str]:
        """The UUIDs of those that it hears of."""
        return frozenset(self._cards.values())

    def close(self) -> None:
        with _library.waiting, suppress(pynvml.NVMLError):
            if self._is_of_now():
                pynvml.nvmlEventSetFree(self._set)

    def _is_of_now(self) -> bool:
        return _library.initialised and _library.generation == self._generation

    def _register(self, handle: Any) -> None:
        self._cards[_address(handle)] = _text(pynvml.nvmlDeviceGetUUID(handle))
        pynvml.nvmlDeviceRegisterEvents(handle, pynvml.nvmlEventTypeXidCriticalError, self._set)


def _devices(card: int, index: int) -> list[Gpu] | None:
    """What the card offers, numbered from `index`; None if it cannot be read."""
    try:
        handle = pynvml.nvmlDeviceGetHandleByIndex(card)
        in_mig_mode = _told(lambda: pynvml.nvmlDeviceGetMigMode(handle)[0], 0) == 1
        recovery = _recovery(handle)
        if not in_mig_mode:
            return [_read(handle, index, handle, "", recovery)]
        uuid = _text(pynvml.nvmlDeviceGetUUID(handle))
        slices = enumerate(_slices(handle))
        return [_read(each, index + offset, handle, uuid, recovery) for offset, each in slices]
    except pynvml.NVMLError:
        return None


def _slices(card: Any) -> Iterator[Any]:
    """The MIG devices of a card, one for each GPU instance: compute instances of one share its memory."""
    seen: set[int] = set()
    for number in range(pynvml.nvmlDeviceGetMaxMigDeviceCount(card)):
        try:
            handle = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(card, number)
        except pynvml.NVMLError_NotFound:
            continue
        instance = pynvml.nvmlDeviceGetGpuInstanceId(handle)
        if instance not in seen:
            seen.add(instance)
            yield handle


def _read(handle: Any, index: int, card: Any, slice_of: str, recovery: str | None) -> Gpu:
    total_bytes, used_bytes = _memory(handle)
    held = _held(handle)
    capability = _told(lambda: pynvml.nvmlDeviceGetCudaComputeCapability(card), None)
    return Gpu(
        index=index,
        uuid=_text(pynvml.nvmlDeviceGetUUID(handle)),
        name=_text(pynvml.nvmlDeviceGetName(handle)),
        total_bytes=total_bytes,
        used_bytes=used_bytes,
        held_bytes=held or {},
        tells_processes=held is not None,
        compute_capability="{}.{}".format(*capability) if capability else "",
        slice_of=slice_of,
        recovery=recovery,
    )


def _memory(handle: Any) -> tuple[int, int]:
    """Total and used bytes, both without the driver's own share where the driver tells it."""
    try:
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2)
        return memory.total - memory.reserved, memory.used
    except (pynvml.NVMLError_FunctionNotFound, pynvml.NVMLError_NotSupported, AttributeError):
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
        return memory.total, memory.used


def _held(handle: Any) -> dict[int, int | None] | None:
    """Bytes by process; None where this driver does not say who uses the device."""
    listed = _first_told(
        lambda: pynvml.nvmlDeviceGetComputeRunningProcesses_v3(handle),
        lambda: pynvml.nvmlDeviceGetComputeRunningProcesses_v2(handle),
    )
    if listed is None:
        return None
    held: dict[int, int | None] = {process.pid: process.usedGpuMemory for process in listed}
    # A process that draws and computes is in both lists, with all its bytes in each.
    drawing = _first_told(
        lambda: pynvml.nvmlDeviceGetGraphicsRunningProcesses_v3(handle),
        lambda: pynvml.nvmlDeviceGetGraphicsRunningProcesses_v2(handle),
    )
    for process in drawing or ():
        held.setdefault(process.pid, process.usedGpuMemory)
    return held


def _recovery(handle: Any) -> str | None:
    (told,) = _told(
        lambda: pynvml.nvmlDeviceGetFieldValues(handle, [pynvml.NVML_FI_DEV_GET_GPU_RECOVERY_ACTION]), [None]
    )
    if told is None or told.nvmlReturn != pynvml.NVML_SUCCESS:
        return None
    return _RECOVERY.get(told.value.uiVal, "")


def _first_told(*asks: Callable[[], Any]) -> Any:
    return next((answer for answer in (_told(ask, None) for ask in asks) if answer is not None), None)


def _told(ask: Callable[[], Any], unknown: Any) -> Any:
    """The answer, or `unknown` where this driver, device or pynvml has none. A lost device is still an error."""
    try:
        return ask()
    except (
        pynvml.NVMLError_FunctionNotFound, pynvml.NVMLError_NotSupported, pynvml.NVMLError_NoPermission,
        pynvml.NVMLError_InvalidArgument, AttributeError,
    ):  # fmt: skip
        return unknown


def _address(handle: Any) -> int:
    return ctypes.cast(handle, ctypes.c_void_p).value or 0


def _text(value: str | bytes) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
