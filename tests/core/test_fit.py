"""Whether one replica fits one node: the order of the reasons, and the choice of devices."""

from __future__ import annotations

from itertools import combinations
from random import Random

import pytest

from rayscheduler.core.fit import Needs, choose, needs_on
from rayscheduler.core.ledger import Ledger
from rayscheduler.core.types import (
    DeviceId,
    Model,
    NodeName,
    Placement,
    Refusal,
    RefusalReason,
    ReplicaId,
    Requirement,
    Settings,
    Strategy,
)
from tests.core.story import GIB, model, node


def refused(node_text: dict[str, str], model_text: dict[str, str]) -> Refusal:
    found = needs_on(node(**node_text), model(**model_text), Settings())
    assert isinstance(found, Refusal)
    return found


@pytest.mark.parametrize(
    ("devices", "options", "needs", "reason"),
    [
        ("80GiB", {"backend": "rocm"}, {"backend": "nvidia", "types": "H100"}, "backend"),
        ("80GiB", {"type": "L4"}, {"types": "H100", "labels": "zone:a"}, "type"),
        ("80GiB", {"cpus": "2"}, {"labels": "zone:a", "node_cpus": "4"}, "labels"),
        ("80GiB", {"cpus": "2"}, {"node_cpus": "4", "gpus": "2"}, "cpus"),
        ("80GiB", {"cpus": "2"}, {"cpus": "4", "gpus": "2"}, "cpus"),
        ("80GiB", {}, {"gpus": "2", "device_memory": "99GiB"}, "devices"),
        ("80GiB", {}, {"device_memory": "99GiB", "total_device_memory": "99GiB"}, "device_memory"),
        ("80GiB", {}, {"total_device_memory": "99GiB", "memory": "999GiB"}, "total_device_memory"),
    ],
)
def test_the_first_reason_that_holds(
    devices: str, options: dict[str, str], needs: dict[str, str], reason: str
) -> None:
    """SCENARIOS, `plan`: the order of the reasons."""
    found = refused({"name": "n1", "devices": devices, **options}, {"name": "a", "memory": "10GiB", **needs})
    assert found.reason == reason


def test_device_memory_says_what_the_best_device_has() -> None:
    found = refused(
        {"name": "n1", "devices": "24GiB,40GiB"}, {"name": "a", "memory": "1GiB", "device_memory": "48GiB"}
    )
    assert (found.needed_bytes, found.free_bytes) == (48 * GIB, 40 * GIB)


def test_total_device_memory_says_the_most_that_can_be_taken() -> None:
    found = refused(
        {"name": "n1", "devices": "3x24GiB"},
        {"name": "a", "memory": "1GiB", "gpus": "1,2", "total_device_memory": "50GiB"},
    )
    assert found.reason is RefusalReason.TOTAL_DEVICE_MEMORY
    assert (found.needed_bytes, found.free_bytes) == (50 * GIB, 48 * GIB)


def room_and_needs(
    sizes: list[int], held: list[int], want: dict[int, int], total: int, strategy: Strategy
) -> tuple[Ledger, Needs | Refusal]:
    book = Ledger()
    made = node("n1", ",".join(f"{size}GiB" for size in sizes))
    book.add_node(made)
    for at, gib in enumerate(held):
        place = Placement((NodeName("n1"),), (DeviceId(f"n1/{at}"),), (gib * GIB,))
        book.reserve(ReplicaId(f"f#{at}"), place)
    each = {count: gib * GIB for count, gib in want.items()}
    wanted = Model("a", Requirement(each, total_device_memory_bytes=total * GIB))
    return book, needs_on(made, wanted, Settings(strategy=strategy))


def brute_force(
    sizes: list[int], held: list[int], want: dict[int, int], total: int, sign: int
) -> tuple[int, tuple[int, ...]] | None:
    possible = [
        (count, sign * sum(held[i] for i in taken), taken)
        for count, each in want.items()
        for taken in combinations(range(len(sizes)), count)
        if all(sizes[i] - held[i] >= each for i in taken) and sum(sizes[i] for i in taken) >= total
    ]
    return (min(possible)[0], min(possible)[2]) if possible else None


def test_the_choice_of_devices_is_the_best_of_all() -> None:
    """Against brute force: fewest devices; then least (`pack`: most) loaded together; then the lowest indices."""
    for seed in range(500):
        dice = Random(seed)
        sizes = [dice.choice([2, 4, 8]) for _ in range(dice.randint(1, 4))]
        held = [dice.randint(0, size) for size in sizes]
        want = {count: dice.randint(1, 5) for count in dice.sample([1, 2, 3], dice.randint(1, 3))}
        total = dice.choice([0, 0, 6, 12])
        strategy = dice.choice(list(Strategy))
        book, needs = room_and_needs(sizes, held, want, total, strategy)
        found = None if isinstance(needs, Refusal) else choose(book.accounts[NodeName("n1")].room(), needs)
        best = brute_force(sizes, held, want, total, 1 if strategy is Strategy.SPREAD else -1)
        assert (found and (found.option.count, found.indices)) == best, f"seed {seed}"
