"""Whom to evict, compared: `python tests/benchmarks/bench_traffic.py [--json] [--requests N]`.

The same five kinds of traffic on the same cluster (4 nodes of 4 x 80 GiB, models of 8 to 60 GiB that load
at 0.25 s/GiB) with three ways to share it: victims by *value* (load time x recent demand: ours), by plain
*least-recently-used*, and *one model per GPU*, first fit, which is what counting GPUs instead of bytes does.
Cold starts, and the wait of requests: mean, p99. All three run in the real scheduler.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from rayscheduler.core.decisions import Grant, StartReplica
from rayscheduler.core.records import ModelRecord
from rayscheduler.core.types import Backend, Device, Model, Node, Requirement, Settings, Strategy
from rayscheduler.simulation.checker import nearest_rank
from rayscheduler.simulation.scenario import Happening, Request, Scenario
from rayscheduler.simulation.traffic import kinds
from rayscheduler.simulation.world import World

GIB = 1 << 30
WAYS = ("value", "least recently used", "one model per GPU")


def catalog(models: int = 200) -> tuple[Model, ...]:
    chance = random.Random(7)
    made = []
    for number in range(models):
        gib = chance.choice((8, 8, 14, 14, 20, 30, 40, 60))
        want = Requirement({count: -(-gib * GIB // count) for count in (1, 2, 4)})
        made.append(Model(f"m{number}", want, concurrency=4, load_ms=2000 + gib * 250))
    return tuple(made)


def nodes() -> tuple[Node, ...]:
    names = [f"n{number}" for number in range(4)]
    return tuple(Node(name, Backend.NVIDIA, tuple(Device(f"{name}/{i}", 80 * GIB) for i in range(4))) for name in names)


@contextmanager
def sharing(way: str, scenario: Scenario) -> Iterator[Scenario]:
    """The scenario as one of the three ways would run it."""
    if way == "least recently used":
        original = ModelRecord.value
        ModelRecord.value = lambda self, now_ms: 0  # type: ignore[method-assign]
        try:
            yield scenario
        finally:
            ModelRecord.value = original  # type: ignore[method-assign]
    elif way == "one model per GPU":
        whole = tuple(replace(m, requirement=replace(m.requirement, exclusive=True)) for m in scenario.models)
        yield replace(scenario, models=whole, settings=replace(scenario.settings, strategy=Strategy.PACK))
    else:
        yield scenario


def run(scenario: Scenario) -> dict[str, float | int | None]:
    arrived: dict[str, int] = {}
    waits: list[int] = []
    loads = 0

    def told(at_ms: int, what: Happening) -> None:
        if isinstance(what, Request):
            arrived[what.request] = at_ms

    for at_ms, decision in World(scenario).run(told):
        if isinstance(decision, Grant):
            waits.append(at_ms - arrived[decision.request])
        elif isinstance(decision, StartReplica):
            loads += 1
    return {
        "requests": len(arrived),
        "granted": len(waits),
        "cold_starts": loads,
        "mean_wait_ms": round(sum(waits) / max(1, len(waits)), 1),
        "p99_wait_ms": nearest_rank(waits, 99),
    }


def compare(count: int, hours: float) -> dict[str, dict[str, dict[str, float | int | None]]]:
    unload = {model.name: 500 for model in catalog()}
    settings = Settings(queue_limit=1_000_000)
    table: dict[str, dict[str, dict[str, float | int | None]]] = {}
    for kind, events in kinds(count, hours, seed=11):
        scenario = Scenario(settings, nodes(), catalog(), unload, (), events)
        table[kind] = {}
        for way in WAYS:
            with sharing(way, scenario) as shared:
                table[kind][way] = run(shared)
    return table


def plot(table: dict[str, dict[str, dict[str, float | int | None]]], key: str) -> str:
    """Bars in text, one row per traffic and way."""
    most = max(float(figures[key] or 0) for ways in table.values() for figures in ways.values()) or 1.0
    rows = [key]
    for kind, ways in table.items():
        for way, figures in ways.items():
            size = float(figures[key] or 0)
            rows.append(f"  {kind:14} {way:20} {'█' * round(40 * size / most)} {size:g}")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--hours", type=float, default=6.0)
    options = parser.parse_args()
    table = compare(options.requests, options.hours)
    if options.json:
        print(json.dumps(table, indent=1))
        return
    print(f"{'traffic':14} {'victims':20} {'granted':>8} {'cold starts':>12} {'mean wait ms':>13} {'p99 wait ms':>12}")
    for kind, ways in table.items():
        for way, f in ways.items():
            told = (f["granted"], f["cold_starts"], f["mean_wait_ms"], f["p99_wait_ms"])
            print(f"{kind:14} {way:20} {told[0]:>8} {told[1]:>12} {told[2]:>13} {told[3]!s:>12}")
    for key in ("cold_starts", "mean_wait_ms"):
        print("\n" + plot(table, key))


if __name__ == "__main__":
    main()
