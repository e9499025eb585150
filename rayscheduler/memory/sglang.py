"""What an SGLang server takes on each of its devices.

Rules of this file: what SGLang shares with vLLM (weights, keys and values per token, context) is computed there and
in paged_kv.py; here stands what differs. Its constants are less sure than vLLM's: no measured row has its parts.
Sources: python/sglang/srt/mem_cache/memory_pool.py (pools), model_executor/model_runner.py (profile_max_num_token),
server_args.py (chunked_prefill_size, cuda_graph_max_bs).
"""

from __future__ import annotations

from pathlib import Path

from rayscheduler.memory.lora import adapters_part
from rayscheduler.memory.paged_kv import Paging, token_bytes
from rayscheduler.memory.torch_model import TorchModel, torch_model
from rayscheduler.memory.values import GIB, KV_CACHE, WEIGHTS, Ask, Estimate, built
from rayscheduler.memory.vllm import context_bytes, graph_sizes, rotary_bytes

NAME = "sglang"
STEP_TOKENS_DEFAULT = 8192  # chunked_prefill_size on 80 GB devices
PLACES_OF_NO_ADAPTER = 1  # requests for the base take a place among the adapters (server_args.py, max_loras_per_batch)
SLOT_BYTES = 4  # of req_to_token_pool: the place of each token of each request
GRAPHS_BYTES = (int(0.30 * GIB), int(0.02 * GIB))  # once and per layer, for all sizes up to 512
OUTSIDE_BYTES = int(0.30 * GIB)  # FlashInfer's workspace (384 MiB less what torch counts) and cuBLAS


def estimate_sglang(source: Path, ask: Ask) -> Estimate:
    """Per device: context, weights, activation, outside the allocator, graphs, KV cache.

    Keys and values lie in one pool per layer without groups, so nothing is padded; logits are computed for the
    last token of each request only, in float32 beside the model's type.
    """
    model = torch_model(source, ask, downcasts=False)
    step_tokens = ask.max_batched_tokens or STEP_TOKENS_DEFAULT
    paging = Paging(model.tensor, model.kv_bytes, step_tokens, model.state_bytes, block_tokens=1)
    sizes = graph_sizes(ask.concurrency, step_tokens)
    share = len(sizes) / len(graph_sizes(step_tokens, step_tokens))
    places = ask.max_loras + PLACES_OF_NO_ADAPTER if ask.max_loras else 0
    parts: list[dict[str, int]] = []
    per_token_max = 0
    for stage in model.stages:
        layers = [model.geometry.layers[index] for index in stage]
        per_token = int(sum(token_bytes(layer, model.geometry, paging) for layer in layers))
        state = sum(layer.conv_elements + layer.state_elements for layer in layers) / model.tensor
        per_token_max = max(per_token_max, per_token)
        requests = per_token * model.context_tokens + int(state * model.state_bytes)
        device = {
            "context": context_bytes(model),
            WEIGHTS: model.stage_weights(stage) + rotary_bytes(model),
            "activation": _activation_bytes(model, stage, ask.concurrency, step_tokens),
            "outside": OUTSIDE_BYTES + SLOT_BYTES * ask.concurrency * model.context_tokens,
            "graphs": round((GRAPHS_BYTES[0] + GRAPHS_BYTES[1] * len(stage)) * share),
            **adapters_part(model, stage, places, ask.max_lora_rank),
            KV_CACHE: requests * ask.concurrency,
        }
        parts += [device] * model.tensor
    tokens = ask.concurrency * model.context_tokens
    notes = [*model.notes, "constants of SGLang are less sure than vLLM's"]
    return built(NAME, parts, per_token_max, tokens, notes)


def _activation_bytes(model: TorchModel, stage: range, concurrency: int, step_tokens: int) -> int:
    geometry = model.geometry
    widest = max((geometry.layers[index].ff for index in stage), default=0) / model.tensor
    if geometry.has_experts:
        widest = max(widest, geometry.experts_used * geometry.expert_ff / model.tensor)
    forward = step_tokens * model.compute_bytes * (3 * widest + 4 * geometry.hidden)
    last = stage.stop == geometry.layer_count
    logits = concurrency * geometry.vocab * (model.compute_bytes + 2 * 4) if last else 0.0
    return round(max(forward, logits))
