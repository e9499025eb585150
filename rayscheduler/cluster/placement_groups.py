"""A placement as Ray holds it: one bundle per node, with exactly the ledger's bytes of each device.

One that can sleep has two groups: its runner's, with its cpus, for as long as it lives, and one of its devices' bytes,
which is replaced when it has gone to sleep and before it wakes, since Ray's groups cannot shrink or grow.

Rules of this file: pure. A bundle asks for bytes / 2^20 rounded *down* at the fourth decimal, Ray's
smallest unit, so that the bundles of a device never exceed its total where the ledger's bytes do not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from rayscheduler.cluster.names import NODE_ID_LABEL, resource_name
from rayscheduler.core.types import Backend, NodeName, Placement

UNITS_PER_ONE = 10_000  # Ray counts resources in ten-thousandths
MIB = 2**20


@dataclass(frozen=True, slots=True)
class Bundle:
    """What a replica takes of one Ray node. `node_id`: Ray's, in hex."""

    node_id: str
    resources: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class RayNode:
    """What a bundle needs to know of a node: its id and address in Ray, and what its devices are called there."""

    node_id: str
    address: str
    backend: Backend
    device_is_host_memory: bool


def mib_of(size_bytes: int) -> float:
    """Bytes as Ray's MiB, rounded down at the fourth decimal."""
    return (size_bytes * UNITS_PER_ONE // MIB) / UNITS_PER_ONE


def bundles_of(placement: Placement, nodes: Mapping[NodeName, RayNode]) -> tuple[Bundle, ...]:
    """The bundles of a replica, in the order of the placement's nodes."""
    return tuple(_bundle(name, nodes[name], placement) for name in placement.nodes)


def runner_bundle(placement: Placement, nodes: Mapping[NodeName, RayNode]) -> Bundle:
    """What the runner of a replica that can sleep has for itself."""
    (bundle,) = bundles_of(replace(placement, devices=(), device_bytes=()), nodes)
    return bundle


def device_bundle(placement: Placement, nodes: Mapping[NodeName, RayNode]) -> Bundle:
    """What a replica that can sleep has of its devices: of its vector awake, or asleep."""
    (bundle,) = bundles_of(replace(placement, host_bytes=0, millicpus=0), nodes)
    return bundle


def bytes_on(placement: Placement, node: NodeName) -> dict[int, int]:
    """What a placement takes of a node's devices: bytes by device index, in the placement's order."""
    taken: dict[int, int] = {}
    for device, size in zip(placement.devices, placement.device_bytes, strict=True):
        owner, _, index = device.rpartition("/")
        if owner == node:
            taken[int(index)] = size
    return taken


def serve_options(bundles: Sequence[Bundle]) -> dict[str, object]:
    """The options of a Serve deployment whose one replica takes these bundles; its actor asks for nothing more."""
    return {
        "placement_group_bundles": [dict(bundle.resources) for bundle in bundles],
        "placement_group_strategy": "STRICT_PACK" if len(bundles) == 1 else "STRICT_SPREAD",
        "placement_group_bundle_label_selector": [{NODE_ID_LABEL: bundle.node_id} for bundle in bundles],
    }


def _bundle(name: NodeName, node: RayNode, placement: Placement) -> Bundle:
    kind = "cpu" if node.backend is Backend.CPU else "gpu"
    charged = {resource_name(kind, index): size for index, size in bytes_on(placement, name).items()}
    if node.device_is_host_memory and placement.host_bytes:
        # The ledger charges host memory to the device that is the host's memory; so does the bundle.
        lent = resource_name(kind, 0)
        charged[lent] = charged.get(lent, 0) + placement.host_bytes
    resources = {resource: mib_of(size) for resource, size in charged.items()}
    if placement.millicpus:
        resources["CPU"] = placement.millicpus / 1000
    resources = {resource: amount for resource, amount in resources.items() if amount > 0}
    # Ray takes no empty bundle. Every node has 1 of the resource named after its address.
    return Bundle(node.node_id, resources or {f"node:{node.address}": 1 / UNITS_PER_ONE})
