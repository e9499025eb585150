"""What the policies `serial` and `groups` promise beyond what holds for all, under random trouble."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings

from rayscheduler.core.decisions import Grant
from rayscheduler.core.types import ModelName, PolicyName, ReplicaId, Settings
from tests.property.clusters import Cluster, clusters
from tests.property.dice import Dice, dice
from tests.property.oracle import Picture, fits
from tests.property.traffic import Told, Traffic


def without_standing(cluster: Cluster) -> Cluster:
    """Nothing that was there before the policy had a say, and nothing that `replicas.min` keeps in spite of it."""
    plain = [replace(model, replicas_min=0, preload=False) for model in cluster.models]
    return replace(cluster, models=tuple(plain), found=())


def may_not_live_beside(settings: Settings, loading: ModelName, other: ModelName) -> bool:
    """`serial`: no two models. `groups`: "loading a model evicts the other members of its group if `swap`; and
    the members of other groups if its own group is `exclusive` and the other is not `persistent`"."""
    if loading == other or settings.policy is PolicyName.SERIAL:
        return loading != other
    group_of = {member: group for group in settings.groups for member in group.members}
    mine, theirs = group_of.get(loading), group_of.get(other)
    if mine is None:
        return False
    if mine is theirs:
        return mine.swap
    return mine.exclusive and (theirs is None or not theirs.persistent)


class RivalsJudge:
    """A new load starts, or waits for the exit of, every rival that was there or coming before it."""

    def __init__(self) -> None:
        self.known: set[ReplicaId] = set()

    def __call__(self, traffic: Traffic, told: Told) -> None:
        replicas = traffic.scheduler.snapshot(traffic.now_ms).replicas
        for new in [r for r in replicas if r.id not in self.known]:
            rivals = {
                r.id
                for r in replicas
                if r.id in self.known
                and not r.pinned
                and may_not_live_beside(traffic.cluster.settings, new.model, r.model)
            }
            assert rivals <= set(new.waits_for), f"{new.id} does not wait for {rivals - set(new.waits_for)}"
        self.known = {r.id for r in replicas}
        if traffic.cluster.settings.policy is PolicyName.SERIAL:
            one_at_a_time(traffic, told)


def one_at_a_time(traffic: Traffic, told: Told) -> None:
    """"strict arrival order, one request in the system at a time"."""
    books = traffic.books
    assert len(books.granted()) <= 1, f"{books.granted()} are served together"
    seen = traffic.scheduler.snapshot(traffic.now_ms)
    emptied = Picture(seen, seen.replicas, traffic.cluster.settings).emptied()
    for decision in told.decisions:
        if isinstance(decision, Grant):
            number = books.requests[decision.request].number
            older = [a for a in books.requests.values() if a.state == "waiting" and a.number < number]
            assert not any(fits(emptied, books.models[a.model], ()) for a in older), f"{older} came before"


@settings(max_examples=80)
@given(clusters(PolicyName.SERIAL), dice(100, 400))
def test_serial_serves_one_at_a_time_in_arrival_order(cluster: Cluster, program: Dice) -> None:
    Traffic(without_standing(cluster), RivalsJudge()).run(program)


@settings(max_examples=80)
@given(clusters(PolicyName.GROUPS), dice(100, 400))
def test_groups_live_together_only_where_they_may(cluster: Cluster, program: Dice) -> None:
    Traffic(without_standing(cluster), RivalsJudge()).run(program)
