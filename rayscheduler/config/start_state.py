"""What the `replicas:` of a scenario take from its nodes, and that they take no more than there is.

Rules of this file: this is no ledger. Replicas are only added, in the file's order, and the first that
does not fit is told with the numbers. Whether the scheduler would have put it there is not asked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rayscheduler.config.units import size_text
from rayscheduler.config.values import Path, Wrong, one_of_these, shown
from rayscheduler.core.sleeping import asleep
from rayscheduler.core.types import Backend, Device, DeviceId, Model, Node, NodeName, Placement


class Room:
    """What is left of each node and device."""

    def __init__(self, nodes: Sequence[Node], cpu_models_on_gpu_nodes: bool) -> None:
        self._nodes: Mapping[NodeName, Node] = {node.name: node for node in nodes}
        self._devices: Mapping[DeviceId, tuple[Node, Device]] = {
            device.id: (node, device) for node in nodes for device in node.devices
        }
        self._on_gpu_nodes = cpu_models_on_gpu_nodes
        self._free = {device.id: device.capacity_bytes for node in nodes for device in node.devices}
        self._free_host = {node.name: node.memory_bytes for node in nodes}
        self._free_millicpus = {node.name: node.millicpus for node in nodes}

    def taken_by(
        self,
        model: Model,
        devices: Sequence[str] | None,
        node: str | None,
        memory_bytes: int | None,
        is_asleep: bool = False,
    ) -> tuple[Placement, Placement | None]:
        """The placement of one more replica, and what it keeps if it sleeps, taken from what is left. Wrong: it
        cannot be there."""
        counts = model.requirement.bytes_by_count
        host_only = set(counts) == {0}
        if not devices and 0 not in counts:
            at: Path = () if devices is None else ("devices",)
            raise Wrong(f"{shown(model.name)} needs devices", "add for example devices: [n1/0]", at)
        places = [self._device(device, index, devices or ()) for index, device in enumerate(devices or ())]
        names = tuple(dict.fromkeys(at_node.name for at_node, _ in places))
        if node is not None:
            names = self._same_node(NodeName(node), names)
        if len(names) > 1 and not model.requirement.across_nodes:
            what = f"{shown(model.name)} takes devices of one node, not of {' and '.join(names)}"
            raise Wrong(what, "name devices of one node, or write across_nodes: true at the model", ("devices",))
        if host_only and places:
            names = self._cpu_node(model, places)
            places = []  # the devices of a cpu node only say which node it is
        if not names:
            names = (self._only_node_for(model),)
        placement = self._placement(model, names, [device for _, device in places], memory_bytes)
        keeps = self._kept(model, placement) if is_asleep else None
        self._take(model, keeps or placement)
        return placement, keeps

    def _kept(self, model: Model, placement: Placement) -> Placement:
        """What a replica that sleeps holds."""
        if model.sleep is None:
            fix = "add for example simulate: {sleep: 1s, wake: 300ms} at the model, or write another state"
            raise Wrong(f"{shown(model.name)} cannot sleep", fix, ("state",))
        on_host = not placement.devices or any(self._nodes[n].device_is_host_memory for n in placement.nodes)
        if on_host:
            raise Wrong(f"{shown(model.name)} is in host memory already", "write state: running", ("state",))
        return asleep(placement, model.sleep)

    def _device(self, device: str, index: int, devices: Sequence[str]) -> tuple[Node, Device]:
        found = self._devices.get(DeviceId(device))
        if found is None:
            what = f"there is no device {shown(device)}"
            raise Wrong(what, one_of_these(device, self._devices, "devices"), ("devices", index))
        if device in devices[:index]:
            raise Wrong(f"the device {shown(device)} stands twice", "keep one of them", ("devices", index))
        return found

    def _same_node(self, node: NodeName, of_devices: tuple[NodeName, ...]) -> tuple[NodeName, ...]:
        if node not in self._nodes:
            raise Wrong(f"there is no node {shown(node)}", one_of_these(node, self._nodes, "nodes"), ("node",))
        if of_devices and of_devices != (node,):
            what = f"the devices are not on node {shown(node)}"
            raise Wrong(what, f"write node: {of_devices[0]}, or leave node out", ("node",))
        return (node,)

    def _cpu_node(self, model: Model, places: Sequence[tuple[Node, Device]]) -> tuple[NodeName]:
        node = places[0][0]
        if node.backend is not Backend.CPU or len({at.name for at, _ in places}) > 1:
            what = f"{shown(model.name)} takes no devices: its gpus are [0]"
            raise Wrong(what, f"write devices: [] and node: {node.name}", ("devices",))
        return (node.name,)

    def _only_node_for(self, model: Model) -> NodeName:
        """The node of a replica that takes no devices and names none, if only one is possible."""
        wanted = model.requirement.backend
        possible = [
            node.name
            for node in self._nodes.values()
            if (wanted is None or node.backend is wanted) and (self._on_gpu_nodes or node.backend is Backend.CPU)
        ]
        if len(possible) != 1:
            what = f"the replica of {shown(model.name)} names no node, and {len(possible)} are possible"
            raise Wrong(what, f"add for example node: {possible[0] if possible else 'n1'}")
        return possible[0]

    def _placement(
        self, model: Model, nodes: tuple[NodeName, ...], devices: Sequence[Device], memory_bytes: int | None
    ) -> Placement:
        """The vector of the replica: its own figure, else its model's for so many devices."""
        requirement = model.requirement
        count = len(devices)
        if memory_bytes is not None:
            each = -(-memory_bytes // max(1, count))
        elif count in requirement.bytes_by_count:
            each = requirement.bytes_by_count[count]
        else:
            counts = ", ".join(map(str, sorted(requirement.bytes_by_count)))
            what = f"{shown(model.name)} takes {counts} devices, not {count}"
            raise Wrong(what, "name so many devices, or say the replica's memory", ("devices",))
        return Placement(
            nodes=nodes,
            devices=tuple(device.id for device in devices),
            device_bytes=tuple(device.capacity_bytes if requirement.exclusive else each for device in devices),
            host_bytes=requirement.host_memory_bytes + (0 if devices else each),
            millicpus=requirement.millicpus,
        )

    def _take(self, model: Model, placement: Placement) -> None:
        for device, needed in zip(placement.devices, placement.device_bytes, strict=True):
            left = self._free[device]
            if needed > left:
                raise self._too_much(model, needed, left, f"of device {device}", ("devices",))
            self._free[device] = left - needed
        for name in placement.nodes:
            self._take_from_node(model, placement, self._nodes[name])

    def _take_from_node(self, model: Model, placement: Placement, node: Node) -> None:
        host_left = self._free_host[node.name]
        if node.device_is_host_memory:
            device = node.devices[0].id
            if placement.host_bytes > self._free[device]:
                raise self._too_much(model, placement.host_bytes, self._free[device], f"of node {node.name}", ())
            self._free[device] -= placement.host_bytes
        elif host_left is not None:
            if placement.host_bytes > host_left:
                raise self._too_much(model, placement.host_bytes, host_left, f"of the host memory of {node.name}", ())
            self._free_host[node.name] = host_left - placement.host_bytes
        cpus_left = self._free_millicpus[node.name]
        if cpus_left is not None:
            if placement.millicpus > cpus_left:
                what = f"{shown(model.name)} needs {placement.millicpus / 1000:g} cpus, "
                what += f"but only {cpus_left / 1000:g} of node {node.name} are left"
                raise Wrong(what, "remove a replica, or give the node more cpus")
            self._free_millicpus[node.name] = cpus_left - placement.millicpus

    def _too_much(self, model: Model, needed: int, left: int, of_what: str, at: Path) -> Wrong:
        needs, has = size_text(needed), size_text(left)
        if needs == has:  # they differ by less than the rounding
            needs, has = f"{needed} bytes", f"{left} bytes"
        what = f"{shown(model.name)} needs {needs}, but only {has} {of_what} are left"
        return Wrong(what, "remove a replica, move it, or lower its memory", at)
