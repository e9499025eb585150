"""Mistakes about sleep: whose bytes are where, who may be sent, and which news count. Each a patch of the real core.

Rules of this file: as in `mistakes_of_memory.py`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from rayscheduler.core import exits, loading, planner, sleeping
from rayscheduler.core.changes import Changes
from rayscheduler.core.fleet import Fleet
from rayscheduler.core.lifecycle import State
from rayscheduler.core.records import ModelRecord
from tests.simulation.planting import mistake, wrap


@mistake
def frees_the_devices_when_the_sleep_is_sent(patch: pytest.MonkeyPatch) -> None:
    """It was told to sleep, so it sleeps."""

    def suspend(original: Any, self: Fleet, replica: Any, now_ms: int) -> None:
        original(self, replica, now_ms)
        self.slept(replica, now_ms)

    wrap(patch, Fleet, "_suspend", suspend)


@mistake
def forgets_the_residue(patch: pytest.MonkeyPatch) -> None:
    """Asleep it is gone from its devices."""

    def kept(original: Any, place: Any, traits: Any) -> Any:
        return original(place, replace(traits, residue_bytes=0))

    wrap(patch, sleeping, "asleep", kept)


@mistake
def plans_as_if_nothing_stayed(patch: pytest.MonkeyPatch) -> None:
    """The residue is charged once it sleeps, and forgotten when room is promised."""

    def who_sleeps(original: Any, ledger: Any, coming: Any, kept: Any, members: Any, held: Any) -> Any:
        return {member.id: member.keeps for member in members if member.keeps is not None}

    wrap(patch, planner, "who_sleeps", who_sleeps)


@mistake
def wakes_without_room(patch: pytest.MonkeyPatch) -> None:
    """Its devices are its own."""
    patch.setattr(planner, "can_wake", lambda ledger, sleeper, gone: True)


@mistake
def host_memory_is_never_charged(patch: pytest.MonkeyPatch) -> None:
    def charge(original: Any, self: Fleet, replica: Any) -> None:
        original(self, replica)
        free = replace(replica.holds, host_bytes=replica.placement.host_bytes)
        held = {
            node: self.ledger.accounts[node].reservations[replica.id]
            for node in free.nodes
            if node in (self.ledger.accounts)
        }
        for account, reservation in ((self.ledger.accounts[node], held[node]) for node in held):
            account.reservations[replica.id] = replace(reservation, placement=free)
            account.changed()
        replica.holds = free

    wrap(patch, Fleet, "_charge", charge)
    patch.setattr("rayscheduler.core.view._validate_sleep", lambda *_: None)


@mistake
def host_memory_is_not_looked_at(patch: pytest.MonkeyPatch) -> None:
    """Weights go there whether there is room or not."""

    def bed_of(original: Any, replica: Any, ledger: Any) -> Any:
        traits = replica.model.model.sleep
        awake = traits is not None and replica.state is State.RUNNING
        return sleeping.asleep(replica.placement, traits) if awake and replica.placement.devices else None

    wrap(patch, exits, "bed_of", bed_of)
    patch.setattr(
        planner,
        "who_sleeps",
        lambda ledger, coming, kept, members, held: {
            member.id: member.keeps for member in members if member.keeps is not None
        },
    )


@mistake
def host_memory_is_kept_by_one_that_woke(patch: pytest.MonkeyPatch) -> None:
    """It is charged for its devices and for its weights in host memory."""

    def woke(original: Any, self: Fleet, replica: Any, now_ms: int) -> None:
        keeps = replica.keeps
        original(self, replica, now_ms)
        replica.keeps = keeps
        self._charge(replica)

    wrap(patch, Fleet, "woke", woke)


@mistake
def takes_news_of_an_earlier_nap(patch: pytest.MonkeyPatch) -> None:
    def slept(original: Any, self: Changes, name: Any, nap: int, now_ms: int) -> None:
        replica = self._fleet.replicas.get(name)
        original(self, name, nap if replica is None else replica.nap, now_ms)

    wrap(patch, Changes, "replica_slept", slept)


@mistake
def sends_a_busy_replica_to_sleep(patch: pytest.MonkeyPatch) -> None:
    """Past patience the victim is not drained: its requests will fail, or wait."""

    def send_away(original: Any, self: Fleet, victim: Any, way: Any, keeps: Any, now_ms: int) -> None:
        original(self, victim, way, keeps, now_ms)
        if victim.state is State.DRAINING and keeps is not None:
            self._end_leases(victim)
            self._suspend(victim, now_ms)

    wrap(patch, Fleet, "_send_away", send_away)


@mistake
def never_sleeps(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(exits, "bed_of", lambda replica, ledger: None)


@mistake
def never_wakes(patch: pytest.MonkeyPatch) -> None:
    """A sleeper lies there while its model is loaded anew beside it."""
    patch.setattr(ModelRecord, "asleep", lambda self: [])


@mistake
def sleepers_are_in_nobodys_way(patch: pytest.MonkeyPatch) -> None:
    """What sleeps is no candidate: its residue and its host memory are never lent again."""

    def candidate_of(original: Any, replica: Any, *args: Any) -> Any:
        return None if replica.state is State.ASLEEP else original(replica, *args)

    wrap(patch, exits, "candidate_of", candidate_of)


@mistake
def finds_a_sleeper_awake(patch: pytest.MonkeyPatch) -> None:
    """After a restart whatever lives runs."""

    def found(original: Any, self: Changes, event: Any, now_ms: int) -> None:
        running = event.running or event.rest != "awake"
        original(self, replace(event, rest=type(event.rest).AWAKE, keeps=None, running=running), now_ms)

    wrap(patch, Changes, "replica_found", found)


@mistake
def a_wake_is_promised_room_that_its_victims_keep(patch: pytest.MonkeyPatch) -> None:
    """It wakes as soon as its victims are told to go."""

    def promise(original: Any, self: Fleet, *args: Any) -> Any:
        replica = original(self, *args)
        if replica.state is State.ROUSED:
            self._start(replica, args[4])
        return replica

    wrap(patch, Fleet, "promise", promise)


@mistake
def serial_leaves_sleepers_in_the_way(patch: pytest.MonkeyPatch) -> None:
    """Only rivals have to go, and what sleeps is none."""

    def exits_of(original: Any, self: Any, *args: Any, only_asleep: bool = False) -> Any:
        leaving = original(self, *args, only_asleep=only_asleep)
        if only_asleep:
            patch.setattr(leaving, "_candidate", lambda replica: None)
        return leaving

    wrap(patch, loading.Loader, "exits", exits_of)
