"""Watches what replicas take and keeps it: for the next load, and over a restart of the allocator.

Rules of this file: it belongs to the allocator's loop and does no I/O; what is to be kept is handed to `keep`.
A replica whose launch has no `memory_key` teaches nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from rayscheduler.cluster.learned import Learned, Run, learned_from_json
from rayscheduler.cluster.reports import Launch
from rayscheduler.core.types import ModelName, ReplicaId


@dataclass(frozen=True, slots=True)
class Sighting:
    """A replica at one moment. `held_bytes`: on each of its devices, or on the host if it has none; () where nobody
    has read it."""

    launch: Launch
    running: bool
    held_bytes: tuple[int, ...]
    leases: int


KEPT_MAX = 10_000  # keys in memory; a fleet of a thousand models on three types of device has fewer


class Learning:
    """`keep(key, text)`: write it down for the next allocator."""

    def __init__(self, keep: Callable[[str, str], None]) -> None:
        self._keep = keep
        self._known: dict[str, Learned] = {}
        self._runs: dict[ReplicaId, Run] = {}

    def remember(self, kept: Mapping[str, str]) -> None:
        """What an allocator before this one has learned. What cannot be read (another version) is forgotten."""
        for key, text in kept.items():
            try:
                self._known[key] = learned_from_json(json.loads(text))
            except (ValueError, KeyError, TypeError):
                continue

    def known(self, key: str) -> Learned | None:
        return self._known.get(key)

    def watch(self, sightings: Iterable[Sighting], now_ms: int) -> list[ModelName]:
        """One look at all replicas that are there; the models of which more is known than before. To be called
        every second."""
        taught: list[ModelName] = []
        there = set()
        for seen in sightings:
            there.add(seen.launch.replica)
            if seen.held_bytes and seen.launch.memory_key and self._saw(seen, now_ms):
                taught.append(seen.launch.model)
        for replica in self._runs.keys() - there:
            del self._runs[replica]
        return taught

    def _saw(self, seen: Sighting, now_ms: int) -> bool:
        launch, place = seen.launch, seen.launch.placement
        run = self._runs.get(launch.replica)
        if run is None:
            run = self._runs[launch.replica] = Run(place.device_bytes or (place.host_bytes,))
        run.saw(seen.held_bytes, seen.running, seen.leases, launch.request.concurrency, now_ms)
        news = run.news()
        if news is None:
            return False
        before = self._known.get(launch.memory_key)
        now = news if before is None else before.merged(news)
        if now == before or (before is None and len(self._known) >= KEPT_MAX):
            return False
        self._known[launch.memory_key] = now
        told = {**now.to_json(), "model": launch.model, "engine": launch.engine}
        self._keep(launch.memory_key, json.dumps(told, sort_keys=True))
        return True
