"""One scenario from start to end, as the lines of its answer; and one question about its start state."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rayscheduler.core.explain import PlanAnswer
from rayscheduler.core.scheduler import Scheduler
from rayscheduler.core.types import ModelName, Plan, Refusal
from rayscheduler.simulation.checker import Checker
from rayscheduler.simulation.lines import line_of
from rayscheduler.simulation.scenario import Scenario
from rayscheduler.simulation.world import World


def simulate(scenario: Scenario, validate: bool = False) -> Iterator[dict[str, Any]]:
    """Each decision as a line (see `lines.py`), then the summary. `validate`: check the core at each one."""
    world, checker = World(scenario), Checker(scenario)
    for at_ms, decision in world.run(checker.told):
        if validate:
            world.scheduler.validate()
        line = line_of(decision, at_ms)
        checker.line(line)
        yield line
    checker.advance(world.now_ms)
    replicas = world.scheduler.snapshot(world.now_ms).replicas
    yield {"summary": checker.summary({replica.id: replica.state for replica in replicas})}


def plan(scenario: Scenario, model: ModelName) -> PlanAnswer | None:
    """Where one more replica of `model` would go in the file's start state; None for an unknown model."""
    scheduler = Scheduler(scenario.settings)
    scheduler.restore(World(scenario).start_state(), 0)
    return scheduler.ask_plan(model, 0)


def plan_object(answer: PlanAnswer) -> dict[str, Any]:
    """The answer of `plan --json`."""
    placement = None
    if answer.plan is not None:
        place = answer.plan.placement
        placement = {
            "node": place.nodes[0] if len(place.nodes) == 1 else list(place.nodes),
            "devices": list(place.devices),
            "bytes": list(place.device_bytes),
        }
    return {
        "model": answer.model,
        "verdict": answer.verdict.value,
        "placement": placement,
        "evictions": list(answer.plan.evictions) if answer.plan else [],
        "refusals": [refusal_object(refusal) for refusal in answer.refusals],
        "message": answer.message,
        "summary": answer.summary,
        **_rests(answer.plan),
    }


def _rests(plan: Plan | None) -> dict[str, Any]:
    """Which of the victims would sleep, and who would wake: said only where there is something to say."""
    told: dict[str, Any] = {}
    if plan is not None and plan.sleeping:
        told["sleeps"] = [name for name in plan.evictions if name in plan.sleeping]
    if plan is not None and plan.wakes is not None:
        told["wakes"] = plan.wakes
    return told


def refusal_object(refusal: Refusal) -> dict[str, Any]:
    """Why a node was not chosen, with bytes where bytes are the reason."""
    told: dict[str, Any] = {"node": refusal.node, "reason": refusal.reason.value}
    if refusal.needed_bytes is not None:
        told["needed_bytes"] = refusal.needed_bytes
        told["free_bytes"] = refusal.free_bytes
    return told
