"""Does Ray hold for our replicas what the ledger says, and nothing else?

Rules of this file: `held_groups`, `make_group` and `remove_group` ask Ray's head and block; the comparison is pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import ray
from ray.util.placement_group import PlacementGroup, PlacementGroupID, placement_group_table

from rayscheduler.cluster.names import NODE_ID_LABEL, is_device_group, replica_of_placement_group
from rayscheduler.cluster.placement_groups import Bundle, RayNode, bundles_of
from rayscheduler.core.lifecycle import State
from rayscheduler.core.types import NodeName, ReplicaId, Snapshot

_ON_THE_WAY = (State.SUSPENDING, State.ROUSED, State.WAKING)  # Ray holds what it takes asleep, or awake, or neither


@dataclass(frozen=True, slots=True)
class HeldGroup:
    """A placement group of a replica. `node_ids`: by bundle, "" where Ray has found no place yet."""

    id: str
    state: str
    bundles: tuple[Mapping[str, float], ...]
    node_ids: tuple[str, ...]
    name: str = ""

    @property
    def is_of_devices(self) -> bool:
        """Whether it is the second one of a replica that can sleep, without its runner."""
        return is_device_group(self.name)


def held_groups() -> dict[ReplicaId, list[HeldGroup]]:
    """The placement groups that Ray holds for replicas, or tries to."""
    groups: dict[ReplicaId, list[HeldGroup]] = {}
    for group, entry in placement_group_table().items():
        replica = replica_of_placement_group(entry["name"])
        if replica is None or entry["state"] == "REMOVED":
            continue
        order = sorted(entry["bundles"])
        nodes = entry.get("bundles_to_node_id", {})
        held = HeldGroup(
            group,
            entry["state"],
            tuple(entry["bundles"][index] for index in order),
            tuple(nodes.get(index) or "" for index in order),
            entry["name"],
        )
        groups.setdefault(replica, []).append(held)
    return groups


def make_group(name: str, bundle: Bundle) -> None:
    """Have Ray hold this on its node, as soon as it is free there; it outlives whoever asked for it."""
    selector = [{NODE_ID_LABEL: bundle.node_id}]
    bundles = [dict(bundle.resources)]
    ray.util.placement_group(bundles, "STRICT_PACK", name, "detached", bundle_label_selector=selector)


def remove_group(group: str) -> None:
    """Let Ray end what runs in a placement group, and forget it. One that is gone already is no error."""
    ray.util.remove_placement_group(PlacementGroup(PlacementGroupID.from_hex(group)))


def differences(
    snapshot: Snapshot, groups: Mapping[ReplicaId, Sequence[HeldGroup]], nodes: Mapping[NodeName, RayNode]
) -> list[str]:
    """What Ray holds otherwise than the ledger, in words; [] where they agree.

    A PENDING replica holds nothing in Ray; of all others Ray holds exactly the ledger's vector, on its nodes: of one
    that sleeps, what it keeps; between the two nothing is compared. A replica that can sleep has two groups, of which
    the sum counts. One that has lost a node is about to leave: nobody holds anything there, and the rest is on its way.
    """
    there = [r for r in snapshot.replicas if r.state != State.PENDING]
    believed = {r.id: r.holds if r.state == State.ASLEEP else r.placement for r in there}
    turning = {r.id for r in there if r.state in _ON_THE_WAY}
    problems = [f"{name} is in the ledger, but Ray holds nothing for it" for name in believed if name not in groups]
    for name, held in sorted(groups.items()):
        if name not in believed:
            problems.append(f"Ray holds a placement group for {name}, which is not in the ledger")
            continue
        if name in turning or not nodes.keys() >= set(believed[name].nodes):
            continue
        expected = [(_counted(b.resources), b.node_id) for b in bundles_of(believed[name], nodes)]
        found = _together(held)
        if found != expected:
            problems.append(f"{name} should hold {expected}, and Ray holds {found}")
        for of_devices in (False, True):
            of_kind = sum(group.is_of_devices is of_devices for group in held)
            if of_kind > 1:
                problems.append(f"Ray holds {of_kind} placement groups for {name}")
    return problems


def _together(groups: Sequence[HeldGroup]) -> list[tuple[dict[str, float], str]]:
    """What the groups of a replica hold together, in the order of its runner's bundles."""
    by_node: dict[str, dict[str, float]] = {}
    for group in sorted(groups, key=lambda group: group.is_of_devices):
        for bundle, node_id in zip(group.bundles, group.node_ids, strict=True):
            sums = by_node.setdefault(node_id, {})
            for resource, amount in _counted(bundle).items():
                sums[resource] = sums.get(resource, 0) + amount
    return [(resources, node_id) for node_id, resources in by_node.items()]


def _counted(resources: Mapping[str, float]) -> dict[str, float]:
    """Without what only stands for nothing in a bundle, which Ray does not take empty."""
    return {name: amount for name, amount in resources.items() if not name.startswith("node:")}
