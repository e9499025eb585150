"""What `explain` answers: what was decided about a model, a replica or a request, why, and what it waits for now.

Rules of this file: nothing is decided here. What was is in the journal; what would be is asked of the
scheduler. Answers are JSON-able.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rayscheduler.cluster.figure_book import FigureBook
from rayscheduler.cluster.journal import Journal
from rayscheduler.core.lifecycle import State
from rayscheduler.core.scheduler import Scheduler
from rayscheduler.core.types import ModelName
from rayscheduler.core.words import sized
from rayscheduler.simulation.simulate import plan_object

LAST_DECISIONS = 20


def explain(
    subject: str,
    scheduler: Scheduler,
    journal: Journal,
    figures: FigureBook,
    resolve: Callable[[str], ModelName],
    now_ms: int,
) -> dict[str, Any] | None:
    """`{"subject", "kind", "model", "state", "plan", "decisions"}`, decisions newest first; None for a name of
    which nothing is known (any more). `plan`: where one more replica of the model would go now, and why not
    elsewhere."""
    snapshot = scheduler.snapshot(now_ms)
    name = resolve(subject)
    replica = next((r for r in snapshot.replicas if r.id == subject), None)
    waiting = next((w for w in snapshot.waiting if w.request == subject), None)
    plan = scheduler.ask_plan(name, now_ms)
    decisions = journal.latest(LAST_DECISIONS, name if plan is not None else subject)
    if plan is not None:
        model = next(m for m in snapshot.models if m.model.name == name)
        replicas = [f"{r.id} {r.state}" for r in snapshot.replicas if r.model == name]
        state = ", ".join(replicas) or "not loaded"
        if model.waiting:
            state += f"; {model.waiting} waiting"
        if model.backoff_until_ms is not None:
            left_s = (model.backoff_until_ms - now_ms) / 1000
            state += f"; backing off for {left_s:.1f} s after {model.failures} failures: {model.last_error}"
        return _told(subject, "model", name, state, plan_object(plan), decisions)
    if (problem := figures.problem(name)) is not None:
        return _told(subject, "model", name, f"not served: {problem['message']}", None, decisions)
    if replica is not None:
        waits = f", waits for the exit of {', '.join(replica.waits_for)}" if replica.waits_for else ""
        way = f", makes way for {replica.makes_way_for}" if replica.makes_way_for else ""
        rests = f", {sized(replica.holds.host_bytes)} in host memory" if replica.state == State.ASLEEP else ""
        where = ", ".join(replica.placement.devices or replica.placement.nodes)
        state = f"{replica.state} on {where}{rests}{waits}{way}"
        return _told(subject, "replica", replica.model, state, None, decisions)
    if waiting is not None:
        ahead = sum(1 for w in snapshot.waiting if w.model == waiting.model and w.arrived_ms < waiting.arrived_ms)
        state = f"waiting for {(now_ms - waiting.arrived_ms) / 1000:.1f} s, {ahead} for the same model before it"
        answer = scheduler.ask_plan(waiting.model, now_ms)
        return _told(subject, "request", waiting.model, state, plan_object(answer) if answer else None, decisions)
    if not decisions:
        return None
    kind = "replica" if "#" in subject else "request"
    return _told(subject, kind, decisions[0]["model"], "over", None, decisions)


def _told(
    subject: str, kind: str, model: str, state: str, plan: dict[str, Any] | None, decisions: list[dict[str, Any]]
) -> dict[str, Any]:
    return {
        "subject": subject,
        "kind": kind,
        "model": model,
        "state": state,
        "plan": plan,
        "decisions": decisions,
    }
