"""One integer picks everything: cluster, settings, models, traffic, operators and faults.

Rules of this file: every draw comes from one `random.Random(seed)`, so a seed is the same story on every
machine. Stories are small (a handful of models, a few nodes, some minutes), because small ones collide
more and shrink better. What is drawn is always a legal scenario; what goes wrong is the world.
"""

from __future__ import annotations

from dataclasses import replace
from random import Random

from rayscheduler.core.types import Model, ModelName, RequestId, Requirement, Settings, Strategy
from rayscheduler.simulation import scenario as sc
from rayscheduler.simulation.drawn_day import (
    draw_cancels,
    draw_changes,
    draw_fault,
    draw_redeploy,
    draw_requests,
    draw_verbs,
)
from rayscheduler.simulation.drawn_fleet import draw_model, draw_node, draw_running, draw_settings
from rayscheduler.simulation.drawn_sleep import sleepy
from rayscheduler.simulation.faults import FaultAt, Story
from rayscheduler.simulation.tastes import TASTES, Taste

NAMES = "abcdefgh"
BACKOFF_LAST_MS = 60_000


def story_of(seed: int) -> Story:
    """The story that a seed stands for."""
    rng = Random(seed)
    kind = seed % (len(TASTES) + 1)  # each taste in its turn, so that a few seeds in a row try them all
    taste = TASTES[kind] if kind < len(TASTES) else Taste(asleep=0.5)
    story = _mixed(seed, rng, taste) if kind < len(TASTES) else _stream(seed, rng)
    return sleepy(story, Random(f"sleep {seed}"), taste)


def _mixed(seed: int, rng: Random, taste: Taste) -> Story:
    """Anything may happen at any time."""
    nodes = [draw_node(rng, f"n{i}", taste) for i in range(1, rng.choice(taste.nodes) + 1)]
    models = [draw_model(rng, ModelName(name), nodes, taste) for name in NAMES[: rng.randint(*taste.models)]]
    settings = draw_settings(rng, models, taste)
    heal_ms = rng.choice((40_000, 80_000, 150_000))
    unload_ms = {model.name: rng.choice(taste.unload_ms) for model in models}
    requests = draw_requests(rng, models, rng.randint(20, 130), heal_ms, taste)
    operated = draw_verbs(rng, requests, models, heal_ms, taste)
    changed = draw_changes(rng, models, nodes, heal_ms, taste)
    events = sorted([*requests, *operated, *changed, *draw_cancels(rng, requests, taste)], key=lambda at: at.at_ms)
    back = [draw_redeploy(rng, at.at_ms, models, at.what.model) for at in operated if isinstance(at.what, sc.Remove)]
    if seed % 8 == 5:
        events = sorted([*events, sc.At(heal_ms * 3 // 4, sc.Shutdown())], key=lambda at: at.at_ms)
    faults = [FaultAt(rng.randrange(heal_ms), draw_fault(rng, models)) for _ in range(rng.choice(taste.struck))]
    faults.extend(back)
    slowest_ms = max(model.load_ms for model in models) + max(unload_ms.values()) + 12_000
    return Story(
        seed,
        sc.Scenario(settings, tuple(nodes), tuple(models), unload_ms, draw_running(rng, nodes, models), tuple(events)),
        tuple(sorted(faults, key=lambda fault: fault.at_ms)),
        heal_ms,
        2 * _bound_ms(settings, len(requests), slowest_ms),
        batches=rng.random() < 0.5,
        racy=rng.random() < 0.5,
        stutters=rng.random() < 0.5,
        wake_late_ms=rng.choice((0, 0, 0, 7, 400)),
    )


def _bound_ms(settings: Settings, requests: int, slowest_ms: int) -> int:
    """How long the last of so many may wait, if each needs a load of its own: drain, unload, load, serve."""
    return settings.stale_after_ms + (settings.patience_ms or 0) + BACKOFF_LAST_MS + (requests + 4) * slowest_ms


def _stream(seed: int, rng: Random) -> Story:
    """One model is asked for without a pause, and others want its room: nobody may starve."""
    nodes = [replace(draw_node(rng, "n1", Taste(devices=(1, 1, 2))), labels={}, millicpus=None, memory_bytes=None)]
    room = min(device.capacity_bytes - device.headroom_bytes for device in nodes[0].devices)
    models = []
    for name in NAMES[: rng.randint(2, 4)]:
        size = room * rng.choice((40, 60, 90, 90)) // 100
        want = Requirement({count: -(-size // count) for count in (1, 2)})
        load_ms = rng.choice((200, 1_000, 3_000))
        models.append(Model(ModelName(name), want, concurrency=rng.choice((1, 2)), load_ms=load_ms))
    models[0] = replace(models[0], concurrency=4)  # what is asked for can be served, also after a pause
    settings = Settings(
        strategy=rng.choice(list(Strategy)),
        stale_after_ms=rng.choice((0, 0, 2_000)),
        patience_ms=rng.choice((2_000, 5_000)),
    )
    unload_ms = {model.name: rng.choice((0, 1_000)) for model in models}
    heal_ms, duration_ms = 15_000, rng.choice((800, 2_000))
    others = [
        sc.At(rng.randrange(heal_ms), sc.Request(RequestId(f"other-{i}"), rng.choice(models[1:]).name, duration_ms))
        for i in range(4)
    ]
    # Each of the others may need a swap of its own, and the stream one back: drain, unload, load, and twice.
    bound_ms = settings.stale_after_ms + (settings.patience_ms or 0) + 5 * 2 * (2_000 + 1_000 + 3_000)
    every_ms = duration_ms * 3 // 4
    stream = [
        sc.At(at_ms, sc.Request(RequestId(f"r{i}"), models[0].name, duration_ms))
        for i, at_ms in enumerate(range(0, heal_ms + bound_ms, every_ms))
    ]
    events = tuple(sorted([*others, *stream], key=lambda at: at.at_ms))
    scenario = sc.Scenario(settings, tuple(nodes), tuple(models), unload_ms, (), events)
    return Story(seed, scenario, (), heal_ms, bound_ms, batches=rng.random() < 0.5)
