"""Whether a device really has room for an engine that is about to start, and who holds it if not.

    spare = free − promised to other engines and not held by them yet − needed        (signed: it may be negative)

Rules of this file: pure; readings in, numbers and words out. What is short of less than READING_STEP_BYTES is no
shortage, as what others hold up to that is no news to the ledger (membership.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from rayscheduler.cluster.membership import READING_STEP_BYTES
from rayscheduler.cluster.reports import AgentReport, ForeignProcess, Watched
from rayscheduler.core.types import ReplicaId
from rayscheduler.core.words import sized

MIB = 2**20
NAMED_MAX = 3  # programs that are named; of more, only how many


@dataclass(frozen=True, slots=True)
class Shortage:
    """What is missing on one device. `promised_bytes`: to other engines that do not hold it yet."""

    index: int
    needed_bytes: int
    free_bytes: int
    promised_bytes: int


def shortages(
    report: AgentReport, replica: ReplicaId, needed: Mapping[int, int], watched: Sequence[Watched]
) -> list[Shortage]:
    """The devices on which `needed` (bytes by index) is not free for this replica. Pretended devices have room."""
    found = []
    for reading in report.readings:
        if reading.index in needed:
            promised = sum(_promised(report, watched, replica, reading.index))
            spare = reading.free_bytes - promised - needed[reading.index]
            if spare < -READING_STEP_BYTES:
                found.append(Shortage(reading.index, needed[reading.index], reading.free_bytes, promised))
    return found


def lost(report: AgentReport, needed: Mapping[int, int]) -> dict[int, str]:
    """Those of the devices that cannot be used, and why."""
    return {index: report.inventory.missing[index] for index in needed if index in report.inventory.missing}


def not_given_back(report: AgentReport, replica: ReplicaId, kept: Mapping[int, int], watched: Sequence[Watched]) -> str:
    """What one that sleeps still holds beyond `kept` (bytes by index), in words; "": nothing, or nobody can tell.

    Where the driver does not tell what its processes hold, the engine is believed: whoever starts next on its devices
    waits for free memory all the same.
    """
    if not any(each.replica == replica and each.engine_pid for each in watched):
        return f"the agent of its node does not know {replica} yet, and cannot say what it holds"
    for index, size in sorted(kept.items()):
        held = _held(report, replica, index)
        if held is not None and held > size + READING_STEP_BYTES:
            return (
                f"{replica} still holds {sized(held)} of device {index} asleep, where it should keep no more than "
                f"{sized(size)}; say so in the catalog, as sleep: {{residue: {-(-held // MIB)}MiB}}"
            )
    return ""


def in_words(
    shortage: Shortage, report: AgentReport, replica: ReplicaId, watched: Sequence[Watched], waited_s: float
) -> str:
    """One line: the numbers, who holds what, what to do."""
    index = shortage.index
    free = f"{sized(max(0, shortage.free_bytes))} are free"
    if shortage.promised_bytes:
        free += f", {sized(shortage.promised_bytes)} of them promised to engines that do not hold them yet"
    foreign = sorted((p for p in report.foreign if p.index == index), key=lambda p: -(p.held_bytes or 0))
    holders = [*_ours(report, watched, replica, index), *map(_program, foreign[:NAMED_MAX])]
    if len(foreign) > NAMED_MAX:
        holders.append(f"{len(foreign) - NAMED_MAX} more programs hold memory")
    who = "; ".join(holders) or "the driver does not say who holds the rest"
    return (
        f"{replica} needs {sized(shortage.needed_bytes)} of device {index}, where {free} after {waited_s:.0f} s of "
        f"waiting: {who}; end what should not be there, or lend less of the device (rayscheduler resources --lend)"
    )


def _promised(report: AgentReport, watched: Sequence[Watched], replica: ReplicaId, index: int) -> Iterator[int]:
    """What other engines that run may still take. Of those that the driver does not tell of, nothing is known."""
    for each in watched:
        if each.replica != replica and each.engine_pid:
            held = _held(report, each.replica, index)
            if held is not None:
                yield max(0, each.device_bytes.get(index, 0) - held)


def _held(report: AgentReport, replica: ReplicaId, index: int) -> int | None:
    measured = report.measured.get(replica)
    return measured.device_bytes.get(index) if measured else None


def _ours(report: AgentReport, watched: Sequence[Watched], replica: ReplicaId, index: int) -> Iterator[str]:
    for each in watched:
        if each.replica != replica and each.engine_pid and each.device_bytes.get(index):
            held = _held(report, each.replica, index)
            of = f"of {sized(each.device_bytes[index])} reserved"
            yield f"{each.replica} holds {'an unknown part' if held is None else sized(held)} {of}"


def _program(process: ForeignProcess) -> str:
    of = f", left by {process.replica}" if process.replica else f", user {process.user}" if process.user else ""
    size = "an unknown amount" if process.held_bytes is None else sized(process.held_bytes)
    return f"{process.name or 'a program'} (pid {process.pid}{of}) holds {size}"
