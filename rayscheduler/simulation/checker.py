"""What a run came to, computed from the printed lines and the file alone: the core's ledger is not asked.

Rules of this file: it trusts no one. Bytes appear with a `start` line and go when the replica's `stop` has
had its `unload` time (at once where it is gone already). With a `sleep` line host memory is taken, and the
devices shrink to the residue after its `sleep` time; with a `wake` line the devices are full again, and the
host memory goes after its `wake` time. More than a device or a host has, at any such line and counting what
others use there, is over-commitment.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Any

from rayscheduler.core.types import ModelName, Node, SleepTraits
from rayscheduler.simulation import scenario as sc

GONE_ALREADY = ("crashed", "load_failed")
AT_ONCE = SleepTraits()


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
        self._host_device: dict[str, str] = {}  # node -> the device that is its host memory, or a book of that alone
        self._hosts: set[str] = set()  # those books: they are no devices
        self._held: dict[str, dict[str, int]] = {}  # replica -> device -> bytes
        self._due: list[tuple[int, int, str, str]] = []  # when, in which order, replica, what it will have done
        self._turning: dict[str, tuple[str, dict[Any, int], dict[Any, int]]] = {}  # to or from sleep: awake, asleep
        self._arrived: dict[str, int] = {}
        self._waits_ms: list[int] = []
        self._rejected = self._starts = self._evictions = self._sleeps = self._wakes = self._count = 0
        self.overcommitted = False
        for node in scenario.nodes:
            self._add_node(node)
        for found in scenario.replicas:
            place = found.placement
            sizes = dict(zip(place.devices, place.device_bytes, strict=True))
            self._charge_host(place.nodes, place.host_bytes, sizes)
            if found.keeps is None:
                self._hold(found.id, sizes)
            else:
                kept = self._asleep(found.model, sizes)
                self._turning[found.id] = ("asleep", sizes, kept)
                self._hold(found.id, kept)

    def _add_node(self, node: Node) -> None:
        for device in node.devices:
            book = self._devices.setdefault(device.id, DeviceBook(device.capacity_bytes))
            book.capacity_bytes = device.capacity_bytes  # a node may come back with another
            self._homes[device.id] = node.name
        if node.device_is_host_memory:
            self._host_device[node.name] = node.devices[0].id
        elif node.memory_bytes is not None:
            host = f"host memory of {node.name}"
            self._host_device[node.name] = host
            self._hosts.add(host)
            self._homes[host] = node.name
            self._devices.setdefault(host, DeviceBook(node.memory_bytes)).capacity_bytes = node.memory_bytes

    def _charge_host(self, nodes: Sequence[str], host_bytes: int, sizes: dict[Any, int]) -> None:
        for node in nodes:
            device = self._host_device.get(node)
            if device is not None and host_bytes:
                sizes[device] = sizes.get(device, 0) + host_bytes

    def _hold(self, replica: str, sizes: dict[Any, int]) -> None:
        """Let it hold this instead of what it held; nothing of it is on a node that is gone."""
        self._release(replica)
        self._held[replica] = sizes = {device: size for device, size in sizes.items() if device in self._homes}
        for device, size in sizes.items():
            book = self._devices[device]
            book.held_bytes += size
            book.peak_bytes = max(book.peak_bytes, book.held_bytes)

    def _asleep(self, model: ModelName, awake: dict[Any, int]) -> dict[Any, int]:
        """What a replica holds asleep that holds `awake`: the residue of each device, its weights in host memory."""
        traits = self._models[model].sleep or AT_ONCE
        devices = {device: size for device, size in awake.items() if device not in self._hosts}
        kept = {device: min(size, traits.residue_bytes) for device, size in devices.items()}
        given_back: dict[str, int] = {}
        for device, size in devices.items():
            home = device.rpartition("/")[0]
            given_back[home] = given_back.get(home, 0) + size - kept[device]
        weights = max(given_back.values(), default=0) if traits.host_bytes is None else traits.host_bytes
        kept.update({host: size for host, size in awake.items() if host in self._hosts})
        self._charge_host(list(given_back), weights, kept)
        return kept

    def _later(self, at_ms: int, replica: str, what: str) -> None:
        self._count += 1
        heappush(self._due, (at_ms, self._count, replica, what))

    def _release(self, replica: str, only_on: str | None = None) -> None:
        sizes = self._held.get(replica, {})
        for device in [d for d in sizes if only_on is None or self._homes[d] == only_on]:
            self._devices[device].held_bytes -= sizes.pop(device)
        if not sizes:
            self._held.pop(replica, None)

    def advance(self, now_ms: int) -> None:
        """Exits up to this instant have happened, and so have sleeps and wakes."""
        while self._due and self._due[0][0] <= now_ms:
            _, _, replica, what = heappop(self._due)
            turn, awake, kept = self._turning.get(replica, ("", {}, {}))
            if what == "gone":
                self._release(replica)
            elif what == "asleep" and turn == "suspending":
                self._turning[replica] = ("asleep", awake, kept)
                self._hold(replica, kept)
            elif what == "awake" and turn == "waking":
                del self._turning[replica]
                self._hold(replica, awake)

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
                self._turning.pop(line["replica"], None)
                self._later(at_ms if gone else at_ms + unload_ms, line["replica"], "gone")
            case "sleep":
                self._sleeps += 1
                self._evictions += 1
                self._turn(line, self._held[line["replica"]])
            case "wake":
                self._wakes += 1
                self._turn(line, None)
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
        self._look_at(sizes)

    def _turn(self, line: dict[str, Any], falls_asleep: dict[Any, int] | None) -> None:
        """It is on its way to sleep (what it holds awake is given) or back, and holds all of both meanwhile."""
        replica, traits = line["replica"], self._models[line["model"]].sleep or AT_ONCE
        if falls_asleep is not None:
            awake, kept = dict(falls_asleep), self._asleep(line["model"], falls_asleep)
            self._later(line["at_ms"] + traits.sleep_ms, replica, "asleep")
        else:
            _, awake, kept = self._turning[replica]
            self._later(line["at_ms"] + traits.wake_ms, replica, "awake")
        self._turning[replica] = ("waking" if falls_asleep is None else "suspending", awake, kept)
        both = {device: max(awake.get(device, 0), kept.get(device, 0)) for device in {**awake, **kept}}
        self._hold(replica, both)
        self._look_at(both)

    def _look_at(self, devices: Iterable[Any]) -> None:
        for book in (self._devices[device] for device in devices):
            if book.held_bytes + book.used_by_others_bytes > book.capacity_bytes:
                self.overcommitted = True

    def summary(self, states: dict[str, str]) -> dict[str, Any]:
        """`states`: the replicas alive at the end, as the scheduler calls their states."""
        granted = len(self._waits_ms)
        rests = {"sleeps": self._sleeps, "wakes": self._wakes} if self._sleeps or self._wakes else {}
        return {
            "requests": len(self._arrived),
            "granted": granted,
            "rejected": self._rejected,
            "waiting": len(self._arrived) - granted - self._rejected,
            "loads": self._starts,
            "evictions": self._evictions,
            **rests,
            "overcommitted": self.overcommitted,
            "wait_ms": {"p50": nearest_rank(self._waits_ms, 50), "p99": nearest_rank(self._waits_ms, 99)},
            "devices": {
                name: {
                    "capacity_bytes": book.capacity_bytes,
                    "peak_bytes": book.peak_bytes,
                    "final_bytes": book.held_bytes,
                }
                for name, book in self._devices.items()
                if name not in self._hosts
            },
            "replicas": states,
        }


def nearest_rank(values: list[int], percent: int) -> int | None:
    """The percentile by nearest rank (the smallest value with at least that share at or below it)."""
    if not values:
        return None
    ordered = sorted(values)
    return ordered[max(0, -(-percent * len(ordered) // 100) - 1)]
