"""What a replica would take by what its model's files say: asked on a machine that has them.

Rules of this file: an answer is always given, also by a file that is not there or makes no sense: then it says
so. The formulas are those of `memory/`; here a catalog's entry is put into their terms, as its engine would
read it. Nothing is started, and of a file little more than its header is read.
"""

from __future__ import annotations

import os
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version

from rayscheduler.cluster.reports import DeviceEstimate, SizeAnswer, SizeQuestion
from rayscheduler.engines.llama_cpp import NAME as LLAMA_CPP
from rayscheduler.engines.llama_cpp import LlamaCpp
from rayscheduler.engines.llama_cpp_args import Setting
from rayscheduler.engines.lora import highest_rank
from rayscheduler.engines.protocol import EngineRequest, source_path
from rayscheduler.errors import RayschedulerError
from rayscheduler.memory.digest import digest_of
from rayscheduler.memory.estimate import estimate
from rayscheduler.memory.values import KV_CACHE, WEIGHTS, Ask, Estimate

# By engine, the package whose version decides what it takes. In a container or another environment nobody knows it.
PACKAGES = {"llama-cpp": "xllamacpp", "vllm": "vllm", "sglang": "sglang", "transformers": "transformers"}


def size_up(question: SizeQuestion) -> SizeAnswer:
    """Blocks for some ten milliseconds per device count."""
    try:
        path = source_path(question.request)
        if not os.path.exists(path):
            return SizeAnswer(problem=f"{path} does not exist")
        ask, on_host = _ask(question), question.on_host
        estimates = {
            count: _on_fullest(estimate(path, replace(ask, gpus=0 if on_host else count)), on_host or not count)
            for count in _counts(question)
        }
        return SizeAnswer(digest_of(path), _version(question), estimates)
    except (RayschedulerError, OSError, ValueError) as problem:
        return SizeAnswer(problem=" ".join(str(problem).split()))


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
    if request.python or request.runtime_env or request.container_image:
        return ""
    try:
        return version(PACKAGES[question.engine])
    except (KeyError, PackageNotFoundError):
        return ""


def _ask(question: SizeQuestion) -> Ask:
    """The question in the terms of `memory/`, but for the devices."""
    request = question.request
    if question.engine == LLAMA_CPP:
        return _ask_llama_cpp(request)
    return Ask(
        engine=question.engine,
        context_length=request.context_length,
        concurrency=request.concurrency,
        pipeline=request.pipeline,
        kv_type=request.kv_type or "auto",
        max_batched_tokens=request.max_batched_tokens,
        embedding=request.embedding,
        max_loras=request.max_loras,
        max_lora_rank=highest_rank(request),
    )


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
