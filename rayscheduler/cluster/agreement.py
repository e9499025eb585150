"""Does Ray hold for our replicas what the ledger says, and nothing else?

Rules of this file: `held_groups` and `remove_group` ask Ray's head and block; the comparison is pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import ray
from ray.util.placement_group import PlacementGroup, PlacementGroupID, placement_group_table

from rayscheduler.cluster.names import replica_of_placement_group
from rayscheduler.cluster.placement_groups import RayNode, bundles_of
from rayscheduler.core.lifecycle import State
from rayscheduler.core.types import NodeName, ReplicaId, Snapshot


@dataclass(frozen=True, slots=True)
class HeldGroup:
    """A placement group of a replica. `node_ids`: by bundle, "" where Ray has found no place yet."""

    id: str
    state: str
    bundles: tuple[Mapping[str, float], ...]
    node_ids: tuple[str, ...]


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
        )
        groups.setdefault(replica, []).append(held)
    return groups


def remove_group(group: str) -> None:
    """Let Ray end what runs in a placement group, and forget it. One that is gone already is no error."""
    ray.util.remove_placement_group(PlacementGroup(PlacementGroupID.from_hex(group)))


def differences(
    snapshot: Snapshot, groups: Mapping[ReplicaId, Sequence[HeldGroup]], nodes: Mapping[NodeName, RayNode]
) -> list[str]:
    """What Ray holds otherwise than the ledger, in words; [] where they agree.

    A PENDING replica holds nothing in Ray; of all others Ray holds exactly the ledger's vector, on its nodes.
    One that has lost a node is about to leave: nobody holds anything there, and the rest is on its way.
    """
    believed = {r.id: r.placement for r in snapshot.replicas if r.state != State.PENDING}
    problems = [f"{name} is in the ledger, but Ray holds nothing for it" for name in believed if name not in groups]
    for name, held in sorted(groups.items()):
        if name not in believed:
            problems.append(f"Ray holds a placement group for {name}, which is not in the ledger")
            continue
        if not nodes.keys() >= set(believed[name].nodes):
            continue
        expected = [(dict(b.resources), b.node_id) for b in bundles_of(believed[name], nodes)]
        for group in held:
            found = list(zip(map(dict, group.bundles), group.node_ids, strict=True))
            if found != expected:
                problems.append(f"{name} should hold {expected}, and Ray holds {found}")
        if len(held) > 1:
            problems.append(f"Ray holds {len(held)} placement groups for {name}")
    return problems
