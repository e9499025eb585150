"""The engine `llama-cpp`: GGUF models, served by the packaged llama.cpp (xllamacpp) in a process of its own.

Rules of this file: xllamacpp is never imported here, since building its server holds the GIL for the
whole load and a failed assertion ends the process. What is settled here goes to llama_cpp_server.py as
one JSON argument; the key goes by the environment. Memory is exact by intent: the context is what the
catalog says, nothing shrinks to fit, and there is no cache in host memory beyond it.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path

from rayscheduler.engines.llama_cpp_args import Setting, read_args
from rayscheduler.engines.protocol import Command, EngineRequest, check_environment, source_path
from rayscheduler.errors import EngineError, EngineMissing, SourceError
from rayscheduler.memory.gguf import GgufError, GgufHeader, read_parts

NAME = "llama-cpp"
PACKAGE = "xllamacpp"
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


class LlamaCpp:
    """Serves `source`, a GGUF file (the first one of a split model)."""

    name = NAME
    profiles_memory = False  # it takes what its context and layers need, whatever is free

    def validate(self, request: EngineRequest) -> None:
        check_environment(request)
        settings = read_args(request.args)
        if request.context_length is not None and request.context_length < 1:
            raise EngineError(f"model {request.model} has a context_length of {request.context_length}; give 1 or more")
        if request.embedding and settings.get("pooling_type") == "LLAMA_POOLING_TYPE_NONE":
            raise EngineError(
                f"model {request.model} is for embeddings, which need a pooling; leave out --pooling none"
            )

    def check(self, request: EngineRequest) -> None:
        self.validate(request)
        if importlib.util.find_spec(PACKAGE) is None:
            raise EngineMissing(
                f"model {request.model} needs the engine {NAME}, which is not installed; "
                'run: pip install "rayscheduler[llama-cpp]"'
            )
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
            argv=(sys.executable, "-m", "rayscheduler.engines.llama_cpp_server", json.dumps(plan)),
            env={**_ENVIRONMENT, **request.env},
            ready_path="/health",
        )

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
