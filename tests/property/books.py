"""A second book-keeper: it sees events and decisions only, and objects to what must not be.

Rules of this file: nothing of the core but its nouns. Bytes are held from `StartReplica` to the confirmed
exit; a request is waiting, granted or ended. What is found wrong is an AssertionError with the decision.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from rayscheduler.core import events as ev
from rayscheduler.core.decisions import Decision, Grant, Reject, StartReplica, StopReplica
from rayscheduler.core.types import (
    DeviceId,
    Model,
    ModelName,
    Node,
    NodeName,
    Placement,
    RejectCode,
    ReplicaId,
    RequestId,
    Settings,
    StopReason,
)

GONE_ALREADY = (StopReason.LOAD_FAILED, StopReason.CRASHED)


@dataclass
class Held:
    """A replica that was started (or found) and whose exit is not confirmed."""

    model: ModelName
    placement: Placement
    phase: str  # starting, running, stopping
    used_ms: int
    leases: set[RequestId] = field(default_factory=set)


@dataclass
class Asked:
    """A request that has arrived."""

    model: ModelName
    priority: int
    number: int  # of arrival
    arrived_ms: int
    deadline_ms: int | None
    holder: str
    state: str = "waiting"  # granted, ended
    replica: ReplicaId | None = None


class Books:
    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.nodes: dict[NodeName, Node] = {}
        self.others: dict[DeviceId, int] = {}
        self.lost: set[DeviceId] = set()
        self.models: dict[ModelName, Model] = {}
        self.held: dict[ReplicaId, Held] = {}
        self.seen: set[ReplicaId] = set()  # ids that were started once
        self.requests: dict[RequestId, Asked] = {}
        self.grants: dict[ModelName, list[int]] = {}  # instants
        self.gone: dict[ReplicaId, Held] = {}  # by the event that is being noted
        self.shut_down = False
        self.now_ms = 0
        self._arrived = 0

    # -- events -----------------------------------------------------------------------------------

    def note(self, events: Iterable[ev.Event], decisions: Iterable[Decision], now_ms: int) -> None:
        self.now_ms = now_ms
        self.gone = {}
        to_reject: set[RequestId] = set()
        for event in events:
            to_reject |= self._event(event)
        for decision in decisions:
            self._decision(decision)
        for request in to_reject:
            assert self.requests[request].state == "ended", f"{request} was cancelled and is still in the queue"
        for name, replica in self.gone.items():
            assert replica.phase == "stopping", f"{name} is gone, and nobody said so"
        self._nothing_is_over_committed()

    def _event(self, event: ev.Event) -> set[RequestId]:
        """Note it; the waiting requests that it cancels."""
        match event:
            case ev.NodeJoined(node) if node.name not in self.nodes:
                self.nodes[node.name] = node
            case ev.NodeLost(name) if name in self.nodes:
                self._lose(name)
            case ev.DeviceLost(device) if device in self.devices():
                self.lost.add(device)
            case ev.DeviceReturned(device):
                self.lost.discard(device)
            case ev.MemoryObserved(device, used) if device in self.devices():
                self.others[device] = used
            case ev.ModelDeployed(model):
                self.models[model.name] = model
            case ev.ModelRemoved(model_name):
                self.models.pop(model_name, None)
            case ev.PinAsked(model_name, pinned) if model_name in self.models:
                self.models[model_name] = replace(self.models[model_name], pinned=pinned)
            case ev.RequestArrived():
                self._arrive(event)
            case ev.RequestEnded(request):
                return self._end([request])
            case ev.HolderLost(holder):
                return self._end([r for r, asked in self.requests.items() if asked.holder == holder != ""])
            case ev.ReplicaStarted(name, load_ms) if name in self.held and self.held[name].phase == "starting":
                held = self.held[name]
                held.phase, held.used_ms = "running", self.now_ms
                if load_ms is not None:
                    self.models[held.model] = replace(self.models[held.model], load_ms=load_ms)
            case ev.ReplicaFound(name) if name not in self.held:
                self._find(event)
            case ev.ReplicaFailed(name) | ev.ReplicaStopped(name) if name in self.held:
                self._release(name)
            case ev.ShutdownAsked():
                self.shut_down = True
        return set()

    def _find(self, found: ev.ReplicaFound) -> None:
        phase = "stopping" if found.leaving else "running" if found.running else "starting"
        held = Held(found.model, found.placement, phase, self.now_ms - found.idle_ms, set(found.leases))
        self.seen.add(found.replica)
        self.held[found.replica] = held
        for request, holder in found.leases.items():
            asked = Asked(found.model, 0, 0, self.now_ms, None, holder, "granted", found.replica)
            self.requests[request] = asked

    def _lose(self, name: NodeName) -> None:
        for device in self.nodes.pop(name).devices:
            self.others.pop(device.id, None)
            self.lost.discard(device.id)
        for replica, held in list(self.held.items()):
            if name in held.placement.nodes and not any(n in self.nodes for n in held.placement.nodes):
                self._release(replica)

    def _release(self, name: ReplicaId) -> None:
        self.gone[name] = self.held.pop(name)
        self._end_leases(self.gone[name])

    def _arrive(self, event: ev.RequestArrived) -> None:
        if event.request in self.requests and self.requests[event.request].state != "ended":
            return
        model = self.models.get(event.model)
        priority = event.priority if event.priority is not None else model.priority if model else 0
        self._arrived += 1
        number = self._arrived
        self.requests[event.request] = Asked(
            event.model, priority, number, self.now_ms, event.deadline_ms, event.holder
        )

    def _end(self, requests: Iterable[RequestId]) -> set[RequestId]:
        cancelled = set()
        for request in requests:
            asked = self.requests.get(request)
            if asked is None or asked.state == "ended":
                continue
            if asked.state == "waiting":
                cancelled.add(request)
                continue
            asked.state = "ended"
            assert asked.replica is not None
            held = self.held[asked.replica]
            held.leases.remove(request)
            held.used_ms = self.now_ms
        return cancelled

    def _end_leases(self, held: Held) -> None:
        for request in held.leases:
            self.requests[request].state = "ended"
        held.leases.clear()

    def forget_waiting(self) -> None:
        """The scheduler died: who waited will ask again, and nobody remembers the demand."""
        self.requests = {name: asked for name, asked in self.requests.items() if asked.state != "waiting"}
        self.grants = {}

    # -- decisions --------------------------------------------------------------------------------

    def _decision(self, decision: Decision) -> None:
        match decision:
            case StartReplica():
                self._start(decision)
            case StopReplica():
                self._stop(decision)
            case Grant():
                self._grant(decision)
            case Reject():
                self._reject(decision)

    def _start(self, start: StartReplica) -> None:
        assert not self.shut_down, f"after shutdown: {start}"
        assert start.replica not in self.seen, f"this id was used before: {start}"
        assert not set(start.evicts) & set(self.held), f"a victim is still there: {start}"
        place = start.placement
        assert place.devices or place.nodes, start
        assert set(place.nodes) <= set(self.nodes), f"on a node that is not there: {start}"
        assert not set(place.devices) & self.lost, f"on a lost device: {start}"
        self.seen.add(start.replica)
        self.held[start.replica] = Held(start.model, place, "starting", self.now_ms)
        for device in place.devices:
            free = self.free_bytes(device) - self.others.get(device, 0)
            assert free >= 0, f"{device} is over-committed by {-free} with what others use: {start}"

    def _stop(self, stop: StopReplica) -> None:
        if stop.replica in self.gone:
            gone = self.gone[stop.replica]
            assert gone.phase != "stopping", f"stopped twice: {stop}"
            assert stop.reason in (*GONE_ALREADY, StopReason.NODE_LOST), f"it is gone already: {stop}"
            gone.phase = "stopping"
            return
        held = self.held.get(stop.replica)
        assert held is not None, f"nothing of that name is there: {stop}"
        assert held.phase != "stopping", f"stopped twice: {stop}"
        assert stop.reason not in GONE_ALREADY, f"it is still there: {stop}"
        model = self.models.get(held.model)
        if stop.reason in (StopReason.EVICTED, StopReason.IDLE, StopReason.MEMORY_PRESSURE):
            assert not held.leases, f"it serves {held.leases}: {stop}"
            assert held.phase == "running", f"it is {held.phase}: {stop}"
        if stop.reason is StopReason.MEMORY_PRESSURE:
            assert model is None or not model.pinned, f"it is pinned: {stop}"
        if stop.reason is StopReason.ABANDONED:
            assert held.phase == "starting", f"it is {held.phase}: {stop}"
        if stop.makes_way_for is not None:
            assert stop.reason in (StopReason.EVICTED, StopReason.ABANDONED), stop
            assert stop.makes_way_for not in self.seen, f"it makes way for what runs already: {stop}"
            assert stop.makes_way_for.rpartition("#")[0] != held.model, f"for its own model: {stop}"
        held.phase = "stopping"
        self._end_leases(held)

    def _grant(self, grant: Grant) -> None:
        asked = self.requests.get(grant.request)
        assert asked is not None, f"nobody asked: {grant}"
        assert asked.state == "waiting", f"it is {asked.state} already: {grant}"
        held = self.held[grant.replica]
        assert held.phase == "running", f"{grant.replica} is {held.phase}: {grant}"
        assert held.model == asked.model == grant.model, f"another model: {grant}"
        assert asked.deadline_ms is None or asked.deadline_ms >= self.now_ms, f"too late: {grant}"
        assert len(held.leases) < self.models[held.model].concurrency, f"no lease is free: {grant}"
        assert not self.shut_down, f"after shutdown: {grant}"
        better = [
            name
            for name, other in self.requests.items()
            if other.state == "waiting" and other.model == asked.model and self.order(other) < self.order(asked)
        ]
        assert not better, f"{better} should come first: {grant}"
        asked.state, asked.replica = "granted", grant.replica
        held.leases.add(grant.request)
        self.grants.setdefault(held.model, []).append(self.now_ms)

    def _reject(self, reject: Reject) -> None:
        asked = self.requests.get(reject.request)
        assert asked is not None, f"nobody asked: {reject}"
        assert asked.state == "waiting", f"it is {asked.state} already: {reject}"
        assert reject.message, f"without a reason: {reject}"
        if reject.code is RejectCode.DEADLINE_EXCEEDED:
            assert asked.deadline_ms is not None, f"it has no deadline: {reject}"
            assert asked.deadline_ms <= self.now_ms, f"too early: {reject}"
        asked.state = "ended"

    # -- sums -------------------------------------------------------------------------------------

    def order(self, asked: Asked) -> tuple[int, int]:
        """By priority, then arrival; `serial` knows no priorities."""
        return (0 if self.settings.policy == "serial" else -asked.priority, asked.number)

    def devices(self) -> set[DeviceId]:
        return {device.id for node in self.nodes.values() for device in node.devices}

    def free_bytes(self, device: DeviceId) -> int:
        """Capacity less headroom and what our replicas hold."""
        node = next(node for node in self.nodes.values() if any(d.id == device for d in node.devices))
        about = next(d for d in node.devices if d.id == device)
        held = 0
        for replica in self.held.values():
            place = replica.placement
            held += sum(size for d, size in zip(place.devices, place.device_bytes, strict=True) if d == device)
            if node.device_is_host_memory and node.name in place.nodes:
                held += place.host_bytes
        return about.capacity_bytes - about.headroom_bytes - held

    def _nothing_is_over_committed(self) -> None:
        for node in self.nodes.values():
            for device in node.devices:
                free = self.free_bytes(device.id)
                assert free >= 0, f"{device.id} is over-committed by {-free}"
            here = [r.placement for r in self.held.values() if node.name in r.placement.nodes]
            if node.millicpus is not None:
                assert sum(p.millicpus for p in here) <= node.millicpus, f"{node.name} is short of cpus"
            if node.memory_bytes is not None:
                assert sum(p.host_bytes for p in here) <= node.memory_bytes, f"{node.name} is short of memory"

    def waiting(self) -> list[RequestId]:
        return [name for name, asked in self.requests.items() if asked.state == "waiting"]

    def granted(self) -> list[RequestId]:
        return [name for name, asked in self.requests.items() if asked.state == "granted"]

    def in_phase(self, phase: str) -> list[ReplicaId]:
        return [name for name, held in self.held.items() if held.phase == phase]
