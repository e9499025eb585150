"""How much memory engines hold on this node, and how much of what it lends other programs have taken.

    GPU:  others = used − ours, where ours is what the driver counts for our processes
    CPU:  others = lent − ours − available RAM

and of that only what reaches into what is lent. Rules of this file: what is available is read before what
is ours, so that an engine that grows meanwhile is not taken for others. Where the driver does not know our
processes (another process namespace), ours is what is reserved.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace

import psutil

from rayscheduler.cluster.inventory import LentDevice
from rayscheduler.cluster.nvml import Gpu, gpus
from rayscheduler.cluster.reports import AgentReport, DeviceReading, Watched
from rayscheduler.cluster.resources import MIB, available_memory_bytes, read_inventory
from rayscheduler.core.types import Backend, ReplicaId
from rayscheduler.engines.supervisor import descendants, parent_of


class Measuring:
    """Takes the readings of one node. Not for two threads at a time."""

    def __init__(self, resources: Mapping[str, float]) -> None:
        self._resources = resources
        self._supervisors: dict[int, int] = {}  # engine's pid -> its supervisor's
        self._index_of: dict[str, int] = {}  # UUID -> index at the first look: when one falls off, others move up

    def take(self, watched: Sequence[Watched]) -> AgentReport:
        here = self._gpus()
        inventory = read_inventory(self._resources, list(here.values()))
        available = available_memory_bytes()
        pids = self._pids(watched)
        if inventory.backend is Backend.CPU or inventory.simulated:
            measured = {replica: sum(map(held_bytes, ids)) for replica, ids in pids.items()}
            measured = _with_elsewhere(measured, watched)
            if inventory.simulated:
                return AgentReport(inventory, measured_bytes=measured)
            ours = sum(measured.values())
            readings = tuple(
                DeviceReading(device.index, max(0, device.lent_mib * MIB - ours - available), ours)
                for device in inventory.devices
            )
            return AgentReport(inventory, readings, measured)
        readings = tuple(_gpu_reading(device, here[device.index], pids, watched) for device in inventory.devices)
        return AgentReport(inventory, readings, _with_elsewhere(_held_on_gpus(here, pids), watched))

    def _gpus(self) -> dict[int, Gpu]:
        found = gpus()
        if not self._index_of:
            self._index_of = {gpu.uuid: gpu.index for gpu in found}
        known = (replace(gpu, index=self._index_of[gpu.uuid]) for gpu in found if gpu.uuid in self._index_of)
        return {gpu.index: gpu for gpu in known}

    def _pids(self, watched: Sequence[Watched]) -> dict[ReplicaId, list[int]]:
        """The processes of each replica's engine: all that its supervisor has below it."""
        engines = {each.engine_pid for each in watched if each.engine_pid}
        self._supervisors = {pid: self._supervisors.get(pid) or parent_of(pid) for pid in engines}
        return {
            each.replica: descendants(self._supervisors[each.engine_pid])
            for each in watched
            if each.engine_pid and self._supervisors[each.engine_pid] > 1
        }


def held_bytes(pid: int) -> int:
    """Host memory of a process: shared pages by their share (PSS) where the kernel tells; 0 if it is gone."""
    try:
        memory = psutil.Process(pid).memory_full_info()
    except psutil.Error:
        return 0
    return int(getattr(memory, "pss", 0) or memory.rss)


def _gpu_reading(
    device: LentDevice, gpu: Gpu, pids: Mapping[ReplicaId, list[int]], watched: Sequence[Watched]
) -> DeviceReading:
    measured = sum(gpu.held_bytes.get(pid, 0) for ids in pids.values() for pid in ids)
    measured += sum(_elsewhere_bytes(each, device.index) for each in watched)
    ours = measured
    if any(not os.path.exists(f"/proc/{pid}") for pid in gpu.held_bytes):
        reserved = sum(each.device_bytes.get(device.index, 0) for each in watched if each.engine_pid)
        ours = max(measured, min(reserved, gpu.used_bytes))
    not_lent = max(0, gpu.total_bytes - device.lent_mib * MIB)
    return DeviceReading(device.index, max(0, gpu.used_bytes - ours - not_lent), measured)


def _held_on_gpus(here: Mapping[int, Gpu], pids: Mapping[ReplicaId, list[int]]) -> dict[ReplicaId, int]:
    return {
        replica: sum(gpu.held_bytes.get(pid, 0) for gpu in here.values() for pid in ids)
        for replica, ids in pids.items()
    }


def _with_elsewhere(measured: Mapping[ReplicaId, int], watched: Sequence[Watched]) -> dict[ReplicaId, int]:
    """And what a process that is not the engine's, such as a daemon for several models, says that it holds for it."""
    elsewhere = {each.replica: each.held_elsewhere_bytes for each in watched}
    return {replica: held + elsewhere.get(replica, 0) for replica, held in measured.items()}


def _elsewhere_bytes(each: Watched, index: int) -> int:
    """The device's part of that: nobody tells more than the sum, and each device's part is as what it has reserved."""
    return each.held_elsewhere_bytes * each.device_bytes.get(index, 0) // max(1, sum(each.device_bytes.values()))
