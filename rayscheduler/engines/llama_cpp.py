"""The engine `llama-cpp`: GGUF models, served by the packaged llama.cpp (xllamacpp) in a process of its own.

Rules of this file: xllamacpp is never imported here, since building its server holds the GIL for the
whole load and a failed assertion ends the process. What is settled here goes to inside/rayscheduler_llama_cpp.py
as one JSON argument; the key goes by the environment. Memory is exact by intent: the context is what the
catalog says, nothing shrinks to fit, and there is no cache in host memory beyond it.

It does not sleep: all that llama.cpp offers is `--sleep-idle-seconds`, by which it unloads by itself after some idle
time and loads again from its file whenever a request comes. Nobody can tell it to, so it would take memory back
that the ledger has lent to others. (`sleep_idle_seconds` keeps its default, never.)
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from rayscheduler.engines.containers import check_container
from rayscheduler.engines.inside import INSIDE_FOLDER
from rayscheduler.engines.llama_cpp_args import Setting, read_args
from rayscheduler.engines.prometheus import sum_of
from rayscheduler.engines.protocol import (
    Command,
    Engine,
    EngineRequest,
    InFlight,
    check_environment,
    check_one_node,
    source_path,
)
from rayscheduler.engines.python_package import Package, interpreter, require
from rayscheduler.errors import EngineError, SourceError
from rayscheduler.memory.gguf import GgufError, GgufHeader, read_parts

NAME = "llama-cpp"
PACKAGE = Package("xllamacpp", (2026, 10), "llama-cpp", "'xllamacpp>=2026.10'")
PROGRAM = os.path.join(INSIDE_FOLDER, "rayscheduler_llama_cpp.py")
CONTEXT_DEFAULT = 4096  # tokens of one request, where the model allows as many and the catalog says nothing
ALL_LAYERS = 999
# llama.cpp's threads would spin while they wait for each other. Where another engine wants the same cores,
# that costs nearly everything: 0.8 to 1.4 tokens/s against 12 to 20, measured with two busy cores of two.
_ENVIRONMENT = {"OMP_WAIT_POLICY": "passive", "GGML_NO_BACKTRACE": "1"}

# For models that bring no template, such as base models: questions and answers, which they have all read.
# They do not know when to end, so a client that wants one answer sends `stop: ["\nQuestion:"]`.
PLAIN_CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message.role == 'system' %}{{ message.content }}\n\n"
    "{% elif message.role == 'user' %}Question: {{ message.content }}\n"
    "{% else %}Answer: {{ message.content }}\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}Answer:{% endif %}"
)


class LlamaCpp(Engine):
    """Serves `source`, a GGUF file (the first one of a split model)."""

    name = NAME
    profiles_memory = False  # it takes what its context and layers need, whatever is free

    def validate(self, request: EngineRequest) -> None:
        check_environment(request)
        check_one_node(request, NAME)
        check_container(request)
        settings = read_args(request.args)
        if request.context_length is not None and request.context_length < 1:
            raise EngineError(f"model {request.model} has a context_length of {request.context_length}; give 1 or more")
        if request.embedding and settings.get("pooling_type") == "LLAMA_POOLING_TYPE_NONE":
            raise EngineError(
                f"model {request.model} is for embeddings, which need a pooling; leave out --pooling none"
            )

    def check(self, request: EngineRequest) -> None:
        self.validate(request)
        require(PACKAGE, request)
        self.settings(request)

    def command(self, request: EngineRequest, port: int, api_key: str, host: str) -> Command:
        plan = {
            "model": request.model,
            "path": source_path(request),
            "host": host,
            "port": port,
            "settings": self.settings(request),
        }
        return Command(
            argv=(interpreter(request), PROGRAM, json.dumps(plan)),
            env={**_ENVIRONMENT, **request.env},
            ready_path="/health",
            mounts=(INSIDE_FOLDER, os.path.dirname(os.path.abspath(source_path(request)))),
        )

    def in_flight(self) -> InFlight:
        return InFlight("/metrics", sum_of("llamacpp:requests_processing", "llamacpp:requests_deferred"))

    def settings(self, request: EngineRequest) -> dict[str, Setting]:
        """The fields of xllamacpp.CommonParams that are set for this request; `args` go last.

        The KV cache has `n_ctx` cells in all: `context_length` for each of `concurrency` requests.
        """
        header = _header(request)
        context = _context_length(request, header)
        settings: dict[str, Setting] = {
            "n_ctx": context * request.concurrency,
            "n_parallel": request.concurrency,
            "n_gpu_layers": ALL_LAYERS if request.visible_devices else 0,
            "fit_params": False,
            "cache_ram_mib": 0,
            "endpoint_metrics": True,
            "ui": False,
        }
        if len(request.visible_devices) > 1:
            settings["tensor_split"] = [1.0] * len(request.visible_devices)
        if request.max_batched_tokens is not None:
            settings |= {"n_batch": request.max_batched_tokens, "n_ubatch": request.max_batched_tokens}
        if request.kv_type is not None:
            settings |= read_args(("--cache-type-k", request.kv_type, "--cache-type-v", request.kv_type))
        if request.embedding:
            settings |= {"embedding": True, "n_batch": context, "n_ubatch": context}
            if not header.number(f"{header.architecture}.pooling_type"):
                settings["pooling_type"] = "LLAMA_POOLING_TYPE_MEAN"
        elif not header.chat_template:
            settings["chat_template"] = PLAIN_CHAT_TEMPLATE
        return settings | read_args(request.args)


def _header(request: EngineRequest) -> GgufHeader:
    """The header of the model's (first) file. SourceError: the file is missing, truncated or no GGUF model."""
    path = source_path(request)
    told = f"model {request.model}: {path}"
    if os.path.isdir(path):
        inside = sorted(entry.name for entry in Path(path).glob("*.gguf"))
        hint = f"such as {os.path.join(path, inside[0])}" if inside else "there is none in it"
        raise SourceError(f"{told} is a directory; give the path of a .gguf file, {hint}")
    if not os.path.exists(path):
        raise SourceError(f"{told} does not exist; give the path of a .gguf file on this machine as `source`")
    if not os.path.isfile(path):
        raise SourceError(f"{told} is not a regular file; give the path of a .gguf file")
    try:
        parts = read_parts(path)
    except GgufError as error:
        advice = "download it again" if "cut short" in str(error) else "give the path of a whole .gguf model"
        raise SourceError(f"{told} cannot be used: {error}; {advice}") from error
    except OSError as error:
        raise SourceError(f"{told} cannot be read: {error.strerror}; mend that or give another file") from error
    header = parts[0][1]
    if not header.architecture or not any(part.tensors for _, part in parts):
        raise SourceError(f"{told} names no architecture or has no tensors, so it is no model; give a .gguf model")
    return header


def _context_length(request: EngineRequest, header: GgufHeader) -> int:
    trained = header.context_length
    if request.context_length is None:
        return min(CONTEXT_DEFAULT, trained) if trained else CONTEXT_DEFAULT
    extended = any("rope" in arg or "yarn" in arg for arg in request.args)
    if trained and request.context_length > trained and not extended:
        raise EngineError(
            f"model {request.model} has a context_length of {request.context_length:,}, but was trained for "
            f"{trained:,} tokens; lower it, or extend the model with --rope-scaling in args"
        )
    return request.context_length
