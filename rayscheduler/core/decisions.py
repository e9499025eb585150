"""What to do, in the imperative: the only thing that comes out of `Scheduler.handle`."""

from __future__ import annotations

from dataclasses import dataclass

from rayscheduler.core.types import (
    HTTP_STATUS,
    ModelName,
    Placement,
    Refusal,
    RejectCode,
    ReplicaId,
    RequestId,
    StopReason,
)


@dataclass(frozen=True, slots=True)
class StartReplica:
    """Start it now: every victim's exit is confirmed.

    `why` is one sentence for people. `refusals` say why not elsewhere, as it was when this place was chosen;
    they are only collected where the scheduler was asked to (`Scheduler(explain_nodes_max=…)`).
    """

    replica: ReplicaId
    model: ModelName
    placement: Placement
    evicts: tuple[ReplicaId, ...] = ()
    why: str = ""
    refusals: tuple[Refusal, ...] = ()


@dataclass(frozen=True, slots=True)
class StopReplica:
    """Stop it now, or clean up after it (`NODE_LOST`, `LOAD_FAILED`, `CRASHED`: it is already gone)."""

    replica: ReplicaId
    model: ModelName
    reason: StopReason
    makes_way_for: ReplicaId | None = None
    why: str = ""


@dataclass(frozen=True, slots=True)
class SleepReplica:
    """Put it to sleep now: its weights go to host memory. Its devices are free for others when that is confirmed
    (`ReplicaSlept`), but for what it `keeps`: its vector while it sleeps, in which `host_bytes` count from now on.

    `nap` counts how often this replica was put to sleep, from 1: news of it say which nap they mean.
    """

    replica: ReplicaId
    model: ModelName
    keeps: Placement
    nap: int
    makes_way_for: ReplicaId | None = None
    why: str = ""


@dataclass(frozen=True, slots=True)
class WakeReplica:
    """Wake it now, where it sleeps (`placement`): every victim is gone, or asleep."""

    replica: ReplicaId
    model: ModelName
    placement: Placement
    nap: int
    evicts: tuple[ReplicaId, ...] = ()
    why: str = ""
    refusals: tuple[Refusal, ...] = ()


@dataclass(frozen=True, slots=True)
class Grant:
    request: RequestId
    replica: ReplicaId
    model: ModelName


@dataclass(frozen=True, slots=True)
class Reject:
    request: RequestId
    model: ModelName
    code: RejectCode
    message: str

    @property
    def status(self) -> int:
        """The HTTP status that the client sees."""
        return HTTP_STATUS[self.code]


Decision = StartReplica | StopReplica | SleepReplica | WakeReplica | Grant | Reject
