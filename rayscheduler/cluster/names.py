"""The names under which the parts of the service find each other in Ray.

Rules of this file: constants and pure functions; every name that two modules share is made here.
"""

from __future__ import annotations

import re

from rayscheduler.core.types import ReplicaId

NAMESPACE = "rayscheduler"
ALLOCATOR = "allocator"
GATEWAY_APP = "rayscheduler"
RUNNER_DEPLOYMENT = "Runner"
APP_PREFIX = "rs-replica:"
DEVICE_GROUP = "rayscheduler"
LOCAL_OPERATOR = "local operator"  # as the audit log calls whoever asks through Ray
KV_NAMESPACE = b"rayscheduler"

SIMULATED_RESOURCE = "simulated-devices"
NODE_ID_LABEL = "ray.io/node-id"
NODE_NAME_LABEL = "rayscheduler.io/name"  # what to call a node, if not by its host's name
DEVICES_LABEL = "rayscheduler.io/devices"  # on a node in the core: REAL or SIMULATED
REAL, SIMULATED = "real", "simulated"

_RESOURCE = re.compile(r"(gpu|cpu)-(0|[1-9][0-9]{0,3})-mib")


def resource_name(kind: str, index: int) -> str:
    """The custom resource that holds the lendable MiB of a device. `kind`: `gpu` or `cpu`."""
    return f"{kind}-{index}-mib"


def device_of_resource(name: str) -> tuple[str, int] | None:
    """Kind and index of the device that a resource stands for; None for any other resource."""
    match = _RESOURCE.fullmatch(name)
    return (match.group(1), int(match.group(2))) if match else None


def app_name(replica: ReplicaId) -> str:
    """The Serve application of a replica. Serve takes `:` and `/` in names, but no `#`."""
    model, _, serial = replica.rpartition("#")
    return f"{APP_PREFIX}{model}@{serial}"


def replica_of_app(app: str) -> ReplicaId | None:
    """The replica whose application this is; None for applications that are not ours."""
    if not app.startswith(APP_PREFIX):
        return None
    model, at, serial = app[len(APP_PREFIX) :].rpartition("@")
    return ReplicaId(f"{model}#{serial}") if at and serial.isdigit() else None


def placement_group_prefix(app: str) -> str:
    """How Serve begins the names of the placement groups of an application's runner."""
    return f"SERVE_REPLICA::{app}#{RUNNER_DEPLOYMENT}#"


def device_group_name(replica: ReplicaId, what: str) -> str:
    """The placement group of the devices' bytes of a replica that can sleep. `what`: `awake`, or `asleep-NAP`."""
    return f"{DEVICE_GROUP}::{what}::{replica}"


def is_device_group(name: str) -> bool:
    return name.startswith(f"{DEVICE_GROUP}::")


def replica_of_placement_group(name: str) -> ReplicaId | None:
    """The replica that a placement group belongs to; None if it is not one of ours."""
    kind, _, rest = name.partition("::")
    if kind == DEVICE_GROUP:
        return ReplicaId(rest.partition("::")[2])
    app, mark, _ = rest.rpartition(f"#{RUNNER_DEPLOYMENT}#")
    return replica_of_app(app) if kind == "SERVE_REPLICA" and mark else None


def agent_name(node_id: str) -> str:
    return f"node-agent-{node_id}"
