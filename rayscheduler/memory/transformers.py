"""What `transformers serve` (or any program that calls `generate`) takes on its devices.

Rules of this file: no cache is reserved and no graph is captured: what is taken grows with what is asked, and this
is the peak of the longest prompt. A prompt is not cut into chunks. Layers are spread over the devices in order
(`device_map="auto"`), so one device works at a time. Source: src/transformers/cache_utils.py (DynamicCache and its
sliding layers), generation/utils.py (logits of the last token, in float32).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from rayscheduler.errors import SourceError
from rayscheduler.memory.geometry import Geometry, Layer, Memory
from rayscheduler.memory.torch_model import torch_model
from rayscheduler.memory.values import GIB, KV_CACHE, WEIGHTS, Ask, Estimate, built

NAME = "transformers"
CONTEXT_BYTES = int(0.55 * GIB)  # CUDA context, cuBLAS workspaces
PROCESS_BYTES = int(0.45 * GIB)  # on the host: Python with torch loaded
FLOAT32_BYTES = 4
GROWTH = 2  # a tensor that grows is copied: the old one and the new one of one layer are there at once


def estimate_transformers(source: Path, ask: Ask) -> Estimate:
    """Per device: context, weights, activation, KV cache; for `gpus` 0 the process instead of the context."""
    if ask.pipeline > 1:
        raise SourceError(f"transformers spreads layers over devices by itself; give --gpus {ask.gpus} alone")
    stages = max(1, ask.gpus)
    model = torch_model(source, replace(ask, gpus=stages, pipeline=stages), downcasts=False)
    geometry, tokens = model.geometry, model.context_tokens * ask.concurrency
    parts: list[dict[str, int]] = []
    per_token_max = 0
    for stage in model.stages:
        layers = [geometry.layers[index] for index in stage]
        per_token = sum(float(layer.kv_elements * model.kv_bytes) for layer in layers if layer.keeps_tokens)
        per_token_max = max(per_token_max, round(per_token))
        cache = sum(_layer_cache(layer, model.context_tokens) for layer in layers) * float(model.kv_bytes)
        state = sum(layer.conv_elements + layer.state_elements for layer in layers) * float(model.state_bytes)
        last = stage.stop == geometry.layer_count
        parts.append(
            {
                "overhead" if ask.gpus == 0 else "context": PROCESS_BYTES if ask.gpus == 0 else CONTEXT_BYTES,
                WEIGHTS: model.stage_weights(stage),
                "activation": _activation_bytes(geometry, layers, model.context_tokens, model.compute_bytes, last),
                KV_CACHE: round((cache + state) * ask.concurrency),
            }
        )
    notes = [*model.notes, "the peak of the longest prompt: what transformers takes grows with what is asked"]
    return built(NAME, parts, per_token_max, tokens, notes, host_bytes=0 if ask.gpus == 0 else PROCESS_BYTES)


def _layer_cache(layer: Layer, context_tokens: int) -> int:
    if not layer.keeps_tokens:
        return 0
    kept = min(layer.window, context_tokens) if layer.memory is Memory.WINDOW else context_tokens
    return layer.kv_elements * kept


def _activation_bytes(geometry: Geometry, layers: list[Layer], tokens: int, element: float, last: bool) -> int:
    """While one prompt is read: a layer's widest moment, with its cache copied as it grows; or the logits."""
    widest = max((layer.ff for layer in layers), default=0)
    if geometry.has_experts:
        widest = max(widest, geometry.expert_ff)  # experts run one after the other
    copied = max((layer.kv_elements for layer in layers), default=0) * GROWTH
    forward = tokens * element * (3 * widest + 4 * geometry.hidden + copied)
    logits = geometry.vocab * (element + FLOAT32_BYTES) if last else 0.0
    return round(max(forward, logits))
