"""The engine `vllm`: models in the hub's format, served by `vllm serve` on NVIDIA and AMD GPUs.

Rules of this file: argv and environment, nothing is imported of vLLM. How much of a device it takes comes
from the ledger, in two flags that have to agree: `--kv-cache-memory-bytes` says what it allocates (so it does
not profile, which another process on the device would disturb), and `--gpu-memory-utilization`, of which it
then only checks that so much is free. Both hold for all its devices, so the least decides. Flags as of vLLM 0.33.
"""

from __future__ import annotations

from collections.abc import Mapping

from rayscheduler.engines.containers import check_container
from rayscheduler.engines.flags import CHOSEN_BY_US, refuse_decided
from rayscheduler.engines.inside import INSIDE_FOLDER
from rayscheduler.engines.kv_cache import kv_budget
from rayscheduler.engines.lora import LORA_HINT, adapter_mounts, highest_rank
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
from rayscheduler.engines.python_package import Package, program_path, require
from rayscheduler.engines.residue import SLEEP_MS, WAKE_MS, residue_bytes
from rayscheduler.engines.sources import engine_source, model_mounts, model_source
from rayscheduler.errors import EngineError
from rayscheduler.memory.lora import VLLM_RANKS, vllm_rank

NAME = "vllm"
# Older ones take devices by number only, not by UUID.
PACKAGE = Package("vllm", (0, 24), "vllm", "'vllm>=0.24'", program="vllm")
GUARD = "rayscheduler_guard.Guard"
SLEEPING_BACKENDS = frozenset({"nvidia", "rocm"})
KV_TYPES: Mapping[str, str] = {  # the catalog's word -> vLLM's
    **{name: name for name in ("auto", "float16", "bfloat16", "fp8", "fp8_e4m3", "fp8_e5m2", "nvfp4")},
    "f16": "float16",
    "bf16": "bfloat16",
}
OWN_ENV = frozenset({"VLLM_API_KEY", "VLLM_SERVER_DEV_MODE", "VLLM_HOST_IP", "VLLM_ALLOW_RUNTIME_LORA_UPDATING"})

# flags that the catalog or rayscheduler itself decides -> what to use instead
DECIDED_ELSEWHERE: Mapping[str, str] = {
    "--model": "give it as `source`",
    "--served-model-name": "requests call it by `name` and `aliases`",
    "--max-model-len": "give the tokens of one request as `context_length`",
    "--max-num-seqs": "give it as `concurrency`",
    "--max-num-batched-tokens": "give it as `max_batched_tokens`",
    "--kv-cache-dtype": "give it as `kv_type`",
    **dict.fromkeys(("--runner", "--convert"), "for embeddings, give `embedding: true`"),
    **dict.fromkeys(
        ("--gpu-memory-utilization", "--device-memory-utilization", "--kv-cache-memory-bytes"),
        "it follows from what is reserved: give `memory`, and `kv_cache` where that is not known",
    ),
    **dict.fromkeys(("--num-gpu-blocks-override",), "it would contradict what is reserved; give `memory`"),
    **dict.fromkeys(("--tensor-parallel-size", "-tp"), "it follows from `gpus` and `pipeline`"),
    **dict.fromkeys(("--pipeline-parallel-size", "-pp"), "give it as `pipeline`"),
    **dict.fromkeys(
        ("--data-parallel-size", "-dp", "--data-parallel-size-local", "--data-parallel-rank", "--api-server-count"),
        "several replicas are several engines: give `replicas`",
    ),
    **dict.fromkeys(("--enable-lora", "--lora-modules"), LORA_HINT),
    **dict.fromkeys(("--max-loras", "--max-cpu-loras"), "give it as `max_loras`"),
    "--max-lora-rank": "give it as `max_lora_rank`",
    **dict.fromkeys(("--enable-sleep-mode", "--enable-cumem-allocator"), "give it as `sleep`"),
    **dict.fromkeys(
        ("--nnodes", "-n", "--node-rank", "-r", "--master-addr", "--master-port", "--headless"),
        "it follows from the placement: give `across_nodes`",
    ),
    **dict.fromkeys(("--distributed-executor-backend", "--device-ids"), CHOSEN_BY_US),
    **dict.fromkeys(("--host", "--port", "--uds", "--api-key", "--grpc", "--root-path"), CHOSEN_BY_US),
    **dict.fromkeys(("--ssl-keyfile", "--ssl-certfile"), "engines are reached by their key, not by TLS"),
    "--config": "write what is in it into the catalog",
}


class Vllm(Engine):
    """Serves `source`: a folder with `config.json` and safetensors, or an id on the hub."""

    name = NAME
    profiles_memory = True  # less so with the bytes of its KV cache given, but it still compares with what is free

    def validate(self, request: EngineRequest) -> None:
        check_environment(request)
        check_container(request)
        for key in sorted(OWN_ENV & set(request.env)):
            raise EngineError(f"model {request.model} sets {key} in its env, which is set for each engine")
        refuse_decided(request.args, DECIDED_ELSEWHERE, NAME, request.model)
        check_parallel(request)
        if request.kv_type is not None and request.kv_type not in KV_TYPES:
            known = ", ".join(sorted(KV_TYPES))
            raise EngineError(f"model {request.model}: vllm has no kv_type {request.kv_type!r}; it is one of {known}")
        model_source(request)

    def check(self, request: EngineRequest) -> None:
        self.validate(request)
        require(PACKAGE, request)
        kv_budget(request, model_needs(request, NAME))
        self._lora_flags(request)

    def command(self, request: EngineRequest, port: int, api_key: str, host: str) -> Command:
        leads = request.node_rank == 0
        argv = [program_path(PACKAGE, request), "serve", engine_source(request), "--served-model-name", request.model]
        if leads:
            argv += ["--host", host, "--port", str(port), "--middleware", GUARD, "--disable-uvicorn-access-log"]
        argv += [*self._size_flags(request), *self._memory_flags(request), *self._node_flags(request)]
        env = {**request.env, "PYTHONPATH": INSIDE_FOLDER}
        if leads:
            env["VLLM_API_KEY"] = api_key
        if request.node_count > 1:
            env["VLLM_HOST_IP"] = host
        if self.sleep_calls(request) is not None:
            argv.append("--enable-sleep-mode")
            env["VLLM_SERVER_DEV_MODE"] = "1"
        if request.max_loras:
            argv += self._lora_flags(request)
            env["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "1"
        argv += request.args
        mounts = (INSIDE_FOLDER, *model_mounts(request), *adapter_mounts(request))
        return Command(tuple(argv), env, "/health" if leads else "", mounts)

    def in_flight(self) -> InFlight:
        return InFlight("/metrics", sum_of("vllm:num_requests_running", "vllm:num_requests_waiting"))

    def sleep_calls(self, request: EngineRequest) -> SleepCalls | None:
        """vLLM parks weights by CUDA's virtual memory, on one node. The guard keeps strangers off the paths."""
        if not request.sleep or request.backend not in SLEEPING_BACKENDS or request.node_count > 1:
            return None
        sleep, wake = Call("POST", "/sleep?level=1"), Call("POST", "/wake_up")
        return SleepCalls(sleep, wake, 1, residue_bytes(request), SLEEP_MS, WAKE_MS)

    def adapter_calls(self, request: EngineRequest) -> AdapterCalls | None:
        """Behind the guard, as all its paths are; no client can ask the gateway for these."""
        return AdapterCalls("/v1/load_lora_adapter", "/v1/unload_lora_adapter") if request.max_loras else None

    def _lora_flags(self, request: EngineRequest) -> list[str]:
        rank = vllm_rank(highest_rank(request))
        if rank > VLLM_RANKS[-1]:
            raise EngineError(f"model {request.model}: vllm takes adapters up to rank {VLLM_RANKS[-1]}, not {rank}")
        return ["--enable-lora", "--max-loras", str(request.max_loras), "--max-lora-rank", str(rank)]

    def _size_flags(self, request: EngineRequest) -> list[str]:
        flags = ["--tensor-parallel-size", str(tensor_parallel(request))]
        if request.pipeline > 1:
            flags += ["--pipeline-parallel-size", str(request.pipeline)]
        flags += ["--max-num-seqs", str(request.concurrency)]
        if request.context_length is not None:
            flags += ["--max-model-len", str(request.context_length)]
        if request.max_batched_tokens is not None:
            flags += ["--max-num-batched-tokens", str(request.max_batched_tokens)]
        if request.kv_type is not None:
            flags += ["--kv-cache-dtype", KV_TYPES[request.kv_type]]
        if request.embedding:
            flags += ["--runner", "pooling"]
        return flags

    def _memory_flags(self, request: EngineRequest) -> list[str]:
        budget = kv_budget(request, model_needs(request, NAME))
        return [
            *("--kv-cache-memory-bytes", str(budget.kv_cache_bytes)),
            *("--gpu-memory-utilization", f"{budget.fraction:.4f}"),
        ]

    def _node_flags(self, request: EngineRequest) -> list[str]:
        if request.node_count == 1:
            return []
        flags = ["--distributed-executor-backend", "mp", "--nnodes", str(request.node_count)]
        flags += ["--node-rank", str(request.node_rank)]
        flags += ["--master-addr", request.leader_host, "--master-port", str(request.leader_port)]
        return flags if request.node_rank == 0 else [*flags, "--headless"]
