"""Testing the tests: known mistakes are planted in the core one at a time, and each must be caught.

Rules of this file: the scheduler's own `validate` is switched off, so that what catches a mistake are the
books and the oracle, which see events, decisions and snapshots only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from random import Random
from typing import Any

import pytest

from rayscheduler.core import exits, loading, planner, requests, victims
from rayscheduler.core.fleet import Fleet
from rayscheduler.core.ledger import Ledger, NodeAccount
from rayscheduler.core.lifecycle import State
from rayscheduler.core.records import ModelRecord, ReplicaRecord
from rayscheduler.core.requests import Requests
from rayscheduler.core.scheduler import Scheduler
from rayscheduler.core.types import PolicyName
from tests.property.clusters import cluster
from tests.property.dice import Dice
from tests.property.test_plans import PlanJudge
from tests.property.traffic import Traffic

DAYS_MAX = 120
Patch = pytest.MonkeyPatch


def start_before_the_victims_left(patch: Patch) -> None:
    promise = Fleet.promise

    def hasty(self: Fleet, *args: Any) -> ReplicaRecord:
        replica = promise(self, *args)
        if replica.state is State.PENDING:
            replica.waits_for.clear()
            self._start(replica, 0)
        return replica

    patch.setattr(Fleet, "promise", hasty)


def release_when_the_stop_is_sent(patch: Patch) -> None:
    stop = Fleet.stop

    def hasty(self: Fleet, replica: ReplicaRecord, *args: Any) -> None:
        stop(self, replica, *args)
        self.ledger.release(replica.id, replica.placement)

    patch.setattr(Fleet, "stop", hasty)


def forget_to_wake_who_waits_for_an_exit(patch: Patch) -> None:
    patch.setattr(Fleet, "start_ready", lambda self, now_ms: True)


def forget_to_wake_who_waits_for_a_lease(patch: Patch) -> None:
    patch.setattr(Requests, "may_grant", lambda self, record: None)


def ignore_pins(patch: Patch) -> None:
    honest = exits.candidate_of

    def careless(replica: ReplicaRecord, *args: Any) -> victims.Candidate | None:
        model, replica.model.model = replica.model.model, replace(replica.model.model, pinned=False)
        try:
            return honest(replica, *args)
        finally:
            replica.model.model = model

    patch.setattr(exits, "candidate_of", careless)
    patch.setattr(loading, "candidate_of", careless)


def count_a_wide_victim_twice(patch: Patch) -> None:
    class Twice(planner.Freed):
        def __init__(self, account: NodeAccount, placements: Any) -> None:
            wide = [place for place in placements for _ in range(max(1, len(place.devices)))]
            super().__init__(account, wide)

    patch.setattr(planner, "Freed", Twice)


def ignore_other_programs(patch: Patch) -> None:
    patch.setattr(Ledger, "observe", lambda self, device, used_by_others_bytes: 0)


def ignore_the_minimum(patch: Patch) -> None:
    patch.setattr(ModelRecord, "standing_minimum", lambda self: 0)


def forget_the_demand(patch: Patch) -> None:
    patch.setattr(ModelRecord, "demand", lambda self, now_ms: 0)


def take_what_is_not_stale(patch: Patch) -> None:
    honest = exits.candidate_of

    def careless(replica: ReplicaRecord, drain: bool, now_ms: int, settings: Any, *rest: Any) -> Any:
        return honest(replica, drain, now_ms, replace(settings, stale_after_ms=0), *rest)

    patch.setattr(exits, "candidate_of", careless)
    patch.setattr(exits.Exits, "_idle", _all_idle)


def _all_idle(self: exits.Exits) -> Iterator[victims.Candidate]:
    for replica in self._fleet.idle_longest_first():
        candidate = self._candidate(replica)
        if candidate is not None:
            yield candidate


def evict_the_most_recently_used(patch: Patch) -> None:
    honest = victims.Candidate.__init__

    def reversed_age(self: victims.Candidate, *args: Any) -> None:
        honest(self, *args)
        self.cost = (*self.cost[:2], -self.cost[2])

    patch.setattr(victims.Candidate, "__init__", reversed_age)


def evict_more_than_is_needed(patch: Patch) -> None:
    def everyone(candidates: Any, fits: Any, *_: Any) -> victims.VictimSet | None:
        return victims.VictimSet(candidates) if fits(candidates) else None

    patch.setattr(planner, "best_set", everyone)


def lease_what_is_being_drained(patch: Patch) -> None:
    def careless(record: ModelRecord) -> list[ReplicaRecord]:
        return [r for r in record.replicas.values() if r.state in (State.RUNNING, State.DRAINING)]

    patch.setattr(requests, "_running", careless)


def grant_beyond_the_concurrency(patch: Patch) -> None:
    honest = Requests._picks

    def generous(self: Requests, record: ModelRecord) -> Any:
        model, record.model = record.model, replace(record.model, concurrency=record.model.concurrency + 1)
        try:
            return honest(self, record)
        finally:
            record.model = model

    patch.setattr(Requests, "_picks", generous)


def forget_a_waiting_request(patch: Patch) -> None:
    honest = Requests.reject

    def silent(self: Requests, *args: Any) -> None:
        honest(self, *args)
        self._fleet.out.pop()

    patch.setattr(Requests, "reject", silent)


def give_an_elastic_model_what_the_emptiest_device_has(patch: Patch) -> None:
    honest = planner.Planner._grown

    def generous(self: planner.Planner, model: Any, placement: Any, gone: Any, keeping: Any) -> Any:
        found = honest(self, model, placement, gone, keeping)
        most = model.requirement.bytes_max_by_count.get(len(placement.devices))
        if most is None or len(placement.devices) < 2:
            return found
        one = replace(placement, devices=placement.devices[-1:], device_bytes=placement.device_bytes[-1:])
        alone = replace(model.requirement, bytes_max_by_count={1: most})
        (each,) = honest(self, replace(model, requirement=alone), one, gone, keeping).device_bytes
        return replace(found, device_bytes=(each,) * len(placement.devices))

    patch.setattr(planner.Planner, "_grown", generous)


def give_an_elastic_model_what_nobody_leaves(patch: Patch) -> None:
    honest = planner.Planner._grown

    def generous(self: planner.Planner, model: Any, placement: Any, gone: Any, keeping: Any) -> Any:
        return honest(self, model, placement, [*gone, *gone], keeping)

    patch.setattr(planner.Planner, "_grown", generous)


MISTAKES: list[Callable[[Patch], None]] = [
    start_before_the_victims_left,
    release_when_the_stop_is_sent,
    forget_to_wake_who_waits_for_an_exit,
    forget_to_wake_who_waits_for_a_lease,
    ignore_pins,
    count_a_wide_victim_twice,
    ignore_other_programs,
    ignore_the_minimum,
    forget_the_demand,
    take_what_is_not_stale,
    evict_the_most_recently_used,
    evict_more_than_is_needed,
    lease_what_is_being_drained,
    grant_beyond_the_concurrency,
    forget_a_waiting_request,
    give_an_elastic_model_what_the_emptiest_device_has,
    give_an_elastic_model_what_nobody_leaves,
]


def days_until_caught() -> int | None:
    """How many random days pass until somebody objects; None where nobody does."""
    for day in range(DAYS_MAX):
        dice = Random(day)
        drawn = cluster(Dice(dice.randbytes(120)), (PolicyName.FIFO,))
        try:
            Traffic(drawn, PlanJudge()).run(Dice(dice.randbytes(250)))
        except AssertionError:
            return day
    return None


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_planted_mistake_is_caught(mistake: Callable[[Patch], None], monkeypatch: Patch) -> None:
    monkeypatch.setattr(Scheduler, "validate", lambda self: None)
    mistake(monkeypatch)
    assert days_until_caught() is not None, f"nobody noticed: {mistake.__name__}"
