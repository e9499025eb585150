"""Every plan of the core against the oracle, which tries everything: the place, the victims, and that nobody
waits while a plan exists. Policy `fifo`, whose rules SCENARIOS.md says in full."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from hypothesis import given, settings

from rayscheduler.core import events as ev
from rayscheduler.core.decisions import Reject, StopReplica
from rayscheduler.core.types import (
    Model,
    ModelName,
    PolicyName,
    RejectCode,
    ReplicaId,
    ReplicaSnapshot,
    Snapshot,
    StopReason,
    WaitingSnapshot,
)
from tests.property.clusters import Cluster, clusters
from tests.property.dice import Dice, dice
from tests.property.oracle import COMING, VICTIMS_MAX, Picture, Victim, best_plan, fits, minimal
from tests.property.traffic import Told, Traffic

DEMAND_MS = 600_000


@dataclass(frozen=True)
class Need:
    """Whom a load would serve: nobody who asked (`standing`), or requests and operators, patient or not."""

    standing: bool
    drain: bool


class PlanJudge:
    """Looks at each event's decisions with the oracle's eyes."""

    def __init__(self) -> None:
        self.before: Snapshot | None = None
        self.checked = 0  # plans compared with the oracle's
        self.evicting = 0  # of those, with victims

    def __call__(self, traffic: Traffic, told: Told) -> None:
        after = traffic.scheduler.snapshot(traffic.now_ms)
        if self.before is not None and not traffic.books.shut_down:
            self._judge_never(traffic, told, self.before)
            new = {r.id for r in after.replicas} - {r.id for r in self.before.replicas}
            if len(new) == 1:
                self._judge_plan(traffic, told, after, new.pop())
            if not any(model.wanted for model in after.models):
                judge_waiting(traffic, after)
        self.before = after

    # -- never ------------------------------------------------------------------------------------

    def _judge_never(self, traffic: Traffic, told: Told, before: Snapshot) -> None:
        """"`never_fits` is decided on arrival, against the nodes and pins of that moment"."""
        if len(told.events) != 1 or not isinstance(told.events[0], ev.RequestArrived):
            return
        (event,) = told.events
        asked = traffic.books.requests.get(event.request)
        model = traffic.books.models.get(event.model)
        if model is None or asked is None or any(w.request == event.request for w in before.waiting):
            return
        refused = any(isinstance(d, Reject) and d.code is RejectCode.NEVER_FITS for d in told.decisions)
        serving = any(r.model == event.model and r.state in COMING for r in before.replicas)
        picture = Picture(before, before.replicas, traffic.cluster.settings)
        if refused or (asked.state == "waiting" and not serving):
            assert refused != fits(picture.emptied(), model, ()), f"{event.model}: never fits is {refused}"

    # -- a plan -----------------------------------------------------------------------------------

    def _judge_plan(self, traffic: Traffic, told: Told, after: Snapshot, name: ReplicaId) -> None:
        """Put the moment before the plan together again, and ask the oracle."""
        made = next(r for r in after.replicas if r.id == name)
        abandoned = {
            d.replica
            for d in told.decisions
            if isinstance(d, StopReplica) and d.makes_way_for == name and d.reason is StopReason.ABANDONED
        }
        victims = [r for r in after.replicas if r.makes_way_for == name]
        restored = [
            replace(r, state="STARTING" if r.id in abandoned else "RUNNING", makes_way_for=None)
            if r in victims
            else r
            for r in after.replicas
            if r.id != name
        ]
        self._legal(traffic, victims, made.model)
        model = traffic.books.models[made.model]
        picture = Picture(after, restored, traffic.cluster.settings)
        assert minimal(picture, model, [v.id for v in victims]), f"{name} evicts more than it needs: {victims}"
        others_start = any(r.state == "STARTING" and not r.pinned and r.model != made.model for r in restored)
        if victims and others_start:
            return  # which of them are abandoned cannot be seen from outside
        wish = need(traffic, after, restored, model)
        candidates = [] if wish.standing else [*candidates_of(traffic, restored, model, wish.drain)]
        if len(candidates) > VICTIMS_MAX:
            return
        best = best_plan(picture, model, candidates, spare_of(traffic, restored))
        assert best is not None, f"{name} was planned, and the oracle knows no place"
        assert made.placement == best.placement, f"{name}: {made.placement} instead of {best}"
        assert {v.id for v in victims} == set(best.victims), f"{name}: {victims} instead of {best}"
        self.checked += 1
        self.evicting += bool(victims)

    def _legal(self, traffic: Traffic, victims: list[ReplicaSnapshot], loading: ModelName) -> None:
        """Never pinned, never its own model, and serving only past somebody's patience."""
        for victim in victims:
            assert not victim.pinned, f"{victim.id} is pinned"
            assert victim.model != loading, f"{victim.id} makes way for its own model"
            assert victim.state in ("DRAINING", "STOPPING"), victim
            if victim.state == "DRAINING":
                assert self._patience_is_over(traffic, loading), f"{victim.id} is drained for the impatient"

    def _patience_is_over(self, traffic: Traffic, loading: ModelName) -> bool:
        patience_ms = traffic.cluster.settings.patience_ms
        if patience_ms is None:
            return False
        since = [a.arrived_ms for a in traffic.books.requests.values() if a.model == loading and a.state == "waiting"]
        since += [t.now_ms for t in traffic.told for e in t.events if e == ev.LoadAsked(loading)]
        return any(traffic.now_ms - at_ms >= patience_ms for at_ms in since)


def need(traffic: Traffic, after: Snapshot, replicas: list[ReplicaSnapshot], model: Model) -> Need:
    uncovered = uncovered_of(after, replicas, model)
    wanted = next(m.wanted for m in after.models if m.model.name == model.name)
    drain = any(is_patient(traffic, w) for w in uncovered)
    if wanted and traffic.cluster.settings.patience_ms is not None:
        asked = [t.now_ms for t in traffic.told for e in t.events if e == ev.LoadAsked(model.name)]
        drain = drain or any(traffic.now_ms - at_ms >= traffic.cluster.settings.patience_ms for at_ms in asked)
    return Need(standing=not uncovered and not wanted, drain=drain)


def uncovered_of(after: Snapshot, replicas: list[ReplicaSnapshot], model: Model) -> list[WaitingSnapshot]:
    """The waiting requests that no running or coming replica has a place for."""
    serving = [r for r in replicas if r.model == model.name and r.state in COMING]
    free = sum(max(0, model.concurrency - r.leases) for r in serving)
    return [w for w in after.waiting if w.model == model.name][free:]


def is_patient(traffic: Traffic, waiting: WaitingSnapshot) -> bool:
    patience_ms = traffic.cluster.settings.patience_ms
    return patience_ms is not None and traffic.now_ms - waiting.arrived_ms >= patience_ms


def candidates_of(
    traffic: Traffic, replicas: list[ReplicaSnapshot], loading: Model, drain: bool
) -> Iterator[Victim]:
    """"only running, unleased replicas idle for at least `stale_after` (or, past a waiting request's `patience`,
    any unpinned running replica, drained first)"; and abandoned loads, where those can be told."""
    books, now_ms = traffic.books, traffic.now_ms
    for replica in replicas:
        if replica.pinned or replica.model == loading.name or replica.state != "RUNNING":
            continue
        fresh = replica.leases > 0 or now_ms - replica.last_used_ms < traffic.cluster.settings.stale_after_ms
        if fresh and not drain:
            continue
        grants = sum(now_ms - at_ms < DEMAND_MS for at_ms in books.grants.get(replica.model, ()))
        value = books.models[replica.model].load_ms * grants
        used_ms = now_ms if replica.leases else replica.last_used_ms
        yield Victim(replica.id, replica.model, fresh, value, used_ms)


def spare_of(traffic: Traffic, replicas: list[ReplicaSnapshot]) -> dict[ModelName, int]:
    """"No victim set leaves fewer than `replicas.min` pending, starting or running"."""
    return {
        name: max(0, sum(r.model == name and r.state in COMING for r in replicas) - model.replicas_min)
        for name, model in traffic.books.models.items()
        if model.replicas_min
    }


def judge_waiting(traffic: Traffic, after: Snapshot) -> None:
    """Nobody waits while there is a plan for it, but behind a request that is past its patience."""
    replicas = list(after.replicas)
    picture = Picture(after, replicas, traffic.cluster.settings)
    models = {m.model.name: m for m in after.models}
    position = {w.request: at for at, w in enumerate(after.waiting)}
    turns = []
    for name, model in traffic.books.models.items():
        serving = sum(r.model == name and r.state in COMING for r in replicas)
        uncovered = uncovered_of(after, replicas, model)
        if uncovered and serving < model.replicas_max and models[name].backoff_until_ms is None:
            patient = [w for w in uncovered if is_patient(traffic, w)][:1]
            turns += [(position[w.request], w in patient, model) for w in (*uncovered[:1], *patient)]
    for _, drain, model in sorted(turns, key=lambda turn: turn[0]):
        candidates = [*candidates_of(traffic, replicas, model, drain)]
        if len(candidates) <= VICTIMS_MAX:
            plan = best_plan(picture, model, candidates, spare_of(traffic, replicas))
            assert plan is None, f"{model.name} waits, and there is a plan: {plan}"
        if drain and fits(picture.emptied(), model, ()):
            return


@settings(max_examples=200)
@given(clusters(PolicyName.FIFO), dice(100, 400))
def test_every_plan_is_the_best_and_nobody_waits_while_there_is_one(cluster: Cluster, program: Dice) -> None:
    Traffic(cluster, PlanJudge()).run(program)
