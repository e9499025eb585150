"""Small clusters and catalogs in which models compete: a few units of memory, a few models of a few units.

Rules of this file: everything is small (bytes are counted in ones), so that a property can afford to look at
every possibility. Unusual features are rare, and each of them occurs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from hypothesis import strategies as st

from rayscheduler.core.events import NOBODY, ReplicaFound
from rayscheduler.core.types import (
    Backend,
    Device,
    DeviceId,
    Group,
    Model,
    ModelName,
    Node,
    NodeName,
    Pin,
    Placement,
    PolicyName,
    ReplicaId,
    RequestId,
    Requirement,
    Settings,
    Strategy,
)
from tests.property.dice import Dice, dice

NAMES = [ModelName(name) for name in "abcde"]


@dataclass(frozen=True)
class Cluster:
    settings: Settings
    nodes: tuple[Node, ...]
    models: tuple[Model, ...]
    found: tuple[ReplicaFound, ...] = ()  # what runs already when the day begins


def clusters(*policies: PolicyName) -> st.SearchStrategy[Cluster]:
    return dice(120, 120).map(lambda drawn: cluster(drawn, policies or tuple(PolicyName)))


def cluster(dice: Dice, policies: tuple[PolicyName, ...]) -> Cluster:
    settings = _settings(dice, dice.pick(policies))
    nodes = tuple(_node(dice, number) for number in range(1, 1 + dice.pick([1, 2, 2, 3])))
    models = tuple(_model(dice, name) for name in NAMES[: dice.pick([4, 5])])
    found = tuple(_found(dice, nodes, models))
    return Cluster(settings, nodes, tuple(_elastic(dice, model) for model in models), found)


def _elastic(dice: Dice, model: Model) -> Model:
    """Now and then a model that can use more than it needs."""
    if not dice.one_in(5):
        return model
    most = {count: size + 1 + dice.throw(5) for count, size in model.requirement.bytes_by_count.items() if count}
    return replace(model, requirement=replace(model.requirement, bytes_max_by_count=most))


def _found(dice: Dice, nodes: tuple[Node, ...], models: tuple[Model, ...]) -> Iterator[ReplicaFound]:
    """Replicas of plain models on one device each, no more than there is room for."""
    free = {d.id: d.capacity_bytes - d.headroom_bytes for node in nodes for d in node.devices}
    for model in models:
        size = model.requirement.bytes_by_count.get(1)
        if not dice.one_in(3) or size is None or not _is_plain(model.requirement):
            continue
        device = dice.pick(sorted(free))
        if size <= free[device]:
            free[device] -= size
            place = Placement((NodeName(device.split("/")[0]),), (device,), (size,))
            running = not dice.one_in(4)
            leases = {RequestId(f"q{model.name}"): NOBODY} if running and dice.one_in(3) else {}
            yield ReplicaFound(ReplicaId(f"{model.name}#7"), model.name, place, running, leases, dice.pick([0, 3000]))


def _is_plain(want: Requirement) -> bool:
    return want == Requirement(want.bytes_by_count, across_nodes=want.across_nodes)


def _settings(dice: Dice, policy: PolicyName) -> Settings:
    groups = (
        Group("g", frozenset(NAMES[:2]), swap=dice.one_in(2), exclusive=dice.one_in(2)),
        Group("h", frozenset(NAMES[2:4]), swap=dice.one_in(2), exclusive=False, persistent=dice.one_in(2)),
    )
    return Settings(
        policy=policy,
        strategy=dice.pick(list(Strategy)),
        stale_after_ms=dice.pick([0, 0, 2000]),
        patience_ms=dice.pick([5000, 5000, 1500, None]),
        queue_limit=dice.pick([1000, 1000, 1000, 3]),
        cpu_models_on_gpu_nodes=not dice.one_in(4),
        groups=groups if policy is PolicyName.GROUPS else (),
    )


def _node(dice: Dice, number: int) -> Node:
    name = NodeName(f"n{number}")
    if number > 1 and dice.one_in(5):
        lent = (Device(DeviceId(f"{name}/0"), 10),)
        return Node(name, Backend.CPU, lent, memory_bytes=10, device_is_host_memory=True)
    sizes = [dice.pick([8, 8, 10, 12]) for _ in range(dice.pick([2, 2, 3] if number == 1 else [1, 1, 2]))]
    headroom, kind = dice.pick([0, 0, 0, 1]), dice.pick(["A", "A", "B", ""])
    return Node(
        name,
        Backend.NVIDIA,
        tuple(Device(DeviceId(f"{name}/{i}"), size, headroom, kind) for i, size in enumerate(sizes)),
        millicpus=dice.pick([None, None, 4000]),
        memory_bytes=dice.pick([None, None, 12]),
        labels={} if dice.one_in(3) else {"zone": "z"},
    )


def _model(dice: Dice, name: ModelName) -> Model:
    model = Model(
        name,
        _requirement(dice),
        concurrency=dice.pick([1, 1, 2]),
        replicas_max=dice.pick([1, 1, 2]),
        priority=dice.pick([0, 0, 1]),
        load_ms=dice.pick([1000, 4000]),
    )
    if not dice.one_in(3):
        return model
    return replace(
        model,
        replicas_min=dice.pick([0, 0, 1]),
        idle_timeout_ms=dice.pick([None, 3000]),
        pinned=dice.one_in(4),
        pin=Pin(NodeName("n1"), (DeviceId("n1/0"),)) if dice.one_in(4) else None,
        preload=dice.one_in(4),
    )


def _requirement(dice: Dice) -> Requirement:
    counts = dice.pick([(1,), (1,), (1,), (1,), (1, 2), (1, 2), (1, 2), (2,), (0,)])
    total = 3 + dice.throw(6) if 2 not in counts else 5 + dice.throw(10)
    across = 2 in counts and dice.one_in(2)
    plain = Requirement({count: -(-total // max(1, count)) for count in counts}, across_nodes=across)
    if not dice.one_in(4):
        return plain
    return replace(
        plain,
        exclusive=0 not in counts and dice.one_in(5),
        backend=Backend.NVIDIA if dice.one_in(5) else None,
        types=dice.pick([(), (), ("A",), ("B", "A")]),
        device_memory_bytes=10 if 0 not in counts and dice.one_in(6) else 0,
        total_device_memory_bytes=16 if 2 in counts and dice.one_in(3) else 0,
        labels={"zone": "z"} if dice.one_in(5) else {},
        millicpus=dice.pick([0, 0, 1000, 3000]),
        host_memory_bytes=dice.pick([0, 0, 3, 6]),
    )
