"""What runners and node agents tell the allocator: the values that travel between our own actors.

Rules of this file: frozen values, pickled by Ray; both sides run the same version of the package.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from rayscheduler.cluster.inventory import NodeInventory
from rayscheduler.core.types import ModelName, Placement, ReplicaId, Word
from rayscheduler.engines.protocol import EngineRequest


class RunnerState(Word):
    """How far a runner is. Whoever comes after FAILED, CRASHED or STOPPED is another incarnation."""

    ANNOUNCED = "announced"  # the runner's process is there, its engine is not
    LOADING = "loading"
    RUNNING = "running"
    FAILED = "failed"  # the engine never became ready, and is gone
    CRASHED = "crashed"  # the engine ended unasked, and is gone
    STOPPED = "stopped"  # the engine was asked to end, and is gone with its memory


class Verdict(Word):
    """What the allocator answers to a runner."""

    GO = "go"  # start the engine, or carry on
    STAND_DOWN = "stand_down"  # end the engine, if there is one, and start none
    ANNOUNCE = "announce"  # who are you? report again, in full


@dataclass(frozen=True, slots=True)
class Launch:
    """Everything that a runner needs to serve one replica.

    `request`: for the engine on the first node of the placement, which serves. `follower_requests`: for the
    engines on the further nodes, in their order.
    """

    replica: ReplicaId
    model: ModelName
    placement: Placement
    engine: str
    request: EngineRequest
    stop_grace_s: float
    follower_requests: tuple[EngineRequest, ...] = ()

    @property
    def actor_options(self) -> dict[str, object]:
        """What its actors ask Ray for beside their bundle: no CPU, and the environment that Ray makes for them.
        (An empty one would cost each start the worker that was prepared for it.)"""
        wanted = dict(self.request.runtime_env)
        return {"num_cpus": 0, "runtime_env": wanted} if wanted else {"num_cpus": 0}


@dataclass(frozen=True, slots=True)
class Part:
    """What a replica has on one node: its runner, or a follower of that, and the engine's main process, if any.

    `runner_started`: with its pid this names a process that no other can be (engines/orphans.py).
    """

    node_id: str
    runner_pid: int
    runner_started: int
    engine_pid: int = 0


@dataclass(frozen=True, slots=True)
class RunnerReport:
    """A runner, in full: a new allocator can adopt the replica from it.

    `incarnation`: differs for each process that Serve starts for the same replica. `detail`: why it
    FAILED or CRASHED, with the end of the engine's log. `held_elsewhere_bytes`: what a process that is not
    the engine's, such as a daemon that hosts several models, holds for it.
    """

    launch: Launch
    incarnation: str
    state: RunnerState
    node_id: str
    runner_pid: int
    engine_pid: int = 0
    endpoint: str = ""
    api_key: str = ""
    load_ms: int = 0
    detail: str = ""
    runner_started: int = 0
    followers: tuple[Part, ...] = ()
    held_elsewhere_bytes: int = 0

    @property
    def own_part(self) -> Part:
        return Part(self.node_id, self.runner_pid, self.runner_started, self.engine_pid)

    @property
    def parts(self) -> tuple[Part, ...]:
        """On all its nodes, in the order of the placement's."""
        return (self.own_part, *self.followers)


@dataclass(frozen=True, slots=True)
class Watched:
    """A runner or follower whose death the agent of its node reports, and whose engine it measures."""

    replica: ReplicaId
    incarnation: str
    runner_pid: int
    engine_pid: int
    device_bytes: Mapping[int, int]  # what it has reserved, by device index
    held_elsewhere_bytes: int = 0  # on all of these, by a process that is not the engine's


@dataclass(frozen=True, slots=True)
class DeviceReading:
    """`used_by_others_bytes`: of what the device lends, the part that programs that are not ours hold."""

    index: int
    used_by_others_bytes: int
    measured_bytes: int


@dataclass(frozen=True, slots=True)
class AgentReport:
    """What one node is and holds. `readings`: of the devices that can be read, none of simulated ones."""

    inventory: NodeInventory
    readings: tuple[DeviceReading, ...] = ()
    measured_bytes: Mapping[ReplicaId, int] = field(default_factory=dict)
