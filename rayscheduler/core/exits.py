"""Who may leave, and in which order of cost: the replicas that a plan may count on as victims.

Rules of this file: it reads the fleet, and changes nothing. Pinned replicas, those of the model that is to
be loaded, and those that `replicas.min` keeps are nobody's victims. A replica that sleeps serves nobody, so none
of that protects it: it costs nothing, and counts as unused for longer than any other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from heapq import merge

from rayscheduler.core.fleet import Fleet
from rayscheduler.core.ledger import Ledger
from rayscheduler.core.lifecycle import State
from rayscheduler.core.records import ModelRecord, ReplicaRecord
from rayscheduler.core.sleeping import bed_of
from rayscheduler.core.types import ModelName, NodeName, Placement, Settings
from rayscheduler.core.victims import Candidate

AGES_MS = 1 << 50  # more than anything was ever idle
OF_NO_MINIMUM = ModelName("")


class Exits:
    """The exits that loading `loading` may cause at `now_ms`.

    `drain`: busy and fresh replicas may leave too. `must`: those that leave in any case. `only_asleep`: besides
    those, only such as sleep.
    """

    def __init__(
        self,
        fleet: Fleet,
        settings: Settings,
        loading: ModelRecord,
        drain: bool,
        now_ms: int,
        must: Sequence[Candidate] = (),
        only_asleep: bool = False,
    ) -> None:
        self._fleet = fleet
        self._settings = settings
        self._loading = loading
        self._drain = drain
        self._now_ms = now_ms
        self.must = tuple(must)
        self._only_asleep = only_asleep
        self._sent = {candidate.id for candidate in must}
        self._values: dict[ModelName, int] = {}
        self.spare: dict[ModelName, int] = {}  # how many of a model may leave; absent = all

    def placements(self, candidates: Iterable[Candidate]) -> list[Placement]:
        return [self._fleet.replicas[candidate.id].holds for candidate in candidates]

    def in_order(self) -> Iterator[Candidate]:
        """All candidates, cheapest first; of those that cost the same in any order."""
        if self._drain:
            yield from sorted(self._of(self._fleet.replicas.values()), key=lambda c: (c.cost, c.id_key))
            return
        dear: list[Candidate] = []
        abandoned = sorted(self._of(self._fleet.abandoned()), key=lambda c: c.cost)
        asleep = sorted(self._of(self._fleet.asleep()), key=lambda c: c.cost)
        for candidate in merge(asleep, abandoned, self._idle(), key=lambda c: c.cost[2]):
            if candidate.cost[1]:
                dear.append(candidate)
            else:
                yield candidate
        dear.sort(key=lambda c: (c.cost, c.id_key))
        yield from dear

    def _idle(self) -> Iterator[Candidate]:
        """The idle and stale replicas, longest idle first."""
        for replica in self._fleet.idle_longest_first():
            if self._now_ms - replica.used_ms < self._settings.stale_after_ms:
                return
            candidate = self._candidate(replica)
            if candidate is not None:
                yield candidate

    def on_node(self, name: NodeName) -> list[Candidate]:
        return list(self._of(self._fleet.on_node(name)))

    def _of(self, replicas: Iterable[ReplicaRecord]) -> Iterator[Candidate]:
        for replica in replicas:
            candidate = self._candidate(replica)
            if candidate is not None:
                yield candidate

    def _candidate(self, replica: ReplicaRecord) -> Candidate | None:
        model = replica.model
        asleep = replica.state is State.ASLEEP
        if replica.id in self._sent or ((model is self._loading or self._only_asleep) and not asleep):
            return None
        ledger = self._fleet.ledger
        candidate = candidate_of(replica, self._drain, self._now_ms, self._settings, ledger, self._values)
        if candidate is None or asleep:
            return candidate
        minimum = model.standing_minimum()
        if minimum:
            spare = self.spare.get(model.name)
            if spare is None:
                gone = sum(1 for c in self.must if c.model == model.name)
                spare = self.spare[model.name] = max(0, len(model.serving()) - gone - minimum)
            if not spare:
                return None
        return candidate


def candidate_of(
    replica: ReplicaRecord,
    drain: bool,
    now_ms: int,
    settings: Settings,
    ledger: Ledger,
    values: dict[ModelName, int] | None = None,
) -> Candidate | None:
    """The replica as one that may leave now, or None. `values` remembers models' values for one plan."""
    model = replica.model
    if replica.state is State.ASLEEP:
        return Candidate(replica.id, replica.id_key, OF_NO_MINIMUM, False, 0, replica.used_ms - AGES_MS)
    if model.model.pinned:
        return None
    if replica.abandoned and replica.state in (State.STARTING, State.WAKING):
        return Candidate(replica.id, replica.id_key, model.name, False, 0, replica.since_ms)
    if replica.state is not State.RUNNING:
        return None
    busy = bool(replica.leases)
    fresh = busy or now_ms - replica.used_ms < settings.stale_after_ms
    if fresh and not drain:
        return None
    value = None if values is None else values.get(model.name)
    if value is None:
        value = model.value(now_ms)
        if values is not None:
            values[model.name] = value
    used_ms = now_ms if busy else replica.used_ms
    keeps = bed_of(replica, ledger)
    sleep_value = 0 if keeps is None else model.waking_value(now_ms)
    return Candidate(replica.id, replica.id_key, model.name, fresh, value, used_ms, keeps, sleep_value)
