"""Which models need one more replica, in whose name, and what may leave for it: the planning half of a pass.

Rules of this file. The queue is walked by priority, then arrival; requests that a running or coming
replica will serve are passed over (they join it). A request that cannot be planned blocks nobody, except
past its patience: then nothing behind it is newly loaded but what came earlier and is past patience, too.
Standing wishes (`replicas.min`, `preload`) come last and take free memory only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from heapq import heapify, heappop, heappush

from rayscheduler.core.exits import Exits, candidate_of
from rayscheduler.core.fleet import Fleet
from rayscheduler.core.lifecycle import COMING, LEAVING, State
from rayscheduler.core.planner import Planner
from rayscheduler.core.policies import Policy
from rayscheduler.core.records import ModelRecord, Origin, ReplicaRecord, Waiting
from rayscheduler.core.sleeping import Sleeper, bed_of
from rayscheduler.core.types import (
    ModelName,
    NoFit,
    Plan,
    Refusal,
    ReplicaId,
    Settings,
)
from rayscheduler.core.victims import Candidate
from rayscheduler.core.words import sized

# When a model's next load has its turn: the place in the queue, a tie-break, the model, past patience or not.
Turn = tuple[tuple[int, int], int, ModelName, ModelRecord, bool]


class Rivals:
    """The replicas that a policy wants gone before a model loads."""

    __slots__ = ("blocked", "leaving", "must")

    def __init__(self) -> None:
        self.must: list[Candidate] = []  # they can go now
        self.leaving: set[ReplicaId] = set()  # they are going already
        self.blocked = False  # one of them cannot go now


def _unexplained(model: ModelRecord, plan: Plan, now_ms: int) -> tuple[Refusal, ...]:
    """Why not elsewhere costs a look at every node: nobody asked."""
    return ()


class Loader:
    def __init__(self, fleet: Fleet, planner: Planner, policy: Policy, settings: Settings) -> None:
        self._fleet = fleet
        self.planner = planner
        self._policy = policy
        self._settings = settings
        self.explain: Callable[[ModelRecord, Plan, int], tuple[Refusal, ...]] = _unexplained

    # -- the walk ---------------------------------------------------------------------------------

    def plan_all(self, models: Iterable[ModelRecord], standing: Sequence[ModelRecord], now_ms: int) -> None:
        """Plan for every model that waits (`models`), then for standing wishes, best first."""
        barred = self._plan_strictly(list(models), now_ms) if self._policy.strict else self._plan_queue(models, now_ms)
        if not barred and self._fleet.freed:
            self._fleet.freed = False
            self._fulfil(standing, now_ms)

    def _plan_queue(self, models: Iterable[ModelRecord], now_ms: int) -> bool:
        """True when a request past its patience bars what is behind it. Whoever came earlier and is past patience,
        too, is not barred: else a stream of a higher priority that waits for its own replicas starves the rest."""
        bar: int | None = None  # the place in line of the first that bars
        heap: list[Turn] = []
        for model in models:
            heap.extend(self._turns(model, now_ms))
        heapify(heap)
        while heap:
            (_, place), _, _, model, patient = heappop(heap)
            if bar is not None and not (patient and place < bar):
                continue
            if not self._needs_one_more(model) or self._backing_off(model, now_ms):
                continue
            origin = Origin.REQUEST if model.wanted is None else Origin.LOAD
            plan = self._load(model, patient, origin, now_ms)
            if plan is not None:
                # Whom it drains takes no new leases: those who wait for such a model may need another replica.
                drained = {
                    self._fleet.replicas[name].model.name: self._fleet.replicas[name].model for name in plan.drained
                }
                for affected in (model, *drained.values()):
                    for turn in self._turns(affected, now_ms):
                        heappush(heap, turn)
            elif patient and self.fits_ever(model):
                bar = place
        return bar is not None

    def _turns(self, model: ModelRecord, now_ms: int) -> list[Turn]:
        """When this model's next load has its turn: in the name of its first request that nothing will
        serve yet, and again in that of its first one past patience; or of the operator who wants it."""
        if not self._needs_one_more(model):
            return []
        turns: list[Turn] = []
        uncovered = self._uncovered(model)
        if uncovered:
            patient = next((w for w in uncovered if self._is_past_patience(w.arrived_ms, now_ms)), None)
            if patient is not uncovered[0]:
                turns.append((uncovered[0].order, 0, model.name, model, False))
            if patient is not None:
                turns.append((patient.order, 1, model.name, model, True))
        if model.wanted is not None and not model.serving():
            patient_load = self._is_past_patience(model.wanted_since_ms, now_ms)
            turns.append((model.wanted, 2, model.name, model, patient_load))
        return turns

    def _is_past_patience(self, since_ms: int, now_ms: int) -> bool:
        patience_ms = self._settings.patience_ms
        return patience_ms is not None and now_ms - since_ms >= patience_ms

    def _uncovered(self, model: ModelRecord) -> list[Waiting]:
        """The waiting requests that no running or coming replica has a place for, in order."""
        if not model.waiting:
            return []
        return model.waiting[self.places(model.serving(), model) :]

    def places(self, replicas: Iterable[ReplicaRecord], model: ModelRecord) -> int:
        """Leases that these replicas of a model can still give, once they run."""
        return sum(max(0, model.model.concurrency - len(replica.leases)) for replica in replicas)

    def _needs_one_more(self, model: ModelRecord) -> bool:
        serving = model.serving()
        if not serving and model.wanted is not None:
            return True
        return len(serving) < model.model.replicas_max and len(model.waiting) > self.places(serving, model)

    def _backing_off(self, model: ModelRecord, now_ms: int) -> bool:
        return model.backoff_until_ms is not None and now_ms < model.backoff_until_ms

    def _plan_strictly(self, models: list[ModelRecord], now_ms: int) -> bool:
        """Load for the oldest request of all, or, when none waits, for the operator; one at a time."""
        waiting = [m for m in models if m.waiting and (m.serving() or self.fits_ever(m))]
        if waiting:
            head = min(waiting, key=lambda m: m.waiting[0].order)
        else:
            wanted = [m for m in models if m.wanted is not None and not m.serving() and self.fits_ever(m)]
            if not wanted:
                return False
            head = min(wanted, key=lambda m: m.wanted or (0, 0))
        if not head.serving() and not self._fleet.leases and not self._backing_off(head, now_ms):
            self._load(head, False, Origin.REQUEST if waiting else Origin.LOAD, now_ms)
        return True

    def _fulfil(self, standing: Sequence[ModelRecord], now_ms: int) -> None:
        for model in standing:
            while (
                len(model.serving()) < model.standing_wish()
                and not self._backing_off(model, now_ms)
                and self._load(model, False, Origin.STANDING, now_ms) is not None
            ):
                pass

    # -- one load ---------------------------------------------------------------------------------

    def _load(self, model: ModelRecord, drain: bool, origin: Origin, now_ms: int) -> Plan | None:
        """Plan one more replica and carry the plan out; None when there is no plan now."""
        evict = origin is not Origin.STANDING
        epoch, drained = model.no_fit
        if evict and epoch == self._fleet.epoch and drained >= drain:
            return None
        plan, awaits = self.plan(model, now_ms, drain=drain, evict=evict)
        if isinstance(plan, NoFit):
            if evict:
                model.no_fit = (self._fleet.epoch, drain)
            return None
        refusals = self.explain(model, plan, now_ms)
        self._fleet.promise(model, plan, awaits, origin, now_ms, self.sentence(model, plan, now_ms), refusals)
        return plan

    def plan(
        self, model: ModelRecord, now_ms: int, drain: bool = False, evict: bool = True
    ) -> tuple[Plan | NoFit, frozenset[ReplicaId]]:
        """The best plan for one more replica, and the exits that it waits for besides its victims'."""
        rivals = self._rivals(model, drain, now_ms)
        if rivals.blocked or (not evict and (rivals.must or rivals.leaving)):
            return NoFit(ever=self.fits_ever(model)), frozenset()
        leaving = self.exits(model, drain, now_ms, rivals.must, only_asleep=self._policy.strict)
        asleep = [Sleeper(r.id, r.placement, r.keeps) for r in model.asleep() if r.keeps is not None]
        plan = self.planner.plan(model.model, leaving, evict, asleep)
        if isinstance(plan, NoFit):
            return NoFit(ever=self.fits_ever(model)), frozenset()
        return plan, frozenset(rivals.leaving)

    def fits_ever(self, model: ModelRecord) -> bool:
        """Whether it fits the present nodes, empty of all that is not pinned."""
        topology, answer = model.ever
        if topology != self._fleet.topology:
            answer = self.planner.fits_ever(model.model, self._fleet.pinned_ids())
            model.ever = (self._fleet.topology, answer)
        return answer

    # -- who must leave ---------------------------------------------------------------------------

    def exits(
        self,
        loading: ModelRecord,
        drain: bool,
        now_ms: int,
        must: Sequence[Candidate] = (),
        only_asleep: bool = False,
    ) -> Exits:
        """Who may leave for `loading`. `must`: who leaves in any case, and so is no candidate."""
        return Exits(self._fleet, self._settings, loading, drain, now_ms, must, only_asleep)

    def _rivals(self, loading: ModelRecord, drain: bool, now_ms: int) -> Rivals:
        """Everything of a rival model has to go but what is pinned, kept by `replicas.min`, or asleep already; of
        several, those go that can go now."""
        found = Rivals()
        if not self._policy.has_rivals:
            return found
        staying: dict[ModelName, list[ReplicaRecord]] = {}
        for replica in self._fleet.replicas.values():
            model = replica.model
            if model is loading or not self._policy.rivals(loading.name, model.name):
                continue
            if replica.state in LEAVING:
                found.leaving.add(replica.id)
            elif not model.model.pinned and replica.state is not State.ASLEEP:
                staying.setdefault(model.name, []).append(replica)
        for replicas in staying.values():
            surplus = len(replicas) - replicas[0].model.standing_minimum()
            able = [c for r in replicas if (c := self._rival(r, drain, now_ms)) is not None]
            able.sort(key=lambda c: (c.cost, c.id_key))
            found.must.extend(able[: max(0, surplus)])
            found.blocked = found.blocked or len(able) < surplus
        return found

    def _rival(self, replica: ReplicaRecord, drain: bool, now_ms: int) -> Candidate | None:
        """A rival as one that can go now. `serial` knows no staleness: idle is enough."""
        if self._policy.strict and replica.state is State.RUNNING and not replica.leases:
            model, keeps = replica.model, bed_of(replica, self._fleet.ledger)
            costs = (model.value(now_ms), replica.used_ms, keeps, model.waking_value(now_ms))
            return Candidate(replica.id, replica.id_key, model.name, False, *costs)
        return candidate_of(replica, drain, now_ms, self._settings, self._fleet.ledger)

    # -- words ------------------------------------------------------------------------------------

    def sentence(self, model: ModelRecord, plan: Plan, now_ms: int) -> str:
        """The plan for people: `a goes to n1/1 (60.0 GiB), evicting b#1 (idle 60 s)`; `a wakes on …`."""
        place = plan.placement
        where = ", ".join(place.devices) or ", ".join(place.nodes)
        size = place.device_bytes[0] if place.device_bytes else place.host_bytes
        each = " each" if len(place.devices) > 1 else ""
        goes = "goes to" if plan.wakes is None else "wakes on"
        text = f"{model.name} {goes} {where} ({sized(size)}{each})"
        if plan.evictions:
            text += ", evicting " + ", ".join(self._victim_words(name, plan, now_ms) for name in plan.evictions)
        return text

    def _victim_words(self, name: ReplicaId, plan: Plan, now_ms: int) -> str:
        victim = self._fleet.replicas[name]
        sleeps = ", put to sleep" if name in plan.sleeping else ""
        if victim.leases:
            return f"{name} (drained of {len(victim.leases)} first{sleeps})"
        if victim.state in COMING:
            return f"{name} (nobody waits for it any more)"
        if victim.state is State.ASLEEP:
            return f"{name} (asleep: {sized(victim.holds.host_bytes - victim.placement.host_bytes)} in host memory)"
        return f"{name} (idle {(now_ms - victim.used_ms) / 1000:g} s{sleeps})"
