"""What a replica of a model is believed to take, and on whose word.

    stated     its operator says so, in the catalog
    estimated  its files say so
    learned    it ran, and that is what it took

The rules, in this order, for each device count:

1. What is stated is a promise of the operator: it is reserved as it stands with `trust: true`.
2. Else it is refused where it and the estimate are more than FACTOR apart. The files are believed.
3. What a run took beyond what is believed is reserved at once from the next load on, with a margin.
4. What runs took less than an *estimate* is believed once they were exercised (learned.py) on every type of
   device that the model may get; never below what is certain to be touched (`certain_bytes`). A statement
   is never undercut: its operator may know of a prompt that has not come yet.
5. An engine that fills whatever it is given (FILLS), or one that was given more than it needs (an elastic model,
   `memory: {min, max}`), has no peak of its own. What it took *beyond* its
   reservation is added to the statement or the estimate, and kept from the engine itself (`spare_bytes`).

Rules of this file: pure. Bytes are those of one device; with 0 devices those of the host.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from rayscheduler.cluster.learned import Learned, margin_bytes
from rayscheduler.cluster.reports import DeviceEstimate, SizeAnswer
from rayscheduler.config.models import EngineName
from rayscheduler.config.service import ModelEntry
from rayscheduler.core.types import Word
from rayscheduler.core.words import sized

MIB = 2**20
FACTOR = 2
# What any engine's process takes besides is a large part of a small model: a statement of some hundred MiB too
# much is a round number, not a contradiction. Too little has no such excuse.
ROUND_NUMBER_BYTES = 512 * MIB
FILLS = frozenset({EngineName.VLLM, EngineName.SGLANG})


class Source(Word):
    """On whose word a figure stands."""

    STATED = "stated"
    ESTIMATED = "estimated"
    LEARNED = "learned"


@dataclass(frozen=True, slots=True)
class Figure:
    """What a replica takes on each of `count` devices: `reserved_bytes`, and the words that led to it.

    `spare_bytes`: the part of it that the engine is not told of.
    """

    count: int
    reserved_bytes: int
    source: Source
    stated_bytes: int | None = None
    estimate: DeviceEstimate | None = None
    learned: Learned | None = None
    spare_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Figures:
    """All counts of a model; `refusal`: why none of them is good enough to load it."""

    by_count: Mapping[int, Figure] = field(default_factory=dict)
    refusal: str = ""

    def bytes_by_count(self) -> dict[int, int]:
        return {count: figure.reserved_bytes for count, figure in sorted(self.by_count.items())}


def figures_of(
    entry: ModelEntry,
    answers: Iterable[SizeAnswer] = (),
    learned: Mapping[int, Mapping[str, Learned]] | None = None,
    types: frozenset[str] = frozenset(),
) -> Figures:
    """`answers`: from nodes of different kinds; the larger one counts. `learned`: by device count and type.
    `types`: of all devices that the model may get."""
    estimates = _largest(answers)
    stated = entry.bytes_by_count()
    refusal = "" if entry.trust else contradiction(entry, estimates)
    by_count = {}
    for count in entry.device_counts:
        estimate = estimates.get(count)
        said = stated.get(count)
        if said is not None or estimate is not None:
            by_count[count] = _figure(entry, count, said, estimate, (learned or {}).get(count, {}), types)
    return Figures(by_count, refusal)


def _largest(answers: Iterable[SizeAnswer]) -> dict[int, DeviceEstimate]:
    largest: dict[int, DeviceEstimate] = {}
    for answer in answers:
        for count, estimate in answer.estimates.items():
            if count not in largest or estimate.each_bytes > largest[count].each_bytes:
                largest[count] = estimate
    return largest


def _figure(
    entry: ModelEntry,
    count: int,
    stated_bytes: int | None,
    estimate: DeviceEstimate | None,
    learned: Mapping[str, Learned],
    types: frozenset[str],
) -> Figure:
    told = estimate.each_bytes if estimate is not None else 0
    believed, source = (told, Source.ESTIMATED) if stated_bytes is None else (stated_bytes, Source.STATED)
    runs = _together(learned.values())

    def figure(reserved_bytes: int, source: Source, spare_bytes: int = 0) -> Figure:
        return Figure(count, reserved_bytes, source, stated_bytes, estimate, runs, spare_bytes)

    if runs is None or entry.trust:
        return figure(believed, source)
    if entry.engine in FILLS or entry.bytes_max_by_count():
        if runs.excess_bytes <= 0:
            return figure(believed, source)
        spare_bytes = runs.excess_bytes + margin_bytes(runs.excess_bytes)
        return figure(believed + spare_bytes, Source.LEARNED, spare_bytes)
    if runs.most_bytes > believed:
        return figure(runs.with_margin(), Source.LEARNED)
    if stated_bytes is None and estimate is not None and types and types <= _exercised(learned):
        less = max(runs.with_margin(), estimate.certain_bytes)
        if less < believed:
            return figure(less, Source.LEARNED)
    return figure(believed, source)


def _together(runs: Iterable[Learned]) -> Learned | None:
    together: Learned | None = None
    for run in runs:
        together = run if together is None else together.merged(run)
    return together


def _exercised(learned: Mapping[str, Learned]) -> frozenset[str]:
    return frozenset(kind for kind, run in learned.items() if run.exercised)


def contradiction(entry: ModelEntry, estimates: Mapping[int, DeviceEstimate]) -> str:
    """Why what an entry says cannot be true, in one line; "" where it can, or where nobody knows better.

    `memory` is judged at its fewest devices: beyond those the entry says no more than an even share.
    """
    stated = entry.bytes_by_count()
    counts = sorted(stated) if entry.memory_per_device is not None else sorted(stated)[:1]
    for count in counts:
        estimate = estimates.get(count)
        if estimate is None:
            continue
        least, most = stated[count], max(stated[count], entry.bytes_max_by_count().get(count, 0))
        if most * FACTOR < estimate.each_bytes:
            return _contradiction_words(entry, count, most, estimate)
        if least > estimate.each_bytes * FACTOR and least - estimate.each_bytes > ROUND_NUMBER_BYTES:
            return _contradiction_words(entry, count, least, estimate)
    return ""


def _contradiction_words(entry: ModelEntry, count: int, stated_bytes: int, estimate: DeviceEstimate) -> str:
    key = "memory" if entry.memory_per_device is None else "memory_per_device"
    on = "on the host" if not count else "on one device" if count == 1 else f"on each of {count} devices"
    return (
        f"{entry.name} is not loaded: its {key} says {sized(stated_bytes)} {on}, but its files say "
        f"{sized(estimate.each_bytes)} ({parts_words(estimate.parts_bytes)}), more than a factor of {FACTOR} apart. "
        f"The files are believed: correct {key}, leave it out to use the estimate, or add trust: true"
    )


def parts_words(parts_bytes: Mapping[str, int]) -> str:
    """`weights 4.1 GiB, kv cache 1.0 GiB`: the largest first, without what is less than 1 MiB."""
    parts: Sequence[tuple[str, int]] = sorted(parts_bytes.items(), key=lambda part: (-part[1], part[0]))
    return ", ".join(f"{name.replace('_', ' ')} {sized(size)}" for name, size in parts if size >= MIB)
