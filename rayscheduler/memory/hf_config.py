"""The geometry of a model from its Hugging Face `config.json`, flat or nested, under the names of many families.

Rules of this file: a config is a heap of names that grew over years; a fact is looked up under all of its names,
the commonest first, and what is missing has the default that the family's own code has. Special families are
told by `model_type`. Every number is input: what makes no sense is a BadConfig that names the key.
Sources: transformers' configuration_*.py; vllm/transformers_utils and vllm/config/model.py for what is made of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rayscheduler.memory.geometry import Geometry, Layer, Memory

NUMBER_MAX = 1 << 40
LAYERS_MAX = 10_000
UNKNOWN_EXPERTS = 8
INDEXER_BYTES = 132  # DeepSeek-V3.2: an fp8 key of 128 and its scale

# Where a multimodal or compound config keeps its language model.
NESTS = ("text_config", "llm_config", "language_config", "thinker_config", "text_model", "decoder", "language_model")
OTHER_SENSES = ("vision_config", "audio_config", "vision_tower", "mm_vision_tower", "visual", "vit_config")

NAMES: Mapping[str, tuple[str, ...]] = {
    "hidden": ("hidden_size", "n_embd", "d_model", "dim", "model_dim", "embed_dim"),
    "layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_decoder_layers", "decoder_layers"),
    "heads": ("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads"),
    "kv_heads": ("num_key_value_heads", "num_kv_heads", "n_kv_heads", "n_head_kv", "multi_query_group_num"),
    "head_dim": ("head_dim", "attention_head_dim", "kv_channels", "head_size"),
    "vocab": ("vocab_size", "padded_vocab_size", "n_vocab"),
    "ff": ("intermediate_size", "ffn_hidden_size", "ffn_dim", "n_inner", "hidden_dim", "d_ff", "decoder_ffn_dim"),
    "context": ("max_position_embeddings", "n_positions", "max_seq_len", "model_max_length", "seq_length", "n_ctx"),
    "experts": ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "num_moe_experts"),
    "experts_used": ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_top_k", "top_k_experts", "moe_k"),
    "expert_ff": ("moe_intermediate_size", "expert_intermediate_size", "expert_ffn_hidden_size", "moe_ffn_hidden_size"),
    "window": ("sliding_window", "sliding_window_size", "attention_window_size", "window_size"),
}

# Families whose windowed layers follow a period when `layer_types` does not list them; the last of a period is full.
WINDOW_PERIOD: Mapping[str, int] = {
    "gemma2": 2,
    "gemma3": 6,
    "gemma3_text": 6,
    "gemma3n_text": 5,
    "gemma4_text": 6,
    "cohere2": 4,
    "gpt_oss": 2,
    "exaone4": 4,
    "olmo3": 4,
}
# These state a window that their code, or vLLM, does not use unless told by other keys.
WINDOW_IGNORED = frozenset({"phi3", "phimoe", "mixtral", "starcoder2", "minicpm3", "deepseek_v4"})
MULTI_QUERY_DEFAULT = frozenset({"gpt_bigcode", "falcon"})
TIED_BY_DEFAULT = frozenset(
    {"gemma", "gemma2", "gemma3", "gemma3_text", "gemma3n_text", "gemma4_text", "cohere", "cohere2", "gpt2", "mamba"}
    | {"falcon", "gpt_bigcode", "bloom", "mpt", "starcoder2", "opt"}
)
FULL_TYPES = frozenset({"full_attention", "attention", "global", "full", "global_attention"})
WINDOW_TYPES = frozenset({"sliding_attention", "local", "sliding", "local_attention", "chunked_attention"})

DTYPE_BYTES: Mapping[str, float] = {
    **{"float32": 4, "fp32": 4, "f32": 4, "float": 4, "float16": 2, "fp16": 2, "f16": 2, "half": 2},
    **{"bfloat16": 2, "bf16": 2, "float8_e4m3fn": 1, "fp8": 1},
}


class BadConfig(ValueError):
    """The config describes no language model. The message says what is wrong with it, without its path."""


class Config:
    """A config with its nests laid over it: `find` knows all names of a fact."""

    def __init__(self, outer: Mapping[str, Any]) -> None:
        self.outer = outer
        inner: Mapping[str, Any] = outer
        merged = dict(outer)
        for _ in range(3):  # thinker_config holds a text_config
            nest = next((inner[key] for key in NESTS if isinstance(inner.get(key), Mapping) and inner[key]), None)
            if nest is None:
                break
            merged, inner = {**merged, **nest}, nest
        self.flat = merged
        self.inner = inner

    @property
    def model_type(self) -> str:
        return str(self.inner.get("model_type") or self.outer.get("model_type") or "")

    def find(self, fact: str, default: int = 0) -> int:
        """The number under the first of the fact's names that has one."""
        for key in NAMES[fact]:
            if (value := self.number(key)) is not None:
                return value
        return default

    def number(self, key: str) -> int | None:
        """The whole number of that key (the largest, of a list), or None where it is absent or null."""
        value = self.flat.get(key)
        if isinstance(value, Sequence) and not isinstance(value, str):
            numbers = [each for each in value if isinstance(each, int) and not isinstance(each, bool)]
            value = max(numbers) if numbers else None
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool):
            return None
        if not -1 <= value <= NUMBER_MAX:
            raise BadConfig(f"its {key} is {value}")
        return max(0, value)

    def get(self, key: str, default: int = 0) -> int:
        value = self.number(key)
        return default if value is None else value

    def listed(self, key: str) -> list[Any]:
        value = self.flat.get(key)
        return list(value[:LAYERS_MAX]) if isinstance(value, (list, tuple)) else []


def config_geometry(raw: Mapping[str, Any]) -> Geometry:
    """The decoder that a config describes. BadConfig: it describes none, or has senseless numbers."""
    config = Config(raw)
    hidden, count = config.find("hidden"), config.find("layers")
    if not count and (pattern := config.flat.get("hybrid_override_pattern")):
        count = len(str(pattern))
    if not hidden or not count:
        missing = "hidden_size" if not hidden else "num_hidden_layers"
        raise BadConfig(f"it has no {missing}, so it describes no language model")
    if count > LAYERS_MAX:
        raise BadConfig(f"it says {count:,} layers")
    heads = config.find("heads")
    ff = config.find("ff") or 4 * hidden
    experts = config.find("experts")
    told = f"{raw.get('architectures')} {config.model_type}".lower()
    unknown = not experts and ("moe" in told or "mixtral" in told)  # a config with its numbers left out
    latent = config.get("kv_lora_rank")
    rope_dim = config.get("qk_rope_head_dim", 64 if latent else 0)
    value_dim = config.get("v_head_dim", config.get("qk_nope_head_dim", 128))
    return Geometry(
        architecture=_architecture(config),
        hidden=hidden,
        vocab=config.find("vocab"),
        heads=heads,
        layers=tuple(_layer(config, index, count, hidden, heads, ff) for index in range(count)),
        context_length=config.find("context"),
        head_dim=_head_dim(config, hidden, heads),
        rotary_dim=rope_dim or round(_head_dim(config, hidden, heads) * _rotary_share(config)),
        ff=max(ff, config.get("intermediate_size_mlp")),
        experts=experts or (UNKNOWN_EXPERTS if unknown else 0),
        experts_used=config.find("experts_used", UNKNOWN_EXPERTS if unknown else 1 if experts else 0),
        expert_ff=config.find("expert_ff", ff) if experts else hidden // 2 if unknown else 0,
        query_rank=config.get("q_lora_rank") if latent else 0,
        latent_rank=latent,
        head_value_dim=value_dim if latent else 0,
        head_key_dim=config.get("qk_nope_head_dim", 128) + rope_dim if latent else 0,
        tied=_tied(config),
        indexer_bytes=INDEXER_BYTES if config.get("index_topk") else 0,
        multimodal=any(raw.get(key) for key in OTHER_SENSES),
        dtype_bytes=dtype_bytes(config),
    )


def _architecture(config: Config) -> str:
    named = config.outer.get("architectures")
    return str(named[0]) if isinstance(named, list) and named else config.model_type or "unknown"


def dtype_bytes(config: Config) -> float:
    """Of the type that the checkpoint was saved in; bfloat16 where it does not say."""
    for key in ("torch_dtype", "dtype"):
        value = config.flat.get(key) or config.outer.get(key)
        if isinstance(value, str) and value.removeprefix("torch.") in DTYPE_BYTES:
            return DTYPE_BYTES[value.removeprefix("torch.")]
    return 2.0


def quantization(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """The quantisation that the config states, or nothing; it stands outside or inside the nest."""
    config = Config(raw)
    for key in ("quantization_config", "compression_config", "quantization"):
        found = config.outer.get(key) or config.inner.get(key)
        if isinstance(found, Mapping):
            return found
    return {}


def _tied(config: Config) -> bool:
    for level in (config.inner, config.outer):
        if isinstance(value := level.get("tie_word_embeddings"), bool):
            return value
    return config.model_type in TIED_BY_DEFAULT


def _head_dim(config: Config, hidden: int, heads: int) -> int:
    return config.find("head_dim") or (hidden // heads if heads else 0)


def _rotary_share(config: Config) -> float:
    """Of a head's dimensions, those that are rotated; 0 for positions that are learned or slopes."""
    if config.model_type in ("gpt2", "opt", "gpt_bigcode", "mpt", "bloom"):
        return 0.0
    share = config.flat.get("partial_rotary_factor", config.flat.get("rotary_pct", 1.0))
    return float(share) if isinstance(share, (int, float)) and 0 <= share <= 1 else 1.0


def _kv_heads(config: Config, heads: int) -> int:
    if config.flat.get("multi_query") is True or config.flat.get("multi_query_attention") is True:
        return config.find("kv_heads", 1) if config.model_type != "falcon" else 1
    default = 1 if config.model_type in MULTI_QUERY_DEFAULT and "multi_query" not in config.flat else heads
    if config.model_type == "falcon" and config.flat.get("new_decoder_architecture"):
        default = heads
    attention = config.flat.get("attn_config")  # dbrx, mpt
    if isinstance(attention, Mapping) and isinstance(found := attention.get("kv_n_heads"), int):
        return max(1, found)
    return config.find("kv_heads", default) or heads


def _layer(config: Config, index: int, count: int, hidden: int, heads: int, ff: int) -> Layer:
    experts = _is_mixture(config, index)
    width = _shared_width(config) if experts else config.get("intermediate_size_mlp", ff)
    kind = _memory(config, index, count)
    state = _state(config, hidden)
    if config.flat.get("hybrid_override_pattern") and kind is not Memory.NOTHING:
        width = 0  # these have the feed-forward in layers of its own
    if kind is Memory.STATE:
        return Layer(
            kind,
            conv_elements=state.conv,
            state_elements=state.recurrent,
            mixer_parameters=state.parameters,
            ff=width,
            experts=experts,
        )
    if kind is Memory.NOTHING:
        return Layer(kind, ff=width, experts=experts)
    if kind is Memory.LATENT:
        size = config.get("kv_lora_rank") + config.get("qk_rope_head_dim", 64)
        return Layer(kind, 1, size, 0, ff=width, experts=experts)
    head_dim, kv_heads = _head_dim(config, hidden, heads), _kv_heads(config, heads)
    value_dim = config.get("v_head_dim", head_dim)
    window = config.find("window") or config.get("attention_chunk_size")
    if kind is Memory.FULL and (wide := config.get("global_head_dim")):  # gemma 4
        head_dim = value_dim = wide
        kv_heads = config.get("num_global_key_value_heads", kv_heads)
    listed = config.listed("num_key_value_heads") or config.listed("num_kv_heads")
    if len(listed) == count and isinstance(listed[index], int):
        kv_heads = listed[index]
    beside = config.model_type == "falcon_h1"
    return Layer(
        memory=kind,
        kv_heads=kv_heads,
        key_dim=head_dim,
        value_dim=value_dim or head_dim,
        window=window if kind is Memory.WINDOW else 0,
        conv_elements=state.conv if beside else 0,
        state_elements=state.recurrent if beside else 0,
        mixer_parameters=state.parameters if beside else 0,
        ff=width,
        experts=experts,
    )


def _memory(config: Config, index: int, count: int) -> Memory:
    """What layer `index` keeps, by the lists and periods in which configs say it."""
    shared = config.get("num_kv_shared_layers")
    if shared and index >= count - shared:
        return Memory.NOTHING
    if (pattern := config.flat.get("hybrid_override_pattern")) and isinstance(pattern, str):
        return {"M": Memory.STATE, "*": Memory.FULL}.get(pattern[index : index + 1], Memory.NOTHING)
    kinds = config.listed("layer_types") or config.listed("layers_block_type") or config.listed("block_types")
    if kinds:
        return _named_memory(config, str(kinds[index % len(kinds)]))
    if (period := config.get("attn_layer_period")) > 0:  # jamba
        full = index % period == config.get("attn_layer_offset")
        return Memory.FULL if full else Memory.STATE
    if attention := config.listed("attn_layer_indices"):  # bamba
        return Memory.FULL if index in attention else Memory.STATE
    if config.model_type in ("mamba", "mamba2", "falcon_mamba"):
        return Memory.STATE
    if config.get("linear_num_value_heads") or config.get("full_attention_interval"):  # qwen3-next
        full = (index + 1) % (config.get("full_attention_interval") or 4) == 0
        return Memory.FULL if full else Memory.STATE
    if config.get("kv_lora_rank"):
        return Memory.LATENT
    if config.flat.get("no_rope_layers") and config.get("attention_chunk_size"):  # llama 4
        listed = config.listed("no_rope_layers")
        return Memory.WINDOW if index < len(listed) and listed[index] else Memory.FULL
    return Memory.WINDOW if _is_windowed(config, index) else Memory.FULL


def _named_memory(config: Config, name: str) -> Memory:
    if name in WINDOW_TYPES:
        wide = config.find("window") or config.get("attention_chunk_size")
        return Memory.WINDOW if wide else Memory.FULL
    if name in FULL_TYPES or name == "hybrid":
        return Memory.LATENT if config.get("kv_lora_rank") else Memory.FULL
    if name in ("mlp", "moe"):
        return Memory.NOTHING
    return Memory.STATE  # mamba, linear_attention, conv, recurrent


def _is_windowed(config: Config, index: int) -> bool:
    if not config.find("window") or config.flat.get("use_sliding_window") is False:
        return False
    kind = config.model_type
    if kind in WINDOW_IGNORED:
        return False
    period = config.get("sliding_window_pattern") or config.get("_sliding_window_pattern") or WINDOW_PERIOD.get(kind, 0)
    if period:
        return period > 1 and (index + 1) % period != 0
    if config.flat.get("use_sliding_window") is True:  # qwen2: the first max_window_layers see everything
        return index >= config.get("max_window_layers")
    return kind not in ("qwen2", "qwen2_moe", "qwen3", "qwen3_moe")


def _is_mixture(config: Config, index: int) -> bool:
    if config.find("experts") <= 1:
        return False
    if (pattern := config.flat.get("hybrid_override_pattern")) and isinstance(pattern, str):
        return pattern[index : index + 1] == "E"
    if index in config.listed("mlp_only_layers") or index < config.get("first_k_dense_replace"):
        return False
    listed = config.listed("moe_layers")
    if listed:
        return index in listed
    if (period := config.get("expert_layer_period")) > 0:  # jamba
        return index % period == config.get("expert_layer_offset")
    for key in ("interleave_moe_layer_step", "decoder_sparse_step", "moe_layer_freq"):
        if (step := config.get(key)) > 1:
            return (index + 1) % step == 0 if key != "moe_layer_freq" else index % step == 0
    return True


def _shared_width(config: Config) -> int:
    """Width of the experts that every token passes, all of them together."""
    for key in ("shared_expert_intermediate_size", "shared_intermediate_size", "moe_shared_expert_intermediate_size"):
        if width := config.get(key):
            return width
    count = config.get("n_shared_experts", config.get("num_shared_experts", config.get("num_shared_expert")))
    if not count and config.model_type in ("llama4", "llama4_text"):
        count = 1
    return count * config.find("expert_ff", config.find("ff"))


@dataclass(frozen=True, slots=True)
class _State:
    """Of one request in one layer, in elements; and the parameters of the layer's own matrices."""

    conv: int
    recurrent: int
    parameters: int


def _state(config: Config, hidden: int) -> _State:
    """The state of a layer without a KV cache.

    vllm/model_executor/layers/mamba/mamba_utils.py: mamba1_state_shape, mamba2_state_shape,
    gated_delta_net_state_shape, short_conv_state_shape.
    """
    if value_heads := config.get("linear_num_value_heads"):  # gated delta net
        key_dim, value_width = config.get("linear_key_head_dim"), value_heads * config.get("linear_value_head_dim")
        key_width, kernel = config.get("linear_num_key_heads") * key_dim, config.get("linear_conv_kernel_dim", 4)
        mixed = 2 * key_width + value_width
        parameters = hidden * (mixed + value_width + 2 * value_heads) + value_width * hidden + mixed * kernel
        return _State(mixed * (kernel - 1), value_width * key_dim, parameters)
    if cache := config.get("conv_L_cache"):  # lfm2
        return _State(hidden * (cache - 1), 0, hidden * (4 * hidden + cache))
    state = config.get("mamba_d_state", config.get("ssm_state_size", config.get("state_size", 16)))
    kernel = config.get("mamba_d_conv", config.get("conv_kernel", 4))
    heads = config.get("mamba_n_heads", config.get("mamba_num_heads"))
    if heads or config.model_type == "mamba2":  # mamba 2
        width = config.get("mamba_d_head", config.get("mamba_head_dim", config.get("head_dim", 64)))
        inner = (heads or config.get("num_heads", 2 * hidden // max(1, width))) * width
        mixed = inner + 2 * config.get("mamba_n_groups", config.get("n_groups", 1)) * state
        parameters = hidden * (inner + mixed + inner // max(1, width)) + inner * hidden + mixed * kernel
        return _State(mixed * (kernel - 1), inner * state, parameters)
    inner = config.get("mamba_expand", config.get("expand", 2)) * hidden
    rank = config.get("mamba_dt_rank", config.get("time_step_rank", -(-hidden // 16)))
    parameters = 3 * hidden * inner + inner * (2 * rank + 3 * state + kernel)
    return _State(inner * (kernel - 1), inner * state, parameters)
