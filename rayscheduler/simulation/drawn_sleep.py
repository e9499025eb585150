"""Models that can sleep, replicas that do so when the clock starts, and what goes wrong on the way to sleep and back.

Rules of this file: it adds to a story that is drawn already, from a `Random` of its own, so that what has no
sleepers is the same story as before. What is added fits the scenario format.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from random import Random

from rayscheduler.core.sleeping import asleep
from rayscheduler.core.types import Model, ModelName, Node, SleepTraits
from rayscheduler.simulation import faults as ft
from rayscheduler.simulation import scenario as sc
from rayscheduler.simulation.faults import FaultAt, Story
from rayscheduler.simulation.tastes import Taste

GIB = 1 << 30


def sleepy(story: Story, rng: Random, taste: Taste) -> Story:
    """The story, in which some models can sleep."""
    scenario = story.scenario
    traits = {model.name: _traits(rng, model) for model in scenario.models if rng.random() < taste.asleep}
    if not traits:
        return story
    models = tuple(replace(model, sleep=traits.get(model.name)) for model in scenario.models)
    found = tuple(_lying(rng, replica, traits, scenario.nodes) for replica in scenario.replicas)
    faults = [*story.faults, *_faults(rng, list(traits), story.heal_ms)]
    faults = [_still_sleepy(fault, traits) for fault in faults]
    turns_ms = max(each.sleep_ms + each.wake_ms for each in traits.values())
    return replace(
        story,
        scenario=replace(scenario, models=models, replicas=found),
        faults=tuple(sorted(faults, key=lambda fault: fault.at_ms)),
        bound_ms=story.bound_ms + 2 * turns_ms * (4 + len(scenario.events)),
    )


def _traits(rng: Random, model: Model) -> SleepTraits:
    least_bytes = min(model.requirement.bytes_by_count.values())
    residue_bytes = rng.choice((0, 0, GIB // 2, least_bytes // 10, least_bytes // 3))
    host_bytes = rng.choice((None, None, None, GIB, 20 * GIB))
    wake_ms = rng.choice((0, model.load_ms // 10, model.load_ms // 3, model.load_ms))
    return SleepTraits(rng.choice((0, 100, 1_000)), wake_ms, residue_bytes, host_bytes)


def _lying(
    rng: Random, replica: sc.ScenarioReplica, traits: dict[ModelName, SleepTraits], nodes: Sequence[Node]
) -> sc.ScenarioReplica:
    """Perhaps it sleeps when the clock starts; only where the host has room for anything."""
    homes = [node for node in nodes if node.name in replica.placement.nodes]
    roomy = all(node.memory_bytes is None and not node.device_is_host_memory for node in homes)
    if replica.model not in traits or replica.leases or not roomy or rng.random() < 0.5:
        return replica
    return replace(replica, running=False, keeps=asleep(replica.placement, traits[replica.model]))


def _faults(rng: Random, names: Sequence[ModelName], heal_ms: int) -> list[FaultAt]:
    faults: list[FaultAt] = []
    for _ in range(rng.choice((0, 1, 4))):
        slow = ft.SlowSleep(rng.choice(names), rng.choice((1_000, 10_000)))
        fault: ft.Fault = slow if rng.random() < 0.6 else ft.SleepFails(rng.choice(names))
        faults.append(FaultAt(rng.randrange(heal_ms), fault))
    return faults


def _still_sleepy(fault: FaultAt, traits: dict[ModelName, SleepTraits]) -> FaultAt:
    """A model that is deployed again can sleep as before."""
    if not isinstance(fault.what, ft.Redeploy):
        return fault
    model = fault.what.model
    return replace(fault, what=ft.Redeploy(replace(model, sleep=traits.get(model.name))))
