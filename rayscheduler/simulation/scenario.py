"""A scenario as values: a cluster, a catalog, what already runs, and what happens when.

Rules of this file: values of the core and nothing else; who made them (a file, a test, a seed) is not
known here. Everything in a `Scenario` has been checked: names are unique, the start state fits, events
are in time order. Times are milliseconds since the scenario's start.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from rayscheduler.core.types import (
    DeviceId,
    Model,
    ModelName,
    Node,
    NodeName,
    Placement,
    ReplicaId,
    RequestId,
    Settings,
)


@dataclass(frozen=True, slots=True)
class ScenarioReplica:
    """A replica that is there when the clock starts. `idle_ms`: unleased for so long (0 with leases).

    `keeps`: it sleeps, and holds this; `placement` is what it holds awake.
    """

    id: ReplicaId
    model: ModelName
    placement: Placement
    running: bool = True  # False: starting, and its load begins at 0
    leases: int = 0
    idle_ms: int = 0
    keeps: Placement | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """A client asks. `duration_ms` None: served until `End`. `deadline_ms`: waits no longer than this.

    `priority` None: its model's; a tier has become a priority already.
    """

    request: RequestId
    model: ModelName
    duration_ms: int | None = None
    priority: int | None = None
    deadline_ms: int | None = None  # a duration, counted from the arrival


@dataclass(frozen=True, slots=True)
class End:
    request: RequestId


@dataclass(frozen=True, slots=True)
class Cancel:
    request: RequestId


@dataclass(frozen=True, slots=True)
class Load:
    model: ModelName


@dataclass(frozen=True, slots=True)
class Unload:
    model: ModelName


@dataclass(frozen=True, slots=True)
class Pin:
    model: ModelName


@dataclass(frozen=True, slots=True)
class Unpin:
    model: ModelName


@dataclass(frozen=True, slots=True)
class Remove:
    model: ModelName


@dataclass(frozen=True, slots=True)
class NodeUp:
    node: Node


@dataclass(frozen=True, slots=True)
class NodeDown:
    node: NodeName


@dataclass(frozen=True, slots=True)
class DeviceDown:
    device: DeviceId


@dataclass(frozen=True, slots=True)
class Observe:
    device: DeviceId
    used_by_others_bytes: int


@dataclass(frozen=True, slots=True)
class LoadFails:
    """The next load of the model fails at the moment at which it would be ready."""

    model: ModelName


@dataclass(frozen=True, slots=True)
class Crash:
    """The model's replica with the lowest serial dies."""

    model: ModelName


@dataclass(frozen=True, slots=True)
class Shutdown:
    pass


Happening = (
    Request
    | End
    | Cancel
    | Load
    | Unload
    | Pin
    | Unpin
    | Remove
    | NodeUp
    | NodeDown
    | DeviceDown
    | Observe
    | LoadFails
    | Crash
    | Shutdown
)


@dataclass(frozen=True, slots=True)
class At:
    """One entry of `events:`."""

    at_ms: int
    what: Happening


@dataclass(frozen=True, slots=True)
class Scenario:
    """A whole file. A model's load time is its `load_ms`; how long its replicas take to leave stands here."""

    settings: Settings = field(default_factory=Settings)
    nodes: tuple[Node, ...] = ()
    models: tuple[Model, ...] = ()
    unload_ms: Mapping[ModelName, int] = field(default_factory=dict)
    replicas: tuple[ScenarioReplica, ...] = ()
    events: tuple[At, ...] = ()
    until_ms: int | None = None
