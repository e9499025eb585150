"""The allocator's state as one dictionary, for people and programs.

Rules of this file: pure; it joins the core's snapshot with what the roster, the nodes and the catalog know.
Nothing secret goes in: an engine's key is not part of it.
"""

from __future__ import annotations

from typing import Any

from rayscheduler.cluster.adapters import Adapters
from rayscheduler.cluster.catalog import Catalog
from rayscheduler.cluster.figure_book import REFUSED_CODE, FigureBook
from rayscheduler.cluster.membership import KnownNode, Membership
from rayscheduler.cluster.reports import ForeignProcess
from rayscheduler.cluster.roster import Roster, RunnerRecord
from rayscheduler.config.adapters import AdapterSection
from rayscheduler.core.lifecycle import State
from rayscheduler.core.types import (
    Model,
    ModelName,
    ModelSnapshot,
    NodeSnapshot,
    ReplicaSnapshot,
    Requirement,
    Snapshot,
)

Json = dict[str, Any]

MEND = 'it lends nothing; restart it with: ray start --address={address} --resources="$(rayscheduler resources)"'
_COMING = (State.PENDING, State.STARTING)


def status_of(
    snapshot: Snapshot,
    membership: Membership,
    roster: Roster,
    catalog: Catalog,
    figures: FigureBook,
    adapters: Adapters,
    head: Json,
) -> Json:
    """All of it. `head`: what the allocator says of itself, first keys of the answer."""
    by_model: dict[str, list[ReplicaSnapshot]] = {}
    for replica in snapshot.replicas:
        by_model.setdefault(replica.model, []).append(replica)
    return {
        **head,
        "nodes": _nodes(snapshot, membership, str(head["address"])),
        "replicas": [_replica(replica, roster, adapters, snapshot.now_ms) for replica in snapshot.replicas],
        "models": _models(snapshot, by_model, catalog, figures),
        "adapters": [_adapter(each, by_model.get(each.base, []), adapters) for each in catalog.config.adapters],
        "queue": [
            {
                "request": waiting.request,
                "model": waiting.model,
                "priority": waiting.priority,
                "waited_s": _seconds(snapshot.now_ms - waiting.arrived_ms),
                "position": position,
            }
            for position, waiting in enumerate(snapshot.waiting, start=1)
        ],
    }


def _nodes(snapshot: Snapshot, membership: Membership, address: str) -> list[Json]:
    believed = {node.node.name: node for node in snapshot.nodes}
    known = sorted(membership.nodes.values(), key=lambda node: (node.name, node.node_id))
    return [_node(node, believed.get(node.name) if node.alive else None, address) for node in known]


def _node(known: KnownNode, believed: NodeSnapshot | None, address: str) -> Json:
    return {
        "name": known.name,
        "node_id": known.node_id,
        "alive": known.alive,
        "lends": known.lends,
        "mend": _mend(known, address),
        "backend": known.inventory.backend.value if known.inventory else None,
        "simulated": known.inventory.simulated if known.inventory else False,
        "cpus": known.millicpus / 1000,
        "driver": known.inventory.driver or None if known.inventory else None,
        "devices": _devices(known, believed) if believed else [],
    }


def _mend(known: KnownNode, address: str) -> str | None:
    if not known.alive:
        return None
    if not known.lends:
        return MEND.format(address=address)
    if known.inventory is None:
        return "its agent has not reported yet"
    if known.lost_devices:
        lost = "; ".join(f"device {index} is lost: {why}" for index, why in sorted(known.lost_devices.items()))
        return f"{lost}; look at nvidia-smi or amd-smi there, and reset it; it is offered again once it is back"
    return None


def _devices(known: KnownNode, believed: NodeSnapshot) -> list[Json]:
    lent = {device.index: device for device in known.inventory.devices} if known.inventory else {}
    devices = []
    for seen in believed.devices:
        index = int(seen.device.id.rpartition("/")[2])
        reading = known.readings.get(index)
        devices.append(
            {
                "id": seen.device.id,
                "type": seen.device.type,
                "uuid": lent[index].uuid if index in lent else "",
                "compute_capability": (lent[index].compute_capability or None) if index in lent else None,
                "offered": seen.offered,
                "capacity_bytes": seen.device.capacity_bytes,
                "reserved_bytes": seen.reserved_bytes,
                "used_by_others_bytes": seen.used_by_others_bytes,
                "measured_bytes": reading.measured_bytes if reading else None,
                "free_bytes": max(0, seen.free_bytes),
                "foreign": [_foreign(process) for process in known.foreign if process.index == index],
            }
        )
    return devices


def _foreign(process: ForeignProcess) -> Json:
    """A program on a device that is none of our engines'. Null where it cannot be known."""
    return {
        "pid": process.pid,
        "name": process.name or None,
        "user": process.user or None,
        "held_bytes": process.held_bytes,
        "left_by": process.replica or None,
    }


def _replica(replica: ReplicaSnapshot, roster: Roster, adapters: Adapters, now_ms: int) -> Json:
    record = roster.records.get(replica.id)
    report = record.report if record else None
    idle = replica.state == State.RUNNING and not replica.leases
    place = replica.placement
    return {
        "id": replica.id,
        "model": replica.model,
        "state": str(replica.state),
        "nodes": list(place.nodes),
        "devices": list(place.devices),
        "device_bytes": list(place.device_bytes),
        "host_bytes": place.host_bytes,
        "measured_bytes": record.measured_bytes if record else None,
        "measured_device_bytes": record.measured_device_bytes() if record else [None] * len(place.devices),
        "leases": replica.leases,
        "adapters": adapters.held(replica.id),
        "since_s": _seconds(now_ms - replica.state_since_ms),
        "idle_s": _seconds(now_ms - replica.last_used_ms) if idle else None,
        "pinned": replica.pinned,
        "endpoint": (report.endpoint or None) if report else None,
        "runner": str(report.state) if report else None,
        "runner_pid": report.runner_pid if report else None,
        "engine_pid": (report.engine_pid or None) if report else None,
        "parts": _parts(record),
        "load_ms": (report.load_ms or None) if report else None,
        "makes_way_for": replica.makes_way_for,
        "waits_for": list(replica.waits_for),
    }


def _parts(record: RunnerRecord | None) -> list[Json]:
    """What runs of a replica on each of its nodes, the one that serves first; [] before its runner was heard."""
    if record is None or record.report is None:
        return []
    return [
        {
            "node": node,
            "runner_pid": part.runner_pid,
            "engine_pid": part.engine_pid or None,
            "measured_bytes": record.measured[node].all_bytes if node in record.measured else None,
        }
        for node, part in zip(record.launch.placement.nodes, record.report.parts, strict=False)
    ]


def _models(
    snapshot: Snapshot, by_model: dict[str, list[ReplicaSnapshot]], catalog: Catalog, figures: FigureBook
) -> list[Json]:
    """Those that the core has, and those of the catalog that it has not (yet): nobody knows what they take."""
    told = [_model(model, by_model.get(model.model.name, []), catalog, snapshot.now_ms) for model in snapshot.models]
    unknown = {entry.name for entry in catalog} - {model["name"] for model in told}
    for name in unknown:
        model = Model(ModelName(name), Requirement(bytes_by_count={}))
        told.append(_model(ModelSnapshot(model, False, 0, None, 0, ""), [], catalog, snapshot.now_ms))
    for model_told in told:
        name = model_told["name"]
        problem = figures.problem(name)
        model_told["memory"] = figures.status(name)
        if problem is not None:
            model_told["last_error"] = problem["message"]
        if name in unknown:
            model_told["state"] = "sizing" if problem is None else _unknown_state(problem["code"])
    return sorted(told, key=lambda each: each["name"])


def _adapter(adapter: AdapterSection, of_base: list[ReplicaSnapshot], adapters: Adapters) -> Json:
    return {
        "name": adapter.name,
        "aliases": list(adapter.aliases),
        "base": adapter.base,
        "source": adapter.source,
        "replicas": [replica.id for replica in of_base if adapter.name in adapters.held(replica.id)],
    }


def _unknown_state(code: str) -> str:
    """`refused`: what its entry says cannot be true. `unsized`: nobody can say what it takes."""
    return "refused" if code == REFUSED_CODE else "unsized"


def _model(model: ModelSnapshot, replicas: list[ReplicaSnapshot], catalog: Catalog, now_ms: int) -> Json:
    entry = catalog.entry(model.model.name)
    backoff_ms = None if model.backoff_until_ms is None else model.backoff_until_ms - now_ms
    states = {replica.state for replica in replicas}
    if State.RUNNING in states or State.DRAINING in states:
        state = "loaded"
    elif states & set(_COMING):
        state = "loading"
    else:
        state = "unloaded" if backoff_ms is None else "backing_off"
    sizes = model.model.requirement.bytes_by_count
    fewest = min(sizes, default=0)
    return {
        "name": model.model.name,
        "aliases": list(entry.aliases) if entry else [],
        "engine": str(entry.engine) if entry else None,
        "kind": entry.kind if entry else None,
        "state": state,
        "replicas": [replica.id for replica in replicas],
        "waiting": model.waiting,
        "wanted": model.wanted,
        "pinned": model.model.pinned,
        "memory_bytes": max(1, fewest) * sizes[fewest] if sizes else 0,
        "concurrency": model.model.concurrency,
        "load_ms": model.model.load_ms,
        "backoff_s": None if backoff_ms is None else _seconds(backoff_ms),
        "failures": model.failures,
        "last_error": model.last_error or None,
    }


def _seconds(duration_ms: int) -> float:
    return round(max(0, duration_ms) / 1000, 3)
