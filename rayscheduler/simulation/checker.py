"""What a run came to, computed from the printed lines and the file alone: the core's ledger is not asked.

Rules of this file: it trusts no one. Bytes appear with a `start` line and go when the replica's `stop` has
had its `unload` time (at once where it is gone already); more than a device has, at any start and counting
what others use there, is over-commitment.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Any

from rayscheduler.core.types import Node
from rayscheduler.simulation import scenario as sc

GONE_ALREADY = ("crashed", "load_failed")


@dataclass(slots=True)
class DeviceBook:
    capacity_bytes: int
    used_by_others_bytes: int = 0
    held_bytes: int = 0
    peak_bytes: int = 0


class Checker:
    """Follows a run line by line. `summary` is the last line of `simulate --json`."""

    def __init__(self, scenario: sc.Scenario) -> None:
        self._scenario = scenario
        self._models = {model.name: model for model in scenario.models}
        self._devices: dict[str, DeviceBook] = {}
        self._homes: dict[str, str] = {}  # device -> node
        self._host_device: dict[str, str] = {}  # a node whose only device is its host memory
        self._held: dict[str, dict[str, int]] = {}  # replica -> device -> bytes
        self._exits: list[tuple[int, str]] = []
        self._arrived: dict[str, int] = {}
        self._waits_ms: list[int] = []
        self._rejected = self._starts = self._evictions = 0
        self.overcommitted = False
        for node in scenario.nodes:
            self._add_node(node)
        for found in scenario.replicas:
            place = found.placement
            sizes = dict(zip(place.devices, place.device_bytes, strict=True))
            self._charge_host(place.nodes, place.host_bytes, sizes)
            self._hold(found.id, sizes)

    def _add_node(self, node: Node) -> None:
        for device in node.devices:
            book = self._devices.setdefault(device.id, DeviceBook(device.capacity_bytes))
            book.capacity_bytes = device.capacity_bytes  # a node may come back with another
            self._homes[device.id] = node.name
        if node.device_is_host_memory:
            self._host_device[node.name] = node.devices[0].id

    def _charge_host(self, nodes: Sequence[str], host_bytes: int, sizes: dict[Any, int]) -> None:
        for node in nodes:
            device = self._host_device.get(node)
            if device is not None and host_bytes:
                sizes[device] = sizes.get(device, 0) + host_bytes

    def _hold(self, replica: str, sizes: dict[Any, int]) -> None:
        self._held[replica] = sizes
        for device, size in sizes.items():
            book = self._devices[device]
            book.held_bytes += size
            book.peak_bytes = max(book.peak_bytes, book.held_bytes)

    def _release(self, replica: str, only_on: str | None = None) -> None:
        sizes = self._held.get(replica, {})
        for device in [d for d in sizes if only_on is None or self._homes[d] == only_on]:
            self._devices[device].held_bytes -= sizes.pop(device)
        if not sizes:
            self._held.pop(replica, None)

    def advance(self, now_ms: int) -> None:
        """Exits up to this instant have happened."""
        while self._exits and self._exits[0][0] <= now_ms:
            self._release(heappop(self._exits)[1])

    def told(self, at_ms: int, what: sc.Happening) -> None:
        """One of the file's own events has happened."""
        self.advance(at_ms)
        match what:
            case sc.Request(request=request):
                self._arrived[request] = at_ms
            case sc.NodeUp(node):
                if node.name not in self._homes.values():
                    self._add_node(node)
            case sc.NodeDown(name):
                for replica in list(self._held):
                    self._release(replica, only_on=name)
                for device in [d for d, home in self._homes.items() if home == name]:
                    self._devices[device].used_by_others_bytes = 0
                    del self._homes[device]
            case sc.Observe(device, used_by_others_bytes):
                if device in self._devices:
                    self._devices[device].used_by_others_bytes = used_by_others_bytes

    def line(self, line: dict[str, Any]) -> None:
        """One printed decision."""
        at_ms = line["at_ms"]
        self.advance(at_ms)
        match line["decision"]:
            case "start":
                self._starts += 1
                self._start(line)
            case "stop":
                self._evictions += line["reason"] == "evicted"
                unload_ms = self._scenario.unload_ms[line["model"]]
                gone = line["reason"] in GONE_ALREADY
                heappush(self._exits, (at_ms if gone else at_ms + unload_ms, line["replica"]))
            case "grant":
                self._waits_ms.append(at_ms - self._arrived[line["request"]])
            case "reject":
                self._rejected += 1

    def _start(self, line: dict[str, Any]) -> None:
        sizes = dict(zip(line["devices"], line["bytes"], strict=True))
        want = self._models[line["model"]].requirement
        host = want.host_memory_bytes + (0 if sizes else want.bytes_by_count.get(0, 0))
        nodes = [line["node"]] if isinstance(line["node"], str) else line["node"]
        self._charge_host(nodes, host, sizes)
        self._hold(line["replica"], sizes)
        for device in sizes:
            book = self._devices[device]
            if book.held_bytes + book.used_by_others_bytes > book.capacity_bytes:
                self.overcommitted = True

    def summary(self, states: dict[str, str]) -> dict[str, Any]:
        """`states`: the replicas alive at the end, as the scheduler calls their states."""
        granted = len(self._waits_ms)
        return {
            "requests": len(self._arrived),
            "granted": granted,
            "rejected": self._rejected,
            "waiting": len(self._arrived) - granted - self._rejected,
            "loads": self._starts,
            "evictions": self._evictions,
            "overcommitted": self.overcommitted,
            "wait_ms": {"p50": nearest_rank(self._waits_ms, 50), "p99": nearest_rank(self._waits_ms, 99)},
            "devices": {
                name: {
                    "capacity_bytes": book.capacity_bytes,
                    "peak_bytes": book.peak_bytes,
                    "final_bytes": book.held_bytes,
                }
                for name, book in self._devices.items()
            },
            "replicas": states,
        }


def nearest_rank(values: list[int], percent: int) -> int | None:
    """The percentile by nearest rank (the smallest value with at least that share at or below it)."""
    if not values:
        return None
    ordered = sorted(values)
    return ordered[max(0, -(-percent * len(ordered) // 100) - 1)]
