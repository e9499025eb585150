"""Writes small GGUF models of many architectures, all zeros, that llama.cpp loads: shapes are what counts here.

Rules of this file: one table of architectures, each with the metadata and the tensors that llama.cpp demands of
it; no random numbers. The files are sparse, so a wide model costs nothing to write.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Dims:
    """Of a small decoder. The defaults are those of no real model."""

    layers: int = 4
    hidden: int = 512
    heads: int = 8
    kv_heads: int = 2
    head_dim: int = 64
    ff: int = 1536
    vocab: int = 2048
    experts: int = 8
    experts_used: int = 2
    expert_ff: int = 256
    window: int = 512
    context: int = 131_072
    tied: bool = False
    more: Mapping[str, Any] = field(default_factory=dict)


def write_model(path: Path, arch: str, dims: Dims) -> Path:
    """Write a model of that architecture. KeyError: it is not one of `ARCHITECTURES`."""
    metadata, tensors = ARCHITECTURES[arch](dims)
    writer = gguf.GGUFWriter(path, arch.partition("/")[0])
    writer.add_context_length(dims.context)
    writer.add_embedding_length(dims.hidden)
    writer.add_block_count(dims.layers)
    writer.add_feed_forward_length(dims.ff)
    writer.add_head_count(dims.heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_layer_norm_eps(1e-5)
    name = arch.partition("/")[0]
    for key, value in {"attention.head_count_kv": dims.kv_heads, **metadata, **dims.more}.items():
        _add(writer, f"{name}.{key}", value)
    _add_vocabulary(writer, dims.vocab, bert="bert" in name)
    table = {"token_embd.weight": (dims.vocab, dims.hidden)}
    if not dims.tied and "output_norm.weight" in tensors and not name.startswith("gemma"):
        table["output.weight"] = (dims.vocab, dims.hidden)
    for tensor, shape in {**table, **tensors}.items():
        small = len(shape) == 1 or any(part in tensor for part in ("bias", "norm", "conv1d", "ssm_a", "ssm_d"))
        kind = np.float32 if small else np.float16
        writer.add_tensor(tensor, np.broadcast_to(np.zeros(1, kind), shape))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    else:
        writer.add_array(key, value)


def _add_vocabulary(writer: gguf.GGUFWriter, size: int, bert: bool) -> None:
    writer.add_vocab_size(size)
    if bert:
        writer.add_tokenizer_model("bert")
        writer.add_token_list(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(size - 5))])
        writer.add_token_types([3] * 5 + [1] * (size - 5))
        writer.add_unk_token_id(1)
        writer.add_sep_token_id(3)
        writer.add_token_type_count(2)
        return
    writer.add_tokenizer_model("llama")
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokens += [f"w{index}" for index in range(size - len(tokens))]
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * size)
    writer.add_token_types([2, 3, 3] + [6] * 256 + [1] * (size - 259))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)


def _attention(dims: Dims, layer: int, *, fused: bool = False, bias: bool = False, norms: str = "") -> dict[str, Shape]:
    at, wide, narrow = f"blk.{layer}.", dims.heads * dims.head_dim, dims.kv_heads * dims.head_dim
    tensors: dict[str, Shape] = {f"{at}attn_norm.weight": (dims.hidden,)}
    sizes = {"attn_qkv": wide + 2 * narrow} if fused else {"attn_q": wide, "attn_k": narrow, "attn_v": narrow}
    for part, size in sizes.items():
        tensors[f"{at}{part}.weight"] = (size, dims.hidden)
        if bias:
            tensors[f"{at}{part}.bias"] = (size,)
    tensors[f"{at}attn_output.weight"] = (dims.hidden, wide)
    for part in norms.split():
        wide_norm = wide if part == "q_whole" else narrow
        length = wide_norm if part.endswith("_whole") else dims.head_dim
        tensors[f"{at}attn_{part[0]}_norm.weight"] = (length,)
    return tensors


def _gated(dims: Dims, layer: int, *, fused: bool = False) -> dict[str, Shape]:
    at = f"blk.{layer}."
    tensors: dict[str, Shape] = {
        f"{at}ffn_norm.weight": (dims.hidden,),
        f"{at}ffn_down.weight": (dims.hidden, dims.ff),
        f"{at}ffn_up.weight": (2 * dims.ff if fused else dims.ff, dims.hidden),
    }
    if not fused:
        tensors[f"{at}ffn_gate.weight"] = (dims.ff, dims.hidden)
    return tensors


def _mixture(dims: Dims, layer: int, *, shared_ff: int = 0, bias: bool = False) -> dict[str, Shape]:
    at, width = f"blk.{layer}.", dims.expert_ff
    tensors: dict[str, Shape] = {
        f"{at}ffn_norm.weight": (dims.hidden,),
        f"{at}ffn_gate_inp.weight": (dims.experts, dims.hidden),
        f"{at}ffn_gate_exps.weight": (dims.experts, width, dims.hidden),
        f"{at}ffn_up_exps.weight": (dims.experts, width, dims.hidden),
        f"{at}ffn_down_exps.weight": (dims.experts, dims.hidden, width),
    }
    if bias:
        tensors[f"{at}ffn_gate_inp.bias"] = (dims.experts,)
        for part, size in (("gate", width), ("up", width), ("down", dims.hidden)):
            tensors[f"{at}ffn_{part}_exps.bias"] = (dims.experts, size)
    if shared_ff:
        tensors[f"{at}ffn_gate_shexp.weight"] = tensors[f"{at}ffn_up_shexp.weight"] = (shared_ff, dims.hidden)
        tensors[f"{at}ffn_down_shexp.weight"] = (dims.hidden, shared_ff)
    return tensors


Model = tuple[dict[str, Any], dict[str, Shape]]


def _plain(
    dims: Dims, *, fused: bool = False, bias: bool = False, norms: str = "", after: bool = False, mixture: bool = False
) -> Model:
    metadata: dict[str, Any] = {
        "rope.dimension_count": dims.head_dim,
        "attention.key_length": dims.head_dim,
        "attention.value_length": dims.head_dim,
    }
    tensors: dict[str, Shape] = {"output_norm.weight": (dims.hidden,)}
    if mixture:
        metadata |= {"expert_count": dims.experts, "expert_used_count": dims.experts_used}
        metadata["expert_feed_forward_length"] = dims.expert_ff
    for layer in range(dims.layers):
        tensors |= _attention(dims, layer, fused=fused, bias=bias, norms=norms)
        tensors |= _mixture(dims, layer) if mixture else _gated(dims, layer, fused=fused)
        if after:
            tensors[f"blk.{layer}.post_attention_norm.weight"] = (dims.hidden,)
            tensors[f"blk.{layer}.post_ffw_norm.weight"] = (dims.hidden,)
    return metadata, tensors


def _windowed(model: Model, dims: Dims, **more: Any) -> Model:
    return {**model[0], "attention.sliding_window": dims.window, **more}, model[1]


def _gpt_oss(dims: Dims) -> Model:
    metadata, tensors = _windowed(_plain(dims, bias=True, mixture=True), dims)
    for layer in range(dims.layers):
        at = f"blk.{layer}."
        tensors |= _mixture(dims, layer, bias=True)
        tensors[f"{at}attn_sinks.weight"] = (dims.heads,)
        tensors[f"{at}attn_output.bias"] = (dims.hidden,)
        tensors[f"{at}post_attention_norm.weight"] = tensors.pop(f"{at}ffn_norm.weight")
    return metadata, tensors


def _deepseek2(dims: Dims) -> Model:
    rank, query_rank, rotary, nope, value = 256, 384, 32, 64, 64
    metadata: dict[str, Any] = {
        "attention.head_count_kv": 1,
        "attention.key_length": rank + rotary,
        "attention.value_length": rank,
        "attention.key_length_mla": nope + rotary,
        "attention.value_length_mla": value,
        "attention.kv_lora_rank": rank,
        "attention.q_lora_rank": query_rank,
        "rope.dimension_count": rotary,
        "leading_dense_block_count": 1,
        "expert_count": dims.experts,
        "expert_used_count": dims.experts_used,
        "expert_feed_forward_length": dims.expert_ff,
        "expert_shared_count": 1,
        "expert_weights_scale": 1.0,
    }
    tensors: dict[str, Shape] = {"output_norm.weight": (dims.hidden,)}
    for layer in range(dims.layers):
        at = f"blk.{layer}."
        tensors |= {
            f"{at}attn_norm.weight": (dims.hidden,),
            f"{at}attn_q_a.weight": (query_rank, dims.hidden),
            f"{at}attn_q_a_norm.weight": (query_rank,),
            f"{at}attn_q_b.weight": (dims.heads * (nope + rotary), query_rank),
            f"{at}attn_kv_a_mqa.weight": (rank + rotary, dims.hidden),
            f"{at}attn_kv_a_norm.weight": (rank,),
            f"{at}attn_k_b.weight": (dims.heads, rank, nope),
            f"{at}attn_v_b.weight": (dims.heads, value, rank),
            f"{at}attn_output.weight": (dims.hidden, dims.heads * value),
        }
        tensors |= _mixture(dims, layer, shared_ff=dims.expert_ff) if layer else _gated(dims, layer)
    return metadata, tensors


def _mamba_layer(dims: Dims, layer: int, *, second: bool) -> dict[str, Shape]:
    at, inner, state, rank, groups = f"blk.{layer}.", 2 * dims.hidden, 16, 16, 1
    if second:
        mixed = inner + 2 * groups * state
        return {
            f"{at}attn_norm.weight": (dims.hidden,),
            f"{at}ssm_in.weight": (2 * inner + 2 * groups * state + rank, dims.hidden),
            f"{at}ssm_conv1d.weight": (mixed, 4),
            f"{at}ssm_conv1d.bias": (mixed,),
            f"{at}ssm_dt.bias": (rank,),
            f"{at}ssm_a": (rank, 1),
            f"{at}ssm_d": (rank, 1),
            f"{at}ssm_norm.weight": (groups, inner // groups),
            f"{at}ssm_out.weight": (dims.hidden, inner),
        }
    return {
        f"{at}attn_norm.weight": (dims.hidden,),
        f"{at}ssm_in.weight": (2 * inner, dims.hidden),
        f"{at}ssm_conv1d.weight": (inner, 4),
        f"{at}ssm_conv1d.bias": (inner,),
        f"{at}ssm_x.weight": (rank + 2 * state, inner),
        f"{at}ssm_dt.weight": (inner, rank),
        f"{at}ssm_dt.bias": (inner,),
        f"{at}ssm_a": (inner, state),
        f"{at}ssm_d": (inner,),
        f"{at}ssm_out.weight": (dims.hidden, inner),
    }


def _ssm(dims: Dims) -> dict[str, Any]:
    return {"ssm.conv_kernel": 4, "ssm.inner_size": 2 * dims.hidden, "ssm.state_size": 16, "ssm.time_step_rank": 16}


def _mamba(dims: Dims, *, second: bool) -> Model:
    tensors: dict[str, Shape] = {"output_norm.weight": (dims.hidden,)}
    for layer in range(dims.layers):
        tensors |= _mamba_layer(dims, layer, second=second)
    return {**_ssm(dims), "attention.head_count_kv": 0, **({"ssm.group_count": 1} if second else {})}, tensors


def _jamba(dims: Dims) -> Model:
    tensors: dict[str, Shape] = {"output_norm.weight": (dims.hidden,)}
    attention = [layer % 4 == 2 for layer in range(dims.layers)]
    for layer, full in enumerate(attention):
        at = f"blk.{layer}."
        tensors |= _attention(dims, layer) if full else _mamba_layer(dims, layer, second=False)
        if not full:
            tensors |= {f"{at}ssm_{part}_norm.weight": (16,) for part in ("dt", "b", "c")}
        tensors |= _gated(dims, layer)
    kv_heads = [dims.kv_heads if full else 0 for full in attention]
    return {**_ssm(dims), "attention.head_count_kv": kv_heads, "expert_count": 0}, tensors


def _granite_hybrid(dims: Dims) -> Model:
    tensors: dict[str, Shape] = {"output_norm.weight": (dims.hidden,)}
    attention = [layer % 4 == 3 for layer in range(dims.layers)]
    for layer, full in enumerate(attention):
        tensors |= _attention(dims, layer) if full else _mamba_layer(dims, layer, second=True)
        tensors |= _gated(dims, layer)
    kv_heads = [dims.kv_heads if full else 0 for full in attention]
    more = {"attention.head_count_kv": kv_heads, "ssm.group_count": 1, "rope.dimension_count": dims.head_dim}
    return {**_ssm(dims), **more}, tensors


def _qwen3next(dims: Dims) -> Model:
    keys, values, width = 4, 8, 64
    inner = values * width
    metadata, tensors = _plain(dims, norms="q k", mixture=True)
    metadata |= {
        "ssm.conv_kernel": 4,
        "ssm.inner_size": inner,
        "ssm.state_size": width,
        "ssm.time_step_rank": values,
        "ssm.group_count": keys,
        "expert_shared_feed_forward_length": dims.expert_ff,
    }
    for layer in range(dims.layers):
        at = f"blk.{layer}."
        tensors |= _mixture(dims, layer, shared_ff=dims.expert_ff)
        tensors[f"{at}ffn_gate_inp_shexp.weight"] = (dims.hidden,)
        tensors[f"{at}post_attention_norm.weight"] = tensors.pop(f"{at}ffn_norm.weight")
        if (layer + 1) % 4 == 0:
            tensors[f"{at}attn_q.weight"] = (2 * dims.heads * dims.head_dim, dims.hidden)
            continue
        for part in ("attn_q", "attn_k", "attn_v", "attn_output", "attn_q_norm", "attn_k_norm"):
            del tensors[f"{at}{part}.weight"]
        mixed = 2 * keys * width + inner
        tensors |= {
            f"{at}attn_qkv.weight": (mixed, dims.hidden),
            f"{at}attn_gate.weight": (inner, dims.hidden),
            f"{at}ssm_conv1d.weight": (mixed, 4),
            f"{at}ssm_dt.bias": (values,),
            f"{at}ssm_a": (values,),
            f"{at}ssm_ba.weight": (2 * values, dims.hidden),
            f"{at}ssm_norm.weight": (width,),
            f"{at}ssm_out.weight": (dims.hidden, inner),
        }
    return metadata, tensors


def _bert(dims: Dims) -> Model:
    tensors: dict[str, Shape] = {
        "position_embd.weight": (dims.context, dims.hidden),
        "token_types.weight": (2, dims.hidden),
        "token_embd_norm.weight": (dims.hidden,),
        "token_embd_norm.bias": (dims.hidden,),
    }
    for layer in range(dims.layers):
        at = f"blk.{layer}."
        for part, size in (("attn_q", dims.hidden), ("attn_k", dims.hidden), ("attn_v", dims.hidden)):
            tensors |= {f"{at}{part}.weight": (size, dims.hidden), f"{at}{part}.bias": (size,)}
        for part, shape in (
            ("attn_output", (dims.hidden, dims.hidden)),
            ("ffn_up", (dims.ff, dims.hidden)),
            ("ffn_down", (dims.hidden, dims.ff)),
        ):
            tensors |= {f"{at}{part}.weight": shape, f"{at}{part}.bias": shape[:1]}
        for part in ("attn_output_norm", "layer_output_norm"):
            tensors |= {f"{at}{part}.weight": (dims.hidden,), f"{at}{part}.bias": (dims.hidden,)}
    return {"attention.causal": False, "pooling_type": 1, "attention.head_count_kv": dims.heads}, tensors


ARCHITECTURES: Mapping[str, Any] = {
    "llama": _plain,
    "llama/moe": lambda dims: _plain(replace(dims, expert_ff=dims.ff), mixture=True),
    "qwen2": lambda dims: _plain(dims, bias=True),
    "qwen3": lambda dims: _plain(dims, norms="q k"),
    "qwen3moe": lambda dims: _plain(dims, norms="q k", mixture=True),
    "phi3": lambda dims: _plain(dims, fused=True),
    "gemma": _plain,
    "gemma2": lambda dims: _windowed(_plain(dims, after=True), dims),
    "gemma3": lambda dims: _windowed(_plain(dims, norms="q k", after=True), dims),
    "gpt-oss": _gpt_oss,
    "deepseek2": _deepseek2,
    "mamba": lambda dims: _mamba(dims, second=False),
    "mamba2": lambda dims: _mamba(dims, second=True),
    "jamba": _jamba,
    "granitehybrid": _granite_hybrid,
    "qwen3next": _qwen3next,
    "bert": _bert,
}
