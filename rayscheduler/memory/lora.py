"""What an engine sets aside on a device for LoRA adapters, before it has any.

Two matrices stand beside each linear layer, for every adapter that may be there: A, rank x inputs, and B,
outputs x rank. As the layers are divided over devices, so are B of those divided by columns and A of those divided
by rows; the other one each device holds whole.

Rules of this file: one formula for vLLM (vllm/lora/layers: lora_a_stacked, lora_b_stacked) and SGLang
(sglang/srt/lora/mem_pool.py), which differ little. Layers that a model does not adapt are counted, too: it is an
upper bound, and no measured row has it.
"""

from __future__ import annotations

from rayscheduler.memory.geometry import Geometry, Layer, Memory
from rayscheduler.memory.torch_model import TorchModel

ADAPTERS = "adapters"
VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # those that vLLM has room of (vllm/config/lora.py, MaxLoRARanks)


def vllm_rank(wanted: int) -> int:
    """The least rank of vLLM's that is enough, or where there is none, the wanted one."""
    return next((rank for rank in VLLM_RANKS if rank >= wanted), wanted)


def adapters_part(model: TorchModel, stage: range, count: int, rank: int) -> dict[str, int]:
    """The part of a device of this stage; {} for a model without adapters."""
    if not count:
        return {}
    geometry, share = model.geometry, 1 / model.tensor
    widths = sum(_widths(geometry, geometry.layers[index], share) for index in stage)
    vocabulary = geometry.hidden + geometry.vocab
    widths += vocabulary if stage.start == 0 else 0
    widths += vocabulary if stage.stop == geometry.layer_count else 0
    return {ADAPTERS: round(widths * count * rank * model.compute_bytes)}


def _widths(geometry: Geometry, layer: Layer, share: float) -> float:
    """Inputs of all A and outputs of all B of a layer. `share`: one device's part of what is divided."""
    widths = _attention(geometry, layer, share)
    if layer.ff:
        widths += _feed_forward(geometry.hidden, layer.ff, share)
    if layer.experts:
        widths += geometry.experts * _feed_forward(geometry.hidden, geometry.expert_ff, share)
    return widths


def _attention(geometry: Geometry, layer: Layer, share: float) -> float:
    hidden, heads = geometry.hidden, geometry.heads
    if layer.memory is Memory.LATENT:
        down = 2 * hidden + geometry.query_rank + layer.key_dim
        up = geometry.query_rank + geometry.latent_rank + share * heads * (2 * geometry.head_key_dim)
        return down + up + share * heads * geometry.head_value_dim + hidden
    if layer.memory in (Memory.FULL, Memory.WINDOW):
        # Keys and values are divided by at most the number of their heads.
        keys_values = layer.kv_elements * max(share, 1 / max(1, layer.kv_heads))
        queries = heads * (geometry.head_dim or layer.key_dim)
        return 3 * hidden + share * queries + keys_values + share * heads * layer.value_dim + hidden
    if layer.memory is Memory.STATE:
        return 2 * hidden + layer.mixer_parameters / hidden
    return 0.0


def _feed_forward(hidden: int, inner: int, share: float) -> float:
    """Gate and up, divided by columns; down, divided by rows."""
    return 2 * hidden + share * 2 * inner + share * inner + hidden
