"""A hundred requests for a hundred models through the allocator actor, in one call: `bench_batch.py [--json]`.

The real actor on a local Ray: mailbox, scheduler, lease book, dispatch, and the calls of Ray on both sides. Its 20
nodes of 4 x 80 GiB are told to it, not started, and what it orders of Ray Serve is counted, not carried out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import Counter
from collections.abc import Iterable
from typing import Any

import ray

from rayscheduler.cluster import allocator as allocator_module
from rayscheduler.cluster.executor import Start
from rayscheduler.cluster.housekeeping import Housekeeping
from rayscheduler.cluster.inventory import LentDevice, NodeInventory
from rayscheduler.cluster.reports import AgentReport
from rayscheduler.cluster.resources import MIB
from rayscheduler.cluster.start import use_token
from rayscheduler.cluster.store import Store
from rayscheduler.config.service import config_from_text
from rayscheduler.core.types import Backend

NODES, DEVICES, LENT_MIB, MODELS = 20, 4, 80 * 1024, 100
GOAL_MS = 25


class CountedOrders:
    """Stands where the executor stands, and remembers the batches that it was given."""

    def __init__(self, *ignored: object) -> None:
        self.batches: list[list[object]] = []

    def order(self, orders: Iterable[object]) -> None:
        self.batches.append(list(orders))


class ToldAllocator(allocator_module.Allocator):
    """The allocator, on nodes that it is told of."""

    async def __init__(self) -> None:  # type: ignore[misc]
        async def nobody_to_look_for(housekeeping: Housekeeping) -> None:
            """Ray's own nodes lend nothing here."""

        Housekeeping.look_around = nobody_to_look_for  # type: ignore[method-assign]
        allocator_module.Executor = CountedOrders  # type: ignore[misc,assignment]
        await super().__init__()  # type: ignore[misc]

    async def tell_of_nodes(self) -> None:
        devices = tuple(LentDevice(index, LENT_MIB) for index in range(DEVICES))
        for number in range(NODES):
            name = f"n{number:02d}"
            resources = {f"gpu-{index}-mib": LENT_MIB for index in range(DEVICES)} | {"simulated-devices": 1}
            entry = {
                "NodeID": name,
                "Alive": True,
                "NodeManagerAddress": "127.0.0.1",
                "NodeManagerHostname": name,
                "NodeManagerPort": 1,
                "Resources": resources,
            }
            inventory = NodeInventory(name, Backend.NVIDIA, devices, simulated=True)
            self._mailbox.put_all(self._membership.observe([entry], time.monotonic()))
            self._mailbox.put_all(self._membership.reported(name, AgentReport(inventory), time.monotonic()))

    async def ordered(self) -> list[list[tuple[str, int]]]:
        """For each batch of orders the node and the bytes of each start."""
        return [
            [
                (start.launch.placement.nodes[0], sum(start.launch.placement.device_bytes))
                for start in batch
                if isinstance(start, Start)
            ]
            for batch in self._executor.batches  # type: ignore[attr-defined]
        ]


def run(runs: int) -> dict[str, Any]:
    models = "\n".join(f"- {{name: m{i}, engine: simulated, memory: 10GiB}}" for i in range(MODELS))
    config = config_from_text(f"models:\n{models}").to_json()
    times = []
    for number in range(runs):
        actor = ray.remote(ToldAllocator).options(num_cpus=0, max_concurrency=1000).remote()
        ray.get(actor.deploy.remote(config))
        ray.get(actor.tell_of_nodes.remote())
        ray.get(actor.status.remote())
        asks = [[f"m{i}", f"r{number}-{i}", None, None, None] for i in range(MODELS)]
        start_s = time.perf_counter()
        answers = ray.get(actor.exchange.remote("", [], asks))
        times.append(time.perf_counter() - start_s)
        assert answers == [None] * MODELS, "each waits for a load"
        (starts,) = ray.get(actor.ordered.remote())
        per_node = Counter(node for node, _ in starts)
        assert len(starts) == MODELS
        assert len(per_node) == NODES
        held = {name: sum(size for node, size in starts if node == name) for name in per_node}
        assert max(held.values()) <= DEVICES * LENT_MIB * MIB
        ray.kill(actor)
        Store().clear()  # or the next one would take itself for a successor, and look for what runs
    return {
        "median_ms": round(statistics.median(times) * 1e3, 2),
        "worst_ms": round(max(times) * 1e3, 2),
        "goal_ms": GOAL_MS,
        "replicas_per_node": [min(per_node.values()), max(per_node.values())],
        "runs": runs,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    use_token()
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        figures = run(options.runs)
    finally:
        ray.shutdown()
    if options.json:
        print(json.dumps(figures))
        return
    print(f"{MODELS} requests for {MODELS} models on {NODES} nodes, through the actor in one call:")
    print(f"  {figures['median_ms']} ms median, {figures['worst_ms']} ms worst; goal {GOAL_MS} ms")


if __name__ == "__main__":
    main()
