"""Where one more replica of a model goes, and who leaves for it: filter, score, pick.

Rules of this file: it reads the ledger and the exits it is given, and changes nothing that decides. Ranks
are compared lexicographically, step by step (unlike units are never added):

1. no eviction before eviction; then the least valuable set of victims (`victims.py`); then one that sleeps
   wakes before another loads;
2. fewer devices, fewer nodes, then the preferred device type;
3. least loaded devices, then least loaded node (`pack`: most loaded that fits);
4. ids.

An elastic model is planned by what it needs at least; its vector grows into what is free when all is chosen.
It looks at nodes, and at victims, best first, and stops where nothing better can follow: the answer is the
one that looking at all of them would give.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Protocol

from rayscheduler.core.fit import Choice, Freed, Needs, choose, fits, needs_on
from rayscheduler.core.ledger import Ledger, NodeAccount, NodeRoom
from rayscheduler.core.shelves import Shelves
from rayscheduler.core.sleeping import Sleeper, can_wake, who_sleeps
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
from rayscheduler.core.vectors import large_enough, share_of, vector_of
from rayscheduler.core.victims import Candidate, Settle, VictimSet, best_set

Rank = tuple[Any, ...]
RoomOf = Callable[[NodeAccount], NodeRoom]


class Leaving(Protocol):
    """Who may, and who must, make way (`exits.Exits`)."""

    must: tuple[Candidate, ...]
    spare: dict[ModelName, int]

    def placements(self, candidates: Iterable[Candidate]) -> list[Placement]: ...

    def in_order(self) -> Iterator[Candidate]: ...

    def on_node(self, name: NodeName) -> list[Candidate]: ...


class Planner:
    """Plans against one ledger under one set of settings. Remembers only what can be worked out anew."""

    def __init__(self, ledger: Ledger, settings: Settings) -> None:
        self._ledger = ledger
        self._settings = settings
        self._sign = 1 if settings.strategy is Strategy.SPREAD else -1
        self._shelves = Shelves(ledger, settings.strategy)
        self._needs: dict[tuple[ModelName, int], tuple[Model, Needs | Refusal]] = {}

    # -- what a node could do ---------------------------------------------------------------------

    def needs(self, account: NodeAccount, model: Model) -> Needs | Refusal:
        """`fit.needs_on`, remembered per model and shape of node (pins name nodes, so theirs are not)."""
        if model.pinned and model.pin is not None:
            return needs_on(account.node, model, self._settings)
        key = (model.name, account.shape)
        known = self._needs.get(key)
        if known is None or known[0].requirement is not model.requirement or known[0].pinned != model.pinned:
            known = (model, needs_on(account.node, model, self._settings))
            self._needs[key] = known
        return known[1]

    def needs_of_share(self, account: NodeAccount, share: Model) -> Needs | Refusal:
        """`fit.needs_on` for a node's share (`share_of`) of a model across several nodes."""
        return needs_on(account.node, share, self._settings)

    def fits_once_gone(self, account: NodeAccount, needs: Needs, going: Sequence[Placement]) -> bool:
        """Whether it would fit a node with `going` gone, nobody else evicted."""
        return self._fits(account, needs, going)

    def fits_node(self, model: Model, account: NodeAccount, leaving: Leaving) -> bool:
        """Whether it would fit this node alone, victims allowed."""
        needs = self.needs_of_share(account, model) if model.requirement.across_nodes else self.needs(account, model)
        if isinstance(needs, Refusal):
            return False
        must = leaving.placements(leaving.must)
        if self._fits(account, needs, must):
            return True
        return self._eviction_on(account, needs, leaving, leaving.on_node(account.node.name), must) is not None

    def fits_ever(self, model: Model, pinned: Iterable[ReplicaId]) -> bool:
        """Whether it fits the present nodes, empty of everything but `pinned` and without other programs."""
        kept = set(pinned)

        def emptied(account: NodeAccount) -> NodeRoom:
            return account.room_with_only(kept)

        for shelf in self._shelves.current().values():
            tried_empty = False
            for account in shelf.accounts.values():
                empty = not any(account.lost) and kept.isdisjoint(account.reservations)
                if empty and tried_empty and model.pin is None:
                    continue  # one empty node of a shape is like the other
                tried_empty = tried_empty or empty
                needs = self.needs(account, model)
                if not isinstance(needs, Refusal) and fits(emptied(account), needs):
                    return True
        return model.requirement.across_nodes and self._best_across(model, emptied, ()) is not None

    # -- the plan ---------------------------------------------------------------------------------

    def plan(self, model: Model, leaving: Leaving, evict: bool = True, asleep: Sequence[Sleeper] = ()) -> Plan | NoFit:
        """The best plan for one more replica of `model`, of which `asleep` are there already; `NoFit.ever` is not
        decided here (False)."""
        must = leaving.placements(leaving.must)
        for sleeper in asleep:
            if can_wake(self._ledger, sleeper, must):
                return self._made(model, sleeper.placement, leaving, (), sleeper)
        found = self._best_placement(model, must)
        if found is not None:
            return self._made(model, found[1], leaving)
        evicting = self._best_eviction(model, leaving, must) if evict else None
        waking = self._best_waking(asleep, leaving, must) if evict else None
        if waking is not None and (evicting is None or waking[1].key <= evicting[1].key):
            return self._made(model, waking[0].placement, leaving, waking[1].members, waking[0])
        if evicting is not None:
            return self._made(model, evicting[0], leaving, evicting[1].members)
        return NoFit(ever=False)

    def _made(
        self,
        model: Model,
        placement: Placement,
        leaving: Leaving,
        victims: Sequence[Candidate] = (),
        wakes: Sleeper | None = None,
    ) -> Plan:
        ordered = sorted((*leaving.must, *victims), key=lambda c: c.id_key)
        sleeping = self._settled(placement, leaving, victims, wakes).sleeping
        if wakes is None:
            placement = self._grown(model, placement, leaving.placements(ordered), sleeping.values())
        return Plan(
            placement,
            tuple(c.id for c in ordered),
            frozenset(c.id for c in ordered if c.drained),
            sleeping,
            None if wakes is None else wakes.id,
        )

    def _settled(
        self, placement: Placement, leaving: Leaving, victims: Sequence[Candidate], wakes: Sleeper | None = None
    ) -> VictimSet:
        """The victims, and who of them (and of those that leave in any case) sleeps instead of stopping."""
        members = (*leaving.must, *victims)
        if all(member.keeps is None for member in members):
            return VictimSet(victims)
        kept = None if wakes is None else wakes.keeps
        return VictimSet(victims, who_sleeps(self._ledger, placement, kept, members, leaving.placements(members)))

    def _fits(self, account: NodeAccount, needs: Needs, gone: Sequence[Placement]) -> bool:
        if not gone:
            return fits(account.room(), needs)
        freed = Freed(account, gone)
        return fits(account.room(), needs, freed.sizes, freed.host, freed.millicpus)

    def _grown(
        self, model: Model, placement: Placement, gone: Sequence[Placement], keeping: Iterable[Placement]
    ) -> Placement:
        """The vector of an elastic model: on each device what is free on the fullest of them once `gone` are gone,
        but for what sleepers go on `keeping`, between what the model needs and what it can use."""
        want = model.requirement
        most = want.bytes_max_by_count.get(len(placement.devices), 0)
        if not placement.devices or most <= placement.device_bytes[0] or want.exclusive:
            return placement
        each, kept = most, list(keeping)
        for name in placement.nodes:
            account = self._ledger.accounts[name]
            free, freed, stays = account.room().free, Freed(account, gone), Freed(account, kept)
            # Where the device is the host's memory, both are charged to it.
            host = freed.host - placement.host_bytes if account.node.device_is_host_memory else 0
            taken = [account.index[device] for device in placement.devices if device in account.index]
            each = min(each, *(free[at] + freed.sizes[at] - stays.sizes[at] + host for at in taken))
        each = max(each, placement.device_bytes[0])
        return replace(placement, device_bytes=(each,) * len(placement.devices))

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

    def _rank(self, choice: Choice, room: NodeRoom) -> Rank:
        return (
            choice.option.count,
            1,
            choice.type_rank,
            self._sign * choice.load,
            self._sign * room.device_load,
            (room.node.name,),
            choice.indices,
        )

    # -- without eviction -------------------------------------------------------------------------

    def _best_placement(self, model: Model, gone: Sequence[Placement]) -> tuple[Rank, Placement] | None:
        """The best place with `gone` gone, on one node or, where the model may, over several."""
        across = self._best_across(model, NodeAccount.room, gone) if model.requirement.across_nodes else None
        one = self._best_of_all(model, gone) if gone or model.pin is not None else self._best_first(model)
        return min((found for found in (one, across) if found is not None), default=None, key=lambda found: found[0])

    def _best_of_all(self, model: Model, gone: Sequence[Placement]) -> tuple[Rank, Placement] | None:
        """By looking at every node: the shelves know nothing of what will be gone."""
        best: tuple[Rank, NodeAccount, Choice] | None = None
        for account in self._ledger.accounts.values():
            needs = self.needs(account, model)
            if isinstance(needs, Refusal):
                continue
            room = account.room()
            choice = self._choose(account, room, needs, gone)
            if choice is not None:
                rank = self._rank(choice, room)
                if best is None or rank < best[0]:
                    best = (rank, account, choice)
        return None if best is None else (best[0], vector_of(model, [(best[1], best[2])]))

    def _best_first(self, model: Model) -> tuple[Rank, Placement] | None:
        """By looking at each shelf's nodes in the order of the best rank they could get."""
        best: tuple[Rank, NodeAccount, Choice] | None = None
        shelves = self._shelves.current().values()
        for count in sorted(model.requirement.bytes_by_count):
            for shelf in shelves:
                some = next(iter(shelf.accounts.values()), None)
                needs = None if some is None else self.needs(some, model)
                option = needs.option(count) if isinstance(needs, Needs) else None
                if needs is None or isinstance(needs, Refusal) or option is None:
                    continue
                for entry, account in shelf.walk(count, min(option.device_bytes, default=0)):
                    if best is not None and entry is not None:
                        type_rank = needs.best_type_rank if count else 0
                        bound = (count, 1, type_rank, entry[0], entry[1], (entry[2],))
                        if bound > best[0]:
                            break
                    room = account.room()
                    choice = choose(room, needs, only_count=count)
                    if choice is not None:
                        rank = self._rank(choice, room)
                        if best is None or rank < best[0]:
                            best = (rank, account, choice)
            if best is not None:
                return best[0], vector_of(model, [(best[1], best[2])])
        return None

    def _best_across(self, model: Model, room_of: RoomOf, gone: Sequence[Placement]) -> tuple[Rank, Placement] | None:
        """The best place on several whole nodes with equally many devices each."""
        for count in sorted(model.requirement.bytes_by_count):
            for nodes in range(2, count + 1):
                if count % nodes:
                    continue
                whole = self._whole_nodes(model, count, count // nodes, room_of, gone)
                if len(whole) < nodes:
                    continue
                whole.sort(key=lambda w: (w[1].type_rank, self._sign * w[1].load, w[0].node.name))
                chosen = large_enough(whole, nodes, model.requirement.total_device_memory_bytes)
                if chosen is None:
                    continue
                taken = sorted(chosen, key=lambda w: w[0].node.name)
                load = self._sign * sum(choice.load for _, choice in taken)
                type_rank = max(choice.type_rank for _, choice in taken)
                names = tuple(account.node.name for account, _ in taken)
                return (count, nodes, type_rank, load, load, names, ()), vector_of(model, taken)
        return None

    def _whole_nodes(
        self, model: Model, count: int, per_node: int, room_of: RoomOf, gone: Sequence[Placement]
    ) -> list[tuple[NodeAccount, Choice]]:
        """Nodes of exactly `per_node` devices on which each can hold its share of `count` devices."""
        found = []
        share = share_of(model, count, per_node)
        for account in self._ledger.accounts.values():
            if len(account.node.devices) != per_node:
                continue
            needs = self.needs_of_share(account, share)
            if isinstance(needs, Refusal):
                continue
            choice = self._choose(account, room_of(account), needs, gone, only_count=per_node)
            if choice is not None:
                found.append((account, choice))
        return found

    # -- with eviction ----------------------------------------------------------------------------

    def _best_eviction(
        self, model: Model, leaving: Leaving, must: Sequence[Placement]
    ) -> tuple[Placement, VictimSet] | None:
        """Let go of the candidates one by one, cheapest first, until some node has room; then go on only as
        long as a set with the next candidate in it could still be better."""
        if model.requirement.across_nodes:
            return self._eviction_across(model, leaving, must)
        best: tuple[Rank, Placement, VictimSet] | None = None
        released: dict[NodeName, list[Candidate]] = {}
        for candidate in leaving.in_order():
            if best is not None and candidate.cost > best[0][:3]:
                break
            for name in leaving.placements((candidate,))[0].nodes:
                account = self._ledger.accounts.get(name)
                needs = None if account is None else self.needs(account, model)
                if account is None or needs is None or isinstance(needs, Refusal):
                    continue
                here = released.setdefault(name, [])
                here.append(candidate)
                found = self._evicting(model, account, needs, leaving, here, must)
                if found is not None and (best is None or found[0] < best[0]):
                    best = found
        return None if best is None else (best[1], best[2])

    def _evicting(
        self,
        model: Model,
        account: NodeAccount,
        needs: Needs,
        leaving: Leaving,
        candidates: Sequence[Candidate],
        must: Sequence[Placement],
    ) -> tuple[Rank, Placement, VictimSet] | None:
        room = account.room()

        def chosen(gone: Sequence[Candidate]) -> Choice:
            choice = self._choose(account, room, needs, [*must, *leaving.placements(gone)])
            assert choice is not None
            return choice

        def settle(gone: Sequence[Candidate]) -> VictimSet:
            return self._settled(vector_of(model, [(account, chosen(gone))]), leaving, gone)

        victims = self._eviction_on(account, needs, leaving, candidates, must, settle)
        if victims is None:
            return None
        choice = chosen(victims.members)
        return (*victims.key, *self._rank(choice, room)), vector_of(model, [(account, choice)]), victims

    def _eviction_on(
        self,
        account: NodeAccount,
        needs: Needs,
        leaving: Leaving,
        candidates: Sequence[Candidate],
        must: Sequence[Placement],
        settle: Settle = VictimSet,
    ) -> VictimSet | None:
        room = account.room()

        def fits(gone: Sequence[Candidate]) -> bool:
            return self._choose(account, room, needs, [*must, *leaving.placements(gone)]) is not None

        return best_set(candidates, fits, leaving.spare, settle)

    def _eviction_across(
        self, model: Model, leaving: Leaving, must: Sequence[Placement]
    ) -> tuple[Placement, VictimSet] | None:
        """For a model that may span nodes, victims are sought over all nodes at once."""

        def placed(gone: Sequence[Candidate]) -> tuple[Rank, Placement] | None:
            return self._best_placement(model, [*must, *leaving.placements(gone)])

        def settle(gone: Sequence[Candidate]) -> VictimSet:
            found = placed(gone)
            assert found is not None
            return self._settled(found[1], leaving, gone)

        victims = best_set(list(leaving.in_order()), lambda gone: placed(gone) is not None, leaving.spare, settle)
        if victims is None:
            return None
        found = placed(victims.members)
        assert found is not None
        return found[1], victims

    def _best_waking(
        self, asleep: Sequence[Sleeper], leaving: Leaving, must: Sequence[Placement]
    ) -> tuple[Sleeper, VictimSet] | None:
        """The sleeper whose victims cost least: it wakes where it is, so only what is there can make way."""
        best: tuple[Sleeper, VictimSet] | None = None
        for sleeper in asleep:
            nodes = [name for name in sleeper.placement.nodes if name in self._ledger.accounts]
            here = {c.id: c for name in nodes for c in leaving.on_node(name) if c.id != sleeper.id}

            def fits(gone: Sequence[Candidate], sleeper: Sleeper = sleeper) -> bool:
                return can_wake(self._ledger, sleeper, [*must, *leaving.placements(gone)])

            def settle(gone: Sequence[Candidate], sleeper: Sleeper = sleeper) -> VictimSet:
                return self._settled(sleeper.placement, leaving, gone, sleeper)

            victims = best_set(list(here.values()), fits, leaving.spare, settle)
            if victims is not None and (best is None or victims.key < best[1].key):
                best = (sleeper, victims)
        return best
