"""The shape of a model: what its layers keep per token and how wide they are, from whichever file says it.

Rules of this file: values only, in counts and elements, never in bytes of a particular type; bytes are the
engines' affair. Nothing is read here: gguf_geometry.py and hf_config.py fill these in. A number that a file does
not give is 0, and every formula says what 0 means for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Memory(str, Enum):
    """What a layer remembers of the tokens it has seen."""

    FULL = "full"  # keys and values of every token
    WINDOW = "window"  # keys and values of the last `window` tokens
    LATENT = "latent"  # one compressed vector per token (multi-head latent attention)
    STATE = "state"  # a state of fixed size per request (Mamba, linear attention, convolutions)
    NOTHING = "nothing"  # no memory of its own: plain feed-forward, or it reads another layer's


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer. `key_dim` and `value_dim` are per head, but for LATENT: the whole vector, and 0."""

    memory: Memory
    kv_heads: int = 0
    key_dim: int = 0
    value_dim: int = 0
    window: int = 0  # tokens, for WINDOW
    conv_elements: int = 0  # per request, for STATE (a FULL layer may have a state beside it: Falcon-H1)
    state_elements: int = 0
    mixer_parameters: int = 0  # of a STATE layer's own matrices
    ff: int = 0  # width of the dense feed-forward (of the shared experts in a mixture); 0: none
    experts: bool = False  # this layer has the mixture of experts

    @property
    def kv_elements(self) -> int:
        """Elements kept per token: keys and values of all heads, or the latent vector."""
        if self.memory is Memory.LATENT:
            return self.key_dim
        return self.kv_heads * (self.key_dim + self.value_dim)

    @property
    def keeps_tokens(self) -> bool:
        return self.memory in (Memory.FULL, Memory.WINDOW, Memory.LATENT)

    @property
    def keeps_state(self) -> bool:
        return self.conv_elements + self.state_elements > 0


@dataclass(frozen=True, slots=True)
class Geometry:
    """A decoder as the formulas see it. `heads` 0: a model without attention."""

    architecture: str
    hidden: int
    vocab: int
    heads: int
    layers: tuple[Layer, ...]
    context_length: int = 0  # tokens it was trained for; 0: the file does not say
    head_dim: int = 0
    rotary_dim: int = 0  # dimensions of a head that carry the position; 0: none, or the file does not say
    ff: int = 0  # of the widest dense feed-forward
    experts: int = 0
    experts_used: int = 0
    expert_ff: int = 0
    query_rank: int = 0  # LATENT: rank of the compressed query; 0: the query is not compressed
    latent_rank: int = 0  # LATENT: of key_dim, the part without the rotary dimensions
    head_value_dim: int = 0  # LATENT: per head, after decompression
    head_key_dim: int = 0  # LATENT: per head, after decompression, rotary part included
    tied: bool = False  # the output matrix is the embedding table
    indexer_bytes: int = 0  # LATENT: what a sparse-attention indexer keeps per token and layer
    multimodal: bool = False
    dtype_bytes: float = 2.0  # of weights and activations, unless quantised

    @property
    def layer_count(self) -> int:
        return len(self.layers)

    @property
    def kv_elements(self) -> int:
        """Elements that one token takes in all layers, while it is inside every window."""
        return sum(layer.kv_elements for layer in self.layers if layer.keeps_tokens)

    @property
    def has_experts(self) -> bool:
        return self.experts > 1
