"""Which set of victims costs least: minimal, by value, exact where it can be.

Rules of this file: it knows nothing of devices; it is told by `fits` whether a set of exits would be
enough. A set is *minimal* when dropping any member makes it too small. Sets are ranked, never summed
over unlike units, by:

1. how many of them are busy or fresh and have to be drained;
2. the sum of their values (load time × recent demand);
3. when the most recently used of them was last used (the older the better);
4. their ids.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from rayscheduler.core.types import ModelName, ReplicaId

EXACT_UP_TO = 12  # candidates; beyond that a minimal set is taken greedily in the same order

IdKey = tuple[str, int]  # (model, serial): ids sort by name, then by number


class Candidate:
    """A replica that may leave, with what its exit costs."""

    __slots__ = ("cost", "drained", "id", "id_key", "model")

    def __init__(
        self, replica: ReplicaId, id_key: IdKey, model: ModelName, drained: bool, value: int, last_used_ms: int
    ) -> None:
        self.id = replica
        self.id_key = id_key
        self.model = model
        self.drained = drained
        self.cost = (int(drained), value, last_used_ms)


class VictimSet:
    """A minimal set of candidates, and the key by which such sets are compared."""

    __slots__ = ("key", "members")

    def __init__(self, members: Sequence[Candidate]) -> None:
        self.members = tuple(sorted(members, key=lambda c: c.id_key))
        self.key = (*_cost(members), tuple(c.id_key for c in self.members))


def _cost(members: Sequence[Candidate]) -> tuple[int, int, int]:
    drained = value = 0
    last_used_ms = -(1 << 62)
    for member in members:
        drained += member.cost[0]
        value += member.cost[1]
        last_used_ms = max(last_used_ms, member.cost[2])
    return drained, value, last_used_ms


Fits = Callable[[Sequence[Candidate]], bool]


def best_set(candidates: Sequence[Candidate], fits: Fits, spare: Mapping[ModelName, int]) -> VictimSet | None:
    """The best minimal set for which `fits` holds, or None.

    `spare[model]`: how many replicas of a model may leave at most (`replicas.min`); absent = all.
    `fits` must be monotone: more exits never make it false. The empty set is not tried.
    """
    if not candidates or not fits(candidates):
        return None
    ordered = sorted(candidates, key=lambda c: (c.cost, c.id_key))
    if len(ordered) > EXACT_UP_TO:
        return _greedy(ordered, fits, spare)
    best: VictimSet | None = None

    def explore(start: int, chosen: list[Candidate], left: dict[ModelName, int]) -> None:
        nonlocal best
        if best is not None and _cost(chosen) > best.key[:3]:
            return
        if chosen and fits(chosen):
            if all(not fits(chosen[:i] + chosen[i + 1 :]) for i in range(len(chosen)) if len(chosen) > 1):
                found = VictimSet(chosen)
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


def _greedy(ordered: Sequence[Candidate], fits: Fits, spare: Mapping[ModelName, int]) -> VictimSet | None:
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
    return VictimSet(chosen)
