"""What a replica would take by what its model's files say: asked on a machine that has them.

Rules of this file: an answer is always given, also by a file that is not there or makes no sense: then it says
so. The formulas are those of `memory/`; here a catalog's entry is put into their terms, as its engine would
read it. Nothing is started, and of a file little more than its header is read.
"""

from __future__ import annotations

import os
from dataclasses import replace

from rayscheduler.cluster.reports import DeviceEstimate, SizeAnswer, SizeQuestion
from rayscheduler.engines import llama_cpp, sglang, transformers, vllm
from rayscheduler.engines.llama_cpp import NAME as LLAMA_CPP
from rayscheduler.engines.llama_cpp import LlamaCpp
from rayscheduler.engines.llama_cpp_args import Setting
from rayscheduler.engines.model_needs import ask_of
from rayscheduler.engines.protocol import EngineRequest, source_path
from rayscheduler.engines.python_package import installed_version
from rayscheduler.engines.sources import model_folder
from rayscheduler.errors import RayschedulerError, SourceError
from rayscheduler.memory.digest import digest_of
from rayscheduler.memory.estimate import estimate
from rayscheduler.memory.values import KV_CACHE, WEIGHTS, Ask, Estimate

# Engines whose models are in the hub's format, and the packages whose version decides what a model takes. In a
# container, or an environment that is not made yet, nobody knows it.
HUB_PACKAGES = {engine.NAME: engine.PACKAGE for engine in (vllm, sglang, transformers)}
PACKAGES = {**HUB_PACKAGES, llama_cpp.NAME: llama_cpp.PACKAGE}


def size_up(question: SizeQuestion) -> SizeAnswer:
    """Blocks for some ten milliseconds per device count."""
    try:
        path = _path(question)
        ask, on_host = _ask(question), question.on_host
        estimates = {
            count: _on_fullest(estimate(path, replace(ask, gpus=0 if on_host else count)), on_host or not count)
            for count in _counts(question)
        }
        return SizeAnswer(digest_of(path), _version(question), estimates)
    except (RayschedulerError, OSError, ValueError) as problem:
        return SizeAnswer(problem=" ".join(str(problem).split()))


def _path(question: SizeQuestion) -> str:
    """The model's file or folder; of a hub id, where the hub's cache has it. SourceError: it is not on this machine."""
    request = question.request
    if question.engine in HUB_PACKAGES:
        folder = model_folder(request, {**os.environ, **request.env})
        if folder is None:
            raise SourceError(f"{request.source} is not in the hub's cache of this machine")
        return folder
    path = source_path(request)
    if not os.path.exists(path):
        raise SourceError(f"{path} does not exist")
    return path


def _counts(question: SizeQuestion) -> list[int]:
    """On a node that lends its RAM a replica takes that one device, or none; other counts are for other nodes."""
    here = [count for count in question.counts if count <= 1]
    return here if question.on_host and here else list(question.counts)


def _on_fullest(found: Estimate, on_host: bool) -> DeviceEstimate:
    """The core reserves the same on each device: what the fullest takes."""
    parts = dict(found.fullest)
    # The kernel gives RAM page by page as it is touched; weights and cache are touched sooner or later.
    certain_bytes = parts.get(WEIGHTS, 0) + parts.get(KV_CACHE, 0) if on_host else 0
    return DeviceEstimate(found.per_device_bytes, parts, certain_bytes)


def _version(question: SizeQuestion) -> str:
    request = question.request
    if question.engine not in PACKAGES or request.runtime_env or request.container_image:
        return ""
    return installed_version(PACKAGES[question.engine], request) or ""


def _ask(question: SizeQuestion) -> Ask:
    """The question in the terms of `memory/`, but for the devices."""
    request = question.request
    if question.engine == LLAMA_CPP:
        return _ask_llama_cpp(request)
    return ask_of(request, question.engine)


def _ask_llama_cpp(request: EngineRequest) -> Ask:
    """By the settings that the engine itself would be started with: its defaults, and `args` last."""
    settings = LlamaCpp().settings(request)
    slots = int(str(settings["n_parallel"]))
    types = [_word(settings.get(f"cache_type_{part}"), "f16") for part in "kv"]
    micro_batch = settings.get("n_ubatch")
    return Ask(
        engine=LLAMA_CPP,
        context_length=int(str(settings["n_ctx"])) // slots,
        concurrency=slots,
        kv_type=types[0] if types[0] == types[1] else ",".join(types),
        max_batched_tokens=None if micro_batch is None else int(str(micro_batch)),
        flash_attention=_word(settings.get("flash_attn_type"), "auto") != "disabled",
        kv_unified=bool(settings.get("kv_unified")),
        embedding=request.embedding,
        projector=str(settings.get("mmproj.path", "")),
    )


def _word(setting: Setting | None, default: str) -> str:
    """`GGML_TYPE_Q8_0` as llama-server's flags have it: `q8_0`."""
    if setting is None:
        return default
    return str(setting).removeprefix("GGML_TYPE_").removeprefix("LLAMA_FLASH_ATTN_TYPE_").lower()
