"""A cluster, its settings, its catalog and what runs already, drawn at random to a taste.

Rules of this file: everything comes from the `Random` that is handed in, and fits the scenario format.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from random import Random

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
    Requirement,
    Settings,
    Strategy,
)
from rayscheduler.simulation import scenario as sc
from rayscheduler.simulation.book import Book
from rayscheduler.simulation.rooms import fits
from rayscheduler.simulation.tastes import Taste

GIB = 1 << 30
TYPES = ("H100", "A100", "L4")


def draw_node(rng: Random, name: str, taste: Taste) -> Node:
    millicpus = rng.choice(taste.millicpus)
    memory_bytes = rng.choice((None, None, 16 * GIB, 64 * GIB))
    labels = rng.choice(({}, {}, {"zone": "east"}, {"zone": "west"}))
    if rng.random() < 0.15:
        lent = Device(DeviceId(f"{name}/0"), rng.choice((8, 32)) * GIB)
        return Node(NodeName(name), Backend.CPU, (lent,), millicpus, lent.capacity_bytes, labels, True)
    backend = rng.choice((Backend.NVIDIA, Backend.NVIDIA, Backend.NVIDIA, Backend.METAL))
    count = rng.choice(taste.devices)
    sizes = [rng.choice((16, 24, 40, 80))] * count
    if rng.random() < 0.2:
        sizes = [rng.choice((16, 24, 40, 80)) for _ in range(count)]
    headroom_bytes = rng.choice(taste.headroom_gib) * GIB
    kinds = rng.choice((("",), ("",), TYPES))
    devices = tuple(
        Device(DeviceId(f"{name}/{i}"), size * GIB, headroom_bytes, rng.choice(kinds)) for i, size in enumerate(sizes)
    )
    return Node(NodeName(name), backend, devices, millicpus, memory_bytes, labels)


def draw_settings(rng: Random, models: Sequence[Model], taste: Taste) -> Settings:
    policy = rng.choices(list(PolicyName), taste.policies)[0]
    groups = []
    if policy is PolicyName.GROUPS:
        names = [model.name for model in models]
        rng.shuffle(names)
        cut = rng.randint(1, len(names))
        for title, members in (("first", names[:cut]), ("second", names[cut : cut + 2])):
            swap, exclusive, persistent = (rng.random() < 0.5 for _ in range(3))
            groups.append(Group(title, frozenset(members), swap, exclusive, persistent))
    return Settings(
        policy=policy,
        strategy=rng.choice(list(Strategy)),
        stale_after_ms=rng.choice((0, 0, 2_000, 15_000)),
        patience_ms=rng.choice(taste.patience_ms),
        queue_limit=rng.choice(taste.queue_limit),
        cpu_models_on_gpu_nodes=rng.random() < 0.8,
        groups=tuple(groups),
    )


# -- the catalog ----------------------------------------------------------------------------------


def draw_model(rng: Random, name: ModelName, nodes: Sequence[Node], taste: Taste) -> Model:
    """A model that fits this cluster, empty as it is; one in a score may not."""
    empty = Book(Settings())
    for node in nodes:
        empty.join(node)
    model = _model(rng, name, nodes, taste)
    for _ in range(20):
        if fits(model, empty.rooms(), empty.settings) or rng.random() < 0.05:
            break
        model = _model(rng, name, nodes, taste)
    return model


def _model(rng: Random, name: ModelName, nodes: Sequence[Node], taste: Taste) -> Model:
    """A model as large as some share of a device, with one or two peculiarities."""
    device = rng.choice([device for node in nodes for device in node.devices])
    share = rng.choice(taste.shares)
    size = (device.capacity_bytes - device.headroom_bytes) * share // 100
    want = _requirement(rng, size, nodes, taste)
    model = Model(
        name,
        want,
        concurrency=rng.choice((1, 1, 2, 4)),
        replicas_max=rng.choice((1, 1, 1, 2, 3)),
        priority=rng.choice((0, 0, 0, 5)),
        load_ms=rng.choice(taste.load_ms),
    )
    peculiar = rng.random() * 0.4 / taste.peculiar if taste.peculiar else 1.0
    if peculiar < 0.08:
        model = replace(model, replicas_min=1)
    elif peculiar < 0.16:
        model = replace(model, preload=True)
    elif peculiar < 0.28 and sum(len(node.devices) for node in nodes) > 1:
        node = rng.choice(nodes)
        pinned_devices = (rng.choice(node.devices).id,) if rng.random() < 0.7 else ()
        model = replace(model, pinned=True, pin=Pin(node.name, pinned_devices) if rng.random() < 0.7 else None)
    elif peculiar < 0.4:
        model = replace(model, idle_timeout_ms=rng.choice((500, 5_000, 30_000)))
    return model


KINDS = ("table", "host", "exclusive", "cpus", "memory", "memory", "backend", "types", "sizes", "labels", "across", "")


def _requirement(rng: Random, size: int, nodes: Sequence[Node], taste: Taste) -> Requirement:
    counts = rng.choice(taste.counts)
    want = Requirement({count: -(-size // count) for count in counts})
    match rng.choice(taste.kinds or KINDS):
        case "table":
            return replace(want, bytes_by_count={1: size, 2: size * 6 // 10})
        case "host":
            return replace(want, bytes_by_count={0: min(size, 8 * GIB)})
        case "exclusive":
            return replace(want, exclusive=True)
        case "cpus":
            return replace(want, millicpus=rng.choice((500, 2_000, 3_000)))
        case "memory":
            return replace(want, host_memory_bytes=rng.choice((1, 6, 12)) * GIB)
        case "backend":
            return replace(want, backend=rng.choice(nodes).backend)
        case "types":
            return replace(want, types=tuple(rng.sample(TYPES, 2)))
        case "sizes":
            return replace(want, device_memory_bytes=24 * GIB, total_device_memory_bytes=rng.choice((0, 48 * GIB)))
        case "labels":
            return replace(want, labels={"zone": "east"}, node_millicpus=rng.choice((0, 8_000)))
        case "across":
            return replace(want, bytes_by_count={2: -(-size // 2), 4: -(-size // 4)}, across_nodes=True)
    return want


def draw_running(rng: Random, nodes: Sequence[Node], models: Sequence[Model]) -> tuple[sc.ScenarioReplica, ...]:
    """A few plain models that run already when the clock starts."""
    free = {device.id: device.capacity_bytes - device.headroom_bytes for node in nodes for device in node.devices}
    found = []
    for model in models:
        want = model.requirement
        plain = want == Requirement(want.bytes_by_count) and 1 in want.bytes_by_count and not model.pinned
        if not plain or rng.random() < 0.5:
            continue
        size = want.bytes_by_count[1]
        for node in nodes:
            device = node.devices[0].id
            if size <= free[device]:
                free[device] -= size
                place = Placement((node.name,), (device,), (size,))
                running = rng.random() < 0.8
                leases = rng.randint(0, model.concurrency) if running else 0
                idle_ms = 0 if leases else rng.choice((0, 20_000))
                name = ReplicaId(f"{model.name}#1")
                found.append(sc.ScenarioReplica(name, model.name, place, running, leases, idle_ms))
                break
    return tuple(found)
