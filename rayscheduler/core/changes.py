"""What nodes, devices, replicas, the catalog and its operator do, and what that changes.

Rules of this file: late, repeated or unknown news changes nothing. A replica that is certainly gone (its
node is lost, its process died) is released at once; anything else only when its exit is confirmed.
"""

from __future__ import annotations

from dataclasses import replace

from rayscheduler.core import events as ev
from rayscheduler.core.fleet import Fleet
from rayscheduler.core.lifecycle import State
from rayscheduler.core.records import ModelRecord, ReplicaRecord
from rayscheduler.core.requests import Requests
from rayscheduler.core.timers import Timers
from rayscheduler.core.types import (
    Device,
    DeviceId,
    Model,
    ModelName,
    Node,
    NodeName,
    RejectCode,
    ReplicaId,
    Requirement,
    Rest,
    StopReason,
)


class Changes:
    def __init__(self, models: dict[ModelName, ModelRecord], fleet: Fleet, requests: Requests, timers: Timers) -> None:
        self._models = models
        self._fleet = fleet
        self._requests = requests
        self._timers = timers
        self._standing: list[ModelRecord] | None = None
        self._retired: dict[ModelName, ModelRecord] = {}  # not in the catalog (any more); their serials live on

    def standing(self) -> list[ModelRecord]:
        """Models that may have standing wishes (`replicas.min`, `preload`, elastic ones), by priority, then name."""
        if self._standing is None:
            wishes = (r for r in self._models.values() if r.model.replicas_min or r.model.preload or r.model.elastic)
            self._standing = sorted(wishes, key=lambda r: (-r.model.priority, r.name))
        return self._standing

    def _changed_cluster(self) -> None:
        self._fleet.epoch += 1
        self._fleet.topology += 1
        self._fleet.freed = True

    # -- nodes and devices ------------------------------------------------------------------------

    def node_joined(self, node: Node) -> None:
        if node.name in self._fleet.ledger.accounts:
            return
        self._fleet.ledger.add_node(node)
        self._requests.node_has_joined = True
        self._changed_cluster()

    def node_lost(self, name: NodeName, now_ms: int) -> None:
        """Its replicas are gone with it; of one across several nodes the rest still has to leave."""
        if name not in self._fleet.ledger.accounts:
            return
        replicas = self._fleet.on_node(name)
        self._fleet.ledger.remove_node(name)
        self._changed_cluster()
        for replica in replicas:
            self._requests.drop_leases(replica)
            # Not its nodes: one that was lost and came back holds nothing of it.
            elsewhere = self._fleet.ledger.holds(replica.id, replica.placement)
            if elsewhere and replica.state is not State.STOPPING:
                self._fleet.stop(replica, StopReason.NODE_LOST, now_ms)
            elif not elsewhere:
                self._fleet.lost(replica, StopReason.NODE_LOST, now_ms)

    def device_lost(self, device: DeviceId, now_ms: int) -> None:
        account = self._fleet.ledger.account_of(device)
        if account is None or account.lost[account.index[device]]:
            return
        self._fleet.ledger.lose_device(device)
        self._changed_cluster()
        for replica in self._fleet.on_device(device):
            if replica.state is not State.STOPPING:
                self._requests.drop_leases(replica)
                self._fleet.stop(replica, StopReason.DEVICE_LOST, now_ms)

    def device_returned(self, device: DeviceId) -> None:
        account = self._fleet.ledger.account_of(device)
        if account is not None and account.lost[account.index[device]]:
            self._fleet.ledger.regain_device(device)
            self._fleet.pressed.add(device)
            self._changed_cluster()

    def memory_observed(self, device: DeviceId, used_by_others_bytes: int) -> None:
        if self._fleet.ledger.account_of(device) is None:
            return
        before = self._fleet.ledger.observe(device, used_by_others_bytes)
        if used_by_others_bytes < before:
            self._fleet.epoch += 1
            self._fleet.freed = True
        elif used_by_others_bytes > before:
            self._fleet.pressed.add(device)

    def relieve(self, now_ms: int) -> None:
        """Where others and our reservations exceed a device: stop what sleeps, then idle unpinned replicas, least
        valuable first, until it fits. Serving ones stay, and the device stays on the list until it does fit."""
        for device in sorted(self._fleet.pressed):
            account = self._fleet.ledger.account_of(device)
            if account is None or account.lost[account.index[device]]:
                self._fleet.pressed.discard(device)
                continue
            missing = -self._fleet.ledger.free_bytes(device)
            if missing <= 0:
                self._fleet.pressed.discard(device)
                continue
            here = account.node.devices[account.index[device]]
            host = account.node.device_is_host_memory
            sizes = {r.id: _bytes_on(r, here, host) for r in self._fleet.on_node(account.node.name)}
            replicas = [self._fleet.replicas[name] for name, size in sizes.items() if size]
            missing -= sum(sizes[r.id] for r in replicas if r.state is State.STOPPING)
            missing -= sum(sizes[r.id] - _kept_on(r, here) for r in replicas if r.state is State.SUSPENDING)
            asleep = sorted((r for r in replicas if r.state is State.ASLEEP), key=lambda r: (r.used_ms, r.id_key))
            idle = [r for r in replicas if r.state is State.RUNNING and not r.leases and not r.model.model.pinned]
            idle.sort(key=lambda r: (r.model.value(now_ms), r.used_ms, r.id_key))
            for replica in (*asleep, *idle):
                if missing <= 0:
                    break
                missing -= sizes[replica.id]
                self._fleet.stop(replica, StopReason.MEMORY_PRESSURE, now_ms)

    # -- the catalog and its operator -------------------------------------------------------------

    def model_deployed(self, model: Model, now_ms: int) -> None:
        record = self._models.get(model.name) or self._retired.pop(model.name, None)
        if record is None:
            record = ModelRecord(model)
        self._models[model.name] = record
        record.model, record.in_catalog, record.ever = model, True, (-1, False)
        self._standing = None
        self._changed_cluster()
        self._requests.may_grant(record)
        for replica in record.replicas.values():
            if replica.state is State.RUNNING and not replica.leases:
                replica.idle_timer = False  # its timeout may be another now
                self._requests.idle(replica, now_ms)

    def seed_serial(self, name: ModelName, serial: int) -> None:
        """Serials up to this one were used before."""
        record = self._record(name)
        record.serial = max(record.serial, serial)

    def _record(self, name: ModelName) -> ModelRecord:
        """The model's record; a new one, outside the catalog, for a name that is not known."""
        record = self._models.get(name) or self._retired.get(name)
        if record is None:
            record = self._retired[name] = ModelRecord(_orphan(name))
            record.in_catalog = False
        return record

    def pin(self, name: ModelName, pinned: bool, now_ms: int) -> None:
        record = self._models.get(name)
        if record is not None and record.model.pinned != pinned:
            self.model_deployed(replace(record.model, pinned=pinned), now_ms)

    def model_removed(self, name: ModelName, now_ms: int) -> None:
        record = self._models.pop(name, None)
        if record is None:
            return
        record.in_catalog = False
        record.unloaded = record.idled = False
        self._retired[name] = record
        self._standing = None
        self._unload(record, StopReason.MODEL_REMOVED, RejectCode.MODEL_NOT_FOUND, now_ms)

    def load_asked(self, name: ModelName, now_ms: int) -> None:
        """Wanted from now on until it runs; nothing to do where a replica is there or coming."""
        record = self._models.get(name)
        if record is None or self._requests.shutting_down:
            return
        record.unloaded = record.idled = False
        self._fleet.freed = True
        if record.wanted is None and not record.serving():
            record.wanted = self._requests.next_order(record.model.priority)
            record.wanted_since_ms = now_ms
            self._requests.wanting[name] = record
            if self._requests.patience_ms is not None:
                self._timers.condition(now_ms + self._requests.patience_ms, record)

    def unload_asked(self, name: ModelName, now_ms: int) -> None:
        record = self._models.get(name)
        if record is None:
            return
        leaving = all(replica.state is State.STOPPING for replica in record.replicas.values())
        if not leaving or record.waiting or record.wanted is not None or record.shrinks:
            record.unloaded = True
            self._unload(record, StopReason.UNLOADED, RejectCode.UNLOADED, now_ms)

    def _unload(self, record: ModelRecord, reason: StopReason, code: RejectCode, now_ms: int) -> None:
        record.wanted = None
        record.shrinks = False
        what = "was unloaded" if reason is StopReason.UNLOADED else "was removed from the catalog"
        for replica in list(record.replicas.values()):
            if replica.state is not State.STOPPING:
                self._requests.drop_leases(replica)
                self._fleet.stop(replica, reason, now_ms)
        self._requests.reject_all([record], code, f"{record.name} {what}")
        self._requests.wanting.pop(record.name, None)

    def shut_down(self, now_ms: int) -> None:
        self._requests.shutting_down = True
        for replica in sorted(self._fleet.replicas.values(), key=lambda r: r.id_key):
            if replica.state is not State.STOPPING and replica.id in self._fleet.replicas:
                self._requests.drop_leases(replica)
                self._fleet.stop(replica, StopReason.SHUTDOWN, now_ms)
        for record in self._models.values():
            record.wanted = None
        self._requests.reject_all(self._models.values(), RejectCode.SHUTTING_DOWN, "the service is shutting down")
        self._requests.wanting.clear()

    # -- replicas ---------------------------------------------------------------------------------

    def replica_started(self, name: ReplicaId, load_ms: int | None, now_ms: int) -> None:
        replica = self._fleet.replicas.get(name)
        if replica is None or replica.state is not State.STARTING:
            return
        record = replica.model
        replica.move(State.RUNNING, now_ms)
        if load_ms is not None and load_ms != record.model.load_ms:
            record.model = replace(record.model, load_ms=load_ms)
        self._runs(replica, now_ms)

    def replica_slept(self, name: ReplicaId, nap: int, now_ms: int) -> None:
        replica = self._fleet.replicas.get(name)
        if replica is not None and replica.state is State.SUSPENDING and replica.nap == nap:
            self._fleet.slept(replica, now_ms)

    def replica_woke(self, name: ReplicaId, nap: int, wake_ms: int | None, now_ms: int) -> None:
        replica = self._fleet.replicas.get(name)
        if replica is None or replica.state is not State.WAKING or replica.nap != nap:
            return
        record, traits = replica.model, replica.model.model.sleep
        if wake_ms is not None and traits is not None and wake_ms != traits.wake_ms:
            record.model = replace(record.model, sleep=replace(traits, wake_ms=wake_ms))
        self._fleet.woke(replica, now_ms)
        self._runs(replica, now_ms)

    def _runs(self, replica: ReplicaRecord, now_ms: int) -> None:
        """It answers, loaded or woken: whoever waited for that may have it."""
        record = replica.model
        self._fleet.take_up(replica)
        replica.used_ms = now_ms
        self._fleet.became_idle(replica)
        record.failures, record.backoff_until_ms, record.last_error = 0, None, ""
        record.wanted = None
        record.idled = record.shrinks = False
        if record.waiting:
            self._requests.may_grant(record)
        else:
            self._requests.wanting.pop(record.name, None)
        self._requests.idle(replica, now_ms)

    def replica_failed(self, event: ev.ReplicaFailed, now_ms: int) -> None:
        """A load that failed rejects whoever waits for the model, unless another replica of it is there or
        coming; after a crash they wait, and so they do when it could not sleep or wake. Always the model backs off."""
        replica = self._fleet.replicas.get(event.replica)
        if replica is None or replica.state is State.PENDING:
            return
        record = replica.model
        if replica.state is State.STOPPING:
            self._fleet.gone(replica, now_ms)
            return
        self._requests.drop_leases(replica)
        failed_load = event.kind is ev.FailureKind.LOAD and replica.state is State.STARTING
        reason = StopReason.LOAD_FAILED if failed_load else StopReason.CRASHED
        self._fleet.lost(replica, reason, now_ms)
        record.last_error = event.detail or str(reason)
        self._timers.condition(record.back_off(now_ms), record)
        if failed_load and not record.serving():
            cause = f": {event.detail}" if event.detail else ""
            self._requests.reject_all([record], RejectCode.LOAD_FAILED, f"{record.name} could not be loaded{cause}")

    def replica_stopped(self, name: ReplicaId, now_ms: int) -> None:
        """The exit is confirmed. If nobody asked for it, it is a crash."""
        replica = self._fleet.replicas.get(name)
        if replica is None or replica.state is State.PENDING:
            return
        if replica.state is State.STOPPING:
            self._fleet.gone(replica, now_ms)
        else:
            self.replica_failed(ev.ReplicaFailed(name, ev.FailureKind.CRASH, "it stopped unasked"), now_ms)

    def replica_found(self, event: ev.ReplicaFound, now_ms: int) -> None:
        """Adopt it; one whose model is not in the catalog is stopped, holding its bytes until it is gone."""
        nodes = event.placement.nodes
        if event.replica in self._fleet.replicas:
            return
        record = self._record(event.model)
        serial = int(event.replica.rpartition("#")[2])
        record.serial = max(record.serial, serial)
        if not any(name in self._fleet.ledger.accounts for name in nodes):
            return
        state = _state_of(event)
        if state is State.RUNNING and not event.leaving:
            record.wanted = None
        keeps = None if event.rest is Rest.AWAKE else event.keeps or event.placement
        replica = self._fleet.adopt(record, serial, event.placement, state, now_ms, keeps, event.nap)
        replica.used_ms = now_ms - event.idle_ms
        if event.leaving:
            self._fleet.leaves(replica, now_ms)
            return
        for request, holder in event.leases.items():
            if request not in self._fleet.requests:
                self._fleet.hold(request, holder, replica)
                self._requests.hold(request, holder)
        if not record.in_catalog or self._requests.shutting_down:
            self._requests.drop_leases(replica)
            reason = StopReason.MODEL_REMOVED if not record.in_catalog else StopReason.SHUTDOWN
            self._fleet.stop(replica, reason, now_ms)
        elif state is State.RUNNING and not replica.leases:
            self._fleet.became_idle(replica)
            self._requests.idle(replica, now_ms)
        self._requests.may_grant(record)


def _state_of(event: ev.ReplicaFound) -> State:
    match event.rest:
        case Rest.AWAKE:
            return State.RUNNING if event.running else State.STARTING
        case Rest.SUSPENDING:
            return State.SUSPENDING
        case Rest.ASLEEP:
            return State.ASLEEP
        case Rest.WAKING:
            return State.WAKING


def _bytes_on(replica: ReplicaRecord, device: Device, is_host_memory: bool) -> int:
    """What a replica's exit frees on a device; on one that is its host's memory, what it holds there too."""
    place = replica.holds
    sizes = zip(place.devices, place.device_bytes, strict=True)
    return sum(size for name, size in sizes if name == device.id) + (place.host_bytes if is_host_memory else 0)


def _kept_on(replica: ReplicaRecord, device: Device) -> int:
    """What a replica on its way to sleep will keep on a device."""
    keeps = replica.keeps
    return 0 if keeps is None else dict(zip(keeps.devices, keeps.device_bytes, strict=True)).get(device.id, 0)


def _orphan(name: ModelName) -> Model:
    return Model(name, Requirement(bytes_by_count={}))
