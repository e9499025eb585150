"""The engine `transformers`: any text model that PyTorch can run, by `transformers serve`, also without a GPU.

Rules of this file: argv and environment; nothing is imported of transformers. It is run by a program of
ours (inside/rayscheduler_transformers.py), which gives the model its name, asks for the key, and keeps
PyTorch within the ledger's bytes on each GPU. Flags as of transformers 5.24.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping

from rayscheduler.engines.containers import check_container
from rayscheduler.engines.flags import CHOSEN_BY_US, refuse_decided
from rayscheduler.engines.inside import INSIDE_FOLDER
from rayscheduler.engines.protocol import (
    Command,
    Engine,
    EngineRequest,
    InFlight,
    check_environment,
    check_one_node,
)
from rayscheduler.engines.python_package import Package, interpreter, require
from rayscheduler.engines.sources import engine_source, model_folder, model_mounts, model_source
from rayscheduler.errors import EngineError

NAME = "transformers"
PACKAGE = Package("transformers", (5, 6), "transformers", "torch 'transformers[serving]>=5.6'")
PROGRAM = os.path.join(INSIDE_FOLDER, "rayscheduler_transformers.py")
FRACTIONS_ENV = "RAYSCHEDULER_DEVICE_FRACTIONS"
CONTEXT_BYTES = round(0.51 * 2**30)  # of CUDA, outside of PyTorch's allocator (memory/vllm.py: the same context)
FRACTION_STEPS = 10_000

# options that the catalog or rayscheduler itself decides -> what to use instead
DECIDED_ELSEWHERE: Mapping[str, str] = {
    **dict.fromkeys(("--host", "--port", "--device", "--model-timeout"), CHOSEN_BY_US),
    "--cb-max-memory-percent": "it follows from what is reserved: give `memory`",
}


class Transformers(Engine):
    """Serves `source`: a folder with `config.json` and weights, or an id on the hub."""

    name = NAME
    profiles_memory = False

    def validate(self, request: EngineRequest) -> None:
        check_environment(request)
        check_one_node(request, NAME)
        check_container(request)
        refuse_decided(request.args, DECIDED_ELSEWHERE, NAME, request.model)
        model_source(request)
        told = f"model {request.model}"
        if request.embedding:
            raise EngineError(f"{told} is for embeddings, which transformers does not serve; use vllm or llama-cpp")
        if request.model.startswith("/") or ".." in request.model.split("/"):
            raise EngineError(f"{told} cannot have this name with transformers, which takes it for a path; rename it")
        for key, value in (("kv_type", request.kv_type), ("max_batched_tokens", request.max_batched_tokens)):
            if value is not None:
                raise EngineError(f"{told} has a {key}, which transformers does not know; leave it out")

    def check(self, request: EngineRequest) -> None:
        self.validate(request)
        require(PACKAGE, request)
        model_folder(request, {**os.environ, **request.env})

    def command(self, request: EngineRequest, port: int, api_key: str, host: str) -> Command:
        argv = [interpreter(request), PROGRAM, request.model, engine_source(request)]
        argv += ["--host", host, "--port", str(port), "--device", _device(request), *request.args]
        env = dict(request.env)
        if request.visible_devices:
            env[FRACTIONS_ENV] = ",".join(_fractions(request))
        return Command(tuple(argv), env, "/health", (INSIDE_FOLDER, *model_mounts(request)))

    def in_flight(self) -> InFlight:
        """The guard counts, as transformers does not."""
        return InFlight("/rayscheduler/in_flight", _read_count)


def _device(request: EngineRequest) -> str:
    if not request.visible_devices:
        return "cpu"
    return "cuda:0" if len(request.visible_devices) == 1 else "auto"


def _fractions(request: EngineRequest) -> list[str]:
    """Of each device's whole memory, what PyTorch may allocate there; rounded down."""
    if len(request.device_capacity_bytes) != len(request.device_bytes):
        raise EngineError(f"model {request.model} takes devices whose size is not known, which its engine needs")
    fractions = []
    for reserved, whole in zip(request.device_bytes, request.device_capacity_bytes, strict=True):
        steps = (reserved - CONTEXT_BYTES) * FRACTION_STEPS // whole
        if steps < 1:
            raise EngineError(
                f"model {request.model} reserves {reserved / 2**30:.2f} GiB of a GPU, of which CUDA alone takes "
                f"{CONTEXT_BYTES / 2**30:.2f} GiB; raise its memory"
            )
        fractions.append(f"{steps / FRACTION_STEPS:.4f}")
    return fractions


def _read_count(page: str) -> int:
    return int(json.loads(page)["in_flight"])
