"""How much memory engines hold on this node, and how much of what it lends other programs have taken.

    GPU:  others = used − ours, where ours is what the driver counts for our processes
    CPU:  others = lent − ours − available RAM

and of that only what reaches into what is lent. Rules of this file: what is available is read before what
is ours, so that an engine that grows meanwhile is not taken for others. Where the driver does not know our
processes (another process namespace) or does not tell what they hold, ours is what is reserved, as far as
somebody holds it. A device that cannot be read is what it was for UNREAD_S: drivers have hiccups, and a device
that is lost takes its engines along.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from rayscheduler.cluster.attribution import Attribution, Who, in_first_pid_namespace
from rayscheduler.cluster.drivers import driver_version, gpus
from rayscheduler.cluster.gpu import Gpu
from rayscheduler.cluster.gpu_faults import GpuFaults
from rayscheduler.cluster.inventory import LentDevice, NodeInventory
from rayscheduler.cluster.reports import AgentReport, DeviceReading, ForeignProcess, Measured, Watched
from rayscheduler.cluster.resources import MIB, available_memory_bytes, read_inventory
from rayscheduler.core.types import Backend, ReplicaId
from rayscheduler.engines.process import held_bytes

UNREAD_S = 3.0


@dataclass(frozen=True, slots=True)
class _OnDevice:
    """One device at one instant: who holds what there. `told`: by replica, where the driver tells."""

    reading: DeviceReading
    told: Mapping[ReplicaId, int]
    foreign: tuple[ForeignProcess, ...]


class Measuring:
    """Takes the readings of one node."""

    def __init__(
        self,
        resources: Mapping[str, float],
        known: NodeInventory | None = None,
        faults: GpuFaults | None = None,
        unread_s: float = UNREAD_S,
    ) -> None:
        """`known`: what was told of this node before, by an agent that is no more."""
        self._resources = resources
        self._first = known  # what was there at the first look: when a device falls off, others move up
        self._unread_s = unread_s
        self._faults = faults or GpuFaults()
        self._attribution = Attribution()
        self._lock = threading.Lock()
        self._last: dict[int, tuple[Gpu, float]] = {}  # by index, when it could be read last, and when that was

    def take(self, watched: Sequence[Watched]) -> AgentReport:
        with self._lock:
            found = gpus()
            first = self._first_look(found)
            if first.backend is Backend.CPU or first.simulated:
                return self._on_host(first, watched)
            here = self._here(first, found)
            inventory = self._now(first, here, self._faults.seen(found))
            pids = self._attribution.engines(watched)
            strangers = {pid for gpu in here.values() for pid in gpu.held_bytes}.difference(*pids.values())
            who = self._attribution.who(sorted(strangers))
            devices = [device for device in inventory.devices if device.index not in inventory.missing]
            seen = [_on_device(device, here[device.index], pids, who, watched) for device in devices]
        measured = {
            replica: Measured({each.reading.index: each.told[replica] for each in seen if replica in each.told})
            for replica in pids
        }
        foreign = tuple(process for each in seen for process in each.foreign)
        return AgentReport(inventory, tuple(each.reading for each in seen), measured, foreign)

    def _on_host(self, inventory: NodeInventory, watched: Sequence[Watched]) -> AgentReport:
        available = available_memory_bytes()
        pids = self._attribution.engines(watched)
        elsewhere = {each.replica: each.held_elsewhere_bytes for each in watched}
        held = {replica: sum(map(held_bytes, ids)) + elsewhere.get(replica, 0) for replica, ids in pids.items()}
        if inventory.simulated:
            return AgentReport(inventory, measured={replica: Measured({}, size) for replica, size in held.items()})
        ours = sum(held.values())
        readings = tuple(
            DeviceReading(device.index, max(0, device.lent_mib * MIB - ours - available), ours, available)
            for device in inventory.devices
        )
        return AgentReport(inventory, readings, {replica: Measured({0: size}) for replica, size in held.items()})

    def _first_look(self, found: Sequence[Gpu]) -> NodeInventory:
        """What the node lends, once and for all; again while its driver shows nothing yet."""
        if self._first is None or (found and not self._first.devices):
            inventory = read_inventory(self._resources, found)
            self._first = replace(inventory, driver=driver_version() if found else "")
        return self._first

    def _here(self, first: NodeInventory, found: Sequence[Gpu]) -> dict[int, Gpu]:
        """Those that can be read, or could a moment ago, by the index that they had at the first look."""
        if found and found[0].backend is Backend.NVIDIA:
            self._faults.watch()
        index_of = {device.uuid: device.index for device in first.devices}
        now_s = time.monotonic()
        for gpu in found:
            if gpu.uuid in index_of:
                self._last[index_of[gpu.uuid]] = gpu, now_s
        return {index: gpu for index, (gpu, read_s) in self._last.items() if now_s - read_s <= self._unread_s}

    def _now(self, first: NodeInventory, here: Mapping[int, Gpu], wrong: Mapping[str, str]) -> NodeInventory:
        """What of it is missing: never there, not to be read any more, or of no use."""
        indices = {device.index for device in first.devices}
        missing = {index: why for index, why in first.missing.items() if index not in indices}
        for index in sorted(indices):
            card = self._last[index][0].card if index in self._last else ""
            if card in wrong:
                missing[index] = wrong[card]
            elif index not in here:
                missing[index] = "its driver does not show it any more"
        return replace(first, missing=missing)


def _on_device(
    device: LentDevice,
    gpu: Gpu,
    pids: Mapping[ReplicaId, list[int]],
    who: Mapping[int, Who | None],
    watched: Sequence[Watched],
) -> _OnDevice:
    owners = {pid: replica for replica, ids in pids.items() for pid in ids}
    owners.update({pid: ReplicaId(seen.replica) for pid, seen in who.items() if seen and seen.replica in pids})
    told = _told(gpu, owners)
    for each in watched:
        if size := _elsewhere_bytes(each, device.index):
            told[each.replica] = told.get(each.replica, 0) + size
    foreign = {pid: size for pid, size in gpu.held_bytes.items() if pid not in owners}
    reserved = {each.replica: each.device_bytes.get(device.index, 0) for each in watched if each.engine_pid}
    ours = sum(told.values())
    hidden = sum(size for replica, size in reserved.items() if replica not in told)
    if hidden and _hides(gpu, who, owners):
        seen_bytes = ours + sum(size or 0 for pid, size in foreign.items() if who.get(pid))
        ours += min(hidden, max(0, gpu.used_bytes - seen_bytes))
    elsewhere = {replica: 0 for replica, size in reserved.items() if size and not _hides(gpu, who, owners)}
    not_lent = max(0, gpu.total_bytes - device.lent_mib * MIB)
    others = max(0, gpu.used_bytes - ours - not_lent)
    reading = DeviceReading(device.index, others, sum(told.values()), gpu.total_bytes - gpu.used_bytes)
    named = (_foreign(device.index, pid, size, who.get(pid)) for pid, size in sorted(foreign.items()))
    return _OnDevice(reading, {**elsewhere, **told}, tuple(named))


def _told(gpu: Gpu, owners: Mapping[int, ReplicaId]) -> dict[ReplicaId, int]:
    """What each replica holds, of those for whose processes the driver tells it."""
    told: dict[ReplicaId, int] = {}
    for pid, size in gpu.held_bytes.items():
        if pid in owners and size is not None:
            told[owners[pid]] = told.get(owners[pid], 0) + size
    return told


def _hides(gpu: Gpu, who: Mapping[int, Who | None], owners: Mapping[int, ReplicaId]) -> bool:
    """Whether processes of ours may hold memory there that the driver does not count for them."""
    if not gpu.tells_processes:
        return True
    if not gpu.held_bytes:
        return bool(gpu.used_bytes) and not in_first_pid_namespace()
    return any(size is None if pid in owners else who.get(pid) is None for pid, size in gpu.held_bytes.items())


def _foreign(index: int, pid: int, size: int | None, seen: Who | None) -> ForeignProcess:
    seen = seen or Who()
    return ForeignProcess(index, pid, size, seen.name, seen.user, seen.replica)


def _elsewhere_bytes(each: Watched, index: int) -> int:
    """The device's part of that: nobody tells more than the sum, and each device's part is as what it has reserved."""
    return each.held_elsewhere_bytes * each.device_bytes.get(index, 0) // max(1, sum(each.device_bytes.values()))
