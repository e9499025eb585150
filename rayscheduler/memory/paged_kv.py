"""The KV cache of engines that keep it in blocks shared by all requests: vLLM and, with fewer rules, SGLang.

Rules of this file: bytes of one device of one pipeline stage. Sources: vllm/v1/kv_cache_interface.py (page sizes,
max_memory_usage_bytes) and vllm/v1/core/kv_cache_utils.py (_get_kv_cache_groups_uniform_page_size: layers of
several kinds are put into groups of one size, and the last group of a kind is padded to it).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from fractions import Fraction

from rayscheduler.memory.geometry import Geometry, Layer, Memory
from rayscheduler.memory.values import rounded_up

BLOCK_TOKENS = 16
GROUPS_MERGE_BELOW = Fraction(3, 2)  # kinds whose counts differ by less form groups of the larger count


@dataclass(frozen=True, slots=True)
class PagedKv:
    """`bytes_per_token` with the padding; `request_bytes` for one request of the context that was asked for."""

    bytes_per_token: int
    request_bytes: int
    padded_layers: int


@dataclass(frozen=True, slots=True)
class Paging:
    """How the tokens are kept: `tensor` devices share a stage, and one step takes up to `step_tokens`."""

    tensor: int
    element_bytes: Fraction
    step_tokens: int
    state_element_bytes: Fraction = Fraction(2)
    block_tokens: int = BLOCK_TOKENS


@dataclass(frozen=True, slots=True)
class _Kind:
    """Layers of one kind share their blocks' shape."""

    token_bytes: Fraction
    window: int
    state_bytes: int


def token_bytes(layer: Layer, geometry: Geometry, paging: Paging) -> Fraction:
    """What one token takes in this layer on one device. A head is never cut: every device has at least one.

    The latent vector is the same for all heads, so every device holds all of it.
    """
    if not layer.keeps_tokens:
        return Fraction(0)
    if layer.memory is Memory.LATENT:
        return layer.key_dim * paging.element_bytes + geometry.indexer_bytes
    heads = max(1, -(-layer.kv_heads // paging.tensor)) if layer.kv_heads else 0
    return heads * (layer.key_dim + layer.value_dim) * paging.element_bytes


def paged_kv(geometry: Geometry, stage: range, paging: Paging, context_tokens: int) -> PagedKv:
    """The stage's cache on one of its devices."""
    kinds = Counter(kind for index in stage for kind in _kinds(geometry.layers[index], geometry, paging))
    group = _group_layers(list(kinds.values()))
    per_token, request = Fraction(0), 0
    padded_layers = 0
    page_bytes = max((kind.state_bytes for kind in kinds), default=0)
    for kind, count in kinds.items():
        padded = rounded_up(count, group) if len(kinds) > 1 else count
        padded_layers += padded - count
        if kind.state_bytes:
            request += padded * page_bytes
            continue
        per_token += padded * kind.token_bytes
        tokens = context_tokens
        if kind.window:
            # A window's blocks are freed as it moves on, one step late, and it may begin within a block.
            tokens = min(context_tokens, kind.window - 1 + paging.step_tokens)
            tokens += paging.block_tokens if tokens < context_tokens else 0
        request += int(padded * kind.token_bytes * rounded_up(tokens, paging.block_tokens))
    return PagedKv(int(per_token), request, padded_layers)


def _kinds(layer: Layer, geometry: Geometry, paging: Paging) -> list[_Kind]:
    found = []
    if layer.keeps_tokens:
        found.append(_Kind(token_bytes(layer, geometry, paging), layer.window, 0))
    if layer.keeps_state:
        elements = (layer.conv_elements + layer.state_elements) / paging.tensor
        found.append(_Kind(Fraction(0), 0, int(elements * paging.state_element_bytes)))
    return found


def _group_layers(counts: list[int]) -> int:
    if not counts:
        return 1
    return max(counts) if max(counts) < min(counts) * GROUPS_MERGE_BELOW else min(counts)
