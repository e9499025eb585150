"""The engine `sglang`: models in the hub's format, served by SGLang on NVIDIA and AMD GPUs.

    static share of what is free at the start   `--mem-fraction-static`: weights and KV cache
    room for the KV cache, in tokens            `--max-total-tokens`: the ledger's bytes / bytes of a token

SGLang takes a share of what it finds *free*, which differs with what else is on the device. At the least the
reserved bytes are free, so the share is computed from them and is then enough; where more is free, the
tokens are what holds it to its reservation. Both hold for all its devices.

Rules of this file: argv and environment, nothing is imported of SGLang. The key goes by the environment to
a program of ours (inside/rayscheduler_sglang.py), as SGLang takes it in argv only. Flags as of SGLang 0.5.23.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from rayscheduler.engines.containers import check_container
from rayscheduler.engines.flags import CHOSEN_BY_US, refuse_decided
from rayscheduler.engines.inside import INSIDE_FOLDER
from rayscheduler.engines.kv_cache import KvBudget, kv_budget
from rayscheduler.engines.lora import LORA_HINT, adapter_mounts, highest_rank, target_modules
from rayscheduler.engines.model_needs import model_needs
from rayscheduler.engines.parallel import check_parallel, tensor_parallel
from rayscheduler.engines.prometheus import sum_of
from rayscheduler.engines.protocol import (
    AdapterCalls,
    Call,
    Command,
    Engine,
    EngineRequest,
    InFlight,
    SleepCalls,
    check_environment,
)
from rayscheduler.engines.python_package import Package, interpreter, require
from rayscheduler.engines.residue import SLEEP_MS, WAKE_MS, residue_bytes
from rayscheduler.engines.sources import engine_source, model_mounts, model_source
from rayscheduler.errors import EngineError
from rayscheduler.memory.lora import ADAPTERS
from rayscheduler.memory.sglang import PLACES_OF_NO_ADAPTER
from rayscheduler.memory.values import WEIGHTS

NAME = "sglang"
PACKAGE = Package("sglang", (0, 5), "sglang", "'sglang>=0.5'")

PROGRAM = os.path.join(INSIDE_FOLDER, "rayscheduler_sglang.py")
SLEEPING_BACKENDS = frozenset({"nvidia"})
FRACTION_STEPS = 10_000
FRACTION_MAX = 0.99
# What SGLang's flag takes; another name would end it before it serves anybody.
LORA_MODULES = frozenset(
    {
        *("q_proj", "k_proj", "v_proj", "o_proj", "qkv_proj", "gate_proj", "up_proj", "down_proj", "gate_up_proj"),
        *("embed_tokens", "lm_head"),
    }
)
KV_TYPES: Mapping[str, str] = {  # the catalog's word -> SGLang's
    **{name: name for name in ("auto", "fp8_e4m3", "fp8_e5m2", "bfloat16", "nvfp4")},
    "bf16": "bfloat16",
    "fp8": "fp8_e4m3",
}

# flags that the catalog or rayscheduler itself decides -> what to use instead
DECIDED_ELSEWHERE: Mapping[str, str] = {
    **dict.fromkeys(("--model-path", "--model"), "give it as `source`"),
    "--served-model-name": "requests call it by `name` and `aliases`",
    "--context-length": "give the tokens of one request as `context_length`",
    "--max-running-requests": "give it as `concurrency`",
    **dict.fromkeys(("--chunked-prefill-size", "--max-prefill-tokens"), "give it as `max_batched_tokens`"),
    "--kv-cache-dtype": "give it as `kv_type`",
    "--is-embedding": "give `embedding: true`",
    **dict.fromkeys(
        ("--mem-fraction-static", "--max-total-tokens"),
        "it follows from what is reserved: give `memory`, and `kv_cache` where that is not known",
    ),
    **dict.fromkeys(("--tp-size", "--tensor-parallel-size"), "it follows from `gpus` and `pipeline`"),
    **dict.fromkeys(("--pp-size", "--pipeline-parallel-size"), "give it as `pipeline`"),
    **dict.fromkeys(("--dp-size", "--data-parallel-size"), "several replicas are several engines: give `replicas`"),
    **dict.fromkeys(("--enable-lora", "--lora-paths"), LORA_HINT),
    **dict.fromkeys(("--max-loras-per-batch", "--max-loaded-loras"), "give it as `max_loras`"),
    "--max-lora-rank": "give it as `max_lora_rank`",
    **dict.fromkeys(("--enable-memory-saver", "--enable-weights-cpu-backup"), "give it as `sleep`"),
    **dict.fromkeys(
        ("--nnodes", "--node-rank", "--dist-init-addr", "--nccl-init-addr"),
        "it follows from the placement: give `across_nodes`",
    ),
    **dict.fromkeys(("--device", "--base-gpu-id", "--gpu-id-step", "--nccl-port"), CHOSEN_BY_US),
    **dict.fromkeys(("--host", "--port", "--api-key", "--admin-api-key"), CHOSEN_BY_US),
    **dict.fromkeys(("--ssl-keyfile", "--ssl-certfile"), "engines are reached by their key, not by TLS"),
    "--config": "write what is in it into the catalog",
}


class SGLang(Engine):
    """Serves `source`: a folder with `config.json` and safetensors, or an id on the hub."""

    name = NAME
    profiles_memory = True

    def validate(self, request: EngineRequest) -> None:
        check_environment(request)
        check_container(request)
        refuse_decided(request.args, DECIDED_ELSEWHERE, NAME, request.model)
        check_parallel(request)
        if request.kv_type is not None and request.kv_type not in KV_TYPES:
            known = ", ".join(sorted(KV_TYPES))
            raise EngineError(f"model {request.model}: sglang has no kv_type {request.kv_type!r}; it is one of {known}")
        model_source(request)

    def check(self, request: EngineRequest) -> None:
        self.validate(request)
        require(PACKAGE, request)
        self._memory_flags(request)
        highest_rank(request)

    def command(self, request: EngineRequest, port: int, api_key: str, host: str) -> Command:
        argv = [interpreter(request), PROGRAM, "--model-path", engine_source(request)]
        argv += ["--served-model-name", request.model, "--host", host, "--port", str(port), "--enable-metrics"]
        argv += [*self._size_flags(request), *self._memory_flags(request)]
        if request.node_count > 1:
            argv += ["--nnodes", str(request.node_count), "--node-rank", str(request.node_rank)]
            argv += ["--dist-init-addr", f"{_bracketed(request.leader_host)}:{request.leader_port}"]
        if self.sleep_calls(request) is not None:
            argv += ["--enable-memory-saver", "--enable-weights-cpu-backup"]
        if request.max_loras:
            argv += self._lora_flags(request)
        argv += request.args
        mounts = (INSIDE_FOLDER, *model_mounts(request), *adapter_mounts(request))
        return Command(tuple(argv), dict(request.env), "/health" if request.node_rank == 0 else "", mounts)

    def in_flight(self) -> InFlight:
        return InFlight("/metrics", sum_of("sglang:num_running_reqs", "sglang:num_queue_reqs"))

    def sleep_calls(self, request: EngineRequest) -> SleepCalls | None:
        """SGLang gives its weights and KV cache back, and keeps a copy of the weights in host memory."""
        if not request.sleep or request.backend not in SLEEPING_BACKENDS or request.node_count > 1:
            return None
        sleep = Call("POST", "/release_memory_occupation", "{}")
        wake = Call("POST", "/resume_memory_occupation", "{}")
        return SleepCalls(sleep, wake, 1, residue_bytes(request), SLEEP_MS, WAKE_MS)

    def adapter_calls(self, request: EngineRequest) -> AdapterCalls | None:
        """A request says `any:adapter`; what stands before the first colon is not looked at."""
        if not request.max_loras:
            return None
        return AdapterCalls("/load_lora_adapter", "/unload_lora_adapter", prefix=request.model.split(":")[0] + ":")

    def _lora_flags(self, request: EngineRequest) -> list[str]:
        """All that it would otherwise learn from adapters given at the start."""
        most = str(request.max_loras + PLACES_OF_NO_ADAPTER)
        flags = ["--enable-lora", "--max-loras-per-batch", most, "--max-loaded-loras", most]
        flags += ["--max-lora-rank", str(highest_rank(request))]
        named = target_modules(request)
        modules = named if named and set(named) <= LORA_MODULES else ("all",)
        return [*flags, "--lora-target-modules", *modules]

    def _size_flags(self, request: EngineRequest) -> list[str]:
        flags = ["--tp-size", str(tensor_parallel(request))]
        if request.pipeline > 1:
            flags += ["--pp-size", str(request.pipeline)]
        flags += ["--max-running-requests", str(request.concurrency)]
        if request.context_length is not None:
            flags += ["--context-length", str(request.context_length)]
        if request.max_batched_tokens is not None:
            step = str(request.max_batched_tokens)
            flags += ["--chunked-prefill-size", step, "--max-prefill-tokens", step]
        if request.kv_type is not None:
            flags += ["--kv-cache-dtype", KV_TYPES[request.kv_type]]
        if request.embedding:
            flags.append("--is-embedding")
        return flags

    def _memory_flags(self, request: EngineRequest) -> list[str]:
        needs = model_needs(request, NAME)
        budget = kv_budget(request, needs)
        if needs is None:
            static = budget.counted_bytes
            free = request.device_bytes
        else:
            static = tuple(budget.kv_cache_bytes + parts[WEIGHTS] + parts.get(ADAPTERS, 0) for parts in needs.parts)
            free = tuple(size - parts["context"] for size, parts in zip(request.device_bytes, needs.parts, strict=True))
        # Rounded up, and of the device where it is most: it must suffice on each.
        steps = max(-(-part * FRACTION_STEPS // whole) for part, whole in zip(static, free, strict=True))
        fraction = min(steps / FRACTION_STEPS, FRACTION_MAX)
        return ["--mem-fraction-static", f"{fraction:.4f}", "--max-total-tokens", str(_tokens(request, budget))]


def _tokens(request: EngineRequest, budget: KvBudget) -> int:
    if budget.tokens is not None:
        return budget.tokens
    if request.context_length is None:
        raise EngineError(
            f"model {request.model}: {request.source} is not on this machine, so nobody can tell how many tokens its "
            "KV cache holds; give `context_length`, which times `concurrency` is that, or the path of its folder"
        )
    return request.context_length * request.concurrency


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
