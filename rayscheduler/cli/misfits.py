"""Which models of a catalog can never run on the nodes that are there: said at `up`, before anybody asks.

Rules of this file: nothing is judged here. The core is asked, as a request would ask it, on nodes as the
status shows them, about models that say their memory; what the status does not show (labels) is taken to be
as the model wants it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rayscheduler.cluster.catalog import core_model
from rayscheduler.cluster.names import DEVICES_LABEL, REAL, SIMULATED
from rayscheduler.config.service import ServiceConfig
from rayscheduler.core.decisions import Reject
from rayscheduler.core.events import ModelDeployed, NodeJoined, RequestArrived
from rayscheduler.core.scheduler import Scheduler
from rayscheduler.core.types import Backend, Device, DeviceId, Model, Node, NodeName, RejectCode, RequestId


def misfits(config: ServiceConfig, status: Mapping[str, Any]) -> list[str]:
    """One line for each model that no node can hold, in the words of the 422 that its requests get."""
    nodes = [node for node in status["nodes"] if node["devices"]]
    if not nodes:
        return []
    stated = [core_model(entry, entry.bytes_by_count()) for entry in config.models if entry.says_memory]
    return [line for model in stated if (line := _refusal(config, model, nodes))]


def _refusal(config: ServiceConfig, model: Model, nodes: list[Mapping[str, Any]]) -> str | None:
    scheduler = Scheduler(config.settings())
    for node in nodes:
        scheduler.handle(NodeJoined(_core_node(node, model)), 0)
    scheduler.handle(ModelDeployed(model), 0)
    for decision in scheduler.handle(RequestArrived(RequestId("would it fit?"), model.name), 0):
        if isinstance(decision, Reject) and decision.code is RejectCode.NEVER_FITS:
            return decision.message
    return None


def _core_node(node: Mapping[str, Any], model: Model) -> Node:
    backend = Backend(node["backend"])
    kind = SIMULATED if node["simulated"] else REAL
    return Node(
        name=NodeName(node["name"]),
        backend=backend,
        devices=tuple(
            Device(DeviceId(device["id"]), device["capacity_bytes"], type=device["type"]) for device in node["devices"]
        ),
        millicpus=round(node["cpus"] * 1000),
        memory_bytes=sum(d["capacity_bytes"] for d in node["devices"]) if backend is Backend.CPU else None,
        labels={**model.requirement.labels, DEVICES_LABEL: kind},
        device_is_host_memory=backend is Backend.CPU,
    )
