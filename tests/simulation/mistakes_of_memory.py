"""Mistakes about memory and victims that schedulers are known for, each as a patch of the real core.

Rules of this file: a mistake changes one thing, as an oversight would, and leaves the rest of the code as
it is. Its name says what somebody thought, or forgot.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from rayscheduler.core import changes, exits, fit, loading, planner
from rayscheduler.core.changes import Changes
from rayscheduler.core.fleet import Fleet
from rayscheduler.core.ledger import Ledger, NodeAccount
from rayscheduler.core.lifecycle import State
from rayscheduler.core.loading import Loader
from rayscheduler.core.records import ModelRecord
from rayscheduler.core.victims import VictimSet
from tests.simulation.planting import mistake, wrap

# -- memory ---------------------------------------------------------------------------------------


@mistake
def starts_before_the_victims_have_left(patch: pytest.MonkeyPatch) -> None:
    """The stops are sent, so the room is as good as free."""

    def promise(original: Any, self: Fleet, *args: Any) -> Any:
        replica = original(self, *args)
        if replica.state is State.PENDING:
            self._start(replica, args[4])
        return replica

    wrap(patch, Fleet, "promise", promise)
    wrap(patch, Fleet, "start_ready", lambda original, self, now_ms: self._ready.clear() or True)


@mistake
def releases_when_the_stop_is_sent(patch: pytest.MonkeyPatch) -> None:
    def stop(original: Any, self: Fleet, replica: Any, reason: Any, now_ms: int) -> None:
        original(self, replica, reason, now_ms)
        self.ledger.release(replica.id, replica.placement)

    wrap(patch, Fleet, "stop", stop)
    patch.setattr("rayscheduler.core.ledger.Ledger.holds", lambda *_: True)


@mistake
def double_release_creates_memory(patch: pytest.MonkeyPatch) -> None:
    """What is free is counted up when news of an exit come, also when they come twice."""
    places: dict[str, Any] = {}
    bonus: dict[int, list[int]] = {}

    def reserve(original: Any, self: Ledger, replica: str, placement: Any, *args: Any) -> None:
        places[replica] = placement
        original(self, replica, placement, *args)

    def stopped(original: Any, self: Changes, name: str, now_ms: int) -> None:
        if name not in self._fleet.replicas and name in places:
            for node in places[name].nodes:
                account = self._fleet.ledger.accounts.get(node)
                if account is not None:
                    more = bonus.setdefault(id(account), [0] * len(account.others))
                    for device, size in zip(places[name].devices, places[name].device_bytes, strict=True):
                        if device in account.index:
                            more[account.index[device]] += size
                    account.changed()
        original(self, name, now_ms)

    def recomputed(original: Any, self: NodeAccount, *args: Any, **kwargs: Any) -> Any:
        room = original(self, *args, **kwargs)
        room.free = (
            [free + more for free, more in zip(room.free, bonus.get(id(self), room.load), strict=True)]
            if (id(self) in bonus)
            else room.free
        )
        return room

    wrap(patch, Ledger, "reserve", reserve)
    wrap(patch, Changes, "replica_stopped", stopped)
    wrap(patch, NodeAccount, "_recomputed", recomputed)


@mistake
def counts_a_two_device_victim_twice(patch: pytest.MonkeyPatch) -> None:
    """All bytes of a victim, on each of its devices."""

    def place(placement: Any) -> Any:
        whole = sum(placement.device_bytes)
        return replace(placement, device_bytes=tuple(whole for _ in placement.device_bytes))

    def freed(original: Any, self: Any, account: Any, placements: Any) -> None:
        original(self, account, [place(placement) for placement in placements])

    wrap(patch, planner.Freed, "__init__", freed)


@mistake
def ignores_what_others_use(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Ledger, "observe", lambda self, device, used: 0)


@mistake
def ignores_cpus(patch: pytest.MonkeyPatch) -> None:
    def needs_on(original: Any, *args: Any) -> Any:
        needs = original(*args)
        if isinstance(needs, fit.Needs):
            needs.millicpus = 0
        return needs

    wrap(patch, planner, "needs_on", needs_on)


@mistake
def ignores_host_memory(patch: pytest.MonkeyPatch) -> None:
    def option(original: Any, *args: Any) -> Any:
        made = original(*args)
        made.host_bytes = 0 if made.count else made.host_bytes
        return made

    wrap(patch, fit, "_option", option)


@mistake
def exclusive_takes_only_what_it_needs(patch: pytest.MonkeyPatch) -> None:
    def option(original: Any, node: Any, model: Any, *args: Any) -> Any:
        shared = replace(model, requirement=replace(model.requirement, exclusive=False))
        return original(node, shared, *args)

    wrap(patch, fit, "_option", option)


@mistake
def forgets_the_headroom(patch: pytest.MonkeyPatch) -> None:
    def recomputed(original: Any, self: NodeAccount, *args: Any, **kwargs: Any) -> Any:
        room = original(self, *args, **kwargs)
        for at, device in enumerate(self.node.devices):
            room.free[at] += device.headroom_bytes
        return room

    wrap(patch, NodeAccount, "_recomputed", recomputed)


@mistake
def offers_a_device_that_is_lost(patch: pytest.MonkeyPatch) -> None:
    def lose(original: Any, self: Ledger, device: Any) -> None:
        self._home[device].changed()

    wrap(patch, Ledger, "lose_device", lose)


@mistake
def node_loss_keeps_its_replicas(patch: pytest.MonkeyPatch) -> None:
    """The node is struck from the list, and what ran there is forgotten."""

    def node_lost(original: Any, self: Changes, name: str, now_ms: int) -> None:
        if name in self._fleet.ledger.accounts:
            self._fleet.ledger.remove_node(name)
            self._changed_cluster()

    wrap(patch, Changes, "node_lost", node_lost)


@mistake
def adopts_without_reserving(patch: pytest.MonkeyPatch) -> None:
    """After a restart the replicas are known, and their bytes are not."""

    def adopt(original: Any, self: Fleet, model: Any, serial: int, placement: Any, *args: Any) -> Any:
        replica = original(self, model, serial, placement, *args)
        self.ledger.release(replica.id, placement)
        return replica

    wrap(patch, Fleet, "adopt", adopt)


# -- victims --------------------------------------------------------------------------------------


def candidate_as_if(change: Callable[[Any], Any]) -> Callable[..., Any]:
    """`candidate_of`, asked about another model than the replica has."""

    def candidate_of(original: Any, replica: Any, *args: Any, **kwargs: Any) -> Any:
        kept, replica.model.model = replica.model.model, change(replica.model.model)
        try:
            return original(replica, *args, **kwargs)
        finally:
            replica.model.model = kept

    return candidate_of


@mistake
def ignores_pins(patch: pytest.MonkeyPatch) -> None:
    wrap(patch, exits, "candidate_of", candidate_as_if(lambda model: replace(model, pinned=False)))


@mistake
def ignores_the_minimum(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ModelRecord, "standing_minimum", lambda self: 0)


@mistake
def evicts_more_than_it_takes(patch: pytest.MonkeyPatch) -> None:
    def best_set(original: Any, candidates: Any, fits: Any, spare: Any, *settle: Any) -> Any:
        found = original(candidates, fits, spare, *settle)
        return None if found is None or spare else VictimSet(candidates)

    wrap(patch, planner, "best_set", best_set)


@mistake
def evicts_the_most_valuable(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ModelRecord, "value", lambda self, now_ms: -self.model.load_ms * self.demand(now_ms))


@mistake
def evicts_what_is_fresh(patch: pytest.MonkeyPatch) -> None:
    """`stale_after` is not looked at."""

    def candidate_of(original: Any, replica: Any, drain: bool, now_ms: int, settings: Any, *args: Any) -> Any:
        return original(replica, drain, now_ms, replace(settings, stale_after_ms=0), *args)

    wrap(patch, exits, "candidate_of", candidate_of)

    def idle(self: Any) -> Any:
        return [c for r in self._fleet.idle_longest_first() if (c := self._candidate(r)) is not None]

    patch.setattr(exits.Exits, "_idle", idle)


@mistake
def drains_before_patience(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Loader, "_is_past_patience", lambda self, since_ms, now_ms: True)


@mistake
def never_drains(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Loader, "_is_past_patience", lambda self, since_ms, now_ms: False)


@mistake
def preload_evicts(patch: pytest.MonkeyPatch) -> None:
    def load(original: Any, self: Loader, model: Any, drain: bool, origin: Any, now_ms: int) -> Any:
        return original(self, model, drain, loading.Origin.LOAD, now_ms)

    wrap(patch, Loader, "_load", load)


@mistake
def stops_a_busy_replica_at_once(patch: pytest.MonkeyPatch) -> None:
    """Past patience the victim is stopped, not drained."""

    def promise(original: Any, self: Fleet, model: Any, plan: Any, *args: Any) -> Any:
        replica = original(self, model, plan, *args)
        for name in plan.drained:
            victim = self.replicas.get(name)
            if victim is not None and victim.state is State.DRAINING:
                self.stop(victim, victim.stop_reason, args[2])
        return replica

    wrap(patch, Fleet, "promise", promise)


@mistake
def memory_pressure_stops_what_serves(patch: pytest.MonkeyPatch) -> None:
    def relieve(original: Any, self: Changes, now_ms: int) -> None:
        for device in sorted(self._fleet.pressed):
            if self._fleet.ledger.account_of(device) and self._fleet.ledger.free_bytes(device) < 0:
                for replica in self._fleet.on_device(device):
                    if replica.state is State.RUNNING:
                        self._fleet.stop(replica, changes.StopReason.MEMORY_PRESSURE, now_ms)

    wrap(patch, Changes, "relieve", relieve)
