"""Where a checkpoint's weights go: which are split over tensor-parallel devices, which each device holds whole.

Rules of this file: a checkpoint becomes one table of bytes (embedding, output, layers, rest), from the headers of
its files where there are any, else from the geometry scaled to the total that the index states, else from the
geometry and the quantisation alone. Shares follow vLLM's layers: column- and row-parallel matrices, embedding
and output are divided; norms, routers and the down-projections of latent attention are not; keys and values are
divided by at most the number of their heads (vllm/model_executor/layers/linear.py, QKVParallelLinear).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from rayscheduler.memory.geometry import Geometry, Layer, Memory
from rayscheduler.memory.safetensors import Checkpoint, StoredTensor

TORCH_LARGE_BYTES = 10 << 20  # torch's allocator gives tensors from this size on blocks of their own
TORCH_ROUND_BYTES = 2 << 20  # in multiples of this,
TORCH_SPLIT_BYTES = 1 << 20  # and keeps what is left over in the block unless it is larger than this
NOT_GATED = re.compile(r"GPT2|Falcon|OPT|MPT|GPTBigCode|PhiFor|Starcoder2|Nemotron|GPTNeoX|GPTJ|Bloom", re.IGNORECASE)
EMBEDDING = re.compile(r"embed_tokens|(^|\.)wte\.|word_embeddings|tok_embeddings|(^|\.)embeddings\.weight")
OUTPUT = re.compile(r"lm_head|embed_out|(^|\.)output\.weight")
LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks|block)\.(\d+)\.(.*)$")
OTHER_SENSE = re.compile(r"(^|\.)(vision|visual|audio|multi_modal|mm_|image|vit)")
KEYS_VALUES = re.compile(r"\.(k_proj|v_proj)\.")
WHOLE = re.compile(
    r"norm|\.gate\.|router|q_a_proj|kv_a_proj|\.g_idx$|rotary|(o_proj|down_proj|out_proj|c_proj|dense|w2)\.bias$"
)
BITS: Mapping[str, float] = {
    **{"fp8": 8, "int8": 8, "quark": 8, "torchao": 8, "eetq": 8, "mxfp8": 8.25, "mxfp4": 4.25, "nvfp4": 4.5},
    **{"awq": 4.125, "gptq": 4.125, "marlin": 4.125, "auto_round": 4.125, "hqq": 4.25, "bitsandbytes": 4.5},
    **{"aqlm": 2.25},
}
GROUP_DEFAULT = 128  # weights that share a scale
SCALE_BITS = 16


@dataclass(frozen=True, slots=True)
class LayerBytes:
    """One layer: divided over the devices, keys' and values' projections, and what each device holds whole."""

    split: float
    keys_values: float
    whole: float


@dataclass(frozen=True, slots=True)
class Weights:
    """All of it, in bytes. `rest`: other senses' towers and what belongs to no layer, with the first stage."""

    embedding: float
    output: float  # 0 where it is the embedding table
    layers: tuple[LayerBytes, ...]
    rest: float = 0.0

    @property
    def total_bytes(self) -> int:
        layers = sum(layer.split + layer.keys_values + layer.whole for layer in self.layers)
        return round(self.embedding + self.output + layers + self.rest)

    def times(self, factor: float) -> Weights:
        """Every part of it by that factor: another type, or a total that is known better."""
        layers = tuple(
            LayerBytes(layer.split * factor, layer.keys_values * factor, layer.whole * factor) for layer in self.layers
        )
        return Weights(self.embedding * factor, self.output * factor, layers, self.rest * factor)


def read_weights(checkpoint: Checkpoint, geometry: Geometry, quantization: Mapping[str, Any]) -> Weights:
    """The table of a checkpoint, by the best that it offers."""
    if checkpoint.tensors:
        table = _from_tensors(checkpoint.tensors, geometry)
        if table is not None:
            return table
    table = from_geometry(geometry, linear_bits(quantization), experts_only=_method(quantization) == "mxfp4")
    if any(name.endswith("lm_head.weight") for name in checkpoint.names) and not table.output:
        table = replace(table, output=table.embedding)
    return _scaled(table, checkpoint.total_bytes, geometry, bool(quantization)) if checkpoint.total_bytes else table


def linear_bits(quantization: Mapping[str, Any]) -> float:
    """Bits of one weight of a linear layer with its share of scales and zero points; 0: not quantised."""
    if not quantization:
        return 0.0
    method = _method(quantization)
    bits = _number(quantization, "bits") or _number(quantization, "w_bit")
    group = _number(quantization, "group_size") or _number(quantization, "q_group_size") or GROUP_DEFAULT
    if method == "bitsandbytes":
        bits = 8.0 if quantization.get("load_in_8bit") else BITS[method]
    groups = quantization.get("config_groups")
    if isinstance(groups, Mapping) and groups:  # compressed-tensors
        first = next(iter(groups.values()))
        scheme = first.get("weights") if isinstance(first, Mapping) else None
        if isinstance(scheme, Mapping):
            bits, group = _number(scheme, "num_bits") or bits, _number(scheme, "group_size") or group
    if not bits:  # the longest name first: fbgemm_fp8 is not fp8
        names = sorted(BITS, key=len, reverse=True)
        return next((BITS[name] for name in names if name in method), BITS["fp8"])
    return bits + SCALE_BITS / group if bits < BITS["fp8"] else bits


def _method(quantization: Mapping[str, Any]) -> str:
    named = quantization.get("quant_method") or quantization.get("quant_algo") or ""
    return str(named).lower().replace("-", "_")


def _number(values: Mapping[str, Any], key: str) -> float:
    value = values.get(key)
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0 else 0.0


def from_geometry(geometry: Geometry, bits: float, *, experts_only: bool = False) -> Weights:
    """The table by arithmetic. `bits` of a linear layer's weight, or of the experts alone; 0: the model's own type."""
    expert = bits / 8 if bits else geometry.dtype_bytes
    linear = geometry.dtype_bytes if experts_only else expert
    gates = 2 if NOT_GATED.search(geometry.architecture) else 3
    table = geometry.vocab * geometry.hidden * geometry.dtype_bytes
    layers = tuple(_layer_bytes(geometry, layer, gates, linear, expert) for layer in geometry.layers)
    return Weights(table, 0.0 if geometry.tied else table, layers)


def _layer_bytes(geometry: Geometry, layer: Layer, gates: int, linear: float, expert: float) -> LayerBytes:
    """`linear` and `expert`: bytes of one weight of a plain matrix and of an expert's."""
    hidden, heads = geometry.hidden, geometry.heads
    split, keys_values, whole = 0.0, 0.0, 2.0 * hidden * geometry.dtype_bytes
    match layer.memory:
        case Memory.FULL | Memory.WINDOW:
            split += hidden * heads * layer.key_dim + heads * layer.value_dim * hidden
            keys_values += hidden * layer.kv_elements
        case Memory.LATENT:
            rank, width = geometry.query_rank, heads * geometry.head_key_dim
            split += rank * width if rank else hidden * width
            rotary = layer.key_dim - geometry.latent_rank
            nope = geometry.head_key_dim - rotary
            split += geometry.latent_rank * heads * (nope + geometry.head_value_dim)
            split += heads * geometry.head_value_dim * hidden
            whole += hidden * (rank + layer.key_dim) * linear
        case Memory.STATE:
            split += layer.mixer_parameters
        case Memory.NOTHING:
            pass
    split_bytes = (split + gates * hidden * layer.ff) * linear
    if layer.experts:
        split_bytes += geometry.experts * gates * hidden * geometry.expert_ff * expert
        whole += hidden * geometry.experts * geometry.dtype_bytes
    return LayerBytes(split_bytes, keys_values * linear, whole)


def _scaled(table: Weights, total_bytes: int, geometry: Geometry, quantised: bool) -> Weights:
    """The same proportions with that total: embedding and output are as they are, layers take what is left."""
    left = total_bytes - table.embedding - table.output
    layers_bytes = table.total_bytes - table.embedding - table.output
    if geometry.multimodal and not quantised and left > layers_bytes:
        return replace(table, rest=left - layers_bytes)
    if left <= 0 or layers_bytes <= 0:
        return table.times(total_bytes / max(1, table.total_bytes))
    return replace(table.times(left / layers_bytes), embedding=table.embedding, output=table.output)


def _from_tensors(tensors: tuple[StoredTensor, ...], geometry: Geometry) -> Weights | None:
    """The table of exact sizes, or None where the names are of no known family."""
    split, keys_values, whole = ([0.0] * geometry.layer_count for _ in range(3))
    embedding = output = rest = 0.0
    for tensor in tensors:
        place = LAYER.search(tensor.name)
        other = OTHER_SENSE.search(tensor.name)
        if place and not other and int(place[1]) < geometry.layer_count:
            index = int(place[1])
            if WHOLE.search("." + place[2]):
                whole[index] += tensor.size_bytes
            elif KEYS_VALUES.search("." + place[2]):
                keys_values[index] += tensor.size_bytes
            else:
                split[index] += tensor.size_bytes
        elif EMBEDDING.search(tensor.name):
            embedding += tensor.size_bytes
        elif OUTPUT.search(tensor.name):
            output += tensor.size_bytes
        else:
            rest += tensor.size_bytes
    if not any(split):
        return None
    layers = tuple(LayerBytes(*each) for each in zip(split, keys_values, whole, strict=True))
    return Weights(embedding, 0.0 if geometry.tied else output, layers, rest)


def stage_layers(count: int, stages: int) -> list[range]:
    """Which layers each pipeline stage runs: as equal as can be, the last stage never the longest.

    vllm/distributed/utils.py, get_pp_indices: what is left over goes to the stages before the last.
    """
    lengths = [count // stages] * stages
    for extra in range(count % stages):
        lengths[-(extra + 2) if stages > 1 else -1] += 1
    starts = [sum(lengths[:stage]) for stage in range(stages)]
    return [range(start, start + length) for start, length in zip(starts, lengths, strict=True)]


def stage_bytes(weights: Weights, geometry: Geometry, stage: range, tensor: int) -> int:
    """Of one device of the stage: its share of what is split, all of what is not, and of torch's rounding."""
    total = 0.0
    for index in stage:
        layer, shape = weights.layers[index], geometry.layers[index]
        copies = tensor if not shape.kv_heads else min(tensor, max(1, shape.kv_heads))
        total += layer.split / tensor + layer.keys_values / copies + layer.whole
        total += _rounding_bytes(geometry, shape, layer, tensor)
    first, last = stage.start == 0, stage.stop == geometry.layer_count
    if first:
        total += weights.embedding / tensor + weights.rest / tensor
    if last:
        total += (weights.output or (0.0 if first else weights.embedding)) / tensor
    return round(total)


def _rounding_bytes(geometry: Geometry, shape: Layer, layer: LayerBytes, tensor: int) -> int:
    """What torch's caching allocator adds to the layer's large matrices (c10/cuda/CUDACachingAllocator.cpp).

    Only for plain attention and a dense feed-forward, whose fused matrices have known shapes.
    """
    if shape.memory not in (Memory.FULL, Memory.WINDOW) or shape.experts or not layer.split:
        return 0
    hidden, heads = geometry.hidden, geometry.heads
    queries, keys_values = heads * shape.key_dim, shape.kv_elements
    elements = hidden * (2 * queries + keys_values + 3 * shape.ff)
    width = (layer.split + layer.keys_values) / elements if elements else 0.0
    kv_share = max(1, min(tensor, shape.kv_heads))
    matrices = (
        hidden * (queries / tensor + keys_values / kv_share),
        hidden * queries / tensor,
        2 * hidden * shape.ff / tensor,
        hidden * shape.ff / tensor,
    )
    return sum(_left_over(round(matrix * width)) for matrix in matrices)


def _left_over(size: int) -> int:
    if size < TORCH_LARGE_BYTES:
        return 0
    over = -size % TORCH_ROUND_BYTES
    return over if over <= TORCH_SPLIT_BYTES else 0
