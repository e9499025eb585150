"""Figures of the core, measured on the real `Scheduler.handle`: `python tests/benchmarks/bench_core.py [--json]`.

- batch: 100 requests for 100 models on 20 nodes, decided in one call.
- plan: one request that needs a new replica, at 100, 1,000 and 10,000 nodes of 8 devices, 70 % full, with room
  and needing an eviction.
- events: events per second of warm traffic, with and without `validate()`.
- day: a million requests on 1,000 nodes, with memory (`--day`; about a minute and a half).
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import resource
import statistics
import time
import tracemalloc
from collections import Counter

from rayscheduler.core import events as ev
from rayscheduler.core.decisions import Grant, StartReplica, StopReplica
from rayscheduler.core.scheduler import Scheduler
from rayscheduler.core.types import Backend, Device, Model, Node, Placement, Requirement, Settings
from rayscheduler.simulation.scenario import Scenario
from rayscheduler.simulation.traffic import requests, zipf
from rayscheduler.simulation.world import World

GIB = 1 << 30
COUNTS = (1, 2, 4, 8)


def node(number: int, devices: int = 8, gib: int = 80) -> Node:
    name = f"n{number:05d}"
    return Node(name, Backend.NVIDIA, tuple(Device(f"{name}/{i}", gib * GIB) for i in range(devices)))


def model(name: str, gib: int, concurrency: int = 1) -> Model:
    want = Requirement({count: -(-gib * GIB // count) for count in COUNTS})
    return Model(name, want, concurrency=concurrency)


def percentiles(seconds: list[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    at = [ordered[min(len(ordered) - 1, int(share * len(ordered)))] for share in (0.5, 0.99)]
    return {"p50_ms": round(at[0] * 1e3, 3), "p99_ms": round(at[1] * 1e3, 3), "plans": len(ordered)}


def batch(runs: int = 20) -> dict[str, object]:
    """One hundred requests for as many models of 10 GiB on 20 nodes of 4 x 80 GiB, in one call."""
    times = []
    for _ in range(runs):
        scheduler = Scheduler(Settings())
        scheduler.restore([ev.NodeJoined(node(i, devices=4)) for i in range(20)], 0)
        scheduler.restore([ev.ModelDeployed(model(f"m{i}", 10)) for i in range(100)], 0)
        requests = [ev.RequestArrived(f"r{i}", f"m{i}") for i in range(100)]
        gc.collect()
        start = time.perf_counter()
        decisions = scheduler.handle_batch(requests, 0)
        times.append(time.perf_counter() - start)
        scheduler.validate()
        starts = [d for d in decisions if isinstance(d, StartReplica)]
        per_node = Counter(d.placement.nodes[0] for d in starts)
        assert len(starts) == 100
        assert len(per_node) == 20
    return {
        "median_ms": round(statistics.median(times) * 1e3, 2),
        "worst_ms": round(max(times) * 1e3, 2),
        "replicas_per_node": [min(per_node.values()), max(per_node.values())],
        "reservations": sum(1 for _ in starts),
    }


def filled(nodes: int, seed: int, models: int = 1000) -> Scheduler:
    """A cluster whose devices are 70 % full of idle replicas of 28 GiB (two on each device of 80 GiB)."""
    chance = random.Random(seed)
    scheduler = Scheduler(Settings())
    scheduler.restore([ev.NodeJoined(node(i)) for i in range(nodes)], 0)
    scheduler.restore([ev.ModelDeployed(model(f"old{i}", 28)) for i in range(models)], 0)
    serials: Counter[str] = Counter()
    found = []
    for i in range(nodes):
        for j in range(8):
            for _ in range(2):
                name = f"old{chance.randrange(models)}"
                serials[name] += 1
                place = Placement((f"n{i:05d}",), (f"n{i:05d}/{j}",), (28 * GIB,))
                idle_ms = chance.randrange(1, 3_600_000)
                found.append(ev.ReplicaFound(f"{name}#{serials[name]}", name, place, True, {}, idle_ms))
    scheduler.restore(found, 0)
    return scheduler


def plans(nodes: int, gib: int, samples: int = 300) -> dict[str, float]:
    """One arriving request that needs a replica of `gib` GiB, again and again, each for another model."""
    scheduler = filled(nodes, seed=nodes)
    for i in range(samples + 1):
        scheduler.restore([ev.ModelDeployed(model(f"new{i}", gib))], 0)
    scheduler.handle(ev.RequestArrived("first", f"new{samples}"), 1)  # the shelves are built by the first plan
    times = []
    gc.collect()
    for i in range(samples):
        event = ev.RequestArrived(f"r{i}", f"new{i}")
        start = time.perf_counter()
        decisions = scheduler.handle(event, 1)
        times.append(time.perf_counter() - start)
        assert any(isinstance(d, (StartReplica, StopReplica)) for d in decisions)
        for stop in [d for d in decisions if isinstance(d, StopReplica)]:
            scheduler.handle(ev.ReplicaStopped(stop.replica), 1)
    return percentiles(times)


def events_per_second(validate: bool, pairs: int) -> int:
    """Warm traffic (a request granted at once, then ended) over 16 models on 8 nodes of 8 devices."""
    scheduler = Scheduler(Settings())
    scheduler.restore([ev.NodeJoined(node(i)) for i in range(8)], 0)
    scheduler.restore([ev.ModelDeployed(model(f"m{i}", 30)) for i in range(16)], 0)
    for i in range(16):
        for decision in scheduler.handle(ev.LoadAsked(f"m{i}"), 0):
            scheduler.handle(ev.ReplicaStarted(decision.replica), 0)
    start = time.perf_counter()
    for i in range(pairs):
        now_ms = i // 10
        decisions = scheduler.handle(ev.RequestArrived(f"r{i}", f"m{i % 16}"), now_ms)
        assert isinstance(decisions[0], Grant)
        scheduler.handle(ev.RequestEnded(f"r{i}"), now_ms)
        if validate:
            scheduler.validate()
    return round(2 * pairs / (time.perf_counter() - start))


def bytes_each() -> dict[str, int]:
    """Memory of one idle replica and of one waiting request, by difference."""
    tracemalloc.start()
    scheduler = filled(200, seed=1)
    before = tracemalloc.get_traced_memory()[0]
    extra = [
        ev.ReplicaFound(f"old{i % 1000}#{900 + i}", f"old{i % 1000}", Placement((f"n{i % 200:05d}",), (), ()), True)
        for i in range(10_000)
    ]
    scheduler.restore(extra, 0)
    replicas = tracemalloc.get_traced_memory()[0]
    queue = Scheduler(Settings(queue_limit=100_000))
    queue.restore([ev.ModelDeployed(model("m", 10))], 0)
    start = tracemalloc.get_traced_memory()[0]
    for i in range(10_000):
        queue.handle(ev.RequestArrived(f"request-{i}", "m"), i)
    waiting = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return {"per_replica": (replicas - before) // 10_000, "per_waiting_request": (waiting - start) // 10_000}


def day(count: int = 1_000_000, nodes: int = 1_000) -> dict[str, object]:
    """A day of `count` requests for 2,000 models (Zipf) on `nodes` nodes of 8 devices, in virtual time."""
    models = tuple(model(f"m{i}", (8, 14, 30, 60, 130)[i % 5], concurrency=8) for i in range(2_000))
    scenario = Scenario(
        settings=Settings(queue_limit=100_000),
        nodes=tuple(node(i) for i in range(nodes)),
        models=models,
        unload_ms={each.name: 500 for each in models},
        events=requests(count, 24.0, zipf(2_000), lambda share: 1.0, seed=3),
    )
    start = time.perf_counter()
    granted = loads = 0
    for _, decision in World(scenario).run(lambda at_ms, what: None):
        granted += isinstance(decision, Grant)
        loads += isinstance(decision, StartReplica)
    seconds = time.perf_counter() - start
    rss_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return {"requests": count, "granted": granted, "loads": loads, "seconds": round(seconds, 1), "rss_mib": rss_mib}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument("--quick", action="store_true", help="up to 1,000 nodes only")
    parser.add_argument("--day", action="store_true", help="only the day of a million requests")
    options = parser.parse_args()
    if options.day:
        print(json.dumps({"day": day()}))
        return
    sizes = (100, 1_000) if options.quick else (100, 1_000, 10_000)
    figures: dict[str, object] = {"batch_of_100": batch()}
    for size in sizes:
        figures[f"plan_with_room_{size}_nodes"] = plans(size, gib=20)
        figures[f"plan_with_eviction_{size}_nodes"] = plans(size, gib=40)
    figures["events_per_second"] = events_per_second(False, 100_000)
    figures["events_per_second_validated"] = events_per_second(True, 10_000)
    figures["bytes"] = bytes_each()
    figures["peak_rss_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    if options.json:
        print(json.dumps(figures, indent=1))
        return
    for name, figure in figures.items():
        print(f"{name:35} {figure}")


if __name__ == "__main__":
    main()
