"""Promise 5: equal events give equal decisions, whatever else was asked, said twice, or said in another order."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

from hypothesis import given, settings

from rayscheduler.core import events as ev
from rayscheduler.core.decisions import Decision, StartReplica
from rayscheduler.core.scheduler import Scheduler
from rayscheduler.core.wire import decode, encode
from tests.property.clusters import Cluster, clusters
from tests.property.dice import Dice, dice
from tests.property.traffic import Told, Traffic

Decided = list[tuple[Decision, ...]]


def decided(told: Sequence[Told]) -> Decided:
    return [each.decisions for each in told]


def replayed(scheduler: Scheduler, told: Sequence[Told]) -> Decided:
    return [tuple(scheduler.handle_batch(each.events, each.now_ms)) for each in told]


@settings(max_examples=60)
@given(clusters(), dice(100, 300))
def test_equal_events_give_equal_decisions(cluster: Cluster, program: Dice) -> None:
    """"byte for byte": the sentences included. And in whatever order nodes and catalog were told."""
    told = Traffic(cluster).run(program).told
    assert repr(replayed(Scheduler(cluster.settings), told)) == repr(decided(told))
    shuffled = sorted(told[0].events, key=lambda e: (isinstance(e, ev.ReplicaFound), repr(e)[::-1]))
    turned = [replace(told[0], events=tuple(shuffled)), *told[1:]]
    assert repr(replayed(Scheduler(cluster.settings), turned)) == repr(decided(told))


@settings(max_examples=40)
@given(clusters(), dice(100, 300))
def test_questions_change_nothing(cluster: Cluster, program: Dice) -> None:
    """Snapshots, plans that somebody asks for, and explanations of starts."""
    told = Traffic(cluster).run(program).told
    scheduler = Scheduler(cluster.settings, explain_nodes_max=10)
    for each in told:
        for model in cluster.models:
            scheduler.ask_plan(model.name, each.now_ms)
        found = scheduler.handle_batch(each.events, each.now_ms)
        plain = tuple(replace(d, refusals=()) if isinstance(d, StartReplica) else d for d in found)
        assert plain == each.decisions
        scheduler.snapshot(each.now_ms)


@settings(max_examples=60)
@given(clusters(), dice(100, 300))
def test_saying_it_twice_is_saying_it_once(cluster: Cluster, program: Dice) -> None:
    """Repeated news changes nothing; so every pass does all that can be done at its moment."""
    told = Traffic(cluster).run(program).told
    scheduler = Scheduler(cluster.settings)
    for each in told:
        assert tuple(scheduler.handle_batch(each.events, each.now_ms)) == each.decisions
        before = scheduler.snapshot(each.now_ms)
        known = {r.request for r in before.waiting}
        again = [e for e in each.events if not isinstance(e, ev.RequestArrived) or e.request in known]
        assert scheduler.handle_batch(again, each.now_ms) == [], again
        assert scheduler.snapshot(each.now_ms) == before, again


@settings(max_examples=60)
@given(clusters(), dice(100, 300))
def test_waking_before_the_time_changes_nothing(cluster: Cluster, program: Dice) -> None:
    """`wakeup()` is the next instant at which `Woken` could change anything."""
    told = Traffic(cluster).run(program).told
    scheduler = Scheduler(cluster.settings)
    for each in told:
        due_ms = scheduler.wakeup()
        if due_ms is None or due_ms > each.now_ms:
            assert scheduler.handle(ev.Woken(), each.now_ms) == []
        assert tuple(scheduler.handle_batch(each.events, each.now_ms)) == each.decisions


@settings(max_examples=40)
@given(clusters(), dice(100, 300))
def test_everything_said_can_be_written_down_and_read_again(cluster: Cluster, program: Dice) -> None:
    """The log of events and decisions (`wire.py`) loses nothing."""
    traffic = Traffic(cluster).run(program)
    said = [value for each in traffic.told for value in (*each.events, *each.decisions)]
    for value in (cluster.settings, *said, *traffic.inventory()):
        assert decode(json.loads(json.dumps(encode(value)))) == value
