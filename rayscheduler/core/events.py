"""What has happened, in the past tense: the only thing that goes into `Scheduler.handle`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from rayscheduler.core.types import (
    DeviceId,
    HolderId,
    Model,
    ModelName,
    Node,
    NodeName,
    Placement,
    ReplicaId,
    RequestId,
    Rest,
    Word,
)

NOBODY = HolderId("")


class FailureKind(Word):
    """`LOAD`: it never became ready. `CRASH`: it died while starting or running, through no load error."""

    LOAD = "load_failed"
    CRASH = "crashed"


@dataclass(frozen=True, slots=True)
class NodeJoined:
    node: Node


@dataclass(frozen=True, slots=True)
class NodeLost:
    """The node and every process on it are certainly gone."""

    node: NodeName


@dataclass(frozen=True, slots=True)
class DeviceLost:
    device: DeviceId


@dataclass(frozen=True, slots=True)
class DeviceReturned:
    """A device that was lost is of use again."""

    device: DeviceId


@dataclass(frozen=True, slots=True)
class MemoryObserved:
    """A reading of one device: what programs that are not ours hold there."""

    device: DeviceId
    used_by_others_bytes: int


@dataclass(frozen=True, slots=True)
class ModelDeployed:
    """A catalog entry is new or has changed."""

    model: Model


@dataclass(frozen=True, slots=True)
class ModelRemoved:
    model: ModelName


@dataclass(frozen=True, slots=True)
class RequestArrived:
    """Somebody wants a lease. `priority` None: its model's. `deadline_ms` is an instant, not a duration."""

    request: RequestId
    model: ModelName
    priority: int | None = None
    deadline_ms: int | None = None
    holder: HolderId = NOBODY


@dataclass(frozen=True, slots=True)
class RequestEnded:
    """A granted request is done, or a waiting one was given up by its client."""

    request: RequestId


@dataclass(frozen=True, slots=True)
class HolderLost:
    """A gateway or client died: all that it held or waited for has ended."""

    holder: HolderId


@dataclass(frozen=True, slots=True)
class LoadAsked:
    model: ModelName


@dataclass(frozen=True, slots=True)
class UnloadAsked:
    model: ModelName


@dataclass(frozen=True, slots=True)
class PinAsked:
    """The operator pins a model (its replicas are immovable from now on), or lets it go."""

    model: ModelName
    pinned: bool


@dataclass(frozen=True, slots=True)
class ReplicaStarted:
    """The engine answers. `load_ms`: how long that took, where it was measured."""

    replica: ReplicaId
    load_ms: int | None = None


@dataclass(frozen=True, slots=True)
class ReplicaFailed:
    """The engine is gone, its memory is back, and nobody asked it to go."""

    replica: ReplicaId
    kind: FailureKind
    detail: str = ""


@dataclass(frozen=True, slots=True)
class ReplicaStopped:
    """The exit is confirmed: no process, and its memory is back."""

    replica: ReplicaId


@dataclass(frozen=True, slots=True)
class ReplicaSlept:
    """Its weights rest in host memory, and its devices are free but for the residue. `nap`: as `SleepReplica` had it;
    news of an earlier one are late."""

    replica: ReplicaId
    nap: int


@dataclass(frozen=True, slots=True)
class ReplicaWoke:
    """It answers again, and the host memory of its weights is free. `wake_ms`: how long that took, if measured."""

    replica: ReplicaId
    nap: int
    wake_ms: int | None = None


@dataclass(frozen=True, slots=True)
class ReplicaFound:
    """A replica that already exists: adopted after a restart, or the start state of a scenario.

    `leaving`: its stop was sent before; it holds its bytes until `ReplicaStopped`, and serves nobody.
    `placement` is what it holds awake. Unless `rest` is AWAKE, `keeps` is what it holds asleep (as `SleepReplica` had
    it), and `running` says nothing. `nap`: how often it was put to sleep.
    """

    replica: ReplicaId
    model: ModelName
    placement: Placement
    running: bool
    leases: Mapping[RequestId, HolderId] = field(default_factory=dict)
    idle_ms: int = 0
    leaving: bool = False
    rest: Rest = Rest.AWAKE
    keeps: Placement | None = None
    nap: int = 0


@dataclass(frozen=True, slots=True)
class Woken:
    """The instant that `Scheduler.wakeup()` asked for has come."""


@dataclass(frozen=True, slots=True)
class ShutdownAsked:
    pass


Event = (
    NodeJoined
    | NodeLost
    | DeviceLost
    | DeviceReturned
    | MemoryObserved
    | ModelDeployed
    | ModelRemoved
    | RequestArrived
    | RequestEnded
    | HolderLost
    | LoadAsked
    | UnloadAsked
    | PinAsked
    | ReplicaStarted
    | ReplicaFailed
    | ReplicaStopped
    | ReplicaSlept
    | ReplicaWoke
    | ReplicaFound
    | Woken
    | ShutdownAsked
)
