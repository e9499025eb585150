"""Where one more replica of a model goes, and who leaves for it: one pure function, filter, score, pick.

Rules of this file: it reads the ledger and the candidates it is given, and changes nothing. Ranks are
compared lexicographically, step by step (unlike units are never added):

1. no eviction before eviction; then the least valuable set of victims (`victims.py`);
2. fewer devices, fewer nodes, then the preferred device type;
3. least loaded devices, then least loaded node (`pack`: most loaded that fits);
4. ids.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rayscheduler.core.fit import Choice, Needs, choose, needs_on
from rayscheduler.core.ledger import Ledger, NodeAccount, NodeRoom
from rayscheduler.core.types import (
    Model,
    ModelName,
    NodeName,
    NoFit,
    Placement,
    Plan,
    Refusal,
    ReplicaId,
    Settings,
    Strategy,
)
from rayscheduler.core.victims import Candidate, VictimSet, best_set

Rank = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Leaving:
    """Who may, and who must, make way: what a plan is allowed to count on.

    `candidates` by the nodes they are on; `spare` as for `victims.best_set`; `must`: replicas that the
    policy sends away whatever would fit.
    """

    candidates: Mapping[NodeName, Sequence[Candidate]]
    placements: Mapping[ReplicaId, Placement]
    spare: Mapping[ModelName, int]
    must: tuple[Candidate, ...] = ()


class Freed:
    """What a set of exits would free on one node."""

    __slots__ = ("host", "millicpus", "sizes")

    def __init__(self, account: NodeAccount, placements: Iterable[Placement]) -> None:
        self.sizes = [0] * len(account.others)
        self.host = self.millicpus = 0
        name, index = account.node.name, account.index
        for place in placements:
            if name not in place.nodes:
                continue
            for device, size in zip(place.devices, place.device_bytes, strict=True):
                at = index.get(device)
                if at is not None:
                    self.sizes[at] += size
            self.host += place.host_bytes
            self.millicpus += place.millicpus


class Planner:
    """Plans against one ledger under one set of settings. Remembers only what never changes."""

    def __init__(self, ledger: Ledger, settings: Settings) -> None:
        self._ledger = ledger
        self._settings = settings
        self._needs: dict[tuple[ModelName, int], tuple[Model, Needs | Refusal]] = {}

    def needs(self, account: NodeAccount, model: Model) -> Needs | Refusal:
        """`fit.needs_on`, remembered per model and shape of node (pins name nodes, so theirs are not)."""
        if model.pinned and model.pin is not None:
            return needs_on(account.node, model, self._settings)
        key = (model.name, account.shape)
        known = self._needs.get(key)
        if known is None or known[0] is not model:
            known = (model, needs_on(account.node, model, self._settings))
            self._needs[key] = known
        return known[1]

    def needs_of_share(self, account: NodeAccount, share: Model) -> Needs | Refusal:
        """`fit.needs_on` for a node's share (`share_of`) of a model across several nodes."""
        return needs_on(account.node, share, self._settings)

    def fits_once_gone(self, account: NodeAccount, needs: Needs, going: Sequence[Placement]) -> bool:
        """Whether it would fit a node with `going` gone, nobody else evicted."""
        return self._choose(account, account.room(), needs, going) is not None

    def fits_ever(self, model: Model, pinned: Iterable[ReplicaId]) -> bool:
        """Whether it fits the present nodes, empty of everything but `pinned` and without other programs."""
        kept = tuple(pinned)
        rooms = {name: account.room_with_only(kept) for name, account in self._ledger.accounts.items()}
        return self._best_placement(model, rooms, ()) is not None

    def plan(self, model: Model, leaving: Leaving, evict: bool = True) -> Plan | NoFit:
        """The best plan for one more replica of `model`; `NoFit.ever` is not decided here (False)."""
        must = [leaving.placements[c.id] for c in leaving.must]
        rooms = {name: account.room() for name, account in self._ledger.accounts.items()}
        placement = self._best_placement(model, rooms, must)
        extra: VictimSet | None = None
        if placement is None:
            if not evict:
                return NoFit(ever=False)
            found = self._best_eviction(model, leaving, rooms)
            if found is None:
                return NoFit(ever=False)
            placement, extra = found
        members = [*leaving.must, *(extra.members if extra else ())]
        members.sort(key=lambda c: c.id_key)
        return Plan(
            placement,
            tuple(c.id for c in members),
            frozenset(c.id for c in members if c.drained),
        )

    def fits_node(self, model: Model, account: NodeAccount, leaving: Leaving) -> bool:
        """Whether it would fit this node alone, victims allowed."""
        needs = self.needs(account, model)
        if isinstance(needs, Refusal):
            return False
        must = [leaving.placements[c.id] for c in leaving.must]
        if self._choose(account, account.room(), needs, must) is not None:
            return True
        return self._eviction_on(account, needs, leaving, must) is not None

    # -- without eviction -------------------------------------------------------------------------

    def _choose(
        self,
        account: NodeAccount,
        room: NodeRoom,
        needs: Needs,
        gone: Sequence[Placement],
        only_count: int | None = None,
    ) -> Choice | None:
        if not gone:
            return choose(room, needs, only_count=only_count)
        freed = Freed(account, gone)
        return choose(room, needs, freed.sizes, freed.host, freed.millicpus, only_count)

    def _best_placement(
        self, model: Model, rooms: Mapping[NodeName, NodeRoom], gone: Sequence[Placement]
    ) -> Placement | None:
        """The best place with `gone` gone, on one node or, where the model may, over several."""
        best: tuple[Rank, NodeAccount, Choice] | None = None
        for name, account in self._ledger.accounts.items():
            needs = self.needs(account, model)
            if isinstance(needs, Refusal):
                continue
            room = rooms[name]
            choice = self._choose(account, room, needs, gone)
            if choice is not None:
                rank = self._rank(choice, room)
                if best is None or rank < best[0]:
                    best = (rank, account, choice)
        across = self._best_across(model, rooms, gone) if model.requirement.across_nodes else None
        if across is not None and (best is None or across[0] < best[0]):
            return across[1]
        return None if best is None else _placement(model, [(best[1], best[2])])

    def _rank(self, choice: Choice, room: NodeRoom) -> Rank:
        sign = 1 if self._settings.strategy is Strategy.SPREAD else -1
        return (
            choice.option.count,
            1,
            choice.type_rank,
            sign * choice.load,
            sign * room.device_load,
            (room.node.name,),
            choice.indices,
        )

    def _best_across(
        self, model: Model, rooms: Mapping[NodeName, NodeRoom], gone: Sequence[Placement]
    ) -> tuple[Rank, Placement] | None:
        """The best place on several whole nodes with equally many devices each."""
        sign = 1 if self._settings.strategy is Strategy.SPREAD else -1
        for count in sorted(model.requirement.bytes_by_count):
            for nodes in range(2, count + 1):
                if count % nodes:
                    continue
                whole = self._whole_nodes(model, count, count // nodes, rooms, gone)
                if len(whole) < nodes:
                    continue
                whole.sort(key=lambda w: (w[1].type_rank, sign * w[1].load, w[0].node.name))
                taken = sorted(whole[:nodes], key=lambda w: w[0].node.name)
                load = sign * sum(choice.load for _, choice in taken)
                rank = (
                    count,
                    nodes,
                    max(choice.type_rank for _, choice in taken),
                    load,
                    load,
                    tuple(account.node.name for account, _ in taken),
                    (),
                )
                return rank, _placement(model, taken)
        return None

    def _whole_nodes(
        self,
        model: Model,
        count: int,
        per_node: int,
        rooms: Mapping[NodeName, NodeRoom],
        gone: Sequence[Placement],
    ) -> list[tuple[NodeAccount, Choice]]:
        """Nodes of exactly `per_node` devices on which each can hold its share of `count` devices."""
        found = []
        share = share_of(model, count, per_node)
        for name, account in self._ledger.accounts.items():
            if len(account.node.devices) != per_node:
                continue
            needs = self.needs_of_share(account, share)
            if isinstance(needs, Refusal):
                continue
            choice = self._choose(account, rooms[name], needs, gone, only_count=per_node)
            if choice is not None:
                found.append((account, choice))
        return found

    # -- with eviction ----------------------------------------------------------------------------

    def _best_eviction(
        self, model: Model, leaving: Leaving, rooms: Mapping[NodeName, NodeRoom]
    ) -> tuple[Placement, VictimSet] | None:
        must = [leaving.placements[c.id] for c in leaving.must]
        best: tuple[Rank, Placement, VictimSet] | None = None
        for name, account in self._ledger.accounts.items():
            if name not in leaving.candidates:
                continue
            needs = self.needs(account, model)
            if isinstance(needs, Refusal):
                continue
            victims = self._eviction_on(account, needs, leaving, must)
            if victims is None or (best is not None and victims.key > best[0][:4]):
                continue
            gone = [*must, *(leaving.placements[c.id] for c in victims.members)]
            choice = self._choose(account, rooms[name], needs, gone)
            assert choice is not None
            rank = (*victims.key, *self._rank(choice, rooms[name]))
            if best is None or rank < best[0]:
                best = (rank, _placement(model, [(account, choice)]), victims)
        if model.requirement.across_nodes:
            across = self._eviction_across(model, leaving, rooms, must)
            if across is not None and (best is None or across[0] < best[0]):
                best = across
        return None if best is None else (best[1], best[2])

    def _eviction_on(
        self, account: NodeAccount, needs: Needs, leaving: Leaving, must: Sequence[Placement]
    ) -> VictimSet | None:
        candidates = leaving.candidates.get(account.node.name)
        if not candidates:
            return None
        room = account.room()

        def fits(gone: Sequence[Candidate]) -> bool:
            places = [*must, *(leaving.placements[c.id] for c in gone)]
            return self._choose(account, room, needs, places) is not None

        return best_set(candidates, fits, leaving.spare)

    def _eviction_across(
        self, model: Model, leaving: Leaving, rooms: Mapping[NodeName, NodeRoom], must: Sequence[Placement]
    ) -> tuple[Rank, Placement, VictimSet] | None:
        everyone = {c.id: c for some in leaving.candidates.values() for c in some}
        candidates = sorted(everyone.values(), key=lambda c: c.id_key)

        def across(gone: Sequence[Candidate]) -> tuple[Rank, Placement] | None:
            return self._best_across(model, rooms, [*must, *(leaving.placements[c.id] for c in gone)])

        victims = best_set(candidates, lambda gone: across(gone) is not None, leaving.spare)
        if victims is None:
            return None
        found = across(victims.members)
        assert found is not None
        return (*victims.key, *found[0]), found[1], victims


def share_of(model: Model, count: int, per_node: int) -> Model:
    """The model as one of its nodes sees it: its share of the devices, with the bytes of the whole count."""
    want = model.requirement
    total = want.total_device_memory_bytes * per_node // count
    return replace(
        model,
        requirement=replace(
            want,
            bytes_by_count={per_node: want.bytes_by_count[count]},
            total_device_memory_bytes=total,
        ),
    )


def _placement(model: Model, taken: Sequence[tuple[NodeAccount, Choice]]) -> Placement:
    """The vector for the chosen devices of one node, or of several in the order of their names."""
    devices = []
    sizes = []
    host_bytes = 0
    for account, choice in taken:
        for at in choice.indices:
            devices.append(account.node.devices[at].id)
            sizes.append(choice.option.device_bytes[at])
        host_bytes = choice.option.host_bytes
    return Placement(
        nodes=tuple(account.node.name for account, _ in taken),
        devices=tuple(devices),
        device_bytes=tuple(sizes),
        host_bytes=host_bytes,
        millicpus=model.requirement.millicpus,
    )
