"""What runners and node agents tell the allocator: the values that travel between our own actors.

Rules of this file: frozen values, pickled by Ray; both sides run the same version of the package.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from rayscheduler.cluster.inventory import NodeInventory
from rayscheduler.core.types import ModelName, Placement, ReplicaId, Rest, Word
from rayscheduler.engines.protocol import EngineRequest


class RunnerState(Word):
    """How far a runner is. Whoever comes after FAILED, CRASHED or STOPPED is another incarnation."""

    ANNOUNCED = "announced"  # the runner's process is there, its engine is not
    QUEUED = "queued"  # it waits for its turn to start the engine, or for memory that is not back yet
    LOADING = "loading"
    RUNNING = "running"
    SUSPENDING = "suspending"  # the engine was told to sleep
    ASLEEP = "asleep"  # it sleeps, and its devices have back what it does not keep
    WAKING = "waking"  # it was told to wake; then it is RUNNING again
    FAILED = "failed"  # the engine never became ready, and is gone
    CRASHED = "crashed"  # the engine ended unasked, and is gone
    STOPPED = "stopped"  # the engine was asked to end, and is gone with its memory


class Verdict(Word):
    """What the allocator answers to a runner."""

    GO = "go"  # start the engine, or carry on
    STAND_DOWN = "stand_down"  # end the engine, if there is one, and start none
    ANNOUNCE = "announce"  # who are you? report again, in full


@dataclass(frozen=True, slots=True)
class Turn:
    """What a runner is told about sleep: to sleep, or to be awake again. `nap` and `keeps` as the core's `SleepReplica`
    had them. Each is taken once, however often it is told."""

    asleep: bool
    nap: int
    keeps: Placement


@dataclass(frozen=True, slots=True)
class Launch:
    """Everything that a runner needs to serve one replica.

    `request`: for the engine on the first node of the placement, which serves. `follower_requests`: for the
    engines on the further nodes, in their order. `memory_key`: under it is kept what it takes (learned.py);
    empty: nothing is.
    """

    replica: ReplicaId
    model: ModelName
    placement: Placement
    engine: str
    request: EngineRequest
    stop_grace_s: float
    follower_requests: tuple[EngineRequest, ...] = ()
    memory_key: str = ""

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
    the engine's, such as a daemon that hosts several models, holds for it. `turn`: the last that it has taken;
    `turn_ms`: how long that took, once it is done.
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
    turn: Turn | None = None
    turn_ms: int = 0

    @property
    def rest(self) -> Rest:
        return _RESTS.get(self.state, Rest.AWAKE)

    @property
    def holds(self) -> Placement:
        """What it has of its devices: asleep, what it keeps."""
        return self.turn.keeps if self.turn and self.state is RunnerState.ASLEEP else self.launch.placement

    @property
    def own_part(self) -> Part:
        return Part(self.node_id, self.runner_pid, self.runner_started, self.engine_pid)

    @property
    def parts(self) -> tuple[Part, ...]:
        """On all its nodes, in the order of the placement's."""
        return (self.own_part, *self.followers)


_RESTS = {
    RunnerState.SUSPENDING: Rest.SUSPENDING,
    RunnerState.ASLEEP: Rest.ASLEEP,
    RunnerState.WAKING: Rest.WAKING,
}


@dataclass(frozen=True, slots=True)
class Watched:
    """A runner or follower whose death the agent of its node reports, and whose engine it measures."""

    replica: ReplicaId
    incarnation: str
    runner_pid: int
    engine_pid: int
    device_bytes: Mapping[int, int]  # what it has reserved on this node, by device index
    held_elsewhere_bytes: int = 0  # on all of these, by a process that is not the engine's
    profiling: bool = False  # its engine is loading, and profiles free memory meanwhile


@dataclass(frozen=True, slots=True)
class DeviceReading:
    """`used_by_others_bytes`: of what the device lends, the part that programs that are not ours hold.
    `measured_bytes`: what our engines hold. `free_bytes`: what nobody holds, lent or not."""

    index: int
    used_by_others_bytes: int
    measured_bytes: int
    free_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Measured:
    """What the processes of one replica hold on one node.

    `device_bytes`: by device index, of those devices on which it is known; `host_bytes`: RAM that no device of
    the node stands for. A GPU's driver is not asked about RAM, so on nodes with real GPUs that is 0.
    """

    device_bytes: Mapping[int, int] = field(default_factory=dict)
    host_bytes: int = 0

    @property
    def all_bytes(self) -> int:
        return sum(self.device_bytes.values()) + self.host_bytes


@dataclass(frozen=True, slots=True)
class ForeignProcess:
    """A process on a device that belongs to no replica we watch.

    `held_bytes` None: the driver does not tell. `name` and `user` "": it cannot be seen from here (another
    container's). `replica`: whose engine it once was part of, by its mark; "" for a program that is not ours.
    """

    index: int
    pid: int
    held_bytes: int | None
    name: str = ""
    user: str = ""
    replica: str = ""


@dataclass(frozen=True, slots=True)
class AgentReport:
    """What one node is and holds. `readings`: of the devices that can be read, none of simulated ones."""

    inventory: NodeInventory
    readings: tuple[DeviceReading, ...] = ()
    measured: Mapping[ReplicaId, Measured] = field(default_factory=dict)
    foreign: tuple[ForeignProcess, ...] = ()


@dataclass(frozen=True, slots=True)
class SizeQuestion:
    """What would a replica take, for each of these device counts? `on_host`: of a node that lends its RAM."""

    engine: str
    request: EngineRequest
    counts: tuple[int, ...]
    on_host: bool


@dataclass(frozen=True, slots=True)
class DeviceEstimate:
    """What a model's files say that it takes on each device, on the one that takes most, and of what that consists.

    `certain_bytes`: what it will take sooner or later though a process may not have touched it yet; 0 on devices
    that commit memory when it is asked for.
    """

    each_bytes: int
    parts_bytes: Mapping[str, int] = field(default_factory=dict)
    certain_bytes: int = 0


@dataclass(frozen=True, slots=True)
class SizeAnswer:
    """By device count. `digest`: of the model's files. `version`: of the engine there, "" if nobody knows.
    `problem`: why there is no estimate; then the rest is empty."""

    digest: str = ""
    version: str = ""
    estimates: Mapping[int, DeviceEstimate] = field(default_factory=dict)
    problem: str = ""
