"""Kinds of traffic for rehearsals and benchmarks: seeded, so that two runs and two schedulers see the same requests.

All return events for `Scenario`: `count` requests over `hours`, for models named `m0`, `m1`, … by popularity.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator

from rayscheduler.core.types import ModelName, RequestId
from rayscheduler.simulation.scenario import At, Request

Chooser = Callable[[random.Random, float], int]


def zipf(models: int, exponent: float = 1.1) -> Chooser:
    """Model `k` is asked for in proportion to 1 / (k + 1)^exponent."""
    weights = [1 / (rank + 1) ** exponent for rank in range(models)]
    total = sum(weights)
    bounds: list[float] = []
    for weight in weights:
        bounds.append((bounds[-1] if bounds else 0.0) + weight / total)

    def choose(chance: random.Random, _: float) -> int:
        at = chance.random()
        low, high = 0, models - 1
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if bounds[middle] >= at else (middle + 1, high)
        return low

    return choose


def requests(
    count: int, hours: float, choose: Chooser, rate: Callable[[float], float], seed: int, mean_s: float = 4.0
) -> tuple[At, ...]:
    """`rate(day share 0..1)` shapes the arrivals; service times are exponential with mean `mean_s`."""
    chance = random.Random(seed)
    steps = 1000
    weights = [rate(step / steps) for step in range(steps)]
    total = sum(weights)
    made: list[At] = []
    due = 0.0
    for step, weight in enumerate(weights):
        due += count * weight / total
        while len(made) + 0.5 < due:
            share = (step + chance.random()) / steps
            at_ms = int(share * hours * 3_600_000)
            duration_ms = max(50, int(chance.expovariate(1 / (mean_s * 1000))))
            model = ModelName(f"m{choose(chance, share)}")
            made.append(At(at_ms, Request(RequestId(f"r{len(made)}"), model, duration_ms)))
    made.sort(key=lambda at: at.at_ms)
    return tuple(made)


def kinds(count: int, hours: float, seed: int) -> Iterator[tuple[str, tuple[At, ...]]]:
    """Five kinds of traffic over 200 models at most."""

    def steady(_: float) -> float:
        return 1.0

    def day_and_night(share: float) -> float:
        return 1.05 + math.sin(2 * math.pi * (share - 0.25))

    def round_robin(chance: random.Random, share: float) -> int:
        return int(share * count) % 80  # more models than fit: the worst case of least-recently-used

    def hot_spots(chance: random.Random, share: float) -> int:
        spot = int(share * 24) * 37 % 160  # the popular models change each hour
        return (spot + min(int(chance.expovariate(0.35)), 59)) % 160

    def bursts(share: float) -> float:
        return 12.0 if int(share * 200) % 10 == 0 else 0.4

    yield "steady", requests(count, hours, zipf(60, 0.8), steady, seed)
    yield "bursty", requests(count, hours, hot_spots, bursts, seed)
    yield "zipf-200", requests(count, hours, zipf(200), steady, seed)
    yield "day-and-night", requests(count, hours, zipf(100, 1.0), day_and_night, seed)
    yield "adversarial", requests(count, hours, round_robin, steady, seed, mean_s=2.0)
