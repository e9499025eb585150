"""What a node lends: its devices, as Ray's custom resources say it and as the hardware tells it.

    GPUs there?  yes: each lends its whole memory, or what `--lend` says (per GPU); one in MIG mode lends its slices
                 no:  the node lends half of its RAM, or what `--lend` says, as one device
    `--simulate-devices 4x80GiB`: pretended GPUs, marked by one more resource, for simulated engines only

Rules of this file: Ray's totals say how much is lent and nothing else does; a driver only adds what a device
is called. Bytes, and MiB where Ray is spoken to.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping, Sequence

import psutil

from rayscheduler.cluster.drivers import driver_version, gpus
from rayscheduler.cluster.gpu import Gpu
from rayscheduler.cluster.inventory import LentDevice, NodeInventory
from rayscheduler.cluster.names import SIMULATED_RESOURCE, device_of_resource, resource_name
from rayscheduler.config.units import size_bytes
from rayscheduler.config.values import Wrong
from rayscheduler.core.types import Backend
from rayscheduler.errors import RayschedulerError

MIB = 2**20
SIMULATED_TYPE = "simulated"
DEVICES_MAX = 1024

_SIMULATED = re.compile(r"([1-9][0-9]{0,3})x(.+)")
_NOISE = re.compile(r"NVIDIA|Tesla|GeForce|Quadro|Graphics|Device|AMD|Instinct|Radeon", re.IGNORECASE)
_FAMILY = ("RTX", "GTX", "TITAN", "GT", "RX", "PRO")
_SLICE = re.compile(r"\s+MIG\s+(\S+)$")


class ResourceError(RayschedulerError):
    """What this node is told to lend makes no sense."""

    def __init__(self, message: str) -> None:
        super().__init__(message, http_status=400, code="bad_resources")


def detect_devices(lend_bytes: int | None = None, simulate: str | None = None) -> NodeInventory:
    """What this machine can lend. `simulate`: devices to pretend instead, as `4x80GiB`.

    ResourceError: more is to be lent than there is, less than 1 MiB, or `simulate` cannot be read.
    """
    if simulate is not None:
        return _simulated(simulate)
    found = gpus()
    total_bytes = psutil.virtual_memory().total
    if not found:
        half = total_bytes // 2 if lend_bytes is None else lend_bytes
        lent = _lent_mib(half, total_bytes, "this machine's memory")
        return NodeInventory(socket.gethostname(), Backend.CPU, (_cpu(lent),), memory_bytes=lent * MIB)
    devices = tuple(
        _gpu(gpu, _lent_mib(lend_bytes, gpu.total_bytes, f"GPU {gpu.index}"))
        if lend_bytes is not None
        else _gpu(gpu, gpu.total_bytes // MIB)
        for gpu in found
    )
    backend = found[0].backend
    return NodeInventory(socket.gethostname(), backend, devices, memory_bytes=total_bytes, driver=driver_version())


def resources_json(inventory: NodeInventory) -> dict[str, int]:
    """The custom resources for `ray start --resources`: MiB by device."""
    resources = {resource_name(inventory.kind, d.index): d.lent_mib for d in inventory.devices}
    if inventory.simulated:
        resources[SIMULATED_RESOURCE] = 1
    return resources


def lends(resources: Mapping[str, float]) -> bool:
    """Whether a Ray node with these total resources lends any device."""
    return any(device_of_resource(name) is not None for name in resources)


def read_inventory(resources: Mapping[str, float], found: Sequence[Gpu]) -> NodeInventory:
    """What *this* node lends, by its total Ray resources and the GPUs that were found on it."""
    hostname = socket.gethostname()
    named = (device_of_resource(name) for name in resources)
    lent = {device: int(resources[resource_name(*device)]) for device in named if device is not None}
    gpu_mib = {index: mib for (kind, index), mib in sorted(lent.items()) if kind == "gpu"}
    total_bytes = psutil.virtual_memory().total
    if not gpu_mib:
        mib = lent.get(("cpu", 0), 0)
        lent_ram = (_cpu(mib),) if mib else ()
        return NodeInventory(hostname, Backend.CPU, lent_ram, memory_bytes=mib * MIB)
    if SIMULATED_RESOURCE in resources:
        return _pretended(gpu_mib)
    here = {gpu.index: gpu for gpu in found}
    devices = tuple(_gpu(here[index], mib) for index, mib in gpu_mib.items() if index in here)
    missing = {index: "its driver does not show it" for index in gpu_mib if index not in here}
    backend = found[0].backend if found else Backend.NVIDIA
    return NodeInventory(hostname, backend, devices, memory_bytes=total_bytes, missing=missing)


def device_type(name: str) -> str:
    """A GPU's short name, as catalogs write it: `H100` of `NVIDIA H100 80GB HBM3`, `RTX-4090`, `RTX-A6000`.

    A slice is a type of its own, since it is not as fast: `H100-MIG-1g.10gb`.
    """
    slice = _SLICE.search(name)
    if slice is not None:
        return f"{device_type(name[: slice.start()])}-MIG-{slice.group(1)}"
    words = [word for word in re.split(r"[\s-]+", _NOISE.sub("", name)) if word]
    if not words:
        return ""
    return "-".join(words[:2]) if words[0].upper() in _FAMILY else words[0]


def available_memory_bytes() -> int:
    """RAM that new processes could have without swapping."""
    return int(psutil.virtual_memory().available)


def _simulated(text: str) -> NodeInventory:
    example = "write count x size, for example 4x80GiB"
    match = _SIMULATED.fullmatch(text.strip())
    if match is None:
        raise ResourceError(f"{text!r} is no description of simulated devices; {example}")
    count = int(match.group(1))
    try:
        each_mib = size_bytes(match.group(2)) // MIB
    except Wrong as wrong:
        raise ResourceError(f"{text!r}: {wrong.what}; {example}") from None
    if count > DEVICES_MAX or each_mib < 1:
        raise ResourceError(f"{text!r}: up to {DEVICES_MAX} devices of at least 1 MiB can be simulated; {example}")
    return _pretended(dict.fromkeys(range(count), each_mib))


def _pretended(mib_by_index: Mapping[int, int]) -> NodeInventory:
    devices = tuple(
        LentDevice(index, mib, f"simulated-{index}", SIMULATED_TYPE) for index, mib in sorted(mib_by_index.items())
    )
    return NodeInventory(socket.gethostname(), Backend.NVIDIA, devices, simulated=True)


def _lent_mib(lend_bytes: int, total_bytes: int, of_what: str) -> int:
    if lend_bytes > total_bytes:
        raise ResourceError(
            f"{lend_bytes // MIB} MiB cannot be lent of {of_what}, which has {total_bytes // MIB} MiB; lend less"
        )
    if lend_bytes < MIB:
        raise ResourceError(f"{lend_bytes} bytes of {of_what} are too little to lend; lend at least 1MiB")
    return lend_bytes // MIB


def _gpu(gpu: Gpu, lent_mib: int) -> LentDevice:
    slice, capability = bool(gpu.slice_of), gpu.compute_capability
    return LentDevice(gpu.index, lent_mib, gpu.uuid, device_type(gpu.name), gpu.total_bytes // MIB, slice, capability)


def _cpu(lent_mib: int) -> LentDevice:
    return LentDevice(0, lent_mib, type=os.uname().machine, whole_mib=int(psutil.virtual_memory().total) // MIB)
