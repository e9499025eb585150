"""The state from outside: an immutable snapshot, and the invariants that hold between two events.

Rules of this file: it reads everything and changes nothing.
"""

from __future__ import annotations

from rayscheduler.core.fleet import Fleet
from rayscheduler.core.lifecycle import PROMISED, State
from rayscheduler.core.records import ModelRecord, Origin, ReplicaRecord
from rayscheduler.core.types import (
    DeviceSnapshot,
    ModelName,
    ModelSnapshot,
    NodeName,
    NodeSnapshot,
    ReplicaSnapshot,
    Snapshot,
    WaitingSnapshot,
)


def snapshot_of(fleet: Fleet, models: dict[ModelName, ModelRecord], now_ms: int, shutting_down: bool) -> Snapshot:
    waiting = sorted(w for record in models.values() for w in record.waiting)
    return Snapshot(
        now_ms=now_ms,
        nodes=tuple(_node(fleet, name) for name in sorted(fleet.ledger.accounts)),
        models=tuple(_model(models[name], now_ms) for name in sorted(models)),
        replicas=tuple(_replica(r) for r in sorted(fleet.replicas.values(), key=lambda r: r.id_key)),
        waiting=tuple(
            WaitingSnapshot(w.request, w.model.name, -w.order[0], w.arrived_ms, w.deadline_ms) for w in waiting
        ),
        shutting_down=shutting_down,
    )


def _node(fleet: Fleet, name: NodeName) -> NodeSnapshot:
    account = fleet.ledger.accounts[name]
    node, room = account.node, account.room()
    devices = tuple(
        DeviceSnapshot(device, not account.lost[i], room.load[i], account.others[i], room.free[i])
        for i, device in enumerate(node.devices)
    )
    places = [reservation.placement for reservation in account.reservations.values()]
    return NodeSnapshot(node, devices, sum(p.millicpus for p in places), sum(p.host_bytes for p in places))


def _model(record: ModelRecord, now_ms: int) -> ModelSnapshot:
    backoff = record.backoff_until_ms
    return ModelSnapshot(
        record.model,
        record.wanted is not None,
        len(record.waiting),
        backoff if backoff is not None and backoff > now_ms else None,
        record.failures,
        record.last_error,
    )


def _replica(replica: ReplicaRecord) -> ReplicaSnapshot:
    return ReplicaSnapshot(
        id=replica.id,
        model=replica.model.name,
        state=replica.state.value,
        placement=replica.placement,
        leases=len(replica.leases),
        pinned=replica.model.model.pinned,
        waits_for=tuple(sorted(replica.waits_for)),
        makes_way_for=replica.makes_way_for,
        state_since_ms=replica.since_ms,
        last_used_ms=replica.used_ms,
        holds=replica.holds,
    )


def validate(fleet: Fleet, models: dict[ModelName, ModelRecord], waiting: int) -> None:
    """Every invariant between two events. AssertionError names the one that is broken, with its story."""
    _validate_memory(fleet)
    leases = 0
    for replica in fleet.replicas.values():
        leases += len(replica.leases)
        _validate_replica(fleet, replica)
    assert leases == fleet.leases, f"{fleet.leases} leases are counted, {leases} are held"
    queued = [w for record in models.values() for w in record.waiting]
    assert len(queued) == waiting, f"{waiting} requests are counted as waiting, {len(queued)} are queued"
    for record in models.values():
        assert record.waiting == sorted(record.waiting), f"the queue of {record.name} is out of order"
        for entry in record.waiting:
            assert fleet.requests.get(entry.request) is entry, f"{entry.request} waits, but is not known"
    assert len(fleet.requests) == leases + len(queued), "a request is neither waiting nor served"


def _validate_memory(fleet: Fleet) -> None:
    for account in fleet.ledger.accounts.values():
        stale = account.room()
        account.changed()
        room = account.room()
        assert room.free == stale.free, f"{account.node.name}: what is free was not recomputed after a change"
        held = [0] * len(account.others)
        found = any(fleet.replicas[r].origin is Origin.FOUND for r in account.reservations if r in fleet.replicas)
        for name in account.reservations:
            assert name in fleet.replicas, f"{name} holds bytes on {account.node.name}, but is not known"
        for i, device in enumerate(account.node.devices):
            held[i] = room.load[i]
            limit = device.capacity_bytes - device.headroom_bytes
            excess = held[i] - limit
            # What was found running is a fact, whatever fits; what was promised here has to fit.
            assert excess <= 0 or account.lost[i] or found, f"{device.id} is over-committed by {excess} bytes"
        assert room.free_millicpus >= 0 or found, f"{account.node.name} has promised more cpus than it has"
        fits = room.free_host >= 0 or account.node.device_is_host_memory  # then it is a device, and was looked at
        assert fits or found, f"{account.node.name} has promised more host memory than it has"


def _validate_replica(fleet: Fleet, replica: ReplicaRecord) -> None:
    name, state = replica.id, replica.state
    story = "; ".join(replica.story)
    assert state is not State.STOPPED, f"{name} is stopped and still known: {story}"
    assert replica.model.replicas.get(name) is replica, f"{name} is unknown to its model"
    serving = state in (State.RUNNING, State.DRAINING)
    assert serving or not replica.leases, f"{name} holds leases while {state}: {story}"
    assert state in PROMISED or not replica.waits_for, f"{name} waits for others while {state}"
    assert state is not State.DRAINING or replica.leases, f"{name} is drained and was not stopped: {story}"
    for victim in replica.waits_for:
        assert victim in fleet.replicas, f"{name} waits for {victim}, which is gone"
    for request in replica.leases:
        assert fleet.requests.get(request) is replica, f"{request} is leased to {name}, but is not known"
    assert any(n in fleet.ledger.accounts for n in replica.placement.nodes), f"{name} is on no node"
    assert fleet.ledger.holds(name, replica.placement), f"{name} runs without a reservation"
    for node in replica.placement.nodes:
        account = fleet.ledger.accounts.get(node)
        held = None if account is None else account.reservations.get(name)  # none where a node was lost, and is back
        right = held is None or held.placement == replica.holds
        assert right, f"{name} should hold {replica.holds} on {node}: {story}"
    _validate_sleep(fleet, replica)


def _validate_sleep(fleet: Fleet, replica: ReplicaRecord) -> None:
    """Less is held of the devices while it sleeps, and only then; the host memory of its weights all the while."""
    name, state, keeps = replica.id, replica.state, replica.keeps
    listed = any(sleeper is replica for sleeper in fleet.asleep())
    assert listed == (state is State.ASLEEP), f"{name} is {state}, and listed as asleep: {listed}"
    turns = state in (State.SUSPENDING, State.ASLEEP, State.ROUSED, State.WAKING)
    assert keeps is not None or not turns, f"{name} is {state}, and nobody knows what it keeps"
    assert keeps is None or turns or state in (State.DRAINING, State.STOPPING), f"{name} is {state}, and keeps {keeps}"
    if keeps is not None and turns:
        assert replica.holds.host_bytes == keeps.host_bytes, f"{name} is {state} without the host memory of its weights"
    if state not in (State.ASLEEP, State.STOPPING):
        awake = replica.placement.device_bytes
        assert replica.holds.device_bytes == awake, f"{name} is {state}, and holds {replica.holds} of {awake}"
