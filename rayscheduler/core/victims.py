"""Which set of victims costs least: minimal, by value, exact where it can be.

Rules of this file: it knows nothing of devices; it is told by `fits` whether a set of exits would be
enough. A set is *minimal* when dropping any member makes it too small. Sets are ranked, never summed
over unlike units, by:

1. how many of them are busy or fresh and have to be drained;
2. the sum of their values (load time × recent demand; of one that will sleep, wake time × recent demand);
3. when the most recently used of them was last used (the older the better);
4. their ids.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from rayscheduler.core.types import ModelName, Placement, ReplicaId

EXACT_UP_TO = 12  # candidates; beyond that a minimal set is taken greedily in the same order

IdKey = tuple[str, int]  # (model, serial): ids sort by name, then by number


class Candidate:
    """A replica that may leave, with what its exit costs at least, and what if it stops.

    `model`: against whose `replicas.min` its exit counts. `keeps`: what it would hold if it slept instead, at
    `sleep_value`; None: it can only stop.
    """

    __slots__ = ("cost", "drained", "id", "id_key", "keeps", "model", "stop_value")

    def __init__(
        self,
        replica: ReplicaId,
        id_key: IdKey,
        model: ModelName,
        drained: bool,
        value: int,
        last_used_ms: int,
        keeps: Placement | None = None,
        sleep_value: int = 0,
    ) -> None:
        self.id = replica
        self.id_key = id_key
        self.model = model
        self.drained = drained
        self.keeps = keeps
        self.stop_value = value
        self.cost = (int(drained), value if keeps is None else sleep_value, last_used_ms)


class VictimSet:
    """A minimal set of candidates, who of them sleeps (and keeps what), and the key by which such sets are compared."""

    __slots__ = ("key", "members", "sleeping")

    def __init__(self, members: Sequence[Candidate], sleeping: Mapping[ReplicaId, Placement] = MappingProxyType({})):
        self.members = tuple(sorted(members, key=lambda c: c.id_key))
        self.sleeping = sleeping
        drained, value, last_used_ms = _cost(members)
        value += sum(c.stop_value - c.cost[1] for c in members if c.id not in sleeping)
        self.key = (drained, value, last_used_ms, tuple(c.id_key for c in self.members))


def _cost(members: Sequence[Candidate]) -> tuple[int, int, int]:
    drained = value = 0
    last_used_ms = -(1 << 62)
    for member in members:
        drained += member.cost[0]
        value += member.cost[1]
        last_used_ms = max(last_used_ms, member.cost[2])
    return drained, value, last_used_ms


Fits = Callable[[Sequence[Candidate]], bool]
Settle = Callable[[Sequence[Candidate]], VictimSet]


def best_set(
    candidates: Sequence[Candidate], fits: Fits, spare: Mapping[ModelName, int], settle: Settle = VictimSet
) -> VictimSet | None:
    """The best minimal set for which `fits` holds, or None.

    `spare[model]`: how many replicas of a model may leave at most (`replicas.min`); absent = all.
    `fits` must be monotone: more exits never make it false. The empty set is not tried. `settle` says of a set that
    fits who of it sleeps, and so what it really costs: never less than the candidates' costs.
    """
    if not candidates or not fits(candidates):
        return None
    ordered = sorted(candidates, key=lambda c: (c.cost, c.id_key))
    if len(ordered) > EXACT_UP_TO:
        return _greedy(ordered, fits, spare, settle)
    best: VictimSet | None = None

    def explore(start: int, chosen: list[Candidate], left: dict[ModelName, int]) -> None:
        nonlocal best
        if best is not None and _cost(chosen) > best.key[:3]:
            return
        if chosen and fits(chosen):
            if all(not fits(chosen[:i] + chosen[i + 1 :]) for i in range(len(chosen)) if len(chosen) > 1):
                found = settle(chosen)
                if best is None or found.key < best.key:
                    best = found
            return
        if not fits(chosen + ordered[start:]):
            return
        for at in range(start, len(ordered)):
            candidate = ordered[at]
            allowed = left.get(candidate.model)
            if allowed == 0:
                continue
            if allowed is not None:
                left[candidate.model] = allowed - 1
            explore(at + 1, [*chosen, candidate], left)
            if allowed is not None:
                left[candidate.model] = allowed

    explore(0, [], dict(spare))
    return best


def _greedy(
    ordered: Sequence[Candidate], fits: Fits, spare: Mapping[ModelName, int], settle: Settle
) -> VictimSet | None:
    left = dict(spare)
    chosen: list[Candidate] = []
    for candidate in ordered:
        allowed = left.get(candidate.model)
        if allowed == 0:
            continue
        if allowed is not None:
            left[candidate.model] = allowed - 1
        chosen.append(candidate)
        if fits(chosen):
            break
    else:
        return None
    for candidate in reversed(chosen[:-1]):  # the dearest that turned out superfluous first
        without = [c for c in chosen if c is not candidate]
        if fits(without):
            chosen = without
    return settle(chosen)
