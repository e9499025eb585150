"""Whether a model fits, asked of nobody in the core: plain search over what is left on each node.

Rules of this file: none of the core's arithmetic is used, no ranking is known, and every set of devices is
tried. Clusters here are small.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations

from rayscheduler.core.types import Backend, Model, Node, NodeName, Placement, Requirement, Settings


@dataclass(slots=True)
class Room:
    """What is left on one node: bytes by device index (None: the device is lost), host bytes, cpus."""

    node: Node
    free: list[int | None]
    host_bytes: int
    millicpus: int


def fits(model: Model, rooms: Iterable[Room], settings: Settings) -> bool:
    """Whether one replica of `model` can be placed in these rooms, on one node or on several whole ones."""
    rooms = list(rooms)
    if any(fits_on(model, room, settings) for room in rooms):
        return True
    want = model.requirement
    if not want.across_nodes or (model.pinned and model.pin is not None):
        return False
    for count, size in want.bytes_by_count.items():
        for nodes in range(2, count + 1):
            if count % nodes == 0 and _fits_across(want, size, nodes, count // nodes, rooms):
                return True
    return False


def fits_on(model: Model, room: Room, settings: Settings) -> bool:
    want, node = model.requirement, room.node
    pin = model.pin if model.pinned else None
    if not node_offers(want, node) or (pin is not None and pin.node != node.name):
        return False
    if want.millicpus > room.millicpus:
        return False
    for count, size in want.bytes_by_count.items():
        if count == 0:
            allowed = settings.cpu_models_on_gpu_nodes or node.backend == Backend.CPU
            if allowed and want.host_memory_bytes + size <= room.host_bytes and not (pin and pin.devices):
                return True
            continue
        if want.host_memory_bytes > room.host_bytes:
            continue
        devices = _devices_with(want, size, room)
        if pin is not None and pin.devices:
            devices = [at for at in devices if node.devices[at].id in pin.devices]
            if count != len(pin.devices):
                continue
        largest = sorted((node.devices[at].capacity_bytes for at in devices), reverse=True)[:count]
        if len(largest) == count and sum(largest) >= want.total_device_memory_bytes:
            return True
    return False


def choices_on(model: Model, room: Room) -> list[tuple[int, ...]]:
    """Every set of devices (by index) of one node on which one replica can be placed."""
    want, node = model.requirement, room.node
    pin = model.pin if model.pinned else None
    found: list[tuple[int, ...]] = []
    if not node_offers(want, node) or (pin is not None and pin.node != node.name):
        return found
    if want.millicpus > room.millicpus or want.host_memory_bytes > room.host_bytes:
        return found
    for count, size in want.bytes_by_count.items():
        devices = _devices_with(want, size, room) if count else []
        if pin is not None and pin.devices:
            devices = [at for at in devices if node.devices[at].id in pin.devices]
            if count != len(pin.devices):
                continue
        for taken in combinations(devices, count):
            if taken and sum(node.devices[at].capacity_bytes for at in taken) >= want.total_device_memory_bytes:
                found.append(taken)
    return found


def node_offers(want: Requirement, node: Node) -> bool:
    """Backend, labels and cpus: what a node has or has not, whatever is on it."""
    if want.backend is not None and node.backend != want.backend:
        return False
    if any(node.labels.get(key) != value for key, value in want.labels.items()):
        return False
    if want.types and node.devices and all(device.type not in want.types for device in node.devices):
        return False
    return node.millicpus is None or node.millicpus >= want.node_millicpus


def _devices_with(want: Requirement, size: int, room: Room) -> list[int]:
    """The devices that are of the right kind and have room for `size` bytes (all that they have: `exclusive`)."""
    found = []
    host = want.host_memory_bytes if room.node.device_is_host_memory else 0
    for at, device in enumerate(room.node.devices):
        free = room.free[at]
        needed = max(size, device.capacity_bytes - device.headroom_bytes) if want.exclusive else size
        typed = not want.types or device.type in want.types
        if free is not None and typed and device.capacity_bytes >= want.device_memory_bytes and needed + host <= free:
            found.append(at)
    return found


def _fits_across(want: Requirement, size: int, nodes: int, per_node: int, rooms: list[Room]) -> bool:
    whole = [
        room
        for room in rooms
        if len(room.node.devices) == per_node
        and node_offers(want, room.node)
        and want.millicpus <= room.millicpus
        and want.host_memory_bytes <= room.host_bytes
        and len(_devices_with(want, size, room)) == per_node
    ]
    totals = sorted((sum(d.capacity_bytes for d in room.node.devices) for room in whole), reverse=True)
    return len(whole) >= nodes and sum(totals[:nodes]) >= want.total_device_memory_bytes


def vector_matches(model: Model, placement: Placement, nodes: Mapping[NodeName, Node]) -> bool:
    """Whether a placement is one that this version of a model may take, apart from what is free."""
    want, count = model.requirement, len(placement.devices)
    size = want.bytes_by_count.get(count)
    if size is None or len(set(placement.devices)) != count or placement.millicpus != want.millicpus:
        return False
    if placement.host_bytes != want.host_memory_bytes + (size if count == 0 else 0):
        return False
    homes = [nodes[name] for name in placement.nodes]
    if not all(node_offers(want, node) for node in homes):
        return False
    if len(homes) > 1 and not (want.across_nodes and all(len(node.devices) * len(homes) == count for node in homes)):
        return False
    devices = {device.id: device for node in homes for device in node.devices}
    if any(name not in devices for name in placement.devices):
        return False
    taken = [devices[name] for name in placement.devices]
    if any(device.capacity_bytes < max(want.device_memory_bytes, size) for device in taken):
        return False
    if want.types and any(device.type not in want.types for device in taken):
        return False
    if sum(device.capacity_bytes for device in taken) < want.total_device_memory_bytes:
        return False
    held = placement.device_bytes
    if want.exclusive:
        if list(held) != [d.capacity_bytes - d.headroom_bytes for d in taken]:
            return False
    elif any(each != held[0] for each in held) or not _within(held, size, want.bytes_max_by_count.get(count, size)):
        return False
    pin = model.pin if model.pinned else None
    if pin is not None:
        if placement.nodes != (pin.node,):
            return False
        return not pin.devices or set(pin.devices) == set(placement.devices)
    return True


def _within(sizes: Iterable[int], least: int, most: int) -> bool:
    return all(least <= size <= max(least, most) for size in sizes)
