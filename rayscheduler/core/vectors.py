"""From chosen devices to the vector that everything derives from, and what each of several nodes has of it.

Rules of this file: no ranking and no state; what was chosen is given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from math import comb

from rayscheduler.core.fit import Choice
from rayscheduler.core.ledger import NodeAccount
from rayscheduler.core.types import Model, Placement

COMBINATIONS_MAX = 5_000  # of nodes, tried for a model across nodes that asks for total device memory


def share_of(model: Model, count: int, per_node: int) -> Model:
    """The model as one of its nodes sees it: its share of the devices, with the bytes of the whole count."""
    want = model.requirement
    return replace(
        model,
        requirement=replace(
            want,
            bytes_by_count={per_node: want.bytes_by_count[count]},
            total_device_memory_bytes=0,  # asked of all the nodes together
        ),
    )


def large_enough(
    ranked: list[tuple[NodeAccount, Choice]], nodes: int, total_bytes: int
) -> Sequence[tuple[NodeAccount, Choice]] | None:
    """The first `nodes` of them, in rank order, whose devices have `total_bytes` together. With many to choose
    from only the best and the largest are tried."""

    def capacity(account: NodeAccount) -> int:
        return sum(device.capacity_bytes for device in account.node.devices)

    largest = sorted(ranked, key=lambda w: -capacity(w[0]))[:nodes]
    every = combinations(ranked, nodes) if comb(len(ranked), nodes) <= COMBINATIONS_MAX else (ranked[:nodes], largest)
    for chosen in every:
        if sum(capacity(account) for account, _ in chosen) >= total_bytes:
            return chosen
    return None


def vector_of(model: Model, taken: Sequence[tuple[NodeAccount, Choice]]) -> Placement:
    """The vector for the chosen devices of one node, or of several in the order of their names."""
    devices = []
    sizes = []
    host_bytes = 0
    for account, choice in taken:
        for at in choice.indices:
            devices.append(account.node.devices[at].id)
            sizes.append(choice.option.device_bytes[at])
        host_bytes = choice.option.host_bytes
    return Placement(
        nodes=tuple(account.node.name for account, _ in taken),
        devices=tuple(devices),
        device_bytes=tuple(sizes),
        host_bytes=host_bytes,
        millicpus=model.requirement.millicpus,
    )
