"""The running service as the integration tests see it: a catalog per test, leases, and waiting for a state.

Rules of this file: nothing sleeps. Whoever waits asks the allocator for the next thing that happens, with a bound.
"""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import psutil
import ray

from rayscheduler.cluster.names import ALLOCATOR, NAMESPACE
from rayscheduler.cluster.running import Service
from rayscheduler.config.service import config_from_text

Json = dict[str, Any]

WITHIN_S = 60.0
LENT_MIB = 1000
QUICK = """
models:
- {name: a, aliases: [alpha], engine: simulated, memory: 600MiB, simulate: {load: 0s}}
- {name: b, engine: simulated, memory: 600MiB, simulate: {load: 0s}}
- {name: c, engine: simulated, memory: 300MiB, simulate: {load: 0s}}
"""
_ids = itertools.count(1)


@dataclass
class Ask:
    """A request for a lease, under way."""

    world: World
    id: str
    reply: Any

    def answer(self, within_s: float = WITHIN_S) -> Json:
        return dict(ray.get(self.reply, timeout=within_s))

    def granted(self, within_s: float = WITHIN_S) -> Json:
        answer = self.answer(within_s)
        assert answer["granted"], answer
        return answer

    def rejected(self, within_s: float = WITHIN_S) -> Json:
        answer = self.answer(within_s)
        assert not answer["granted"], answer
        return answer

    def release(self) -> None:
        self.world.call("exchange", "", [self.id], [])


class World:
    def __init__(self, service: Service) -> None:
        self.service = service
        self.url = service.http_url
        self.heartbeats: dict[str, list[list[str]]] = {}  # holders that are alive, and what they hold

    # -- asking ---------------------------------------------------------------------------------------

    @property
    def allocator(self) -> Any:
        return ray.get_actor(ALLOCATOR, namespace=NAMESPACE)

    def call(self, method: str, *args: object, within_s: float = WITHIN_S) -> Any:
        """Calls until it is answered: the allocator may be restarting. Only what may be repeated."""
        deadline_s = time.monotonic() + within_s
        while True:
            try:
                return ray.get(getattr(self.allocator, method).remote(*args), timeout=within_s)
            except ray.exceptions.ActorUnavailableError:
                assert time.monotonic() < deadline_s, f"the allocator stays away for {within_s:g} s"

    def status(self) -> Json:
        return dict(self.call("status"))

    def ask(self, model: str, holder: str = "", request: str | None = None, **more: object) -> Ask:
        """Without a holder nobody has to be heard of for it."""
        request = request or f"r{next(_ids)}"
        return Ask(self, request, self.allocator.lease.remote(model, request, holder, **more))

    def decisions(self, **keys: object) -> list[Json]:
        """The decisions that have these values, oldest first."""
        taken = reversed(self.call("decisions", 1000))
        return [decision for decision in taken if all(decision.get(key) == value for key, value in keys.items())]

    def replica(self, name: str) -> Json:
        return next(replica for replica in self.status()["replicas"] if replica["id"] == name)

    def home(self) -> Json:
        """The node that the service was started on."""
        return next(node for node in self.status()["nodes"] if node["alive"] and node["lends"])

    def model(self, name: str) -> Json:
        return next(model for model in self.status()["models"] if model["name"] == name)

    # -- waiting --------------------------------------------------------------------------------------

    def until(self, holds: Callable[[Json], object], within_s: float = WITHIN_S) -> Json:
        """The first status for which it holds; looks whenever something was handled, and twice a second."""
        deadline_s = time.monotonic() + within_s
        status = self.status()
        while not holds(status):
            for holder, held in self.heartbeats.items():
                self.call("heartbeat", holder, held)
            assert time.monotonic() < deadline_s, f"it does not hold after {within_s:g} s: {status}"
            status = dict(self.call("wait_past", status["serial"], 0.5))
        return status

    def until_quiet(self, within_s: float = WITHIN_S) -> Json:
        """Nothing starts and nothing leaves; then Ray holds exactly what the ledger says."""
        status = self.until(lambda now: not now["leaving"] and _settled(now["replicas"]), within_s)
        assert self.call("differences") == []
        for node in status["nodes"]:
            for device in node["devices"]:
                assert device["reserved_bytes"] <= device["capacity_bytes"], device
        return status

    # -- changing -------------------------------------------------------------------------------------

    def deploy(self, text: str) -> None:
        """Serve this catalog (YAML) and nothing else."""
        config = config_from_text(text)
        while not self.call("deploy", config.to_json())["ok"]:
            pass

    def another_allocator(self) -> None:
        """Kill the allocator; returns when another has taken its place and knows what it has to know."""
        before = self.call("__ray_call__", _pid)
        ray.kill(self.allocator, no_restart=False)
        deadline_s = time.monotonic() + WITHIN_S
        while self.call("__ray_call__", _pid) == before:  # the old one may still answer
            assert time.monotonic() < deadline_s
        self.status()

    def pids_of(self, replica: str) -> tuple[int, int]:
        """The runner's and the engine's."""
        found = self.replica(replica)
        return found["runner_pid"], found["engine_pid"]


def _pid(actor: object) -> int:
    return os.getpid()


def is_gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def _settled(replicas: Iterable[Json]) -> bool:
    return all(replica["state"] == "RUNNING" for replica in replicas)
