"""Sleep: what a replica holds while its weights rest in host memory, and which victims sleep instead of stopping.

Rules of this file: it reads the ledger, and changes nothing. A victim set is chosen as if all of it stopped;
how each member leaves is decided afterwards, so sleep never makes a plan fail. Those that are dearest to load
again sleep first, as long as the plan still fits beside what they keep and their nodes have host memory *now*
(it is taken at once; what others of the set give back comes later).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from rayscheduler.core.fit import Freed
from rayscheduler.core.ledger import Ledger, NodeAccount
from rayscheduler.core.lifecycle import State
from rayscheduler.core.records import ReplicaRecord
from rayscheduler.core.types import Placement, ReplicaId, SleepTraits
from rayscheduler.core.victims import Candidate


@dataclass(frozen=True, slots=True)
class Sleeper:
    """A replica that sleeps: its vector awake, and what it keeps meanwhile."""

    id: ReplicaId
    placement: Placement
    keeps: Placement


def asleep(place: Placement, traits: SleepTraits) -> Placement:
    """The vector of a replica that sleeps: the residue on each device, its weights in each node's host memory.

    Its process lives on, so its own host memory and its cpus stay charged.
    """
    sizes = tuple(min(size, traits.residue_bytes) for size in place.device_bytes)
    given_back = dict.fromkeys(place.nodes, 0)
    for device, size, kept in zip(place.devices, place.device_bytes, sizes, strict=True):
        for node in place.nodes:
            if device.rpartition("/")[0] == node:
                given_back[node] += size - kept
    weights = max(given_back.values()) if traits.host_bytes is None else traits.host_bytes
    return replace(place, device_bytes=sizes, host_bytes=place.host_bytes + weights)


def turning(place: Placement, keeps: Placement) -> Placement:
    """The vector on the way to sleep and back: all of its devices, and the host memory of its weights already."""
    return replace(place, host_bytes=keeps.host_bytes)


def gives_back(replica: ReplicaRecord) -> Placement:
    """What one that is leaving will free: all that it holds, but for what it keeps if it goes to sleep."""
    held, keeps = replica.holds, replica.keeps
    if keeps is None or replica.state is State.STOPPING:
        return held
    sizes = tuple(size - kept for size, kept in zip(held.device_bytes, keeps.device_bytes, strict=True))
    return replace(held, device_bytes=sizes, host_bytes=held.host_bytes - keeps.host_bytes, millicpus=0)


def bed_of(replica: ReplicaRecord, ledger: Ledger) -> Placement | None:
    """What a running replica would hold if it slept now; None where it must stop.

    It must where its engine cannot sleep, waking would take longer than loading, nothing would be given back, a
    node's only device is its host memory, or a node has too little of that left.
    """
    model = replica.model
    traits = model.model.sleep
    if traits is None or replica.state is not State.RUNNING or not model.in_catalog:
        return None
    if traits.wake_ms > model.model.load_ms:
        return None
    place = replica.placement
    keeps = asleep(place, traits)
    if keeps.device_bytes == place.device_bytes:
        return None
    for name in place.nodes:
        account = ledger.accounts.get(name)
        if account is None or account.node.device_is_host_memory:
            return None
        if account.room().free_host < keeps.host_bytes - place.host_bytes:
            return None
    return keeps


def who_sleeps(
    ledger: Ledger, coming: Placement, kept: Placement | None, members: Sequence[Candidate], held: Sequence[Placement]
) -> Mapping[ReplicaId, Placement]:
    """Those of `members` that sleep, and what each then holds; the others stop.

    All of them leave for `coming`, of which `kept` is there already when it is to wake. `held`: what each holds.
    """
    sleeping: dict[ReplicaId, Placement] = {}
    able = [member for member in members if member.keeps is not None]
    for member in sorted(able, key=lambda m: (m.cost[1] - m.stop_value, -m.cost[2], m.id_key)):
        assert member.keeps is not None
        tried = {**sleeping, member.id: member.keeps}
        awake = [place for other, place in zip(members, held, strict=True) if other.id in tried]
        accounts = [ledger.accounts[name] for name in member.keeps.nodes]
        if all(_fits_beside(account, coming, kept, held, awake, list(tried.values())) for account in accounts):
            sleeping = tried
    return sleeping


def _fits_beside(
    account: NodeAccount,
    coming: Placement,
    kept: Placement | None,
    held: Sequence[Placement],
    awake: Sequence[Placement],
    keeping: Sequence[Placement],
) -> bool:
    """Whether a node holds `coming` once `held` is gone but for `keeping`, which `awake` shrinks to."""
    room = account.room()
    before, after = Freed(account, held), Freed(account, keeping)
    wanted, there = Freed(account, (coming,)), Freed(account, () if kept is None else (kept,))
    if after.host - Freed(account, awake).host > room.free_host:
        return False
    if wanted.host - there.host > room.free_host + before.host - after.host:
        return False
    if wanted.millicpus - there.millicpus > room.free_millicpus + before.millicpus - after.millicpus:
        return False
    return all(
        not need or need - have <= free + freed - left
        for need, have, free, freed, left in zip(
            wanted.sizes, there.sizes, room.free, before.sizes, after.sizes, strict=True
        )
    )


def can_wake(ledger: Ledger, sleeper: Sleeper, gone: Sequence[Placement]) -> bool:
    """Whether it can wake where it is once `gone` is gone: an engine does not move."""
    for name in sleeper.placement.nodes:
        account = ledger.accounts.get(name)
        if account is None:
            return False
        room, freed = account.room(), Freed(account, gone)
        wanted, there = Freed(account, (sleeper.placement,)), Freed(account, (sleeper.keeps,))
        if room.free_host + freed.host < 0 or room.free_millicpus + freed.millicpus < 0:
            return False
        for need, have, free, more in zip(wanted.sizes, there.sizes, room.free, freed.sizes, strict=True):
            if need and need - have > free + more:
                return False
    return True
