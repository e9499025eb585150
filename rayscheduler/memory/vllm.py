"""What a vLLM server takes on each of its devices.

Rules of this file: one function per part, each saying where in vLLM the bytes come from and which measured rows
fix its constant. Bytes that no source explains are one named constant, not a factor. Measured on H100 with vLLM
0.19 (tests/memory/measured.json): for other devices the context differs by some 0.1 GiB. Context and graphs lie
outside vLLM's `--gpu-memory-utilization`, the rest within it.
"""

from __future__ import annotations

from pathlib import Path

from rayscheduler.memory.lora import adapters_part, vllm_rank
from rayscheduler.memory.paged_kv import PagedKv, Paging, paged_kv
from rayscheduler.memory.torch_model import TorchModel, torch_model
from rayscheduler.memory.values import GIB, KV_CACHE, MIB, WEIGHTS, Ask, Estimate, built, rounded_up

NAME = "vllm"
STEP_TOKENS_DEFAULT = 8192  # max_num_batched_tokens of a server on 80 GB devices (vllm/engine/arg_utils.py)

CONTEXT_BYTES = int(0.51 * GIB)  # CUDA context and libraries at process start; every row of one device
NCCL_TENSOR_BYTES = (int(1.00 * GIB), int(0.01 * GIB))  # at process start, once and per rank; rows 3, 4, 27, 28, 45, 52
NCCL_PIPELINE_BYTES = (int(0.89 * GIB), int(0.02 * GIB))  # rows 25 and 26
OUTSIDE_BYTES = int(0.25 * GIB)  # cuBLAS, FlashInfer and Triton workspaces in the first forward pass
OUTSIDE_TENSOR_BYTES = (int(2.02 * GIB), int(0.034 * GIB))  # with all-reduce buffers; once and per rank
OUTSIDE_PIPELINE_BYTES = int(0.07 * GIB)
LOGIT_FLOATS_BYTES = 12  # per logit beside the logit itself: float32 copy, probabilities, sorted values
ACTIVATION_FIXED_BYTES = 112 * MIB
RESIDUAL_BYTES_SHARE = 1.1  # of tokens x hidden: what of the forward pass is still there when sampling
MULTIMODAL_BYTES = int(0.25 * GIB)  # encoder cache and placeholder embeddings
GRAPH_SIZE_MAX = 512
# Once and per layer, for all 51 sizes together. With several ranks all-reduces add nodes to each layer, and what is
# once is taken by NCCL's buffers before: rows 3, 4, 27, 28, 45, 52, 53, 56.
GRAPHS_BYTES = (int(0.37 * GIB), int(0.0166 * GIB))
GRAPHS_TENSOR_BYTES = (int(0.10 * GIB), int(0.0206 * GIB))
GRAPHS_WITH_LORA = 2  # one more for each size, with adapters (vllm/config/compilation.py, cudagraph_specialize_lora)
GRAPHS_EXPERTS_BYTES = int(0.28 * GIB)


def estimate_vllm(source: Path, ask: Ask) -> Estimate:
    """Per device: context, weights, activation, outside the allocator, graphs, KV cache."""
    model = torch_model(source, ask, downcasts=True)
    step_tokens = ask.max_batched_tokens or max(STEP_TOKENS_DEFAULT, ask.concurrency)
    paging = Paging(model.tensor, model.kv_bytes, step_tokens, model.state_bytes)
    graph_sets = GRAPHS_WITH_LORA if ask.max_loras else 1
    parts: list[dict[str, int]] = []
    caches: list[PagedKv] = []
    for stage in model.stages:
        cache = paged_kv(model.geometry, stage, paging, model.context_tokens)
        caches.append(cache)
        device = {
            "context": context_bytes(model),
            WEIGHTS: model.stage_weights(stage) + rotary_bytes(model),
            "activation": activation_bytes(model, stage, ask.concurrency, step_tokens),
            "outside": outside_bytes(model),
            "graphs": graph_bytes(model, stage, ask.concurrency, step_tokens) * graph_sets,
            **adapters_part(model, stage, ask.max_loras, vllm_rank(ask.max_lora_rank)),
            KV_CACHE: cache.request_bytes * ask.concurrency,
        }
        parts += [device] * model.tensor
    notes = list(model.notes)
    if padded := max(cache.padded_layers for cache in caches):
        notes.append(f"the cache is as large as for {padded} more layers: groups of layers of one kind are padded")
    return built(
        NAME,
        parts,
        max(cache.bytes_per_token for cache in caches),
        ask.concurrency * rounded_up(model.context_tokens, paging.block_tokens),
        notes,
    )


def rotary_bytes(model: TorchModel) -> int:
    """The table of cosines and sines, one for all layers, as long as the model's longest context."""
    geometry = model.geometry
    width = geometry.rotary_dim if any(layer.keeps_tokens for layer in geometry.layers) else 0
    return round(geometry.context_length * width * model.compute_bytes)


def context_bytes(model: TorchModel) -> int:
    """Taken before the first tensor: the CUDA context, and NCCL's communicators where there are several ranks."""
    ranks = model.tensor * len(model.stages)
    if ranks == 1:
        return CONTEXT_BYTES
    once, each = NCCL_TENSOR_BYTES if model.tensor > 1 else NCCL_PIPELINE_BYTES
    return CONTEXT_BYTES + once + each * ranks


def outside_bytes(model: TorchModel) -> int:
    """Allocated beside torch by the profile run: "non-torch forward increase" in vLLM's log."""
    if model.tensor > 1:
        once, each = OUTSIDE_TENSOR_BYTES
        return once + each * model.tensor
    return OUTSIDE_PIPELINE_BYTES if len(model.stages) > 1 else OUTSIDE_BYTES


def activation_bytes(model: TorchModel, stage: range, concurrency: int, step_tokens: int) -> int:
    """The peak of the profile run (vllm/v1/worker/gpu_model_runner.py, profile_run).

    Either within a layer, with the gated feed-forward's two halves and their product alive, or in the dummy
    sampler run of the last stage: `concurrency` rows of logits in several copies. Logits are gathered, so tensor
    parallelism does not divide them. The mixture's two workspaces stay allocated through both (fused_moe's
    workspace_shapes: tokens x experts used x the larger of its widths).
    """
    geometry, element = model.geometry, model.compute_bytes
    residual = step_tokens * geometry.hidden * element
    widest = max((geometry.layers[index].ff for index in stage), default=0) / model.tensor
    forward = step_tokens * element * (3 * widest + 4 * geometry.hidden)
    sampling = 0.0
    if stage.stop == geometry.layer_count:
        logits = concurrency * geometry.vocab
        sampling = logits * (element + LOGIT_FLOATS_BYTES) + RESIDUAL_BYTES_SHARE * residual
    kept = ACTIVATION_FIXED_BYTES + (MULTIMODAL_BYTES if geometry.multimodal and stage.start == 0 else 0)
    if geometry.has_experts:
        width, hidden = geometry.expert_ff / model.tensor, geometry.hidden
        rows = step_tokens * max(1, geometry.experts_used)
        kept += int(rows * element * (max(width, hidden) + max(2 * width, hidden)))
    return round(max(forward, sampling) + kept)


def graph_sizes(concurrency: int, step_tokens: int) -> list[int]:
    """The batch sizes that are captured (vllm/config/vllm.py, _set_cudagraph_sizes)."""
    largest = min(2 * concurrency, GRAPH_SIZE_MAX, step_tokens)
    sizes = [1, 2, 4, *range(8, 256, 8), *range(256, GRAPH_SIZE_MAX + 1, 16)]
    return [size for size in sizes if size <= largest]


def graph_bytes(model: TorchModel, stage: range, concurrency: int, step_tokens: int) -> int:
    """CUDA graphs: nodes for every captured size and layer, and the pool of the largest size."""
    sizes = graph_sizes(concurrency, step_tokens)
    share = len(sizes) / len(graph_sizes(GRAPH_SIZE_MAX, GRAPH_SIZE_MAX))
    once, each = GRAPHS_TENSOR_BYTES if model.tensor > 1 else GRAPHS_BYTES
    if model.geometry.has_experts:
        once += GRAPHS_EXPERTS_BYTES
    return round((once + each * len(stage)) * share)
