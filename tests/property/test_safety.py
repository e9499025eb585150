"""Promises 1, 2 and 3 under random trouble, judged by books that see events and decisions only.

What is judged is in `books.py`: bytes from start to confirmed exit, leases, and how each request ends.
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayscheduler.core import events as ev
from rayscheduler.core.decisions import StopReplica
from rayscheduler.core.types import PolicyName, StopReason
from tests.property.clusters import Cluster, clusters
from tests.property.dice import Dice, dice
from tests.property.traffic import Traffic

# `fifo` has its turn in test_plans.py, under a stricter eye.
OTHERS = [PolicyName.SERIAL, PolicyName.GROUPS]


@pytest.mark.parametrize("policy", OTHERS)
@settings(max_examples=80)
@given(st.data())
def test_nothing_bad_happens(policy: PolicyName, data: st.DataObject) -> None:
    Traffic(data.draw(clusters(policy))).run(data.draw(dice(100, 400)))


@settings(max_examples=80)
@given(clusters(), dice(60, 250), dice(60, 250))
def test_a_restart_loses_nothing_and_reloads_nothing(cluster: Cluster, before: Dice, after: Dice) -> None:
    """DESIGN 4: the successor "finds live runners (`ReplicaFound`) and adopts them"; the same books go on."""
    traffic = Traffic(cluster).run(before)
    there = {name: held.placement for name, held in traffic.books.held.items()}
    traffic.restart()
    kept = {name: held.placement for name, held in traffic.books.held.items() if name in there}
    assert kept == there, "a replica was lost by the restart"
    traffic.run(after)


@settings(max_examples=60)
@given(clusters(), dice(60, 250), dice(30, 60))
def test_after_shutdown_everything_ends(cluster: Cluster, before: Dice, after: Dice) -> None:
    """"After `shutdown` nothing is granted; everything waiting is rejected"."""
    traffic = Traffic(cluster).run(before)
    decided = traffic.send(ev.ShutdownAsked())
    stopped = {d.replica for d in decided if isinstance(d, StopReplica) and d.reason is StopReason.SHUTDOWN}
    assert stopped <= set(traffic.books.held)
    assert set(traffic.books.in_phase("stopping")) == set(traffic.books.held)
    assert traffic.books.waiting() == traffic.books.granted() == []
    traffic.run(after)
    traffic.settle()
    assert traffic.books.held == {}
