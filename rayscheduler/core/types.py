"""The nouns of the scheduler: what a cluster, a model, a plan and a snapshot of both are.

Rules of this file: values only. Bytes and milliseconds are ints, cpus are whole thousandths
(`millicpus`), so sums are exact. `None` in a limit means "unlimited"; everything else that can be
missing says so with an empty value. Nothing here knows a clock or does I/O.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import NewType

NodeName = NewType("NodeName", str)
DeviceId = NewType("DeviceId", str)  # "node/index"
ModelName = NewType("ModelName", str)
ReplicaId = NewType("ReplicaId", str)  # "model#serial"; a serial is never used twice
RequestId = NewType("RequestId", str)
HolderId = NewType("HolderId", str)  # who holds leases: a gateway replica, a client


class Word(str, Enum):
    """An enumeration whose members print, sort and serialise as their text."""

    __str__ = str.__str__


class Backend(Word):
    """What kind of devices a node has."""

    NVIDIA = "nvidia"
    ROCM = "rocm"
    METAL = "metal"
    VULKAN = "vulkan"
    CPU = "cpu"


class PolicyName(Word):
    FIFO = "fifo"
    SERIAL = "serial"
    GROUPS = "groups"


class Strategy(Word):
    """Which of several equally good devices to take."""

    SPREAD = "spread"
    PACK = "pack"


class StopReason(Word):
    EVICTED = "evicted"
    IDLE = "idle"
    UNLOADED = "unloaded"
    MODEL_REMOVED = "model_removed"
    NODE_LOST = "node_lost"
    DEVICE_LOST = "device_lost"
    LOAD_FAILED = "load_failed"
    CRASHED = "crashed"
    MEMORY_PRESSURE = "memory_pressure"
    SHUTDOWN = "shutdown"
    ABANDONED = "abandoned"


class Rest(Word):
    """Where a replica that was found is between awake and asleep."""

    AWAKE = "awake"
    SUSPENDING = "suspending"  # it was told to sleep
    ASLEEP = "asleep"
    WAKING = "waking"  # it was told to wake


class RejectCode(Word):
    """Why a request ended without a lease. `HTTP_STATUS` says which status a client sees."""

    MODEL_NOT_FOUND = "model_not_found"
    NEVER_FITS = "never_fits"
    QUEUE_FULL = "queue_full"
    CANCELLED = "cancelled"
    LOAD_FAILED = "load_failed"
    UNLOADED = "unloaded"
    SHUTTING_DOWN = "shutting_down"
    REPLICA_LOST = "replica_lost"
    DEADLINE_EXCEEDED = "deadline_exceeded"


HTTP_STATUS: Mapping[RejectCode, int] = {
    RejectCode.MODEL_NOT_FOUND: 404,
    RejectCode.NEVER_FITS: 422,
    RejectCode.QUEUE_FULL: 429,
    RejectCode.CANCELLED: 499,
    RejectCode.REPLICA_LOST: 502,
    RejectCode.LOAD_FAILED: 503,
    RejectCode.UNLOADED: 503,
    RejectCode.SHUTTING_DOWN: 503,
    RejectCode.DEADLINE_EXCEEDED: 504,
}


class RefusalReason(Word):
    """Why a node was not chosen, in the order in which the reasons are tried."""

    BACKEND = "backend"
    TYPE = "type"
    LABELS = "labels"
    CPUS = "cpus"
    DEVICES = "devices"
    DEVICE_MEMORY = "device_memory"
    TOTAL_DEVICE_MEMORY = "total_device_memory"
    HOST_MEMORY = "host_memory"
    EXCLUSIVE = "exclusive"
    MEMORY = "memory"
    DRAINING = "draining"
    RANKED_LOWER = "ranked_lower"


@dataclass(frozen=True, slots=True)
class Device:
    """One GPU, a slice of one, or the RAM that a CPU node lends.

    `is_slice`: a process can use one slice (MIG) only, so a slice is never one of several devices of a replica.
    """

    id: DeviceId
    capacity_bytes: int
    headroom_bytes: int = 0
    type: str = ""
    is_slice: bool = False


@dataclass(frozen=True, slots=True)
class Node:
    """One machine. `devices` in index order; `millicpus` and `memory_bytes` None = unlimited.

    `device_is_host_memory`: the only device *is* the host's memory (a cpu node that lends its RAM),
    so what is charged to the host is charged to that device.
    """

    name: NodeName
    backend: Backend
    devices: tuple[Device, ...]
    millicpus: int | None = None
    memory_bytes: int | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    device_is_host_memory: bool = False


@dataclass(frozen=True, slots=True)
class Requirement:
    """What one replica of a model needs.

    `bytes_by_count` maps each device count that the model may take to the bytes on *each* device.
    Count 0 means host only: its bytes are charged to the host and the placement has no devices.

    `bytes_max_by_count` is for elastic models, which can use more (a larger KV cache). Planning, refusals and
    evictions know `bytes_by_count` only; when the place is chosen, the replica is given what is free there beyond
    that, the same on each device, up to this. It keeps that until it stops: it never grows or shrinks while it runs.
    Not for count 0, nor for `exclusive`, which takes all there is.
    """

    bytes_by_count: Mapping[int, int]
    across_nodes: bool = False
    exclusive: bool = False
    backend: Backend | None = None
    types: tuple[str, ...] = ()
    device_memory_bytes: int = 0
    total_device_memory_bytes: int = 0
    node_millicpus: int = 0  # the node has at least this many
    labels: Mapping[str, str] = field(default_factory=dict)
    millicpus: int = 0  # charged on each node of the replica
    host_memory_bytes: int = 0  # charged on each node of the replica
    bytes_max_by_count: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Pin:
    """The exact place of a pinned model: a node and, unless empty, exactly these devices of it."""

    node: NodeName
    devices: tuple[DeviceId, ...] = ()


@dataclass(frozen=True, slots=True)
class SleepTraits:
    """How a model sleeps: its weights rest in host memory, and its devices are lent to others.

    `sleep_ms`, `wake_ms`: how long that takes, as expected (`wake_ms`: or as last measured). `residue_bytes` stay on
    each device. `host_bytes` are taken on each node; None: as many as the devices there give back.
    """

    sleep_ms: int = 0
    wake_ms: int = 0
    residue_bytes: int = 0
    host_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Model:
    """A catalog entry, as the scheduler sees it. `load_ms` is the expected (or last measured) load time.

    `sleep` None: its engine cannot sleep, or must not.
    """

    name: ModelName
    requirement: Requirement
    concurrency: int = 1
    replicas_min: int = 0
    replicas_max: int = 1
    idle_timeout_ms: int | None = None
    pinned: bool = False
    pin: Pin | None = None  # ignored while the model is not pinned
    preload: bool = False
    priority: int = 0
    load_ms: int = 1000
    sleep: SleepTraits | None = None

    @property
    def elastic(self) -> bool:
        """Whether it can use more than it needs."""
        return bool(self.requirement.bytes_max_by_count)

    def needs_less_than(self, place: Placement) -> bool:
        """Whether a replica there has more than it needs."""
        least = self.requirement.bytes_by_count.get(len(place.devices))
        return self.elastic and least is not None and any(size > least for size in place.device_bytes)


@dataclass(frozen=True, slots=True)
class Group:
    """Models that the operator allows, or forbids, to be loaded together (policy `groups`)."""

    name: str
    members: frozenset[ModelName]
    swap: bool = True
    exclusive: bool = True
    persistent: bool = False


@dataclass(frozen=True, slots=True)
class Settings:
    """The `scheduler:` section. `patience_ms` None = never drain for a waiting request."""

    policy: PolicyName = PolicyName.FIFO
    strategy: Strategy = Strategy.SPREAD
    stale_after_ms: int = 0
    patience_ms: int | None = 60_000
    queue_limit: int = 1000
    tiers: Mapping[str, int] = field(default_factory=dict)
    cpu_models_on_gpu_nodes: bool = True
    groups: tuple[Group, ...] = ()


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a replica is, and the vector of bytes that everything else derives from.

    `nodes`: one name, several for a replica across nodes. `devices` and `device_bytes` run in parallel.
    `host_bytes` and `millicpus` are charged on *each* node.
    """

    nodes: tuple[NodeName, ...]
    devices: tuple[DeviceId, ...]
    device_bytes: tuple[int, ...]
    host_bytes: int = 0
    millicpus: int = 0


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a node was not chosen. `needed_bytes` and `free_bytes` are None where bytes are not the reason."""

    node: NodeName
    reason: RefusalReason
    needed_bytes: int | None = None
    free_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """Where a replica goes and who leaves for it, whole or not at all.

    `evictions` in the order of ids. `drained` are those of them that are busy or fresh. `sleeping`: those that
    go to sleep, and what each then holds; all others stop. `wakes`: it is no new replica, but this one that sleeps.
    """

    placement: Placement
    evictions: tuple[ReplicaId, ...] = ()
    drained: frozenset[ReplicaId] = frozenset()
    sleeping: Mapping[ReplicaId, Placement] = field(default_factory=dict)
    wakes: ReplicaId | None = None


@dataclass(frozen=True, slots=True)
class NoFit:
    """No plan now. `ever`: it would fit this cluster, empty of everything that is not pinned."""

    ever: bool


@dataclass(frozen=True, slots=True)
class DeviceSnapshot:
    device: Device
    offered: bool  # False once the device is lost
    reserved_bytes: int
    used_by_others_bytes: int
    free_bytes: int


@dataclass(frozen=True, slots=True)
class NodeSnapshot:
    node: Node
    devices: tuple[DeviceSnapshot, ...]
    reserved_millicpus: int
    reserved_host_bytes: int


@dataclass(frozen=True, slots=True)
class ReplicaSnapshot:
    id: ReplicaId
    model: ModelName
    state: str  # a `lifecycle.State`
    placement: Placement  # when it is awake
    leases: int
    pinned: bool
    waits_for: tuple[ReplicaId, ...]  # who must be gone, or asleep, before it starts or wakes
    makes_way_for: ReplicaId | None
    state_since_ms: int
    last_used_ms: int
    holds: Placement  # what it is charged for now: less on its devices, and more of the host, while it sleeps


@dataclass(frozen=True, slots=True)
class WaitingSnapshot:
    request: RequestId
    model: ModelName
    priority: int
    arrived_ms: int
    deadline_ms: int | None


@dataclass(frozen=True, slots=True)
class ModelSnapshot:
    model: Model
    wanted: bool  # an operator's load that has not run yet
    waiting: int
    backoff_until_ms: int | None
    failures: int  # in a row
    last_error: str


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything that the scheduler believes at one moment; sorted, immutable, safe to hand out."""

    now_ms: int
    nodes: tuple[NodeSnapshot, ...]
    models: tuple[ModelSnapshot, ...]
    replicas: tuple[ReplicaSnapshot, ...]
    waiting: tuple[WaitingSnapshot, ...]  # in the order in which they will be served
    shutting_down: bool = False
