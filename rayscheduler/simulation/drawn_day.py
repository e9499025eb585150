"""A day of traffic, operators, changes of the cluster and faults, drawn at random to a taste.

Rules of this file: everything comes from the `Random` that is handed in. Instants are ms from the start.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from random import Random

from rayscheduler.core.types import Model, ModelName, Node, RequestId
from rayscheduler.simulation import faults as ft
from rayscheduler.simulation import scenario as sc
from rayscheduler.simulation.drawn_fleet import draw_node
from rayscheduler.simulation.faults import Fault, FaultAt
from rayscheduler.simulation.tastes import Taste

Verb = Callable[[ModelName], sc.Happening]


def draw_request(rng: Random, number: int, model: Model, duration_ms: int | None) -> sc.Request:
    priority = rng.choice((None, None, None, 5, -1))
    deadline_ms = rng.choice((None, None, None, None, 500, 8_000))
    return sc.Request(RequestId(f"r{number}"), model.name, duration_ms, priority, deadline_ms)


def _popular(rng: Random, models: Sequence[Model]) -> Model:
    """One of the models, the first most often."""
    return rng.choices(models, [1 / (i + 1) for i in range(len(models))])[0]


def draw_requests(rng: Random, models: Sequence[Model], count: int, heal_ms: int, taste: Taste) -> list[sc.At]:
    """Some models are asked for more than others; a third of the requests come in bursts."""
    events: list[sc.At] = []
    at_ms = 0
    for number in range(count):
        if rng.random() < 0.7:
            at_ms = rng.randrange(heal_ms)
        model = _popular(rng, models)
        duration_ms = rng.choice(taste.durations_ms)
        request = draw_request(rng, number, model, duration_ms)
        if rng.random() < 0.02:
            request = replace(request, model=ModelName("nobody-knows-it"))
        events.append(sc.At(at_ms, request))
    return events


def draw_cancels(rng: Random, requests: Sequence[sc.At], taste: Taste) -> list[sc.At]:
    events = []
    for at in requests:
        assert isinstance(at.what, sc.Request)
        delay_ms = rng.choice((0, 100, 600, 2_000, 15_000))
        if rng.random() < taste.cancels:
            events.append(sc.At(at.at_ms + delay_ms, sc.Cancel(at.what.request)))
        elif at.what.duration_ms is None:
            events.append(sc.At(at.at_ms + 2_000 + delay_ms, sc.End(at.what.request)))
    return events


def draw_verbs(
    rng: Random, requests: Sequence[sc.At], models: Sequence[Model], heal_ms: int, taste: Taste
) -> list[sc.At]:
    """Operators' verbs; often soon after somebody asked for a model that is not much used, when it is on its way."""
    events: list[sc.At] = []
    ranks = {model.name: rank for rank, model in enumerate(models)}
    asked = [(at.at_ms, at.what.model) for at in requests if isinstance(at.what, sc.Request) and at.what.model in ranks]
    count = rng.choice(taste.operated)
    verbs: list[Verb] = [rng.choice((sc.Load, sc.Unload, sc.Unload, sc.Pin, sc.Unpin)) for _ in range(count)]
    if rng.random() < count / 10:
        verbs.append(sc.Remove)
    for verb in verbs:
        asked_ms, name = max(rng.choices(asked, k=2), key=lambda pair: ranks[pair[1]])
        at_ms = asked_ms + rng.choice((0, 500, 1_500))
        if rng.random() < 0.4:
            at_ms, name = rng.randrange(heal_ms), _popular(rng, models).name
        events.append(sc.At(at_ms, verb(name)))
        if verb is sc.Pin and rng.random() < 0.7:
            events.append(sc.At(at_ms + rng.choice((2_000, 10_000)), sc.Unpin(name)))
    return [event for event in events if event.at_ms <= heal_ms]


def draw_changes(
    rng: Random, models: Sequence[Model], nodes: Sequence[Node], heal_ms: int, taste: Taste
) -> list[sc.At]:
    """Nodes that flap, devices that are lost, memory that others take and give back, loads that fail."""
    events: list[sc.At] = []
    for _ in range(rng.choice(taste.changed)):
        node = rng.choice(nodes)
        device = rng.choice(node.devices)
        at_ms = rng.randrange(heal_ms)
        match rng.randrange(4):
            case 0:
                events.append(sc.At(at_ms, sc.NodeDown(node.name)))
                events.append(sc.At(at_ms + rng.choice((0, 1_000, 20_000)), sc.NodeUp(node)))
            case 1:
                events.append(sc.At(at_ms, sc.DeviceDown(device.id)))
            case _:
                taken_bytes = device.capacity_bytes * rng.choice((20, 50, 90)) // 100
                events.append(sc.At(at_ms, sc.Observe(device.id, taken_bytes)))
                events.append(sc.At(at_ms + rng.choice((2_000, 20_000)), sc.Observe(device.id, 0)))
    for _ in range(rng.choice((0, 1, 4))):
        name = _popular(rng, models).name
        events.append(sc.At(rng.randrange(heal_ms), rng.choice((sc.LoadFails(name), sc.Crash(name)))))
    if rng.random() < 0.1:
        events.append(sc.At(rng.randrange(heal_ms), sc.NodeUp(draw_node(rng, "n9", taste))))
    return [event for event in events if event.at_ms <= heal_ms]


def draw_redeploy(rng: Random, removed_ms: int, models: Sequence[Model], name: ModelName) -> FaultAt:
    """What was removed from the catalog is deployed again, sooner or later."""
    model = next(model for model in models if model.name == name)
    return FaultAt(removed_ms + rng.choice((0, 100, 3_000, 40_000)), ft.Redeploy(model))


def draw_fault(rng: Random, models: Sequence[Model]) -> Fault:
    model = _popular(rng, models)
    match rng.randrange(13):
        case 0:
            return ft.SlowLoad(model.name, rng.choice((2_000, 20_000)))
        case 1:
            return ft.SlowExit(model.name, rng.choice((2_000, 20_000)))
        case 2:
            return ft.ExitsUnasked(model.name)
        case 3 | 4:
            return ft.LateNews(rng.choice((0, 300, 5_000)), rng.randint(1, 4))
        case 5 | 6 | 7:
            return ft.Echo(rng.randrange(8), rng.random() < 0.7)
        case 8:
            return ft.HolderDies(rng.randrange(ft.HOLDERS))
        case 9:
            return ft.Redeploy(replace(model, concurrency=rng.choice((1, 2, 4)), replicas_max=rng.choice((1, 2))))
        case 10:
            return ft.Nudge()
    return ft.Restart(rng.choice((0, 800, 6_000)), rng.random() < 0.4)
