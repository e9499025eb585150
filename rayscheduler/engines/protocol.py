"""What an engine is: how to check that it can serve a model, and the command that serves it.

Rules of this file: values and one protocol; nothing is started and no engine is named here. An
`EngineRequest` travels through Ray, so it holds plain values only. An engine's `check` says what to
do about what is missing; `command` may read the source, and has no other effect. What not every engine
can (count its requests, sleep, load adapters) has a default here, which is to say so.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from rayscheduler.errors import EngineError, SourceError

# Set for every engine: the token that requests must carry. Not in argv, which other users can read.
API_KEY_ENV = "RAYSCHEDULER_API_KEY"
# Set for every engine and all that it starts: by it an orphan is recognised (see orphans.py).
MARK_ENV = "RAYSCHEDULER_ENGINE"
# Which devices an engine sees is the ledger's decision, not the catalog's.
DEVICE_ENVS = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL")


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """One replica to be served, or one node's part of it, as the engine needs to know it.

    `device_bytes`: the ledger's vector, bytes on each device taken on this node. `device_capacity_bytes`:
    the whole memory of those devices, whoever uses it; () where nobody knows. `visible_devices`: their
    UUIDs, () on a cpu node. `context_length`: tokens that one request may take, None: the engine's
    default. `concurrency`: requests served at the same time. `pipeline`: stages that the layers are dealt
    to; each has an equal share of the devices. `max_batched_tokens`: tokens computed in one step.
    `kv_type`: of the KV cache, in the engine's words. `kv_cache_bytes`: of one device, as the operator
    says it; None: what is left of `device_bytes`. `sleep`: it will be put to sleep, if it can.

    A replica over several nodes has a process on each: the leader (`node_rank` 0), which serves, and
    followers. They meet at `leader_host`:`leader_port`, a free port of the leader's node.

    `python`: the folder of the Python environment that the engine runs in. `runtime_env`: the runner's, as
    Ray knows it. `container_image`: an image that it runs in, by `container_program` (docker or podman, "":
    whichever is there) with further `container_options`. At most one of the three.

    `daemon`: the URL of a running program that hosts several models, for the engine that can use one.

    `max_loras`: LoRA adapters that it holds at a time, 0: none will be loaded. `max_lora_rank`: of any of them, None:
    what their files say. `adapters`: folders or hub ids of those that are known; others may be loaded later.
    """

    model: str
    replica: str
    source: str | None = None
    args: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    context_length: int | None = None
    concurrency: int = 1
    embedding: bool = False
    device_bytes: tuple[int, ...] = ()
    device_capacity_bytes: tuple[int, ...] = ()
    visible_devices: tuple[str, ...] = ()
    backend: str = "cpu"
    ready_path: str = "/health"
    load_timeout_ms: int = 600_000
    simulate: Mapping[str, object] = field(default_factory=dict)
    pipeline: int = 1
    max_batched_tokens: int | None = None
    kv_type: str | None = None
    kv_cache_bytes: int | None = None
    sleep: bool = False
    daemon: str | None = None
    node_count: int = 1
    node_rank: int = 0
    leader_host: str = ""
    leader_port: int = 0
    python: str | None = None
    runtime_env: Mapping[str, object] = field(default_factory=dict)
    container_image: str = ""
    container_program: str = ""
    container_options: tuple[str, ...] = ()
    adapters: tuple[str, ...] = ()
    max_loras: int = 0
    max_lora_rank: int | None = None

    @property
    def devices_total(self) -> int:
        """Devices of the replica, on all its nodes: each node has as many."""
        return len(self.device_bytes) * self.node_count


@dataclass(frozen=True, slots=True)
class Command:
    """A program to start, what its environment has beyond the common one, and where it says it is ready.

    `ready_path`: "" for a follower, which is ready when its leader is. `mounts`: what it reads, for an
    engine in a container. `cleanup`: the command that ends what outlives the program's end by SIGKILL.
    `held_elsewhere_path`: where it says as JSON how many bytes a process that is not its own holds for it,
    `{"held_elsewhere_bytes": n}`; "": there is no such process.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str]
    ready_path: str
    mounts: tuple[str, ...] = ()
    cleanup: tuple[str, ...] = ()
    held_elsewhere_path: str = ""


@dataclass(frozen=True, slots=True)
class Call:
    """An HTTP request to an engine, which carries its key. `body`: JSON, "" for none."""

    method: str
    path: str
    body: str = ""


@dataclass(frozen=True, slots=True)
class SleepCalls:
    """How an engine is put to sleep and woken: 2xx says that it is done.

    `level` 1: weights rest in host memory, and the KV cache is dropped.
    """

    sleep: Call
    wake: Call
    level: int = 1


@dataclass(frozen=True, slots=True)
class AdapterCalls:
    """How an engine is given LoRA adapters while it runs, and asked which it has.

    Requests name an adapter with `prefix` before its name. `names_path`: OpenAI's list of models, in which adapters
    have a `parent`.
    """

    load_path: str
    unload_path: str
    prefix: str = ""
    names_path: str = "/v1/models"

    def load(self, name: str, source: str) -> Call:
        return Call("POST", self.load_path, json.dumps({"lora_name": name, "lora_path": source}))

    def unload(self, name: str) -> Call:
        return Call("POST", self.unload_path, json.dumps({"lora_name": name}))

    def names(self) -> Call:
        return Call("GET", self.names_path)


@dataclass(frozen=True, slots=True)
class InFlight:
    """Where an engine says how many requests it has, waiting ones included, and how to read its answer."""

    path: str
    read: Callable[[str], int]


class Engine(Protocol):
    """A kind of model server. Engines have no state: one object serves all models."""

    @property
    def name(self) -> str: ...

    @property
    def profiles_memory(self) -> bool:
        """Whether it measures, while it loads, what is free on its devices. Such engines start one at a time per
        device: two at once would each take the other's memory for lost."""

    def validate(self, request: EngineRequest) -> None:
        """What can be said on any machine: are `args`, `env` and the rest right? EngineError if not."""

    def check(self, request: EngineRequest) -> None:
        """`validate`, and: are the program and the source on *this* machine? EngineMissing, SourceError."""

    def command(self, request: EngineRequest, port: int, api_key: str, host: str) -> Command:
        """The command that serves the request on that port to those who know the key.

        On each node of a replica it is asked for that node's part. EngineError: the engine cannot do it.
        """

    def in_flight(self) -> InFlight | None:
        """How to count its requests; None: it does not tell."""
        return None

    def sleep_calls(self, request: EngineRequest) -> SleepCalls | None:
        """How the request's engine sleeps and wakes; None: it cannot, or not on that backend."""
        return None

    def adapter_calls(self, request: EngineRequest) -> AdapterCalls | None:
        """How the request's engine loads adapters; None: it cannot, or was not started for any."""
        return None


def check_environment(request: EngineRequest) -> None:
    """The part of `validate` that is the same for all engines. EngineError if `env` sets what is not its own."""
    for key in request.env:
        if key in DEVICE_ENVS:
            raise EngineError(
                f"model {request.model} sets {key} in its env, but its devices are chosen by the scheduler; "
                "use `placement` or `requires` instead"
            )
        if key in (API_KEY_ENV, MARK_ENV):
            raise EngineError(f"model {request.model} sets {key} in its env, which is set for each engine")
        if not key or "=" in key or "\0" in key + request.env[key]:
            raise EngineError(f"model {request.model} has {key!r} in its env, which is no name of a variable")


def check_one_node(request: EngineRequest, engine: str) -> None:
    """For engines that cannot span nodes. EngineError if the replica does."""
    if request.node_count > 1:
        raise EngineError(
            f"model {request.model} is placed over {request.node_count} nodes, which the engine {engine} cannot "
            "serve; leave out `across_nodes`, or choose another engine"
        )


def source_path(request: EngineRequest) -> str:
    """The source as a path, `~` expanded. SourceError: there is none."""
    if not request.source:
        raise SourceError(f"model {request.model} has no source; give the path of its file as `source`")
    return os.path.expanduser(request.source)
