"""What replicas have really taken: the peak of each run, kept under everything that decides it.

Rules of this file: pure values. The key is the digest of the model's files, the engine and its version, the
type of the devices, their count, and all that the catalog tells the engine. A peak only grows under its key:
what has been seen once can be seen again. Whether a run was *exercised* says if it may stand for less than an
estimate: an idle engine has not yet touched all that it will.

    exercised = all its leases were taken at once, or it ran for RAN_LONG_MS and has served somebody
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

MIB = 2**20
RAN_LONG_MS = 600_000
MARGIN_PARTS = 50  # one of so many parts of a peak is added to it: 2 %
MARGIN_BYTES_MIN = 16 * MIB
TELL_PARTS = 100  # a peak that grows by less than one of so many parts is not written down anew

# What the catalog tells an engine and decides nothing about its memory.
_NO_OPTIONS = frozenset({"model", "source", "ready_path", "load_timeout_ms"})


@dataclass(frozen=True, slots=True)
class Learned:
    """`peak_bytes` on each device (of the host, for a replica without devices). `excess_bytes`: by how much the
    worst device went beyond its reservation; below 0 where each had room left."""

    peak_bytes: tuple[int, ...]
    excess_bytes: int
    exercised: bool = False

    @property
    def most_bytes(self) -> int:
        """The peak of the device that took most."""
        return max(self.peak_bytes, default=0)

    def with_margin(self) -> int:
        """What to reserve on each device for a run like this one."""
        return self.most_bytes + margin_bytes(self.most_bytes)

    def merged(self, other: Learned) -> Learned:
        """What both have shown: the peaks of the one that took more, the larger excess."""
        more = max(self, other, key=lambda run: run.most_bytes)
        excess_bytes = max(self.excess_bytes, other.excess_bytes)
        return Learned(more.peak_bytes, excess_bytes, self.exercised or other.exercised)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def learned_from_json(told: Mapping[str, Any]) -> Learned:
    return Learned(tuple(told["peak_bytes"]), int(told["excess_bytes"]), bool(told["exercised"]))


def margin_bytes(peak_bytes: int) -> int:
    """2 %, and at least 16 MiB: what differs between two runs of one kind."""
    return max(peak_bytes // MARGIN_PARTS, MARGIN_BYTES_MIN)


def memory_key(engine: str, options: Mapping[str, Any], count: int, device_type: str, digest: str, version: str) -> str:
    """Under what a peak is kept: equal for runs that will take the same. `options`: the catalog's words to the engine
    (`ModelEntry.engine_fields`); its source stands for the model where no file has a digest."""
    matter = {name: value for name, value in options.items() if name not in _NO_OPTIONS}
    told = [digest or options.get("source"), engine, version, device_type, count, matter]
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()[:32]


class Run:
    """One replica's life so far. `reserved_bytes`: what it may take, on each of its devices."""

    def __init__(self, reserved_bytes: Sequence[int]) -> None:
        self._reserved_bytes = tuple(reserved_bytes)
        self._peak_bytes = (0,) * len(self._reserved_bytes)
        self._ready_ms: int | None = None
        self._served = self._exercised = False
        self._told: Learned | None = None

    def saw(self, held_bytes: Sequence[int], running: bool, leases: int, leases_max: int, now_ms: int) -> None:
        """One reading of what it holds on its devices, and of the requests that it serves."""
        if running and self._ready_ms is None:
            self._ready_ms = now_ms
        self._served = self._served or leases > 0
        long = self._ready_ms is not None and now_ms - self._ready_ms >= RAN_LONG_MS
        self._exercised = self._exercised or (running and (leases >= leases_max or (self._served and long)))
        self._peak_bytes = tuple(map(max, self._peak_bytes, held_bytes))

    def news(self) -> Learned | None:
        """What it has shown, once it is ready and if that is more than a trifle beyond what was told before."""
        if self._ready_ms is None or not any(self._peak_bytes):
            return None
        told = self._told
        if told is not None and told.exercised == self._exercised:
            grown = zip(self._peak_bytes, told.peak_bytes, strict=True)
            if not any(now > before + before // TELL_PARTS for now, before in grown):
                return None
        excess_bytes = max(map(int.__sub__, self._peak_bytes, self._reserved_bytes))
        self._told = Learned(self._peak_bytes, excess_bytes, self._exercised)
        return self._told
