"""What must hold when a pass is over: nothing owed, nobody passed over, no idle hands, no needless victim.

Rules of this file: as in `rules.py`. These look at a whole pass, where those look at one decision.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

from rayscheduler.core.decisions import StartReplica
from rayscheduler.core.types import DeviceId, ModelName, PolicyName, ReplicaId, Rest, Snapshot, Strategy
from rayscheduler.simulation.book import Book, SeenModel, SeenReplica, SeenRequest
from rayscheduler.simulation.naps import could_come, could_load, fits_awake
from rayscheduler.simulation.rooms import choices_on, fits
from rayscheduler.simulation.rules import Pass, excess_bytes, fits_beside_pinned
from rayscheduler.simulation.violation import Violation, demand

SEARCHED_AT_MOST = 7  # candidates for eviction of which every set is tried
AGES_MS = 1 << 40


def check_obligations(book: Book, this: Pass, snapshot: Snapshot) -> None:
    """Whoever is gone was said to stop; whoever ended was answered; a failed load rejects those it was for."""
    for replica, reasons in this.obliged.items():
        raise Violation("stops said", f"{replica}: {', '.join(sorted(reasons))}, and no stop is said")
    for name in this.must_reject:
        demand(name not in book.waiting, "answered once", f"{name} has ended, and still waits")
    for each in snapshot.replicas:
        left = each.model in this.unloaded and each.state != "STOPPING" and len(this.events) == 1
        demand(not left, "unloaded", f"{each.id} is {each.state}, and {each.model} was unloaded")
    if this.failed_loads:
        states = ("PENDING", "STARTING", "RUNNING", "ROUSED", "WAKING")
        there = [r for r in snapshot.replicas if r.state in states]
        there.extend(r for r in snapshot.replicas if r.id in this.draining_after - this.draining)
        coming = {r.model for r in there}
        for request in book.waiting.values():
            lost = request.model in this.failed_loads and request.model not in coming
            demand(not lost, "a failed load rejects", f"{request.id} still waits after {request.model} failed to load")


def check_queue(book: Book, this: Pass) -> None:
    """Deadlines are kept, limits too; nobody is passed over by a later request of no higher priority."""
    first: dict[ModelName, SeenRequest] = {}
    for request in book.waiting.values():
        late = request.deadline_ms is not None and this.now_ms > request.deadline_ms
        demand(not late, "deadline", f"{request.id} still waits after its deadline, {request.deadline_ms} ms")
        if request.model not in first or request.order < first[request.model].order:
            first[request.model] = request
    orders = [granted.order for granted in this.granted]
    demand(orders == sorted(orders), "order", "the grants of one pass are not by priority, then arrival")
    for granted in this.granted:
        head = first.get(granted.model)
        if head is not None and head.order < granted.order:
            raise Violation("order", f"{granted.id} is granted before {head.id}")
    limit = book.settings.queue_limit
    at_once = {granted.id for granted in this.granted}
    for name in this.refused_full:
        waited = len(this.arrived[name] - at_once)
        demand(waited >= limit, "queue limit", f"{name} is refused where {waited} of at most {limit} wait")
    if this.arrived:
        demand(len(book.waiting) <= limit, "queue limit", f"{len(book.waiting)} of at most {limit} wait")
    for name in this.arrived:
        if name in book.waiting:
            _check_may_wait(book, this, book.waiting[name])


def _check_may_wait(book: Book, this: Pass, request: SeenRequest) -> None:
    """What could never be served is told so on arrival."""
    seen = book.models[request.model]
    if book.node_has_joined and not book.of_model(request.model) and not this.pending:
        ever = fits(seen.model, book.rooms_beside(()), book.settings)
        demand(ever, "never fits", f"{request.id} waits, and {request.model} fits no node, empty as it may be")


def check_snapshot(book: Book, snapshot: Snapshot) -> None:
    """What the scheduler says of itself agrees with what it was told and what it decided."""
    said = {replica.id: replica for replica in snapshot.replicas if replica.state != "PENDING"}
    if said.keys() != book.replicas.keys():
        raise Violation("snapshot", f"it speaks of {sorted(said)}, where {sorted(book.replicas)} are there")
    for name, replica in said.items():
        seen = book.replicas[name]
        if replica.state not in _states(seen):
            raise Violation("snapshot", f"{name} is called {replica.state}, and should be {_states(seen)}")
        if replica.leases != len(seen.leases):
            raise Violation("snapshot", f"{name} is said to hold {replica.leases} leases, not {sorted(seen.leases)}")
    waiting = [request.request for request in snapshot.waiting]
    order = [request.id for request in sorted(book.waiting.values(), key=lambda request: request.order)]
    if waiting != order:
        raise Violation("snapshot", f"the queue is said to be {waiting}, and is {order}")


def _states(seen: SeenReplica) -> tuple[str, ...]:
    if seen.stop_sent:
        return ("STOPPING",)
    if seen.rest is not Rest.AWAKE:
        return {Rest.SUSPENDING: ("SUSPENDING",), Rest.ASLEEP: ("ASLEEP", "ROUSED"), Rest.WAKING: ("WAKING",)}[
            seen.rest
        ]
    return ("RUNNING", "DRAINING") if seen.running else ("STARTING",)


def check_pressure(book: Book, this: Pass) -> None:
    """Where others and our reservations exceed a device, no idle unpinned replica is left on it."""
    for device in book.others:
        if excess_bytes(book, device) <= 0:
            continue
        for replica in book.on_device(device):
            idle = replica.serves() and not replica.leases and not this.drains(replica.id)
            sleeps = replica.sleeps() and replica.id not in this.pending and _residue_on(replica, device) > 0
            if sleeps or (idle and not _is_pinned(book, replica.model)):
                raise Violation("memory pressure", f"{replica.id} idles on {device}, which others need")


def _residue_on(replica: SeenReplica, device: DeviceId) -> int:
    place = replica.held()
    return dict(zip(place.devices, place.device_bytes, strict=True)).get(device, 0)


def _is_pinned(book: Book, name: ModelName) -> bool:
    seen = book.models.get(name)
    return seen is not None and seen.model.pinned


# -- idle hands -----------------------------------------------------------------------------------


def check_idle_hands(book: Book, this: Pass, snapshot: Snapshot) -> None:
    """Running replicas are granted first; what can be planned is planned, whoever else is blocked."""
    if not book.waiting or book.shutting_down:
        return
    strict = book.settings.policy is PolicyName.SERIAL
    wanted = {request.model for request in book.waiting.values()}
    for replica in book.replicas.values():
        if replica.model not in wanted or not replica.serves() or this.drains(replica.id):
            continue
        seen = book.models[replica.model]
        if not strict and len(replica.leases) < seen.model.concurrency:
            raise Violation("idle hands", f"{replica.id} has a place, and requests for {replica.model} wait")
    if book.settings.policy is not PolicyName.FIFO or this.impatient_ms == this.now_ms or this.pending:
        return
    coming = {r.model for r in snapshot.replicas if r.state in ("STARTING", "RUNNING", "WAKING")}
    for name in sorted(wanted - coming):
        seen = book.models[name]
        if this.now_ms >= seen.backoff_until_ms:
            gone = [r.id for r in _movable(book, this, name)]
            if could_come(book, seen.model, gone):
                raise Violation("idle hands", f"{name} could be loaded now (evicting {gone or 'nobody'}), and is not")


def _movable(book: Book, this: Pass, loading: ModelName) -> list[SeenReplica]:
    """Idle, stale, unpinned replicas of other models without a minimum, and all that sleep: they may leave for
    `loading`."""
    found = [r for r in book.replicas.values() if r.sleeps() and r.id not in this.pending]
    for replica in book.replicas.values():
        seen = book.models.get(replica.model)
        if seen is None or seen.model.pinned or seen.model.replicas_min or replica.model == loading:
            continue
        idle = replica.serves() and not replica.leases and not this.drains(replica.id)
        if idle and this.now_ms - replica.used_ms >= book.settings.stale_after_ms:
            found.append(replica)
    return found


# -- victims --------------------------------------------------------------------------------------


def check_victims(book: Book, this: Pass) -> None:
    """Victims are as few as it takes, and the least valuable. Judged under `fifo` where nobody is past patience,
    and nothing else is pending."""
    if book.settings.policy is not PolicyName.FIFO or this.impatient_ms == this.now_ms:
        return
    for way, victims in this.evicted.items():
        loading = book.models.get(ModelName(way.rpartition("#")[0]))
        if loading is None or this.pending.keys() != {way} or any(len(v.placement.nodes) > 1 for v in victims):
            continue
        names = [victim.id for victim in victims]
        wakes = book.replicas.get(way)
        if this.draining.intersection(names):
            continue  # chosen in an earlier pass, when other candidates were there
        for victim in victims:
            others = [name for name in names if name != victim.id]
            settled = fits_awake(book, wakes, others) if wakes else could_load(book, loading.model, others)
            if settled or (not others and could_come(book, loading.model, ())):
                raise Violation("needless victim", f"{way} would fit without evicting {victim.id}")
        _check_least_valuable(book, this, way, loading, victims)


def _check_least_valuable(
    book: Book, this: Pass, way: ReplicaId, loading: SeenModel, victims: list[SeenReplica]
) -> None:
    """No other set of idle replicas is cheaper: load time × recent demand; then the one least recently used."""
    if any(not victim.running or victim.rest is Rest.WAKING for victim in victims):
        return
    asked_for = {request.model for request in book.waiting.values()}
    for replica in book.replicas.values():
        comes = not replica.running or replica.rest is Rest.WAKING
        if comes and not replica.stop_sent and replica.model not in asked_for:
            return  # abandoned, perhaps: it may have been a candidate, and that is not known outside
    candidates = [*_movable(book, this, loading.model.name), *victims]
    if len(candidates) > SEARCHED_AT_MOST:
        return
    taken = _cost(book, this, victims)
    for count in range(1, len(candidates) + 1):
        for chosen in combinations(candidates, count):
            cost = _cost(book, this, list(chosen))
            gone = [replica.id for replica in chosen]
            if cost < taken and could_come(book, loading.model, gone):
                raise Violation(
                    "dear victim",
                    f"{way} evicts {[v.id for v in victims]} at {taken}, and {gone} would do at {cost}",
                )


def _cost(book: Book, this: Pass, chosen: list[SeenReplica]) -> tuple[int, int]:
    """One that was sent to sleep costs its wake, one that sleeps nothing; all others cost a load, at most."""
    value, used_ms = 0, -AGES_MS
    for replica in chosen:
        asleep = replica.rest is Rest.ASLEEP
        used_ms = max(used_ms, replica.used_ms - (AGES_MS if asleep else 0))
        seen = book.models.get(replica.model)
        if seen is not None and not asleep:
            turns = replica.rest is Rest.SUSPENDING
            value += seen.waking_value(this.now_ms) if turns else seen.value(this.now_ms)
    return value, used_ms


# -- places ---------------------------------------------------------------------------------------


def check_best_place(book: Book, this: Pass, started: Sequence[StartReplica]) -> None:
    """Fewest devices, then the preferred type, then the least loaded (`pack`: most loaded) devices and node,
    then ids. Judged where one load alone was planned, without victims, on one node."""
    if len(started) != 1 or this.pending or started[0].evicts or book.settings.policy is not PolicyName.FIFO:
        return
    start, place = started[0], started[0].placement
    model = book.models[start.model].model
    if not place.devices or model.requirement.across_nodes or len(book.models[start.model].versions) > 1:
        return
    sign = 1 if book.settings.strategy is Strategy.SPREAD else -1
    ranks = {}
    for room in book.rooms(without=(start.replica,)):
        for taken in choices_on(model, room):
            loads = [book.load_on(room.node, at, start.replica) for at in range(len(room.node.devices))]
            types = model.requirement.types
            worst = max(types.index(room.node.devices[at].type) for at in taken) if types else 0
            load = sign * sum(loads[at] for at in taken)
            devices = tuple(room.node.devices[at].id for at in taken)
            ranks[devices] = (len(taken), worst, load, sign * sum(loads), room.node.name, taken)
    if place.devices not in ranks:
        raise Violation("place", f"{start.replica} starts on {place.devices}; it could on {sorted(ranks)}")
    best = min(ranks, key=lambda devices: ranks[devices])
    if best != place.devices:
        told = f"{start.replica} starts on {place.devices} {ranks[place.devices]}, and {best} {ranks[best]} is better"
        raise Violation("place", told)


def check_standing(book: Book, snapshot: Snapshot) -> None:
    """At rest, what stands (`replicas.min`, `preload`) and what an operator wants runs, if there is room."""
    if book.waiting or book.shutting_down or book.settings.policy is not PolicyName.FIFO:
        return
    if any(replica.state not in ("RUNNING", "ASLEEP") for replica in snapshot.replicas):
        return
    barred = bool(book.wanted) and book.settings.patience_ms is not None  # by a load that waits for what stands
    for name, seen in sorted(book.models.items()):
        idles = any(version.idle_timeout_ms is not None for version in seen.versions)
        preload = 1 if seen.model.preload and not idles else 0
        wish = 0 if seen.unloaded or barred else max(seen.model.replicas_min, preload)
        wish = max(wish, 1 if name in book.wanted else 0)
        count = sum(1 for replica in book.of_model(name) if replica.comes_or_serves())
        if count < wish and could_come(book, seen.model, ()):
            raise Violation("standing", f"{count} of {wish} {name} run, and there is room for more")


def could_be_served(book: Book, this: Pass) -> list[SeenRequest]:
    """The requests that wait though their model fits beside what is pinned, in their order."""
    waiting = sorted(book.waiting.values(), key=lambda request: request.order)
    return [request for request in waiting if fits_beside_pinned(book, this, request.model)]
