"""The planning rules of SCENARIOS.md, written a second time and without any cleverness: try everything.

Rules of this file: it knows the nouns and a picture of the cluster, nothing of how the core plans. Small
clusters only: all device subsets, all sets of victims.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, combinations, product
from typing import Any

from rayscheduler.core.types import (
    Backend,
    DeviceId,
    Model,
    ModelName,
    Node,
    NodeName,
    Placement,
    ReplicaId,
    ReplicaSnapshot,
    Settings,
    Snapshot,
    Strategy,
)

VICTIMS_MAX = 7  # candidates, of which all subsets are tried
COMING = ("PENDING", "STARTING", "RUNNING")
UNLIMITED = 1 << 60


@dataclass(frozen=True)
class Victim:
    """A replica that may leave, and what SCENARIOS.md ranks it by."""

    id: ReplicaId
    model: ModelName
    drained: bool
    value: int
    used_ms: int

    @property
    def id_key(self) -> tuple[str, int]:
        name, _, serial = self.id.rpartition("#")
        return name, int(serial)


@dataclass(frozen=True)
class Answer:
    placement: Placement
    victims: tuple[ReplicaId, ...]


class Picture:
    """A cluster at one moment: nodes, what others use, and the replicas with their reservations."""

    def __init__(self, seen: Snapshot, replicas: Sequence[ReplicaSnapshot], settings: Settings) -> None:
        self.settings = settings
        self.nodes: dict[NodeName, Node] = {n.node.name: n.node for n in seen.nodes}
        self.others = {d.device.id: d.used_by_others_bytes for n in seen.nodes for d in n.devices}
        self.lost = {d.device.id for n in seen.nodes for d in n.devices if not d.offered}
        self.replicas: Mapping[ReplicaId, ReplicaSnapshot] = {r.id: r for r in replicas}

    def emptied(self) -> Picture:
        """Only what is pinned, there or coming, and no other programs."""
        empty = Picture.__new__(Picture)
        empty.settings, empty.nodes, empty.lost = self.settings, self.nodes, self.lost
        empty.others = dict.fromkeys(self.others, 0)
        empty.replicas = {r.id: r for r in self.replicas.values() if r.pinned and r.state in COMING}
        return empty

    def reserved(self, node: Node, gone: Collection[ReplicaId]) -> tuple[dict[DeviceId, int], int, int]:
        """Bytes by device, host bytes and millicpus reserved on a node once `gone` are gone."""
        here = [r for r in self.replicas.values() if node.name in r.placement.nodes and r.id not in gone]
        devices = {device.id: 0 for device in node.devices}
        host = millicpus = 0
        for replica in here:
            under = [other.placement for other in here if other.id in replica.waits_for]
            mine = _charges(node, [replica.placement])
            theirs = _charges(node, under)
            for device in devices:
                devices[device] += max(0, mine[0][device] - theirs[0][device])
            host += max(0, mine[1] - theirs[1])
            millicpus += max(0, mine[2] - theirs[2])
        return devices, host, millicpus


def _charges(node: Node, places: Sequence[Placement]) -> tuple[dict[DeviceId, int], int, int]:
    devices = {device.id: 0 for device in node.devices}
    host = 0
    for place in places:
        for device, size in zip(place.devices, place.device_bytes, strict=True):
            if device in devices:
                devices[device] += size
        if node.device_is_host_memory:
            devices[node.devices[0].id] += place.host_bytes
        else:
            host += place.host_bytes
    return devices, host, sum(place.millicpus for place in places)


# -- one place --------------------------------------------------------------------------------------


def shares(picture: Picture, model: Model, node: Node, count: int, taken: int, gone: Collection[ReplicaId]) -> Any:
    """All ways to put `taken` of a replica's `count` devices on one node: (device indices, bytes on each)."""
    want = model.requirement
    each = want.bytes_by_count[count]
    reserved, host, millicpus = picture.reserved(node, gone)
    host_need = want.host_memory_bytes + (each if count == 0 else 0)
    on_gpu_node = node.backend is not Backend.CPU
    offered = (
        (want.backend is None or want.backend is node.backend)
        and (count > 0 or not on_gpu_node or picture.settings.cpu_models_on_gpu_nodes)
        and (not want.types or not node.devices or any(d.type in want.types for d in node.devices))
        and all(node.labels.get(key) == value for key, value in want.labels.items())
        and (node.millicpus is None or node.millicpus >= want.node_millicpus)
        and (node.millicpus is None or node.millicpus - millicpus >= want.millicpus)
        and (not model.pinned or model.pin is None or model.pin.node == node.name)
    )
    if not offered:
        return
    free = {
        device.id: device.capacity_bytes - device.headroom_bytes - reserved[device.id] - picture.others[device.id]
        for device in node.devices
    }
    if node.device_is_host_memory:
        host_free = free[node.devices[0].id] if node.devices[0].id not in picture.lost else -1
    else:
        host_free = (UNLIMITED if node.memory_bytes is None else node.memory_bytes) - host
    if host_need > host_free:
        return
    fixed = model.pin.devices if model.pinned and model.pin else ()
    good = []
    for index, device in enumerate(node.devices):
        lendable = device.capacity_bytes - device.headroom_bytes
        size = lendable if want.exclusive else each
        also = host_need if node.device_is_host_memory else 0
        if (
            device.id not in picture.lost
            and (not want.types or device.type in want.types)
            and (not fixed or device.id in fixed)
            and device.capacity_bytes >= want.device_memory_bytes
            and each <= lendable
            and size + also <= free[device.id]
        ):
            good.append((index, size))
    if not fixed or len(fixed) == count:
        for some in combinations(good, taken):
            yield tuple(i for i, _ in some), tuple(size for _, size in some)


def places(picture: Picture, model: Model, gone: Collection[ReplicaId]) -> Iterator[tuple[Any, Placement]]:
    """Every place for one replica once `gone` are gone, with its rank: fewer devices, (fewer nodes,) preferred
    type, least (`pack`: most) loaded devices, then node, ids."""
    for count in model.requirement.bytes_by_count:
        for node in picture.nodes.values():
            yield from _ranked(picture, model, count, (node,), gone)
        if model.requirement.across_nodes:
            for number in range(2, count + 1):
                whole = [n for n in picture.nodes.values() if len(n.devices) * number == count]
                for several in combinations(sorted(whole, key=lambda n: n.name), number):
                    yield from _ranked(picture, model, count, several, gone)


def _ranked(
    picture: Picture, model: Model, count: int, nodes: Sequence[Node], gone: Collection[ReplicaId]
) -> Iterator[tuple[Any, Placement]]:
    want = model.requirement
    sign = 1 if picture.settings.strategy is Strategy.SPREAD else -1
    ways = [list(shares(picture, model, node, count, count // len(nodes), gone)) for node in nodes]
    for way in product(*ways):
        devices = [node.devices[i] for node, (indices, _) in zip(nodes, way, strict=True) for i in indices]
        if sum(d.capacity_bytes for d in devices) < want.total_device_memory_bytes:
            continue
        loads = [picture.reserved(node, ())[0] for node in nodes]
        load = sum(each[d.id] for each in loads for d in devices if d.id in each)
        node_load = sum(sum(each.values()) for each in loads)
        kind = max((want.types.index(d.type) for d in devices), default=0) if want.types else 0
        names = tuple(node.name for node in nodes)
        indices = tuple(i for taken, _ in way for i in taken)
        place = Placement(
            names,
            tuple(d.id for d in devices),
            tuple(chain.from_iterable(sizes for _, sizes in way)),
            want.host_memory_bytes + (want.bytes_by_count[0] if count == 0 else 0),
            want.millicpus,
        )
        yield (count, len(nodes), kind, sign * load, sign * node_load, names, indices), place


def fits(picture: Picture, model: Model, gone: Collection[ReplicaId]) -> bool:
    return next(places(picture, model, gone), None) is not None


def best_place(picture: Picture, model: Model, gone: Collection[ReplicaId]) -> Placement | None:
    found = min(places(picture, model, gone), default=None, key=lambda ranked: ranked[0])
    return None if found is None else found[1]


def grown(picture: Picture, model: Model, place: Placement, gone: Collection[ReplicaId]) -> Placement:
    """An elastic model gets the same on each device, as much as the fullest of them has free, within its limits."""
    want = model.requirement
    most = want.bytes_max_by_count.get(len(place.devices))
    if most is None or want.exclusive or not place.devices:
        return place
    sizes = [most]
    for node in (picture.nodes[name] for name in place.nodes):
        reserved = picture.reserved(node, gone)[0]
        for device in node.devices:
            if device.id in place.devices:
                free = device.capacity_bytes - device.headroom_bytes - reserved[device.id] - picture.others[device.id]
                sizes.append(free - (place.host_bytes if node.device_is_host_memory else 0))
    each = max(min(sizes), place.device_bytes[0])
    return replace(place, device_bytes=(each,) * len(place.devices))


# -- and who leaves for it --------------------------------------------------------------------------


def minimal(picture: Picture, model: Model, victims: Collection[ReplicaId]) -> bool:
    """"drop any victim and it no longer fits"."""
    return not any(fits(picture, model, set(victims) - {one}) for one in victims)


def best_plan(
    picture: Picture, model: Model, candidates: Sequence[Victim], spare: Mapping[ModelName, int]
) -> Answer | None:
    """The plan that SCENARIOS.md ranks first, by looking at every set of victims."""
    place = best_place(picture, model, ())
    if place is not None:
        return Answer(grown(picture, model, place, ()), ())
    if not fits(picture, model, {c.id for c in candidates}):
        return None
    best: tuple[Any, Sequence[Victim]] | None = None
    enough: list[set[ReplicaId]] = []
    for number in range(1, len(candidates) + 1):
        for some in combinations(candidates, number):
            ids = {c.id for c in some}
            if any(smaller <= ids for smaller in enough) or not fits(picture, model, ids):
                continue
            enough.append(ids)
            if any(spare.get(name, number) < leaving for name, leaving in Counter(c.model for c in some).items()):
                continue
            rank = (
                sum(c.drained for c in some),
                sum(c.value for c in some),
                max(c.used_ms for c in some),
                sorted(c.id_key for c in some),
            )
            if best is None or rank < best[0]:
                best = (rank, some)
    if best is None:
        return None
    leaving = sorted(best[1], key=lambda c: c.id_key)
    gone = {c.id for c in leaving}
    place = best_place(picture, model, gone)
    assert place is not None
    return Answer(grown(picture, model, place, gone), tuple(c.id for c in leaving))
