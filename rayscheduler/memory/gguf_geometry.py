"""The geometry of a model from its GGUF header, as llama.cpp understands the header.

Rules of this file: keys, defaults and exceptions are those of llama.cpp's src/llama-model.cpp (load_hparams) and
src/llama-hparams.cpp (is_swa, n_embd_r, n_embd_s); an architecture that it treats specially stands in a table
here, and all others are read alike. Every number in the file is input: what makes no sense is a GgufError.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from rayscheduler.memory.geometry import Geometry, Layer, Memory
from rayscheduler.memory.gguf import GgufError, GgufHeader, Tensor

LAYERS_MAX = 10_000
NUMBER_MAX = 1 << 40

# Architectures with windowed layers: every n-th layer sees all tokens, the others a window (set_swa_pattern).
# One that is not here ignores the window its file may state, as `llama` does with Mistral's and `phi3` with its own.
WINDOW_PERIOD: Mapping[str, int] = {
    "gemma2": 2,
    "gemma3": 6,
    "gemma3n": 5,
    "gemma4": 6,
    "gemma-embedding": 6,
    "cohere2": 4,
    "exaone4": 4,
    "exaone-moe": 4,
    "gpt-oss": 2,
    "llama4": 4,
    "olmo2": 4,
    "smallthinker": 4,
    "afmoe": 4,
    "plamo3": 8,
    "modern-bert": 3,
}
LLAMA4_CHUNK = 8192  # tokens; not in its header
# The first layer of each period is the one that sees everything (set_swa_pattern's dense_first).
FULL_FIRST = frozenset({"smallthinker", "modern-bert"})
STATE_ONLY = frozenset({"mamba", "mamba2", "rwkv6", "rwkv6qwen2", "rwkv7", "arwkv7"})
STATE_BESIDE_ATTENTION = frozenset({"falcon-h1"})
FULL_EVERY: Mapping[str, int] = {"qwen3next": 4, "qwen35": 4, "qwen35moe": 4}  # the rest are linear attention
WITHOUT_MEMORY = frozenset(
    {"bert", "nomic-bert", "nomic-bert-moe", "jina-bert-v2", "jina-bert-v3", "modern-bert", "neo-bert"}
    | {"gemma-embedding", "t5encoder", "eurobert", "llama-embed", "dream", "llada", "llada-moe", "wavtokenizer-dec"}
)

Number = Callable[..., int]


def gguf_geometry(header: GgufHeader, tensors: Sequence[Tensor]) -> Geometry:
    """The decoder that a model's first header describes, with the tensors of all its parts.

    GgufError: it describes none, or has senseless numbers.
    """
    arch = header.architecture
    if not arch:
        raise GgufError("it names no architecture")

    def number(key: str, default: int = 0) -> int:
        value = _whole(header.metadata.get(f"{arch}.{key}"), default)
        if not 0 <= value <= NUMBER_MAX:
            raise GgufError(f"its {arch}.{key} is {value}")
        return value

    count, hidden = number("block_count"), number("embedding_length")
    if not 0 < count <= LAYERS_MAX or not hidden:
        raise GgufError(f"it says {count} layers of width {hidden}, so it is no language model")
    heads = number("attention.head_count")
    shapes = {tensor.name: tensor.shape for tensor in tensors}
    table = shapes.get("token_embd.weight", ())
    return Geometry(
        architecture=arch,
        hidden=hidden,
        vocab=table[1] if len(table) == 2 else number("vocab_size"),
        heads=heads,
        layers=_layers(header, number, count, hidden, heads),
        context_length=number("context_length"),
        head_dim=number("attention.key_length", hidden // max(1, heads)),
        ff=number("feed_forward_length"),
        experts=number("expert_count"),
        experts_used=number("expert_used_count"),
        expert_ff=number("expert_feed_forward_length", number("feed_forward_length")),
        query_rank=number("attention.q_lora_rank"),
        latent_rank=number("attention.kv_lora_rank"),
        head_value_dim=number("attention.value_length_mla"),
        head_key_dim=number("attention.key_length_mla"),
        tied="output.weight" not in shapes,
    )


def _whole(value: object, default: int) -> int:
    """The number, or the largest one of a list of numbers per layer."""
    if isinstance(value, tuple):
        numbers = [each for each in value if isinstance(each, int)]
        return max(numbers) if numbers else default
    return value if isinstance(value, int) and not isinstance(value, bool) else default


def _layers(header: GgufHeader, number: Number, count: int, hidden: int, heads: int) -> tuple[Layer, ...]:
    arch = header.architecture
    head_dim = hidden // max(1, heads)
    key_dim = number("attention.key_length", head_dim)
    value_dim = number("attention.value_length", number("attention.key_length", head_dim))
    key_dim_window = number("attention.key_length_swa", key_dim)
    value_dim_window = number("attention.value_length_swa", value_dim)
    kv_heads = _per_layer(header, "attention.head_count_kv", count, heads)
    widths = _per_layer(header, "feed_forward_length", count, 0)
    window = number("attention.sliding_window", LLAMA4_CHUNK if arch == "llama4" else 0)
    windowed = _windowed(header, number, count) if window else [False] * count
    shared_from = count - number("attention.shared_kv_layers")
    latent = number("attention.key_length_mla") > 0
    conv, state = _state_elements(number, hidden)
    dense_lead = number("leading_dense_block_count")
    layers = []
    for index in range(count):
        experts = number("expert_count") > 0 and index >= dense_lead
        ff = number("expert_shared_feed_forward_length") if experts else widths[index]
        kept = Memory.WINDOW if windowed[index] else Memory.FULL
        if arch in WITHOUT_MEMORY or index >= shared_from:
            layers.append(Layer(Memory.NOTHING, ff=ff, experts=experts))
        elif _keeps_state_only(arch, index, kv_heads[index], number):
            keeps = Memory.STATE if conv + state else Memory.NOTHING
            layers.append(Layer(keeps, conv_elements=conv, state_elements=state, ff=ff, experts=experts))
        elif latent:
            layers.append(Layer(Memory.LATENT, 1, key_dim, 0, ff=ff, experts=experts))
        else:
            beside = arch in STATE_BESIDE_ATTENTION
            layers.append(
                Layer(
                    memory=kept,
                    kv_heads=kv_heads[index],
                    key_dim=key_dim_window if windowed[index] else key_dim,
                    value_dim=value_dim_window if windowed[index] else value_dim,
                    window=window if windowed[index] else 0,
                    conv_elements=conv if beside else 0,
                    state_elements=state if beside else 0,
                    ff=ff,
                    experts=experts,
                )
            )
    return tuple(layers)


def _per_layer(header: GgufHeader, key: str, count: int, default: int) -> Sequence[int]:
    """A setting that is one number for all layers or a list with one for each."""
    value = header.metadata.get(f"{header.architecture}.{key}")
    if isinstance(value, tuple):
        numbers = [_whole(each, default) for each in value]
        if any(not 0 <= each <= NUMBER_MAX for each in numbers):
            raise GgufError(f"its {header.architecture}.{key} has senseless numbers")
        return (numbers + [numbers[-1] if numbers else default] * count)[:count]
    return [_whole(value, default)] * count


def _windowed(header: GgufHeader, number: Number, count: int) -> list[bool]:
    """Which layers see only a window: by the file's own list or period, else by the architecture's."""
    arch = header.architecture
    given = header.metadata.get(f"{arch}.attention.sliding_window_pattern")
    if isinstance(given, tuple):
        return [bool(each) for each in (*given, *[False] * count)][:count]
    period = number("attention.sliding_window_pattern", WINDOW_PERIOD.get(arch, 1))
    if period <= 1 or (arch == "exaone4" and count < 64):
        return [False] * count
    if arch in FULL_FIRST:
        return [index % period != 0 for index in range(count)]
    return [index % period < period - 1 for index in range(count)]


def _keeps_state_only(arch: str, index: int, kv_heads: int, number: Number) -> bool:
    if arch in STATE_ONLY:
        return True
    if arch in FULL_EVERY:
        period = number("full_attention_interval", FULL_EVERY[arch])
        return (index + 1) % max(1, period) != 0
    return kv_heads == 0


def _state_elements(number: Number, hidden: int) -> tuple[int, int]:
    """Of the convolution and of the recurrent state, per request: n_embd_r and n_embd_s."""
    inner, state, groups = number("ssm.inner_size"), number("ssm.state_size"), number("ssm.group_count")
    if shift := number("token_shift_count", 2 if number("wkv.head_size") else 0):
        return shift * hidden, hidden * number("wkv.head_size")
    if cache := number("shortconv.l_cache"):
        return hidden * max(0, cache - 1), 0
    return max(0, number("ssm.conv_kernel") - 1) * (inner + 2 * groups * state), state * inner
