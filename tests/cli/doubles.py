"""A service in memory, as the commands see one, and the parts of its `status`."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rayscheduler.errors import RequestRejected

MIB = 2**20
GIB = 2**30


def device(id: str = "n1/0", **other: Any) -> dict[str, Any]:
    return {
        "id": id,
        "type": "H100",
        "uuid": "GPU-1",
        "offered": True,
        "capacity_bytes": 80 * GIB,
        "reserved_bytes": 0,
        "used_by_others_bytes": 0,
        "measured_bytes": 0,
        "free_bytes": 80 * GIB,
        "foreign": [],
        **other,
    }


def node(name: str = "n1", **other: Any) -> dict[str, Any]:
    return {
        "name": name,
        "node_id": f"id-{name}",
        "alive": True,
        "lends": True,
        "mend": None,
        "backend": "nvidia",
        "simulated": False,
        "cpus": 8,
        "devices": [device(f"{name}/0")],
        **other,
    }


def replica(id: str = "a#1", state: str = "RUNNING", **other: Any) -> dict[str, Any]:
    return {
        "id": id,
        "model": id.partition("#")[0],
        "state": state,
        "nodes": ["n1"],
        "devices": ["n1/0"],
        "device_bytes": [60 * GIB],
        "host_bytes": 0,
        "measured_bytes": None,
        "leases": 0,
        "adapters": [],
        "since_s": 12.0,
        "idle_s": 3.0,
        "pinned": False,
        "endpoint": None,
        "makes_way_for": None,
        "waits_for": [],
        **other,
    }


def model(name: str = "a", state: str = "unloaded", **other: Any) -> dict[str, Any]:
    return {
        "name": name,
        "aliases": [],
        "engine": "simulated",
        "state": state,
        "replicas": [],
        "waiting": 0,
        "pinned": False,
        "memory_bytes": 60 * GIB,
        "backoff_s": None,
        "last_error": None,
        "memory": {"known": True, "problem": None, "by_count": []},
        **other,
    }


def figure(count: int = 1, **other: Any) -> dict[str, Any]:
    """What is believed of a model on so many devices: one of `memory.by_count`."""
    return {
        "count": count,
        "reserved_bytes": 10 * GIB,
        "source": "estimated",
        "stated_bytes": None,
        "estimated_bytes": 10 * GIB,
        "parts_bytes": {"kv_cache": 2 * GIB, "weights": 8 * GIB},
        "measured_bytes": None,
        "exercised": False,
        **other,
    }


def memory(*figures: dict[str, Any]) -> dict[str, Any]:
    return {"known": True, "problem": None, "by_count": list(figures)}


def status(**other: Any) -> dict[str, Any]:
    return {
        "serial": 1,
        "policy": "fifo",
        "nodes": [node()],
        "replicas": [],
        "models": [model()],
        "adapters": [],
        "queue": [],
        "counters": {},
        **other,
    }


class FakeService:
    """`now` is what `status` says. A load waits until a test ends it with `loaded` or `failed`."""

    def __init__(self) -> None:
        self.now = status()
        self.taken: list[dict[str, Any]] = []
        self.asked: list[tuple[object, ...]] = []
        self.stories: list[dict[str, Any]] = []  # what `status` says, one after the other
        self.outcome: Exception | None = None
        self.key_error: Exception | None = None
        self.known_keys: list[dict[str, Any]] = []
        self._ended = threading.Event()

    @contextmanager
    def connected(self, address: str | None) -> Iterator[FakeService]:
        self.asked.append(("connected", address))
        yield self

    def status(self) -> Mapping[str, Any]:
        """The next of the story, if there is one; the load ends with the last."""
        if self.stories:
            self.now = self.stories.pop(0)
            if not self.stories:
                self._ended.set()
        return self.now

    def load(self, model: str, wait: bool = True) -> Mapping[str, Any]:
        self.asked.append(("load", model, wait))
        if wait:
            assert self._ended.wait(10), "the story of this load has no end"
            if self.outcome is not None:
                raise self.outcome
        return {"ok": True, "message": f"{model} will be loaded"}

    def unload(self, model: str) -> Mapping[str, Any]:
        self.asked.append(("unload", model))
        return {"ok": True, "message": f"{model} is unloaded"}

    def pin(self, model: str) -> Mapping[str, Any]:
        self.asked.append(("pin", model))
        return {"ok": True, "message": f"{model} is pinned"}

    def unpin(self, model: str) -> Mapping[str, Any]:
        self.asked.append(("unpin", model))
        return {"ok": True, "message": f"{model} is no longer pinned"}

    def create_key(self, settings: dict[str, Any], replace: bool = False) -> dict[str, Any]:
        self.asked.append(("create_key", settings))
        if error := self.key_error:
            raise error
        shown = {key: value for key, value in settings.items() if key != "digest"}
        return {"ok": True, "message": f"key {settings['name']} is there", "key": shown}

    def revoke_key(self, name: str) -> dict[str, Any]:
        self.asked.append(("revoke_key", name))
        return {"ok": True, "message": f"key {name} is revoked"}

    def api_keys(self) -> list[dict[str, Any]]:
        return self.known_keys

    def decisions(self, limit: int = 100, subject: str | None = None) -> list[dict[str, Any]]:
        self.asked.append(("decisions", limit, subject))
        return self.taken


def load_failed(name: str) -> RequestRejected:
    return RequestRejected("load_failed", 503, f"{name} failed to load: no such file")
