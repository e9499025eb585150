"""Whether, and on which devices of a node, one replica fits: the one test that planner and committer share.

Rules of this file: no state and no ranking between nodes. What never changes for a model on a kind of
node (`needs_on`) is told apart from what is free at the moment (`choose`). Refusals are data.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations

from rayscheduler.core.ledger import NodeAccount, NodeRoom
from rayscheduler.core.types import Backend, Model, Node, Placement, Refusal, RefusalReason, Settings, Strategy


class Option:
    """One device count that a node could offer: which devices qualify and the bytes on each (by index)."""

    __slots__ = ("count", "device_bytes", "host_bytes", "indices")

    def __init__(self, count: int, indices: tuple[int, ...], device_bytes: tuple[int, ...], host_bytes: int) -> None:
        self.count = count
        self.indices = indices
        self.device_bytes = device_bytes
        self.host_bytes = host_bytes


class Needs:
    """What one replica of a model needs on one kind of node, fewest devices first."""

    __slots__ = ("best_type_rank", "exclusive", "millicpus", "options", "strategy", "total_bytes", "type_ranks")

    def __init__(self, model: Model, options: list[Option], type_ranks: tuple[int, ...], strategy: Strategy) -> None:
        self.options = options
        self.type_ranks = type_ranks
        self.best_type_rank = min((rank for rank in type_ranks if rank >= 0), default=-1)
        self.millicpus = model.requirement.millicpus
        self.total_bytes = model.requirement.total_device_memory_bytes
        self.exclusive = model.requirement.exclusive
        self.strategy = strategy

    def option(self, count: int) -> Option | None:
        """What is needed for that many devices, or None where the node does not offer as many."""
        for option in self.options:
            if option.count == count:
                return option
        return None


class Choice:
    """The devices chosen on one node, by index."""

    __slots__ = ("indices", "load", "option", "type_rank")

    def __init__(self, option: Option, indices: tuple[int, ...], load: int, type_rank: int) -> None:
        self.option = option
        self.indices = indices
        self.load = load
        self.type_rank = type_rank


class Freed:
    """What placements hold together on one node: what their exits would free there."""

    __slots__ = ("host", "millicpus", "sizes")

    def __init__(self, account: NodeAccount, placements: Iterable[Placement]) -> None:
        self.sizes = [0] * len(account.others)
        self.host = self.millicpus = 0
        name, index = account.node.name, account.index
        for place in placements:
            if name not in place.nodes:
                continue
            for device, size in zip(place.devices, place.device_bytes, strict=True):
                at = index.get(device)
                if at is not None:
                    self.sizes[at] += size
            self.host += place.host_bytes
            self.millicpus += place.millicpus


def needs_on(node: Node, model: Model, settings: Settings) -> Needs | Refusal:
    """What `model` needs on `node`, or why no amount of free memory would do there."""
    want = model.requirement
    pin = model.pin if model.pinned else None

    def refusal(reason: RefusalReason, needed: int | None = None, free: int | None = None) -> Refusal:
        return Refusal(node.name, reason, needed, free)

    def among(indices: list[int], count: int) -> list[int]:
        return indices if count <= 1 else [i for i in indices if not node.devices[i].is_slice]

    if want.backend is not None and node.backend != want.backend:
        return refusal(RefusalReason.BACKEND)
    counts = sorted(want.bytes_by_count)
    host_only_refused = node.backend != Backend.CPU and not settings.cpu_models_on_gpu_nodes
    if host_only_refused and counts == [0]:
        return refusal(RefusalReason.BACKEND)
    ranks = tuple([want.types.index(d.type) if d.type in want.types else -1 for d in node.devices])
    if want.types and node.devices and max(ranks) < 0:
        return refusal(RefusalReason.TYPE)
    if not want.labels.items() <= node.labels.items():
        return refusal(RefusalReason.LABELS)
    most_needed_cpus = max(want.node_millicpus, want.millicpus)
    if node.millicpus is not None and node.millicpus < most_needed_cpus:
        return refusal(RefusalReason.CPUS)
    typed = [i for i, rank in enumerate(ranks) if rank >= 0 or not want.types]
    if pin is not None:
        if pin.node != node.name:
            return refusal(RefusalReason.DEVICES)
        if pin.devices:
            typed = [i for i in typed if node.devices[i].id in pin.devices]
            counts = [count for count in counts if count == len(pin.devices)]
    if host_only_refused:
        counts = [count for count in counts if count > 0]
    counts = [count for count in counts if count <= len(among(typed, count))]
    if not counts:
        return refusal(RefusalReason.DEVICES)
    large = [i for i in typed if node.devices[i].capacity_bytes >= want.device_memory_bytes]
    roomy = [count for count in counts if count <= len(among(large, count))]
    if not roomy:
        sizes = sorted((node.devices[i].capacity_bytes for i in typed), reverse=True)
        smallest = max(1, counts[0])
        free = sizes[smallest - 1] if len(sizes) >= smallest else 0
        return refusal(RefusalReason.DEVICE_MEMORY, want.device_memory_bytes, free)
    sizes_of = {n: sorted((node.devices[i].capacity_bytes for i in among(large, n)), reverse=True) for n in roomy}
    offered = [count for count in roomy if sum(sizes_of[count][:count]) >= want.total_device_memory_bytes]
    if not offered:
        most = sum(sizes_of[roomy[-1]][: roomy[-1]])
        return refusal(RefusalReason.TOTAL_DEVICE_MEMORY, want.total_device_memory_bytes, most)
    options = [_option(node, model, count, tuple(among(large, count))) for count in offered]
    return Needs(model, options, ranks, settings.strategy)


def _option(node: Node, model: Model, count: int, indices: tuple[int, ...]) -> Option:
    want = model.requirement
    each = want.bytes_by_count[count]
    if count == 0:
        return Option(0, (), (), want.host_memory_bytes + each)
    if want.exclusive:
        # A whole device is held, but the model still has to fit into it.
        sizes = tuple(max(each, d.capacity_bytes - d.headroom_bytes) for d in node.devices)
    else:
        sizes = (each,) * len(node.devices)
    return Option(count, indices, sizes, want.host_memory_bytes)


def choose(
    room: NodeRoom,
    needs: Needs,
    freed: Sequence[int] | None = None,
    freed_host: int = 0,
    freed_millicpus: int = 0,
    only_count: int | None = None,
) -> Choice | None:
    """The best devices of one node for one replica, or None.

    `freed` (bytes by device index), `freed_host` and `freed_millicpus` are counted as free besides: what
    victims would leave. Fewest devices; then preferred types; then least loaded (`pack`: most loaded); then index.
    """
    for option, fitting in _fitting(room, needs, freed, freed_host, freed_millicpus, only_count):
        if option.count == 0:
            return Choice(option, (), 0, 0)
        taken = _pick(room, needs, option.count, fitting)
        if taken is not None:
            load = sum(map(room.load.__getitem__, taken))
            return Choice(option, taken, load, max(map(needs.type_ranks.__getitem__, taken)))
    return None


def fits(
    room: NodeRoom,
    needs: Needs,
    freed: Sequence[int] | None = None,
    freed_host: int = 0,
    freed_millicpus: int = 0,
) -> bool:
    """Whether `choose` would find devices, without choosing."""
    if needs.total_bytes:
        return choose(room, needs, freed, freed_host, freed_millicpus) is not None
    return any(True for _ in _fitting(room, needs, freed, freed_host, freed_millicpus, None))


def _fitting(
    room: NodeRoom,
    needs: Needs,
    freed: Sequence[int] | None,
    freed_host: int,
    freed_millicpus: int,
    only_count: int | None,
) -> Iterator[tuple[Option, list[int]]]:
    """The options of which a node has the host memory and the devices, fewest first, with those devices."""
    if needs.millicpus > room.free_millicpus + freed_millicpus:
        return
    free = room.free if freed is None else [mine + more for mine, more in zip(room.free, freed, strict=True)]
    host_free = room.free_host + freed_host
    shared = room.node.device_is_host_memory
    if shared and freed is not None:
        free[0] += freed_host
        host_free = free[0]
    for option in needs.options:
        if only_count is not None and option.count != only_count:
            continue
        host = option.host_bytes
        if host > host_free:
            continue
        sizes = option.device_bytes
        if shared and host:
            fitting = [i for i in option.indices if sizes[i] + host <= free[i]]
        else:
            fitting = [i for i in option.indices if sizes[i] <= free[i]]
        if len(fitting) >= option.count:
            yield option, fitting


def _pick(room: NodeRoom, needs: Needs, count: int, fitting: list[int]) -> tuple[int, ...] | None:
    """`count` of the fitting devices, together large enough: the least preferred type among them as preferred
    as can be, then the least load of all of them, then indices."""
    load, ranks = room.load, needs.type_ranks
    devices, near = room.node.devices, fitting
    if needs.best_type_rank >= 0:
        worst = sorted(ranks[i] for i in fitting)[count - 1]
        near = [i for i in fitting if ranks[i] <= worst]
    first = sorted(near, key=load.__getitem__, reverse=needs.strategy is Strategy.PACK)[:count]
    if not needs.total_bytes or sum(devices[i].capacity_bytes for i in first) >= needs.total_bytes:
        return tuple(sorted(first))
    sign = 1 if needs.strategy is Strategy.SPREAD else -1
    enough = [
        taken
        for taken in combinations(fitting, count)
        if sum(devices[i].capacity_bytes for i in taken) >= needs.total_bytes
    ]
    if not enough:
        return None
    best = min(
        enough,
        key=lambda taken: (max(ranks[i] for i in taken), sign * sum(load[i] for i in taken), sorted(taken)),
    )
    return tuple(sorted(best))


def shortage(room: NodeRoom, needs: Needs, model: Model) -> Refusal:
    """Why nothing fits on a node that could hold the model in principle, nobody evicted."""
    name = room.node.name
    if needs.millicpus > room.free_millicpus:
        return Refusal(name, RefusalReason.CPUS)
    largest = needs.options[-1]
    host = min(option.host_bytes for option in needs.options)
    if host > room.free_host:
        return Refusal(name, RefusalReason.HOST_MEMORY, host, max(0, room.free_host))
    if needs.exclusive and sum(map(room.is_whole, largest.indices)) < largest.count:
        return Refusal(name, RefusalReason.EXCLUSIVE)
    free = sorted((room.free[i] for i in largest.indices), reverse=True)
    least = max(0, free[largest.count - 1]) if free else 0
    each = model.requirement.bytes_by_count[largest.count]
    return Refusal(name, RefusalReason.MEMORY, each, least)
