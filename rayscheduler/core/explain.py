"""Why here, why not there: plans and refusals in words and numbers, for people and for `plan`.

Rules of this file: it decides nothing. It asks the planner the questions that a person would ask, and is
called only when somebody wants to know, never on the way of a decision (but for rejections, which always say why).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rayscheduler.core.fit import Needs, shortage
from rayscheduler.core.fleet import Fleet
from rayscheduler.core.ledger import Ledger, NodeAccount
from rayscheduler.core.lifecycle import LEAVING, State
from rayscheduler.core.loading import Loader
from rayscheduler.core.planner import Leaving, Planner
from rayscheduler.core.records import ModelRecord
from rayscheduler.core.sleeping import gives_back
from rayscheduler.core.types import (
    DeviceId,
    Model,
    ModelName,
    Plan,
    Refusal,
    RefusalReason,
    ReplicaId,
    Word,
)
from rayscheduler.core.vectors import share_of
from rayscheduler.core.words import share, sized

BEFORE_CPUS = (RefusalReason.BACKEND, RefusalReason.TYPE, RefusalReason.LABELS, RefusalReason.CPUS)


class Verdict(Word):
    PLACED = "placed"
    WAIT = "wait"  # it could fit once something ends
    NEVER = "never"  # not even on this cluster empty of everything unpinned


@dataclass(frozen=True, slots=True)
class PlanAnswer:
    """Where one more replica would go. Every node is in the plan's placement or in `refusals`, by name."""

    model: ModelName
    verdict: Verdict
    plan: Plan | None
    refusals: tuple[Refusal, ...]
    message: str
    summary: str  # all devices in one line


def answer_plan(record: ModelRecord, fleet: Fleet, loader: Loader, now_ms: int, node_has_joined: bool) -> PlanAnswer:
    """One more replica of the model, whatever `replicas.max` says; nobody is drained for it."""
    found, _ = loader.plan(record, now_ms)
    plan = found if isinstance(found, Plan) else None
    leaving = loader.exits(record, False, now_ms)
    refusals = tuple(_refusals(record, fleet, loader.planner, leaving, plan))
    line = summary(record, fleet, loader, now_ms)
    if plan is not None:
        return PlanAnswer(record.name, Verdict.PLACED, plan, refusals, loader.sentence(record, plan, now_ms), line)
    if node_has_joined and not loader.fits_ever(record):
        message = never_fits_message(record, fleet.ledger, loader.planner)
        return PlanAnswer(record.name, Verdict.NEVER, None, refusals, message, line)
    message = _waits_for(record, fleet, loader, refusals, now_ms)
    return PlanAnswer(record.name, Verdict.WAIT, None, refusals, message, line)


def refusals_of(
    fleet: Fleet, loader: Loader, nodes_max: int, record: ModelRecord, plan: Plan, now_ms: int
) -> tuple[Refusal, ...]:
    """Why each node that a plan does not take was not chosen; nothing on a cluster of more than `nodes_max`."""
    if len(fleet.ledger.accounts) > nodes_max:
        return ()
    return tuple(_refusals(record, fleet, loader.planner, loader.exits(record, False, now_ms), plan))


def _refusals(
    record: ModelRecord, fleet: Fleet, planner: Planner, leaving: Leaving, plan: Plan | None
) -> Iterable[Refusal]:
    """The first reason that holds for each node that the plan does not take."""
    chosen = plan.placement.nodes if plan else ()
    for name in sorted(fleet.ledger.accounts):
        if name not in chosen:
            yield _refusal(record.model, fleet, planner, fleet.ledger.accounts[name], leaving, plan)


def _refusal(
    model: Model, fleet: Fleet, planner: Planner, account: NodeAccount, leaving: Leaving, plan: Plan | None
) -> Refusal:
    seen, needs = model, planner.needs(account, model)
    if isinstance(needs, Refusal) and model.requirement.across_nodes:
        seen, needs = _as_share(model, planner, account, needs)
    if isinstance(needs, Refusal):
        if needs.reason not in BEFORE_CPUS and account.room().free_millicpus < model.requirement.millicpus:
            return Refusal(account.node.name, RefusalReason.CPUS)
        return Refusal(account.node.name, needs.reason, needs.needed_bytes, needs.free_bytes)
    if planner.fits_node(seen, account, leaving):
        # It fits here: another place is better, or what must leave first (policy) cannot go yet.
        reason = RefusalReason.RANKED_LOWER if plan else RefusalReason.DRAINING
        return Refusal(account.node.name, reason)
    going = [r for r in fleet.on_node(account.node.name) if r.state in LEAVING and r.makes_way_for is None]
    if going and planner.fits_once_gone(account, needs, [gives_back(r) for r in going]):
        return Refusal(account.node.name, RefusalReason.DRAINING)
    return shortage(account.room(), needs, seen)


def _as_share(model: Model, planner: Planner, account: NodeAccount, refused: Refusal) -> tuple[Model, Needs | Refusal]:
    """How one node of several sees the model: the largest count of which its devices are a whole share."""
    devices = len(account.node.devices)
    for count in sorted(model.requirement.bytes_by_count, reverse=True):
        if devices and count > devices and count % devices == 0:
            share = share_of(model, count, devices)
            needs = planner.needs_of_share(account, share)
            if not isinstance(needs, Refusal):
                return share, needs
    return model, refused


def never_fits_message(record: ModelRecord, ledger: Ledger, planner: Planner) -> str:
    """What happened, the numbers, what to do, for a model that this cluster can never hold."""
    want = record.model.requirement
    parts = [
        f"{count} x {sized(size)}" if count else f"{sized(size)} of host memory"
        for count, size in sorted(want.bytes_by_count.items())
    ]
    reasons: Counter[str] = Counter()
    largest = (0, "")
    for name in sorted(ledger.accounts):
        account = ledger.accounts[name]
        needs = planner.needs(account, record.model)
        reasons[str(needs.reason if isinstance(needs, Refusal) else RefusalReason.MEMORY)] += 1
        for device in account.node.devices:
            largest = max(largest, (device.capacity_bytes, device.id))
    told = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items())) or "no nodes"
    has = f"; the largest device, {largest[1]}, has {sized(largest[0])}" if largest[1] else ""
    return (
        f"{record.name} needs {' or '.join(parts)} and fits no node even when everything unpinned is gone "
        f"(refused by: {told}){has}. Add a node that can hold it, or unpin a model"
    )


def _waits_for(record: ModelRecord, fleet: Fleet, loader: Loader, refusals: Sequence[Refusal], now_ms: int) -> str:
    """Whose end a model waits for that could fit but does not now."""
    if not fleet.ledger.accounts:
        return f"{record.name} waits for a node to join"
    drained, _ = loader.plan(record, now_ms, drain=True)
    if isinstance(drained, Plan):
        names = [f"{name} ({_occupation(fleet, name, name in drained.drained)})" for name in drained.evictions]
        return f"{record.name} waits for {', '.join(names)} on {', '.join(drained.placement.devices)}"
    coming = [r.id for r in fleet.replicas.values() if r.state not in (State.RUNNING, State.ASLEEP)]
    if coming:
        return f"{record.name} waits for room: {', '.join(sorted(coming))} are starting or leaving"
    short = [r for r in refusals if r.needed_bytes is not None and r.free_bytes is not None]
    if short:
        best = min(short, key=lambda r: ((r.needed_bytes or 0) - (r.free_bytes or 0), r.node))
        needed, free = best.needed_bytes or 0, best.free_bytes or 0
        return (
            f"{record.name} waits for memory: the best node, {best.node}, has "
            f"{share(free, needed)} free, and nothing there may be evicted"
        )
    return f"{record.name} waits for room that nothing may be evicted for"


def _occupation(fleet: Fleet, name: ReplicaId, is_drained: bool) -> str:
    replica = fleet.replicas[name]
    if replica.leases:
        return f"serving {len(replica.leases)}"
    return "not stale yet" if is_drained else "idle"


# -- in one line ------------------------------------------------------------------------------------


def summary(record: ModelRecord, fleet: Fleet, loader: Loader, now_ms: int) -> str:
    """Every device in one line that people can read: how many would do, what is wrong with the others, and
    whose eviction would help.

    `0/8 devices: 5 short of memory (best n2/1, 3.1 of 14.0 GiB missing), 2 backend metal, 1 draining;
    evicting llama-8b#3 would free 16.0 GiB`
    """
    reasons: Counter[str] = Counter()
    total = good = 0
    nearest: tuple[int, str, int] | None = None  # missing bytes, device, needed bytes
    for name in sorted(fleet.ledger.accounts):
        account = fleet.ledger.accounts[name]
        needs = loader.planner.needs(account, record.model)
        total += len(account.node.devices)
        if isinstance(needs, Refusal):
            reasons[_static_words(needs, account)] += len(account.node.devices)
            continue
        option = needs.options[-1]
        room = account.room()
        for at, device in enumerate(account.node.devices):
            each = option.device_bytes[at] if option.device_bytes else 0
            missing = each - room.free[at]
            if account.lost[at]:
                reasons["lost"] += 1
            elif missing <= 0:
                good += 1
            elif missing <= _going(fleet, device.id):
                reasons["draining"] += 1
            else:
                reasons["short of memory"] += 1
                nearest = min(nearest or (missing, device.id, each), (missing, device.id, each))
    told = [_counted(reason, count, nearest) for reason, count in sorted(reasons.items(), key=lambda r: (-r[1], r[0]))]
    line = f"{good}/{total} devices" + (": " + ", ".join(told) if told else "")
    return line + _eviction_words(record, fleet, loader, now_ms)


def _static_words(refusal: Refusal, account: NodeAccount) -> str:
    if refusal.reason is RefusalReason.BACKEND:
        return f"backend {account.node.backend}"
    if refusal.reason is RefusalReason.TYPE:
        return f"type {account.node.devices[0].type or 'unknown'}"
    return str(refusal.reason).replace("_", " ")


def _counted(reason: str, count: int, nearest: tuple[int, str, int] | None) -> str:
    if reason != "short of memory" or nearest is None:
        return f"{count} {reason}"
    missing, device, needed = nearest
    return f"{count} {reason} (best {device}, {share(missing, needed)} missing)"


def _going(fleet: Fleet, device: DeviceId) -> int:
    """Bytes on a device that are about to be free and are promised to nobody."""
    return sum(
        size
        for replica in fleet.on_device(device)
        if replica.state in LEAVING and replica.makes_way_for is None
        for name, size in zip(replica.placement.devices, gives_back(replica).device_bytes, strict=True)
        if name == device
    )


def _eviction_words(record: ModelRecord, fleet: Fleet, loader: Loader, now_ms: int) -> str:
    plan, _ = loader.plan(record, now_ms, drain=True)
    if not isinstance(plan, Plan) or not plan.evictions:
        return ""
    freed = sum(
        sum(fleet.replicas[name].holds.device_bytes)
        - sum(plan.sleeping[name].device_bytes if name in plan.sleeping else ())
        for name in plan.evictions
    )
    how = "draining" if plan.drained else "evicting"
    return f"; {how} {', '.join(plan.evictions)} would free {sized(freed)}"
