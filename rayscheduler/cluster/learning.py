"""Watches what replicas take and keeps it: for the next load, and over a restart of the allocator.

Rules of this file: it belongs to the allocator's loop and does no I/O; what is to be kept is handed to `keep`.
A replica whose launch has no `memory_key` teaches nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping

from rayscheduler.cluster.learned import Learned, Run, learned_from_json
from rayscheduler.cluster.reports import RunnerState
from rayscheduler.cluster.roster import RunnerRecord
from rayscheduler.core.types import ModelName, Placement, ReplicaId

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

    def watch(
        self, records: Iterable[tuple[ReplicaId, RunnerRecord]], leases: Mapping[ReplicaId, int], now_ms: int
    ) -> list[ModelName]:
        """One look at all replicas; the models of which more is known than before. To be called every second."""
        taught: list[ModelName] = []
        there = set()
        for replica, record in records:
            there.add(replica)
            if self._saw(replica, record, leases.get(replica, 0), now_ms):
                taught.append(record.launch.model)
        for replica in self._runs.keys() - there:
            del self._runs[replica]
        return taught

    def _saw(self, replica: ReplicaId, record: RunnerRecord, leases: int, now_ms: int) -> bool:
        launch = record.launch
        if not launch.memory_key or record.measured_bytes is None:
            return False
        run = self._runs.get(replica)
        if run is None:
            run = self._runs[replica] = Run(launch.placement.device_bytes or (launch.placement.host_bytes,))
        held = held_by_device(launch.placement, record.measured_bytes)
        running = record.state is RunnerState.RUNNING
        run.saw(held, running, leases, launch.request.concurrency, now_ms)
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


def held_by_device(placement: Placement, measured_bytes: int | Mapping[int, int]) -> tuple[int, ...]:
    """What a replica holds on each of its devices, in the order of its placement; on the host, if it has none.

    A sum over several devices is shared by what is reserved on them: nobody knows it better.
    """
    if not placement.devices:
        return (measured_bytes if isinstance(measured_bytes, int) else sum(measured_bytes.values()),)
    if isinstance(measured_bytes, Mapping):
        return tuple(measured_bytes.get(int(device.rpartition("/")[2]), 0) for device in placement.devices)
    whole = max(1, sum(placement.device_bytes))
    return tuple(-(-measured_bytes * each // whole) for each in placement.device_bytes)
