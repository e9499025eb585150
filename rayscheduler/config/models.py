"""The sections `scheduler:` and `models:`, which the service's file and scenarios share.

Rules of this file: fields hold the core's units (`memory` is bytes, `idle_timeout` milliseconds, `cpus`
thousandths). What one entry alone can get wrong is checked in its section; what entries can get wrong
between them is checked by `check_catalog`. `to_model` and `settings` only rename.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field, model_validator

from rayscheduler.config.fields import (
    Count,
    CountOrZero,
    DeviceCount,
    Duration,
    DurationOrNever,
    ExitStatus,
    Flag,
    FlagOrSize,
    Millicpus,
    ModelText,
    Name,
    Priority,
    Rate,
    Section,
    Size,
    SizeOrRange,
    SizeOrZero,
    SizeRange,
    Text,
    word,
    word_schema,
)
from rayscheduler.config.places import ContainerSection, PythonFolder, RuntimeEnv, check_one_place
from rayscheduler.config.sleep import SleepSection
from rayscheduler.config.units import size_text
from rayscheduler.config.values import Wrong, shown
from rayscheduler.core.types import (
    Backend,
    DeviceId,
    Group,
    Model,
    ModelName,
    NodeName,
    Pin,
    PolicyName,
    Requirement,
    Settings,
    Strategy,
)

DEVICE_COUNTS = (1, 2, 4, 8)
LOAD_MS = 1000


class EngineName(str, Enum):
    """What can serve a model."""

    VLLM = "vllm"
    SGLANG = "sglang"
    LLAMA_CPP = "llama-cpp"
    TRANSFORMERS = "transformers"
    OLLAMA = "ollama"
    COMMAND = "command"
    SIMULATED = "simulated"

    __str__ = str.__str__


class FailurePoint(str, Enum):
    """When a simulated engine fails on demand."""

    NEVER = "never"
    LOAD = "load"
    CRASH = "crash"


BackendWord = Annotated[Backend, BeforeValidator(word(Backend, "backends")), word_schema(Backend)]
PolicyWord = Annotated[PolicyName, BeforeValidator(word(PolicyName, "policies")), word_schema(PolicyName)]
StrategyWord = Annotated[Strategy, BeforeValidator(word(Strategy, "placements")), word_schema(Strategy)]
EngineWord = Annotated[EngineName, BeforeValidator(word(EngineName, "engines")), word_schema(EngineName)]
FailureWord = Annotated[FailurePoint, BeforeValidator(word(FailurePoint, "failures")), word_schema(FailurePoint)]


class GroupSection(Section):
    """Models that may, or may not, be loaded together."""

    members: list[Name] = Field(examples=["[a, b]"])
    """Models of this group."""
    swap: Flag = True
    """One member at a time: loading one evicts the others."""
    exclusive: Flag = True
    """Loading a member evicts the members of other groups."""
    persistent: Flag = False
    """Other groups' loads leave this group in place."""


class SchedulerSection(Section):
    """Who is next, where, and who makes way."""

    policy: PolicyWord = Field(default=PolicyName.FIFO, examples=["fifo"])
    """Who is next."""
    placement: StrategyWord = Strategy.SPREAD
    """Which of several equally good devices: the emptiest (spread) or the fullest that fits (pack)."""
    stale_after: Duration = 0
    """An unleased replica idle for at least this long may be evicted."""
    patience: DurationOrNever = 60_000
    """After waiting this long a request may drain unpinned running replicas; `never` to leave them alone."""
    queue_limit: CountOrZero = 1000
    """Requests waiting in all."""
    tiers: dict[Name, Priority] = Field(default_factory=dict)
    """Names for priorities; higher goes first."""
    cpu_models_on_gpu_nodes: Flag = True
    """May models with `gpus: [0]` use a node that has GPUs?"""
    groups: dict[Name, GroupSection] = Field(default_factory=dict)
    """For `policy: groups`: what may be loaded together. A model is in at most one."""

    def settings(self) -> Settings:
        """As the core has it. Groups count under their own policy only."""
        groups = tuple(
            Group(name, frozenset(map(ModelName, group.members)), group.swap, group.exclusive, group.persistent)
            for name, group in sorted(self.groups.items())
        )
        return Settings(
            policy=self.policy,
            strategy=self.placement,
            stale_after_ms=self.stale_after,
            patience_ms=self.patience,
            queue_limit=self.queue_limit,
            tiers=dict(self.tiers),
            cpu_models_on_gpu_nodes=self.cpu_models_on_gpu_nodes,
            groups=groups if self.policy is PolicyName.GROUPS else (),
        )


class ReplicasSection(Section):
    """How many replicas a model has at least and at most. `max` left out is 1, or `min` if that is more."""

    min: CountOrZero = Field(default=0, examples=["1"])
    max: Count | None = None

    @property
    def most(self) -> int:
        return max(1, self.min) if self.max is None else self.max

    @model_validator(mode="after")
    def _in_order(self) -> ReplicasSection:
        if self.max is not None and self.max < self.min:
            raise Wrong(f"max {self.max} is less than min {self.min}", f"write max: {self.min} or more", ("max",))
        return self


class PlacementSection(Section):
    """Where a pinned model goes: a node, and perhaps exactly these devices of it."""

    node: Name | None = Field(default=None, examples=["n1"])
    devices: list[Name] = Field(default_factory=list, examples=["[n1/0]"])

    @model_validator(mode="after")
    def _one_node(self) -> PlacementSection:
        node = self.node
        for index, device in enumerate(self.devices):
            prefix, _, number = device.rpartition("/")
            if not prefix or not (number.isascii() and number.isdigit()):
                what = f"{shown(device)} is not a device"
                raise Wrong(what, "write node/index, for example n1/0", ("devices", index))
            if node is None:
                node = prefix
            if prefix != node:
                what = f"the device {shown(device)} is not on node {shown(node)}"
                raise Wrong(what, f"write devices of one node, for example {node}/0", ("devices", index))
            if device in self.devices[:index]:
                raise Wrong(f"the device {shown(device)} stands twice", "keep one of them", ("devices", index))
        if node is None:
            raise Wrong("names no node", "add for example node: n1")
        return self

    def pin(self) -> Pin:
        node = self.node if self.node is not None else self.devices[0].rpartition("/")[0]
        return Pin(NodeName(node), tuple(map(DeviceId, self.devices)))


def _none_if_empty(value: object) -> object:
    return None if value == "" else value


class RequiresSection(Section):
    """What a node must offer to be considered."""

    may_be_null: ClassVar[frozenset[str]] = frozenset({"backend"})

    backend: Annotated[BackendWord | None, BeforeValidator(_none_if_empty)] = Field(default=None, examples=["nvidia"])
    """What kind of devices; empty: any."""
    types: list[Name] = Field(default_factory=list)
    """Device types, in order of preference."""
    device_memory: SizeOrZero = 0
    """Each device is at least this big."""
    total_device_memory: SizeOrZero = 0
    """The devices taken are together at least this big."""
    cpus: Millicpus = 0
    """The node has at least this many."""
    labels: dict[Name, Text] = Field(default_factory=dict)
    """The node has these labels."""


class SimulateSection(Section):
    """How long loads and exits take in a scenario; the rest is for the `simulated` engine."""

    load: Duration = Field(default=LOAD_MS, examples=["1s"])
    """How long a load takes."""
    unload: Duration = 0
    """How long an exit takes."""
    sleep: Duration | None = None
    """How long going to sleep takes. With this or `wake`, a model can sleep; the one left out is 0."""
    wake: Duration | None = None
    """How long waking takes."""
    tokens_per_second: Rate | None = None
    """How fast the `simulated` engine answers; as fast as it can if left out."""
    reply: Text | None = None
    """What the `simulated` engine answers."""
    fail: FailureWord = FailurePoint.NEVER
    """Does the `simulated` engine fail while loading, or crash later?"""
    fail_after: Duration | None = None
    """With `fail: crash`: this long after it was ready; if left out, before its first answer."""
    fail_status: ExitStatus = 1
    """The exit status of that failure."""
    allocate: FlagOrSize = False
    """Does the `simulated` engine really take the memory that is reserved for it, or so much of it?"""

    @model_validator(mode="after")
    def _crash_only(self) -> SimulateSection:
        if self.fail_after is not None and self.fail is not FailurePoint.CRASH:
            raise Wrong("is the time of a crash, but no crash is asked for", "add fail: crash", ("fail_after",))
        return self


class ModelSection(Section):
    """One entry of `models:`. Scenarios know the engine's keys too, so that a real catalog can be rehearsed."""

    name: ModelText = Field(examples=["a"])
    """What requests call it."""
    aliases: list[ModelText] = Field(default_factory=list)
    """Other names that requests may use."""

    memory: SizeOrRange | None = Field(default=None, examples=["60GiB"])
    """For one replica, shared equally by the devices it takes. {min, max}: it gets what is free between the two."""
    memory_per_device: dict[DeviceCount, Size] | None = Field(default=None, examples=["{1: 60GiB, 2: 33GiB}"])
    """Instead of `memory`: bytes on each device, by device count."""
    trust: Flag = False
    """Believe what is said here of memory, whatever the model's file says and a run has shown."""
    gpus: list[DeviceCount] | None = Field(default=None, examples=["[1, 2, 4, 8]"])
    """Device counts it may take; if left out 1, 2, 4 and 8, or those of `memory_per_device`. [0]: host only."""
    pipeline: Count = 1
    """Stages that the layers are dealt to, each with an equal share of the devices; for vllm and sglang."""
    kv_cache: Size | None = None
    """Of `memory`, the KV cache on each device: for vllm and sglang, where the model's files are not there to tell."""
    kv_type: Text | None = None
    """What the KV cache is stored as, for example fp8; the model's own type if left out."""
    across_nodes: Flag = False
    """May one replica take devices of several nodes?"""
    exclusive: Flag = False
    """Takes whole devices."""
    cpus: Millicpus = 0
    """Charged to the node; thousandths at the finest."""
    host_memory: SizeOrZero = 0
    """Charged to the node."""
    requires: RequiresSection = RequiresSection()
    """What a node must offer."""

    concurrency: Count = 1
    """Requests that one replica serves at a time."""
    replicas: ReplicasSection = ReplicasSection()
    """How many replicas there are at least and at most."""
    idle_timeout: DurationOrNever = None
    """Stop a replica unleased for this long, never below `replicas.min`; `never` if left out."""
    pinned: Flag = False
    """Its replicas are never evicted."""
    placement: PlacementSection | None = None
    """With `pinned`: exactly there."""
    sleep: SleepSection = SleepSection()
    """What it keeps while it sleeps, where it can; `false`: it never does."""
    preload: Flag = False
    """Load it into free memory before anybody asks."""
    priority: Priority = 0
    """Higher goes first."""

    engine: EngineWord | None = Field(default=None, examples=["llama-cpp"])
    """What serves it."""
    source: Text | None = None
    """The model's file or folder, relative to this one, or its id on the hub; for `ollama`, its name there; for
    `command`, what ${SOURCE} is."""
    daemon: Text | None = Field(default=None, examples=["http://127.0.0.1:11434"])
    """A running `ollama serve` of each node that shall hold it; if left out, each replica has one of its own."""
    args: list[Text] = Field(default_factory=list)
    """Arguments for the engine; for `command`, the whole command line."""
    env: dict[Text, Text] = Field(default_factory=dict)
    """Environment variables of the engine's process."""
    python: PythonFolder | None = None
    """The Python environment that the engine is installed in: the folder with bin/python."""
    runtime_env: RuntimeEnv = Field(default_factory=dict)
    """Ray makes this environment, on the node, for the engine: for example {pip: [vllm]}."""
    container: ContainerSection | None = None
    """The image that the engine runs in."""
    load_timeout: Duration = 300_000
    """A load that takes longer has failed."""
    context_length: Count | None = None
    """Tokens that one request may take."""
    max_batched_tokens: Count | None = None
    """Tokens that the engine computes in one step."""
    embedding: Flag = False
    """It gives embeddings, not text."""
    max_loras: Count | None = None
    """Adapters that one replica holds at a time; if left out, as many as the catalog has of it, at most 8."""
    max_lora_rank: Count | None = None
    """The highest rank of its adapters; if left out, the highest that their files say."""
    ready_path: Text = "/health"
    """The path that answers 200 once the engine is ready."""
    simulate: SimulateSection = SimulateSection()
    """Times in scenarios, and what the `simulated` engine does."""

    @property
    def says_memory(self) -> bool:
        """Whether its operator says what it takes; if not, that has to be estimated from its file."""
        return self.memory is not None or self.memory_per_device is not None

    @property
    def can_be_estimated(self) -> bool:
        """Whether the entry may leave that to an estimate. Not in a scenario, which has no files."""
        return False

    @model_validator(mode="after")
    def _one_figure(self) -> Any:
        table = self.memory_per_device
        if self.memory is not None and table is not None:
            what = "memory and memory_per_device contradict each other"
            raise Wrong(what, "keep one of them", ("memory_per_device",))
        if not self.says_memory and not self.can_be_estimated:
            what = f"{shown(self.name)} says no memory"
            raise Wrong(what, "add what one replica takes, for example memory: 60GiB")
        if table is not None and not table:
            raise Wrong("has no entry", "write for example {1: 60GiB, 2: 33GiB}", ("memory_per_device",))
        if self.gpus is not None and not self.gpus:
            raise Wrong("allows no device count", "write for example [1, 2], or [0] for cpu only", ("gpus",))
        if self.trust and not self.says_memory:
            raise Wrong("there is no memory to be trusted", "add memory, or remove trust", ("trust",))
        if isinstance(self.memory, SizeRange) and self.exclusive:
            raise Wrong(
                "a model with whole devices has no use for a max", "write one size, as memory: 60GiB", ("memory",)
            )
        check_one_place(self.python, self.runtime_env, self.container)
        uneven = [count for count in self.gpus or table or () if count % self.pipeline]
        if uneven:
            what = f"a replica on {uneven[0]} cannot have {self.pipeline} equal stages"
            raise Wrong(what, f"write multiples of it, for example gpus: [{self.pipeline}]", ("pipeline",))
        if self.says_memory and not self.bytes_by_count():
            counts = ", ".join(map(str, sorted(table or ())))
            what = f"no count of gpus is in memory_per_device, which has {counts}"
            raise Wrong(what, f"write for example gpus: [{counts}]", ("gpus",))
        return self

    @property
    def device_counts(self) -> list[int]:
        """The device counts that it may take, ascending."""
        table = self.memory_per_device
        if table is not None:
            return sorted(table if self.gpus is None else set(table).intersection(self.gpus))
        usual = [count for count in DEVICE_COUNTS if count % self.pipeline == 0] or [self.pipeline]
        return sorted(set(usual if self.gpus is None else self.gpus))

    def bytes_by_count(self) -> Mapping[int, int]:
        """Bytes on each device as the entry says it, by device count; what is shared equally is rounded up.
        Empty where the entry says nothing."""
        table, memory = self.memory_per_device, self.memory
        if table is not None:
            return {count: table[count] for count in self.device_counts}
        if memory is None:
            return {}
        return self._shared(memory.min if isinstance(memory, SizeRange) else memory)

    def bytes_max_by_count(self) -> Mapping[int, int]:
        """What an elastic model can use on each device, by device count; empty for any other. On the host alone
        there is no more than its minimum."""
        if not isinstance(self.memory, SizeRange):
            return {}
        return {count: each for count, each in self._shared(self.memory.max).items() if count}

    def _shared(self, memory_bytes: int) -> dict[int, int]:
        return {count: -(-memory_bytes // max(1, count)) for count in self.device_counts}

    def to_model(self) -> Model:
        """The entry as the core has it."""
        requires = self.requires
        requirement = Requirement(
            bytes_by_count=self.bytes_by_count(),
            across_nodes=self.across_nodes,
            exclusive=self.exclusive,
            backend=requires.backend,
            types=tuple(requires.types),
            device_memory_bytes=requires.device_memory,
            total_device_memory_bytes=requires.total_device_memory,
            node_millicpus=requires.cpus,
            labels=dict(requires.labels),
            millicpus=self.cpus,
            host_memory_bytes=self.host_memory,
            bytes_max_by_count=self.bytes_max_by_count(),
        )
        return Model(
            name=ModelName(self.name),
            requirement=requirement,
            concurrency=self.concurrency,
            replicas_min=self.replicas.min,
            replicas_max=self.replicas.most,
            idle_timeout_ms=self.idle_timeout,
            pinned=self.pinned,
            pin=self.placement.pin() if self.placement is not None else None,
            preload=self.preload,
            priority=self.priority,
            load_ms=self.simulate.load,
            sleep=self.sleep.traits(self.simulate.sleep, self.simulate.wake),
        )

    @model_validator(mode="after")
    def _gives_something_back(self) -> Any:
        largest = max(self.bytes_by_count().values(), default=0)
        if self.sleep.residue and largest and self.sleep.residue >= largest:
            kept, held = size_text(self.sleep.residue), size_text(largest)
            what = f"asleep it would keep {kept} of a device on which it takes {held}"
            raise Wrong(what, "write what is left when its weights are gone, for example 512MiB", ("sleep", "residue"))
        return self
