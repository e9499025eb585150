"""The nodes of the cluster: who is there, what it lends, and what was read on it.

Rules of this file: it belongs to the allocator's loop and does no I/O. A node joins the core when it is
alive in Ray, lends something, and its agent has reported; it is lost when Ray says that it is dead. A
device that its agent cannot read, or that has failed, is lost until its agent says otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rayscheduler.cluster.inventory import NodeInventory
from rayscheduler.cluster.names import DEVICES_LABEL, NODE_NAME_LABEL, REAL, SIMULATED, SIMULATED_RESOURCE
from rayscheduler.cluster.placement_groups import RayNode
from rayscheduler.cluster.reports import AgentReport, DeviceReading, ForeignProcess
from rayscheduler.cluster.resources import MIB, lends
from rayscheduler.core.events import DeviceLost, DeviceReturned, Event, MemoryObserved, NodeJoined, NodeLost
from rayscheduler.core.types import Backend, Device, DeviceId, Node, NodeName

DEAD_SHOWN_S = 600.0
READING_STEP_BYTES = 64 * MIB  # what other programs hold fluctuates; smaller changes are no news


@dataclass
class KnownNode:
    """One Ray node. `inventory` None: its agent has not reported yet, or it lends nothing."""

    name: NodeName
    node_id: str
    address: str
    raylet_port: int
    resources: Mapping[str, float]
    labels: Mapping[str, str]
    alive: bool = True
    inventory: NodeInventory | None = None
    readings: Mapping[int, DeviceReading] = field(default_factory=dict)
    told_others_bytes: dict[int, int] = field(default_factory=dict)
    foreign: tuple[ForeignProcess, ...] = ()
    lost_devices: dict[int, str] = field(default_factory=dict)  # by index, and why
    reported_s: float = 0.0
    died_s: float = 0.0

    @property
    def lends(self) -> bool:
        return lends(self.resources)

    @property
    def joined(self) -> bool:
        return self.alive and self.inventory is not None

    @property
    def millicpus(self) -> int:
        return round(self.resources.get("CPU", 0.0) * 1000)

    def device_id(self, index: int) -> DeviceId:
        return DeviceId(f"{self.name}/{index}")

    def ray_node(self) -> RayNode:
        backend = self.inventory.backend if self.inventory else Backend.CPU
        return RayNode(self.node_id, self.address, backend, backend is Backend.CPU)


class Membership:
    def __init__(self) -> None:
        self.nodes: dict[str, KnownNode] = {}  # by Ray's node id

    def observe(self, listed: Iterable[Mapping[str, Any]], now_s: float) -> list[Event]:
        """What has changed in `ray.nodes()`. A dead node is shown for a while if it had joined."""
        events: list[Event] = []
        for entry in listed:
            node_id = entry["NodeID"]
            known = self.nodes.get(node_id)
            if known is None and entry["Alive"]:
                self._add(entry)
            elif known is not None and known.alive and not entry["Alive"]:
                if known.joined:
                    events.append(NodeLost(known.name))
                known.died_s = now_s if known.joined else now_s - DEAD_SHOWN_S
                known.alive = False
        for node in [node for node in self.nodes.values() if not node.alive and now_s - node.died_s >= DEAD_SHOWN_S]:
            del self.nodes[node.node_id]
        return events

    def reported(self, node_id: str, report: AgentReport, now_s: float) -> list[Event]:
        """What is new in a report. A report about a node that Ray has not listed yet waits for the next one."""
        node = self.nodes.get(node_id)
        if node is None or not node.alive or not node.lends:
            return []
        node.reported_s = now_s
        events: list[Event] = []
        if node.inventory is None:
            node.inventory = report.inventory
            events.append(NodeJoined(core_node(node)))
        missing = report.inventory.missing
        events += [DeviceLost(node.device_id(index)) for index in sorted(missing.keys() - node.lost_devices.keys())]
        events += [DeviceReturned(node.device_id(index)) for index in sorted(node.lost_devices.keys() - missing.keys())]
        node.lost_devices = dict(missing)
        node.foreign = report.foreign
        node.readings = {reading.index: reading for reading in report.readings}
        for reading in report.readings:
            others = reading.used_by_others_bytes // READING_STEP_BYTES * READING_STEP_BYTES
            if node.told_others_bytes.get(reading.index, 0) != others:
                node.told_others_bytes[reading.index] = others
                events.append(MemoryObserved(node.device_id(reading.index), others))
        return events

    def without_agent(self, has_agent: Iterable[str]) -> list[KnownNode]:
        """The nodes that lend, are alive, and have no agent yet."""
        there = frozenset(has_agent)
        return [node for node in self.nodes.values() if node.alive and node.lends and node.node_id not in there]

    def awaited(self) -> list[KnownNode]:
        """The nodes that lend and are alive, and have not reported."""
        return [node for node in self.nodes.values() if node.alive and node.lends and not node.joined]

    def alive(self) -> frozenset[str]:
        """Ray's ids of the nodes that are alive."""
        return frozenset(node_id for node_id, node in self.nodes.items() if node.alive)

    def inventories(self, names: Iterable[NodeName]) -> list[NodeInventory]:
        """What these nodes, which have joined, lend."""
        lent = {node.name: node.inventory for node in self.nodes.values() if node.alive and node.inventory}
        return [lent[name] for name in names]

    def ray_nodes(self) -> dict[NodeName, RayNode]:
        """The nodes that replicas may be placed on."""
        return {node.name: node.ray_node() for node in self.nodes.values() if node.joined}

    def _add(self, entry: Mapping[str, Any]) -> None:
        node_id, labels = entry["NodeID"], entry.get("Labels") or {}
        wished = labels.get(NODE_NAME_LABEL) or entry.get("NodeManagerHostname") or entry["NodeManagerAddress"]
        taken = {node.name for node in self.nodes.values() if node.alive}
        name = NodeName(wished if wished not in taken else f"{wished}-{node_id[:6]}")
        for other in [other for other in self.nodes.values() if other.name == name]:
            del self.nodes[other.node_id]  # it is back under a new id
        address, port = entry["NodeManagerAddress"], entry["NodeManagerPort"]
        self.nodes[node_id] = KnownNode(name, node_id, address, port, entry["Resources"], labels)


def core_node(node: KnownNode) -> Node:
    """The node as the core has it. Devices that its driver has never shown are not offered."""
    inventory = node.inventory
    assert inventory is not None
    kind = SIMULATED if SIMULATED_RESOURCE in node.resources else REAL
    devices = tuple(
        Device(node.device_id(device.index), device.lent_mib * MIB, type=device.type, is_slice=device.is_slice)
        for device in inventory.devices
    )
    return Node(
        name=node.name,
        backend=inventory.backend,
        devices=devices,
        millicpus=node.millicpus,
        memory_bytes=inventory.memory_bytes,
        labels={**node.labels, DEVICES_LABEL: kind},
        device_is_host_memory=inventory.backend is Backend.CPU,
    )
