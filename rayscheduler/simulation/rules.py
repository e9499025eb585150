"""The rules for single decisions, each a sentence of the design or of the scenario format.

Rules of this file: a check reads the book and the pass, and changes neither (but for noting grants).
Where the outside cannot know, the benefit of the doubt is the scheduler's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from rayscheduler.core import events as ev
from rayscheduler.core.decisions import Grant, Reject, StartReplica, StopReplica, WakeReplica
from rayscheduler.core.types import (
    DeviceId,
    Model,
    ModelName,
    Placement,
    PolicyName,
    RejectCode,
    ReplicaId,
    ReplicaSnapshot,
    RequestId,
    Rest,
    StopReason,
)
from rayscheduler.simulation.book import Book, SeenModel, SeenReplica, SeenRequest
from rayscheduler.simulation.rooms import fits, vector_matches
from rayscheduler.simulation.violation import Violation, demand


@dataclass(slots=True)
class Pass:
    """One call of the scheduler: what it was told, what that obliges it to, what it did.

    `draining` and `draining_after`: what the snapshots before and after call so. `pending`: after.
    `impatient_ms`: the latest instant at which somebody was past patience (-1: never).
    """

    now_ms: int = 0
    events: Sequence[ev.Event] = ()
    draining: frozenset[ReplicaId] = frozenset()
    draining_after: frozenset[ReplicaId] = frozenset()
    pending: dict[ReplicaId, ReplicaSnapshot] = field(default_factory=dict)
    promised: frozenset[DeviceId] = frozenset()  # where a replica was pending before: it may be given up in this pass
    impatient_ms: int = -1
    obliged: dict[ReplicaId, set[StopReason]] = field(default_factory=dict)
    must_reject: set[RequestId] = field(default_factory=set)
    cancelled: set[RequestId] = field(default_factory=set)
    unloaded: set[ModelName] = field(default_factory=set)
    failed_loads: set[ModelName] = field(default_factory=set)
    arrived: dict[RequestId, set[RequestId]] = field(default_factory=dict)  # -> who waited already
    lease_ended: set[ReplicaId] = field(default_factory=set)
    granted: list[SeenRequest] = field(default_factory=list)
    refused_full: list[RequestId] = field(default_factory=list)
    evicted: dict[ReplicaId, list[SeenReplica]] = field(default_factory=dict)  # for whom -> who

    def must_stop(self, replica: ReplicaId, reason: StopReason) -> None:
        self.obliged.setdefault(replica, set()).add(reason)

    def drains(self, replica: ReplicaId) -> bool:
        return replica in self.draining or replica in self.draining_after


def id_key(replica: ReplicaId) -> tuple[str, int]:
    model, _, serial = replica.rpartition("#")
    return model, int(serial)


# -- start ----------------------------------------------------------------------------------------


def check_start(book: Book, this: Pass, start: StartReplica) -> None:
    name, model = start.replica, book.models.get(start.model)
    demand(id_key(name)[0] == start.model, "ids", f"{name} is a replica of {start.model}")
    demand(name not in book.ids_used, "ids", f"{name} was used before")
    demand(not book.shutting_down, "shutdown", f"{name} starts after the shutdown")
    if model is None:
        raise Violation("catalog", f"{name} starts, and {start.model} is not in the catalog")
    demand(bool(start.why), "explained", f"{name} starts without a word why")
    _check_place(book, start, model.versions)
    _check_room(book, start)
    check_coming(book, this, start, model)


def check_coming(book: Book, this: Pass, start: StartReplica | WakeReplica, model: SeenModel) -> None:
    """What a start and a wake have in common: the victims, how many there are, and who asked for it."""
    name = start.replica
    for victim in start.evicts:
        away = victim not in book.replicas or (victim, name) in book.slept_for
        demand(away, "victims first", f"{name} starts before {victim} is gone")
        ways = book.made_way.get(victim, [name])
        demand(name in ways, "victims first", f"{name} names {victim}, which left for {ways}")
    demand(list(start.evicts) == sorted(start.evicts, key=id_key), "victims first", f"{name}: evicts out of order")
    same = [r for r in book.of_model(start.model) if r.comes_or_serves() and not this.drains(r.id)]
    most = max(max(version.replicas_max, version.replicas_min) for version in model.versions)
    demand(len(same) < most, "replicas.max", f"{name} starts beside {len(same)} of at most {most}")
    quiet = start.model in book.silenced
    demand(not quiet, "on demand", f"{name} starts, and {start.model} was unloaded")
    if start.evicts or book.settings.policy is not PolicyName.FIFO:
        return  # it may have been planned long ago
    demand(
        this.now_ms >= model.backoff_until_ms,
        "back-off",
        f"{name} starts while {start.model} backs off until {model.backoff_until_ms} ms",
    )
    stands = model.model.replicas_min > 0 or model.model.preload
    demand(stands or _asked(book, start.model), "on demand", f"{name} starts, and nobody asked for {start.model}")


def _asked(book: Book, model: ModelName) -> bool:
    return model in book.wanted or any(request.model == model for request in book.waiting.values())


def _check_place(book: Book, start: StartReplica, versions: Sequence[Model]) -> None:
    place = start.placement
    for node in place.nodes:
        demand(node in book.nodes, "present", f"{start.replica} starts on {node}, which is not there")
    for device in place.devices:
        demand(device not in book.lost_devices, "present", f"{start.replica} starts on {device}, which is lost")
    allowed = any(vector_matches(version, place, book.nodes) for version in versions)
    demand(allowed, "requirement", f"{start.replica} starts on {place}, which {start.model} must not take")


def _check_room(book: Book, start: StartReplica) -> None:
    check_fits(book, start.replica, start.placement)


def check_fits(book: Book, name: ReplicaId, place: Placement) -> None:
    """No device, host or node is ever promised more than it has, counting what others use."""
    for room in book.rooms(without=(name,), beside=(place,)):
        if room.node.name not in place.nodes:
            continue
        for device, free in zip(room.node.devices, room.free, strict=True):
            short = device.id in place.devices and free is not None and free < 0
            demand(not short, "over-committed", f"{device.id} is {-(free or 0)} short as {name} starts")
        if place.host_bytes:
            demand(
                room.host_bytes >= 0,
                "over-committed",
                f"{room.node.name} is {-room.host_bytes} host bytes short when {name} starts",
            )
        if place.millicpus:
            demand(
                room.millicpus >= 0,
                "over-committed",
                f"{room.node.name} is {-room.millicpus} millicpus short when {name} starts",
            )


# -- stop -----------------------------------------------------------------------------------------


def check_stop(book: Book, this: Pass, stop: StopReplica) -> None:
    name, reason = stop.replica, stop.reason
    if name in this.obliged:
        earlier = reason is StopReason.IDLE or (reason is StopReason.EVICTED and name in this.lease_ended)
        demand(
            reason in this.obliged[name] or earlier,
            "stop reason",
            f"{name} stops as {reason}, which should be {sorted(this.obliged[name])}",
        )
        return
    replica = book.replicas.get(name)
    if replica is None:
        raise Violation("stops once", f"{name} is stopped as {reason}, and is not there")
    demand(not replica.stop_sent, "stops once", f"{name} is stopped again, as {reason}")
    demand(
        not replica.leases,
        "never under a request",
        f"{name} is stopped as {reason} while it serves {sorted(replica.leases)}",
    )
    if reason in (StopReason.EVICTED, StopReason.ABANDONED):
        check_victim(book, this, stop, replica)
    elif reason is StopReason.IDLE:
        _check_idle(book, this, replica)
    elif reason is StopReason.MEMORY_PRESSURE:
        _check_pressed(book, this, replica)
    else:
        raise Violation("stop reason", f"{name} stops as {reason}, which did not happen")


def check_victim(book: Book, this: Pass, stop: StopReplica, victim: SeenReplica) -> None:
    name, way, drained = stop.replica, stop.makes_way_for, stop.replica in this.lease_ended
    starting, asleep = stop.reason is StopReason.ABANDONED, victim.rest is Rest.ASLEEP
    comes = not victim.running or victim.rest is Rest.WAKING
    demand(comes == starting, "victims", f"{name} is {stop.reason}, running: {victim.running}, {victim.rest}")
    seen = book.models.get(victim.model)
    model = seen.model if seen else None
    movable = asleep or not (model and model.pinned) or name in this.draining
    demand(movable, "pinned", f"{name} is pinned and {stop.reason}")
    demand(way is not None or drained, "victims", f"{name} is {stop.reason} for nobody")
    if way is not None:
        loading = ModelName(id_key(way)[0])
        demand(asleep or loading != victim.model, "victims", f"{name} makes way for {way}, of its own model")
        coming = way in this.pending or len(this.events) > 1 or isinstance(this.events[0], ev.HolderLost)
        demand(coming, "victims", f"{name} makes way for {way}, which is not coming")
        demand(
            drained or _asked(book, loading),
            "on demand",
            f"{name} makes way for {way}, and nobody asked for {loading}",
        )
    if asleep:
        return  # it serves nobody: neither staleness nor a minimum protects it
    if not starting:
        idle_ms = this.now_ms - victim.used_ms
        stale = idle_ms >= book.settings.stale_after_ms or book.settings.policy is PolicyName.SERIAL
        passed_over = book.settings.policy is not PolicyName.SERIAL and _passed_over(book, victim)
        demand(
            (stale and not passed_over) or this.impatient_ms >= victim.granted_ms,
            "patience",
            f"{name} is evicted after {idle_ms} ms idle, and nobody was past patience",
        )
    if way is None or not (seen and model):
        return
    least = min(version.replicas_min for version in seen.versions)
    if least and not drained:
        left = [r.id for r in book.of_model(victim.model) if r.comes_or_serves() and r is not victim]
        left.extend(r.id for r in this.pending.values() if r.model == victim.model)
        demand(len(left) >= least, "replicas.min", f"{name} is evicted and leaves {len(left)} of at least {least}")


def _passed_over(book: Book, victim: SeenReplica) -> bool:
    """Whether somebody waits who would have been served by the victim: running ones are granted first."""
    return any(request.model == victim.model for request in book.waiting.values())


def _check_idle(book: Book, this: Pass, replica: SeenReplica) -> None:
    seen = book.models.get(replica.model)
    timeouts = [v.idle_timeout_ms for v in seen.versions if v.idle_timeout_ms is not None] if seen else []
    idle_ms = this.now_ms - replica.used_ms
    long_enough = bool(timeouts) and replica.running and idle_ms >= min(timeouts)
    demand(long_enough, "idle timeout", f"{replica.id} stops as idle after {idle_ms} ms")
    left = sum(1 for r in book.of_model(replica.model) if r.comes_or_serves() and r is not replica)
    left += sum(1 for r in this.pending.values() if r.model == replica.model)
    least = min(version.replicas_min for version in seen.versions) if seen else 0
    demand(left >= least, "replicas.min", f"{replica.id} stops as idle and leaves {left} of at least {least}")


def _check_pressed(book: Book, this: Pass, replica: SeenReplica) -> None:
    seen = book.models.get(replica.model)
    pinned = seen is not None and seen.model.pinned
    movable = replica.sleeps() or (replica.serves() and not pinned and replica.id not in this.draining)
    demand(movable, "memory pressure", f"{replica.id} is pinned, not running or draining, and stopped for memory")
    pending = {device for other in this.pending.values() for device in other.placement.devices}
    if (pending | this.promised).intersection(replica.placement.devices):
        return
    short = [device for device in book.devices_of(replica) if excess_bytes(book, device) > 0]
    demand(bool(short), "memory pressure", f"{replica.id} is stopped for memory where nothing is short")


def excess_bytes(book: Book, device: DeviceId) -> int:
    """By how much others and the replicas that stay exceed a device."""
    node = book.nodes.get(book.home_of(device))
    if node is None or device in book.lost_devices:
        return 0
    at = next(i for i, d in enumerate(node.devices) if d.id == device)
    leaving = [replica.id for replica in book.replicas.values() if replica.stop_sent]
    free = next(room for room in book.rooms(without=leaving, lying=True) if room.node is node).free[at]
    return -(free or 0)


# -- grant and reject -----------------------------------------------------------------------------


def check_grant(book: Book, this: Pass, grant: Grant) -> None:
    request, replica = book.waiting[grant.request], book.replicas.get(grant.replica)
    what = f"{grant.request} is granted {grant.replica}"
    if replica is None:
        raise Violation("grants", f"{what}, which is not there")
    demand(replica.serves(), "grants", f"{what}, which does not run")
    demand(replica.id not in this.draining, "drained", f"{what}, which drains")
    demand(replica.model == request.model, "grants", f"{what}, and wants {request.model}")
    demand(request.id not in this.cancelled, "cancelled", f"{what}, and was cancelled")
    demand(not book.shutting_down, "shutdown", f"{what} after the shutdown")
    seen = book.models.get(request.model)
    if seen is None:
        raise Violation("grants", f"{what}, and {request.model} is not in the catalog")
    free = len(replica.leases) < seen.model.concurrency
    demand(free, "concurrency", f"{what}, which serves {sorted(replica.leases)}")
    kept = request.deadline_ms is None or this.now_ms <= request.deadline_ms
    demand(kept, "deadline", f"{what} after its deadline, {request.deadline_ms} ms")
    this.granted.append(request)
    if book.settings.policy is PolicyName.SERIAL:
        demand(not book.leased, "serial", f"{what} while {sorted(book.leased)} are served")
        for older in book.waiting.values():
            if older.order < request.order and fits_beside_pinned(book, this, older.model):
                raise Violation("serial", f"{what} before {older.id}")


def fits_beside_pinned(book: Book, this: Pass, name: ModelName) -> bool:
    """Certainly so: False where a pinned replica may be on its way."""
    seen = book.models.get(name)
    if seen is None or any(replica.pinned for replica in this.pending.values()):
        return False
    pinned = [r for r in book.replicas.values() if r.model in book.models and book.models[r.model].model.pinned]
    return fits(seen.model, book.rooms_beside(pinned), book.settings)


def check_reject(book: Book, this: Pass, reject: Reject) -> None:
    request, code = book.waiting[reject.request], reject.code
    model = request.model
    demand(bool(reject.message), "explained", f"{request.id} is rejected without a word")
    match code:
        case RejectCode.MODEL_NOT_FOUND:
            right = model not in book.models or any(isinstance(e, ev.ModelRemoved) for e in this.events)
        case RejectCode.NEVER_FITS:
            right = request.id in this.arrived and not fits_beside_pinned(book, this, model)
        case RejectCode.QUEUE_FULL:
            right = request.id in this.arrived
            this.refused_full.append(request.id)
        case RejectCode.CANCELLED:
            right = request.id in this.cancelled
        case RejectCode.LOAD_FAILED:
            others = [r.id for r in book.of_model(model) if r.comes_or_serves() and not this.drains(r.id)]
            right = model in this.failed_loads and not others
        case RejectCode.UNLOADED:
            right = any(isinstance(e, ev.UnloadAsked) and e.model == model for e in this.events)
        case RejectCode.SHUTTING_DOWN:
            right = book.shutting_down
        case RejectCode.DEADLINE_EXCEEDED:
            right = request.deadline_ms is not None and this.now_ms >= request.deadline_ms
        case _:
            right = False
    demand(right, "rejections", f"{request.id} is rejected as {code}: {reject.message}")
