"""What an engine is: how to check that it can serve a model, and the command that serves it.

Rules of this file: values and one protocol; nothing is started and no engine is named here. An
`EngineRequest` travels through Ray, so it holds plain values only. An engine's `check` says what to
do about what is missing; `command` may read the source, and has no other effect.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
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
    """One replica to be served, as the engine needs to know it.

    `device_bytes`: the ledger's vector, bytes on each device taken. `visible_devices`: the UUIDs of
    those devices, () on a cpu node. `context_length`: tokens that one request may take, None: the
    engine's default. `concurrency`: requests served at the same time.
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
    visible_devices: tuple[str, ...] = ()
    backend: str = "cpu"
    ready_path: str = "/health"
    load_timeout_ms: int = 600_000
    simulate: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Command:
    """A program to start, what its environment has beyond the common one, and where it says it is ready."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    ready_path: str


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
        """The command that serves the request on that port to those who know the key."""


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


def source_path(request: EngineRequest) -> str:
    """The source as a path, `~` expanded. SourceError: there is none."""
    if not request.source:
        raise SourceError(f"model {request.model} has no source; give the path of its file as `source`")
    return os.path.expanduser(request.source)
