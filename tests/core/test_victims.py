"""Sets of victims: exact against brute force, minimal beyond."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from random import Random

from rayscheduler.core.types import ModelName, ReplicaId
from rayscheduler.core.victims import EXACT_UP_TO, Candidate, VictimSet, best_set

Sizes = dict[ReplicaId, tuple[int, int]]  # what each exit frees on two devices


def drawn(dice: Random, count: int) -> tuple[list[Candidate], Sizes]:
    """Candidates with few different values, so that ties are frequent."""
    candidates, sizes = [], {}
    for serial in range(1, count + 1):
        name = dice.choice("abc")
        replica = ReplicaId(f"{name}#{serial}")
        drained, value, used_ms = dice.random() < 0.3, dice.choice([0, 0, 1, 2]), dice.choice([0, 1, 2])
        candidates.append(Candidate(replica, (name, serial), ModelName(name), drained, value, used_ms))
        sizes[replica] = (dice.randint(0, 3), dice.randint(0, 3))
    return candidates, sizes


def enough(gone: Sequence[Candidate], sizes: Sizes, need: tuple[int, int]) -> bool:
    return all(sum(sizes[c.id][at] for c in gone) >= need[at] for at in (0, 1))


def allowed(gone: Sequence[Candidate], spare: dict[ModelName, int]) -> bool:
    leaving = Counter(c.model for c in gone)
    return all(leaving[name] <= most for name, most in spare.items())


def minimal(gone: Sequence[Candidate], sizes: Sizes, need: tuple[int, int]) -> bool:
    return all(not enough([c for c in gone if c is not out], sizes, need) for out in gone)


def order(gone: Sequence[Candidate]) -> tuple[object, ...]:
    """SCENARIOS, "Ranking", written down once more: drains, value, most recent use, ids."""
    return (
        sum(c.drained for c in gone),
        sum(c.cost[1] for c in gone),
        max(c.cost[2] for c in gone),
        sorted(c.id_key for c in gone),
    )


def brute_force(
    candidates: list[Candidate], sizes: Sizes, need: tuple[int, int], spare: dict[ModelName, int]
) -> set[ReplicaId] | None:
    sets = [
        gone
        for count in range(1, len(candidates) + 1)
        for gone in combinations(candidates, count)
        if enough(gone, sizes, need) and allowed(gone, spare) and minimal(gone, sizes, need)
    ]
    return {c.id for c in min(sets, key=order)} if sets else None


def found(
    candidates: list[Candidate], sizes: Sizes, need: tuple[int, int], spare: dict[ModelName, int]
) -> VictimSet | None:
    return best_set(candidates, lambda gone: enough(gone, sizes, need), spare)


def test_the_best_set_is_the_best_of_all_minimal_sets() -> None:
    """"The best set is exact where at most 12 replicas are candidates"."""
    for seed in range(200):
        dice = Random(seed)
        candidates, sizes = drawn(dice, dice.randint(1, 8))
        need = (dice.randint(0, 6), dice.randint(1, 6))
        spare = {ModelName(name): dice.randint(0, 2) for name in dice.sample("abc", dice.randint(0, 2))}
        best = found(candidates, sizes, need, spare)
        wanted = brute_force(candidates, sizes, need, spare)
        assert (None if best is None else {c.id for c in best.members}) == wanted, f"seed {seed}"


def test_the_order_of_the_candidates_does_not_matter() -> None:
    for seed in range(100):
        dice = Random(seed)
        candidates, sizes = drawn(dice, 7)
        need = (dice.randint(0, 6), dice.randint(1, 6))
        first = found(candidates, sizes, need, {})
        dice.shuffle(candidates)
        second = found(candidates, sizes, need, {})
        assert (first and first.key) == (second and second.key), f"seed {seed}"


def test_beyond_that_a_set_is_still_minimal_and_allowed() -> None:
    """"beyond that, any minimal set taken greedily in that order"."""
    for seed in range(100):
        dice = Random(seed)
        candidates, sizes = drawn(dice, dice.randint(EXACT_UP_TO + 1, 30))
        need = (dice.randint(0, 12), dice.randint(1, 12))
        spare = {ModelName("a"): dice.randint(0, 3)}
        best = found(candidates, sizes, need, spare)
        if best is None:
            assert not enough([c for c in candidates if c.model != "a"], sizes, need), f"seed {seed}"
        else:
            assert enough(best.members, sizes, need), f"seed {seed}"
            assert minimal(best.members, sizes, need), f"seed {seed}"
            assert allowed(best.members, spare), f"seed {seed}"


def test_nothing_helps_when_all_together_do_not() -> None:
    candidates, sizes = drawn(Random(1), 5)
    assert found(candidates, sizes, (99, 99), {}) is None
    assert found([], {}, (1, 1), {}) is None


def test_members_are_in_the_order_of_their_ids() -> None:
    def candidate(name: str, serial: int) -> Candidate:
        return Candidate(ReplicaId(f"{name}#{serial}"), (name, serial), ModelName(name), False, 0, 0)

    everyone = [candidate("b", 1), candidate("a", 10), candidate("a", 9), candidate("B", 2)]
    best = best_set(everyone, lambda gone: len(gone) == 4, {})
    assert best is not None
    assert [c.id for c in best.members] == ["B#2", "a#9", "a#10", "b#1"]
