"""What anybody outside the core can know: a book kept from the events told and the decisions heard.

Rules of this file: nothing is asked of the scheduler and none of its arithmetic is shared. Bytes are held
from the `start` to the news that the process is gone, and what is left is summed up anew each time.
Whether a model would fit into what is left is asked of `rooms.py`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace

from rayscheduler.core.events import FailureKind
from rayscheduler.core.types import (
    DeviceId,
    HolderId,
    Model,
    ModelName,
    Node,
    NodeName,
    Placement,
    ReplicaId,
    RequestId,
    Rest,
    Settings,
)
from rayscheduler.simulation.rooms import Room

UNLIMITED = 1 << 60
BACKOFF_FIRST_MS = 1_000
BACKOFF_LAST_MS = 60_000
DEMAND_WINDOW_MS = 600_000


@dataclass(slots=True)
class SeenReplica:
    """A process, from its start to the news that it is gone. `homes`: nodes on which it still is."""

    id: ReplicaId
    model: ModelName
    placement: Placement
    homes: set[NodeName]
    running: bool = False
    stop_sent: bool = False
    used_ms: int = 0
    granted_ms: int = 0  # when it last took a lease, or began to run
    leases: set[RequestId] = field(default_factory=set)
    rest: Rest = Rest.AWAKE
    keeps: Placement | None = None  # what it holds asleep, unless it is awake
    nap: int = 0

    def serves(self) -> bool:
        return self.running and not self.stop_sent and self.rest is Rest.AWAKE

    def comes_or_serves(self) -> bool:
        return not self.stop_sent and self.rest in (Rest.AWAKE, Rest.WAKING)

    def sleeps(self) -> bool:
        return self.rest is Rest.ASLEEP and not self.stop_sent

    def held(self, lying: bool = False) -> Placement:
        """What it holds: to sleep and back, its devices and the host memory of its weights. `lying`: once it sleeps."""
        if self.keeps is None:
            return self.placement
        if self.rest is Rest.ASLEEP or (lying and self.rest is Rest.SUSPENDING):
            return self.keeps
        return replace(self.placement, host_bytes=self.keeps.host_bytes)


@dataclass(slots=True)
class SeenRequest:
    """A request that waits. Requests are served in the order of `order`: priority first, then arrival."""

    id: RequestId
    model: ModelName
    order: tuple[int, int]
    arrived_ms: int
    deadline_ms: int | None
    holder: HolderId


@dataclass(slots=True)
class SeenModel:
    """A catalog entry, every version that it had, and how its loads went."""

    model: Model
    versions: list[Model]
    failures: int = 0
    backoff_until_ms: int = 0
    unloaded: bool = False  # by the operator: what stands (min, preload) rests
    granted_ms: list[int] = field(default_factory=list)  # when its requests were granted

    def back_off(self, now_ms: int) -> None:
        self.failures += 1
        pause_ms = min(BACKOFF_LAST_MS, BACKOFF_FIRST_MS * 2 ** min(self.failures - 1, 20))
        self.backoff_until_ms = now_ms + pause_ms

    def loaded(self, load_ms: int | None) -> None:
        self.failures = self.backoff_until_ms = 0
        if load_ms is not None:
            self.model = replace(self.model, load_ms=load_ms)

    def woken(self, wake_ms: int | None) -> None:
        self.failures = self.backoff_until_ms = 0
        if wake_ms is not None and self.model.sleep is not None:
            self.model = replace(self.model, sleep=replace(self.model.sleep, wake_ms=wake_ms))

    def value(self, now_ms: int) -> int:
        """Load time (ms) × requests granted in the last ten minutes."""
        return self.model.load_ms * self._demand(now_ms)

    def waking_value(self, now_ms: int) -> int:
        """Wake time (ms) × requests granted in the last ten minutes."""
        return 0 if self.model.sleep is None else self.model.sleep.wake_ms * self._demand(now_ms)

    def _demand(self, now_ms: int) -> int:
        return sum(1 for at_ms in self.granted_ms if now_ms - at_ms < DEMAND_WINDOW_MS)


class Book:
    """The cluster, the catalog, the processes and the requests, as told."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.nodes: dict[NodeName, Node] = {}
        self.node_has_joined = False
        self.lost_devices: set[DeviceId] = set()
        self.others: dict[DeviceId, int] = {}
        self.models: dict[ModelName, SeenModel] = {}
        self.replicas: dict[ReplicaId, SeenReplica] = {}  # whose processes are there
        self.ids_used: set[ReplicaId] = set()
        self.made_way: dict[
            ReplicaId, list[ReplicaId | None]
        ] = {}  # who was evicted for whom; it may sleep for several
        self.slept_for: set[tuple[ReplicaId, ReplicaId | None]] = set()  # who is known to have slept for whom
        self.waiting: dict[RequestId, SeenRequest] = {}
        self.leased: dict[RequestId, SeenReplica] = {}
        self.holders: dict[RequestId, HolderId] = {}
        self.silenced: set[ModelName] = set()  # unloaded, and nobody asked for them since
        self.wanted: dict[ModelName, int] = {}  # an operator's load that has not run yet -> since when (ms)
        self.shutting_down = False
        self._arrivals = 0
        self._removed: dict[ModelName, SeenModel] = {}

    # -- what changes it --------------------------------------------------------------------------

    def join(self, node: Node) -> None:
        if node.name not in self.nodes:
            self.nodes[node.name] = node
            self.node_has_joined = True

    def lose_node(self, name: NodeName) -> list[SeenReplica]:
        """The replicas that were on it, now gone, or gone from there."""
        node = self.nodes.pop(name, None)
        if node is None:
            return []
        for device in node.devices:
            self.lost_devices.discard(device.id)
            self.others.pop(device.id, None)
        hit = [replica for replica in self.replicas.values() if name in replica.homes]
        for replica in hit:
            replica.homes.discard(name)
            self.end_leases(replica)
            if not replica.homes:
                del self.replicas[replica.id]
        return hit

    def deploy(self, model: Model) -> None:
        seen = self.models.get(model.name) or self._removed.pop(model.name, None) or SeenModel(model, [])
        seen.model = model
        seen.versions.append(model)
        self.models[model.name] = seen

    def remove(self, name: ModelName) -> bool:
        """Out of the catalog; what was seen of the model is not forgotten."""
        seen = self.models.pop(name, None)
        if seen is not None:
            self._removed[name] = seen
            seen.unloaded = False
        return seen is not None

    def arrive(
        self, request: RequestId, model: ModelName, priority: int, deadline: int | None, holder: HolderId, now_ms: int
    ) -> SeenRequest:
        self._arrivals += 1
        self.silenced.discard(model)
        strict = self.settings.policy == "serial"
        order = (0 if strict else -priority, self._arrivals)
        seen = SeenRequest(request, model, order, now_ms, deadline, holder)
        self.waiting[request] = seen
        self.holders[request] = holder
        return seen

    def start(self, replica: ReplicaId, model: ModelName, placement: Placement, now_ms: int) -> SeenReplica:
        seen = SeenReplica(replica, model, placement, set(placement.nodes), used_ms=now_ms, granted_ms=now_ms)
        self.replicas[replica] = seen
        self.ids_used.add(replica)
        return seen

    def grant(self, request: RequestId, replica: SeenReplica, now_ms: int) -> None:
        self.waiting.pop(request, None)
        replica.leases.add(request)
        replica.granted_ms = now_ms
        self.leased[request] = replica

    def end_lease(self, request: RequestId, now_ms: int) -> SeenReplica | None:
        replica = self.leased.pop(request, None)
        if replica is not None:
            replica.leases.discard(request)
            replica.used_ms = now_ms
        return replica

    def end_leases(self, replica: SeenReplica) -> None:
        for request in replica.leases:
            del self.leased[request]
        replica.leases.clear()

    def exit(self, name: ReplicaId, kind: FailureKind | None, now_ms: int) -> SeenReplica | None:
        """The process is gone; unasked, its model backs off. None if it was not there any more."""
        replica = self.replicas.pop(name, None)
        if replica is None:
            return None
        self.end_leases(replica)
        seen = self.models.get(replica.model)
        if not replica.stop_sent and seen is not None:
            seen.back_off(now_ms)
        return replica

    def make_way(self, name: ReplicaId, way: ReplicaId | None) -> None:
        self.made_way.setdefault(name, []).append(way)

    def slept(self, name: ReplicaId, nap: int) -> None:
        replica = self.replicas.get(name)
        if replica is not None and not replica.stop_sent and (replica.rest, replica.nap) == (Rest.SUSPENDING, nap):
            replica.rest = Rest.ASLEEP
            self.slept_for.update((name, way) for way in self.made_way.get(name, ()))

    # -- what can be asked ------------------------------------------------------------------------

    def of_model(self, name: ModelName) -> list[SeenReplica]:
        return [replica for replica in self.replicas.values() if replica.model == name]

    def on_device(self, device: DeviceId) -> list[SeenReplica]:
        return [replica for replica in self.replicas.values() if device in self.devices_of(replica)]

    def devices_of(self, replica: SeenReplica) -> list[DeviceId]:
        """The devices on which it holds bytes; a cpu node's only device is its host memory."""
        place = replica.placement
        found = [device for device in place.devices if self.home_of(device) in replica.homes]
        for name in replica.homes:
            node = self.nodes.get(name)
            if place.host_bytes and node is not None and node.device_is_host_memory:
                found.append(node.devices[0].id)
        return found

    def home_of(self, device: DeviceId) -> NodeName:
        return NodeName(device.rpartition("/")[0])

    def room(self, node: Node, kept: Iterable[tuple[Placement, Collection[NodeName]]], count_others: bool) -> Room:
        """What `kept` (placements, and the nodes on which they are still there) leaves on a node."""
        free: list[int | None] = [
            None if device.id in self.lost_devices else device.capacity_bytes - device.headroom_bytes
            for device in node.devices
        ]
        host = UNLIMITED if node.memory_bytes is None else node.memory_bytes
        millicpus = UNLIMITED if node.millicpus is None else node.millicpus
        index = {device.id: at for at, device in enumerate(node.devices)}

        def take(at: int, size: int) -> None:
            left = free[at]
            if left is not None:
                free[at] = left - size

        if count_others:
            for device, size in self.others.items():
                if device in index:
                    take(index[device], size)
        for placement, homes in kept:
            if node.name not in homes:
                continue
            for device, size in zip(placement.devices, placement.device_bytes, strict=True):
                if device in index:
                    take(index[device], size)
            millicpus -= placement.millicpus
            if node.device_is_host_memory:
                take(0, placement.host_bytes)
            else:
                host -= placement.host_bytes
        if node.device_is_host_memory:
            host = free[0] if free[0] is not None else 0
        return Room(node, free, host, millicpus)

    def rooms(
        self, without: Collection[ReplicaId] = (), beside: Iterable[Placement] = (), lying: bool = False
    ) -> list[Room]:
        """What is left on every node now, counting other programs, with `without` gone and `beside` there too.
        `lying`: whoever goes to sleep does sleep."""
        kept: list[tuple[Placement, Collection[NodeName]]] = [
            (replica.held(lying), replica.homes) for replica in self.replicas.values() if replica.id not in without
        ]
        kept.extend((placement, placement.nodes) for placement in beside)
        return [self.room(self.nodes[name], kept, True) for name in sorted(self.nodes)]

    def load_on(self, node: Node, at: int, without: ReplicaId) -> int:
        """The bytes that replicas, but for one, hold on one device of a node."""
        device, load = node.devices[at].id, 0
        for replica in self.replicas.values():
            if replica.id == without or node.name not in replica.homes:
                continue
            place = replica.held()
            load += sum(size for name, size in zip(place.devices, place.device_bytes, strict=True) if name == device)
            load += place.host_bytes if node.device_is_host_memory else 0
        return load

    def rooms_beside(self, keep: Iterable[SeenReplica]) -> list[Room]:
        """What would be left on every node with only these replicas there, and no other programs."""
        kept = [(replica.held(), replica.homes) for replica in keep]
        return [self.room(self.nodes[name], kept, False) for name in sorted(self.nodes)]
