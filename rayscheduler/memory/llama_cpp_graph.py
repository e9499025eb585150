"""The compute graph that llama.cpp reserves memory for, built from the shapes of a model's tensors.

Rules of this file: a function builds what one function of llama.cpp builds (src/llama-graph.cpp: build_inp_embd,
build_qkv, build_attn, build_ffn, build_moe_ffn; src/models/*.cpp for the mixers), in the order in which it expands
its nodes, and asks the tensors, not the name of the architecture, what is there: a bias, a norm, a fused matrix.
Which operations work in place was found by comparison with the buffers that the packaged llama.cpp prints
(tests/memory): biases, activations and scores do; rotations, sums of the residual and what is fused with a norm
do not. Small tensors that cannot matter are left out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from rayscheduler.memory.geometry import Geometry, Layer, Memory
from rayscheduler.memory.gguf import Tensor
from rayscheduler.memory.graph_memory import Graph, Node, graph_bytes

F32, I32, I64, F16 = 4, 4, 8, 2
SCALED_EMBEDDING = ("gemma", "minicpm", "granite", "grok")  # embeddings are multiplied by a constant
SCALED_QUERIES = ("gemma", "phi")  # so are queries
MULTI_POSITION = ("qwen2vl", "qwen3vl")  # four positions per token

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Reserved:
    """For what a graph is reserved: a prompt's micro-batch, `outputs` of whose tokens give logits.

    `cells` and `window_cells` are those of one stream: the tokens are shared by the streams, so is the mask.
    """

    tokens: int
    outputs: int
    slots: int
    cells: int
    window_cells: int
    flash_attention: bool
    rotated: bool  # a quantised cache is rotated: queries, keys, values and what is read from it
    causal: bool = True  # False: an encoder without a cache


def compute_buffer_bytes(tensors: Sequence[Tensor], geometry: Geometry, reserved: Reserved, layers: range) -> int:
    """The "compute buffer" of one device that runs `layers`, and the output too if they end with the last."""
    return graph_bytes(_Builder(tensors, geometry, reserved).build(layers))


@dataclass(slots=True)
class _Builder:
    tensors: Sequence[Tensor]
    geometry: Geometry
    reserved: Reserved
    graph: Graph = field(default_factory=Graph)
    weight: Node = field(default_factory=lambda: Node(0))
    shapes: dict[int, dict[str, Shape]] = field(default_factory=dict)
    tokens: int = 0  # that the present operations are about: all, or only those with outputs
    at: dict[str, Shape] = field(default_factory=dict)  # tensors of the present layer

    def build(self, layers: range) -> Graph:
        self._sort_tensors()
        self.tokens = self.reserved.tokens
        hidden, last = self.geometry.hidden, layers.stop == self.geometry.layer_count
        residual = self._embedding()
        positions = self.graph.input(I32 * self.tokens)
        inputs = {kind: self._attention_inputs(kind) for kind in (Memory.FULL, Memory.WINDOW)}
        out_ids = self.graph.input(I32 * self.reserved.outputs)
        for index in layers:
            layer, self.at = self.geometry.layers[index], self.shapes.get(index, {})
            current = self._norm(residual, "attn_norm")
            match layer.memory:
                case Memory.STATE:
                    current = self._recurrent(current, layer)
                case Memory.LATENT:
                    current = self._latent_attention(current, layer, positions, inputs[Memory.FULL])
                case Memory.FULL | Memory.WINDOW:
                    current = self._attention(current, layer, positions, inputs[layer.memory])
                case Memory.NOTHING:
                    current = self._attention(current, self._without_cache(), positions, inputs[Memory.FULL])
            if last and index == layers.stop - 1:
                self.tokens = self.reserved.outputs
                current, residual = self._op(hidden, current, out_ids), self._op(hidden, residual, out_ids)
            current = self._after(current, "post_attention_norm", unless="ffn_norm")
            residual = self._op(hidden, current, residual)
            residual = self._feed_forward(residual, layer)
        if last and self.geometry.vocab and self.reserved.causal:
            final = self._op(hidden, self._op(hidden, residual))
            residual = self._op(self.geometry.vocab, self.weight, final)
        self.graph.expand(residual)
        return self.graph

    # pieces

    def _sort_tensors(self) -> None:
        for tensor in self.tensors:
            if place := re.match(r"blk\.(\d+)\.(.+)", tensor.name):
                self.shapes.setdefault(int(place[1]), {})[place[2]] = tensor.shape

    def _op(self, width: int, *sources: Node) -> Node:
        """A tensor of `width` floats per token."""
        return self.graph.compute(width * self.tokens * F32, *sources)

    def _linear(self, source: Node, name: str, width: int = 0) -> Node:
        """A product with a matrix of the layer, and its bias if it has one."""
        wide = self._width(name, width)
        product = self._op(wide, self.weight, source)
        return self.graph.in_place(product) if f"{name}.bias" in self.at else product

    def _width(self, name: str, default: int = 0) -> int:
        shape = self.at.get(f"{name}.weight", ())
        return shape[1] if len(shape) > 1 else default

    def _norm(self, source: Node, name: str) -> Node:
        """The normalised tensor, times its weight, plus its bias; as it is where the layer has no such norm."""
        if f"{name}.weight" not in self.at:
            return source
        width = self.geometry.hidden
        scaled = self._op(width, self._op(width, source))
        return self._op(width, scaled) if f"{name}.bias" in self.at else scaled

    def _after(self, source: Node, name: str, unless: str = "") -> Node:
        """A norm behind the mixer. Some architectures call the norm before the feed-forward so."""
        return self._norm(source, name) if not unless or f"{unless}.weight" in self.at else source

    def _embedding(self) -> Node:
        """build_inp_embd: rows of the table, and the other way in, by vectors, which takes memory all the same."""
        graph, size = self.graph, self.geometry.hidden * self.tokens * F32
        rows = graph.compute(size, self.weight, graph.input(I32 * self.tokens))
        graph.expand(rows)
        vectors = graph.input(size, stays=True)
        mixed = graph.compute(size, self.weight, graph.input(I32 * self.tokens))
        copied = graph.compute(size, vectors)
        graph.expand(graph.view(copied, mixed, graph.input(I64 * self.tokens)))
        if not self.reserved.causal:  # positions and types are added, and the sum is normalised
            hidden = self.geometry.hidden
            places = self._op(hidden, self.weight, graph.input(I32 * self.tokens))
            rows = graph.in_place(places, graph.in_place(rows))
            rows = graph.in_place(graph.in_place(self._op(hidden, rows)))
        elif self.geometry.architecture.startswith(SCALED_EMBEDDING):
            rows = self._op(self.geometry.hidden, rows)
        graph.expand(rows)
        return rows

    def _attention_inputs(self, kind: Memory) -> tuple[Node, Node, Node]:
        """Where keys and values go, and which cells each token may see."""
        reserved, graph = self.reserved, self.graph
        cells = reserved.window_cells if kind is Memory.WINDOW else reserved.cells
        if reserved.flash_attention:
            keys, values = graph.input(I64 * self.tokens), graph.input(I64 * self.tokens)
            return keys, values, graph.input(cells * self.tokens * F16)
        widest = max((layer.kv_heads * layer.value_dim for layer in self.geometry.layers), default=0)
        values = graph.input(I64 * self.tokens * widest)  # stored transposed, element by element
        return graph.input(I64 * self.tokens), values, graph.input(cells * self.tokens * F32)

    def _without_cache(self) -> Layer:
        """The layer of an encoder, which attends within the batch."""
        geometry = self.geometry
        return Layer(Memory.NOTHING, geometry.heads, geometry.head_dim, geometry.head_dim)

    # mixers

    def _attention(self, source: Node, layer: Layer, positions: Node, inputs: tuple[Node, Node, Node]) -> Node:
        graph = self.graph
        wide, narrow = self.geometry.heads * layer.key_dim, layer.kv_heads * layer.key_dim
        values_wide = layer.kv_heads * layer.value_dim
        gate: Node | None = None
        if "attn_qkv.weight" in self.at:
            fused = self._linear(source, "attn_qkv")
            query, key, value = graph.view(fused), graph.view(fused), graph.view(fused)
        else:
            query = self._linear(source, "attn_q", wide)
            if self._width("attn_q") >= 2 * wide:  # queries and the output's gate in one matrix
                gate = graph.view(query)
            query = graph.view(query)
            key = graph.view(self._linear(source, "attn_k", narrow))
            value = graph.view(self._linear(source, "attn_v", values_wide))
        query = self._rotated(self._head_norm(query, "attn_q_norm", wide), wide, positions)
        if self.geometry.architecture.startswith(SCALED_QUERIES):
            query = self._op(wide, query)
        key = self._rotated(self._head_norm(key, "attn_k_norm", narrow), narrow, positions)
        if self.reserved.rotated:
            query, key = self._op(wide, graph.view(query)), self._op(narrow, graph.view(key))
        if self.reserved.rotated:
            value = self._op(values_wide, graph.view(value))
        for node in (query, value, key) if layer.memory is Memory.FULL else (query, key, value):
            graph.expand(node)
        mixed = self._scores(query, key, value, layer, inputs)
        if self.reserved.rotated:
            mixed = self._op(self.geometry.heads * layer.value_dim, graph.view(mixed))
        if gate is not None:
            opened = self._op(wide, self._op(wide, gate))
            mixed = self._op(wide, graph.view(mixed), opened)
        return self._linear(graph.view(mixed), "attn_output", self.geometry.hidden)

    def _head_norm(self, source: Node, name: str, width: int) -> Node:
        return self._op(width, self._op(width, source)) if f"{name}.weight" in self.at else source

    def _rotated(self, source: Node, width: int, positions: Node) -> Node:
        return self._op(width, source, positions) if self.reserved.causal else source

    def _scores(self, query: Node, key: Node, value: Node, layer: Layer, inputs: tuple[Node, Node, Node]) -> Node:
        """build_attn and build_attn_mha: keys and values are stored, then all of the cache is looked at."""
        graph, reserved = self.graph, self.reserved
        wide = self.geometry.heads * (layer.value_dim or self.geometry.latent_rank)
        key_places, value_places, mask = inputs
        if layer.memory is Memory.NOTHING:  # within the batch: keys and values of half the size
            keys, values = (graph.compute(node.size_bytes // 2, node) for node in (key, value))
            seen: tuple[Node, ...] = (query, keys, values)
        else:
            graph.expand(graph.store(graph.view(key), key_places))
            if layer.memory is not Memory.LATENT:
                graph.expand(graph.store(graph.view(value), value_places))
            seen = (graph.view(query),)
        if reserved.flash_attention:
            return self._op(wide, *seen, mask)
        cells = reserved.window_cells if layer.memory is Memory.WINDOW else reserved.cells
        products = self._op(cells * self.geometry.heads, *seen)
        shares = graph.in_place(products, mask)
        return self._op(wide, graph.view(self._op(wide, shares)))

    def _latent_attention(self, source: Node, layer: Layer, positions: Node, inputs: tuple[Node, Node, Node]) -> Node:
        """src/models/deepseek2.cpp with absorbed matrices: every head looks at the one latent vector."""
        graph, geometry = self.graph, self.geometry
        heads, rank = geometry.heads, geometry.latent_rank
        rotary = layer.key_dim - rank
        query = source
        if geometry.query_rank:
            query = self._op(geometry.query_rank, self.weight, source)
            query = self._op(geometry.query_rank, self._op(geometry.query_rank, query))
        query = self._op(heads * geometry.head_key_dim, self.weight, query)
        absorbed = self._op(heads * rank, self.weight, graph.view(query))
        turned = self._op(heads * rotary, graph.view(query), positions)
        query = self._op(heads * layer.key_dim, graph.view(absorbed), turned)
        latent = self._op(layer.key_dim, self.weight, source)
        normed = self._op(rank, self._op(rank, graph.view(latent)))
        key = self._op(layer.key_dim, normed, self._op(rotary, graph.view(latent), positions))
        graph.expand(query)
        graph.expand(key)
        mixed = self._scores(query, key, key, layer, inputs)
        values = self._op(heads * geometry.head_value_dim, self.weight, graph.view(mixed))
        return self._linear(self._op(heads * geometry.head_value_dim, graph.view(values)), "attn_output")

    def _recurrent(self, source: Node, layer: Layer) -> Node:
        if "ssm_in.weight" in self.at:
            return self._mamba(source, layer)
        if "attn_qkv.weight" in self.at:
            return self._delta_net(source, layer)
        width = self._width("shortconv.in_proj", 3 * self.geometry.hidden)  # lfm2, and a guess for others
        wide = self._op(width, self.weight, source)
        return self._op(self.geometry.hidden, self._op(self.geometry.hidden, self._op(self.geometry.hidden, wide)))

    def _convolved(self, source: Node, width: int, layer: Layer) -> Node:
        """The convolution over the tokens and those kept of each request before; its bias; its activation."""
        kept = layer.conv_elements * self.reserved.slots * F32
        state = self.graph.compute(kept, self.weight)
        joined = self.graph.compute(width * self.tokens * F32 + kept, self.graph.view(state), self.graph.view(source))
        self.graph.expand(self.graph.store(self.graph.view(joined)))
        current = self._op(width, joined)
        if "ssm_conv1d.bias" in self.at:
            current = self.graph.in_place(current)
        return self.graph.in_place(current)

    def _mamba(self, source: Node, layer: Layer) -> Node:
        """src/models/mamba-base.cpp: build_mamba_layer, build_mamba2_layer."""
        graph, inner = self.graph, self._inner()
        second = "ssm_x.weight" not in self.at
        projected = self._linear(source, "ssm_in", 2 * inner)
        width = self.at.get("ssm_conv1d.weight", (0, inner))[-1]
        current = self._convolved(projected, width, layer)
        if second:
            step = self._op(self._op_width("ssm_dt.bias"), graph.view(projected))
        else:
            extra = self._op(self._width("ssm_x"), self.weight, current)
            step = graph.in_place(self._op(inner, self.weight, self._op(self._width("ssm_x") // 3, graph.view(extra))))
        state_bytes = layer.state_elements * self.reserved.slots * F32
        scanned = graph.compute(inner * self.tokens * F32 + state_bytes, graph.view(current), step)
        graph.expand(graph.store(graph.view(scanned)))
        gate = self._op(inner, graph.view(projected))
        skipped = self._op(inner, graph.view(scanned), self._op(inner, graph.view(current)))
        mixed = self._op(inner, gate, skipped)
        if "ssm_norm.weight" in self.at:
            mixed = self._op(inner, self._op(inner, mixed))
        return self._linear(mixed, "ssm_out", self.geometry.hidden)

    def _inner(self) -> int:
        return self.at.get("ssm_out.weight", (2 * self.geometry.hidden,))[0]

    def _op_width(self, name: str) -> int:
        return self.at.get(name, (1,))[0]

    def _delta_net(self, source: Node, layer: Layer) -> Node:
        """src/models/delta-net-base.cpp and qwen3next.cpp: the gated delta rule, fused."""
        graph, inner = self.graph, self._inner()
        mixed = self._width("attn_qkv")
        keys = (mixed - inner) // 2
        state_bytes = layer.state_elements * self.reserved.slots * F32
        current = self._convolved(self._linear(source, "attn_qkv"), mixed, layer)
        state = graph.compute(state_bytes, self.weight)
        graph.expand(state)
        graph.expand(current)
        repeated = []
        for _ in range(2):  # queries and keys: a norm, its scale, then repeated for each head of values
            normed = graph.in_place(self._op(keys, graph.view(current)))
            repeated.append(self._op(inner, graph.view(normed)) if keys < inner else normed)
        values, kept = graph.view(current), graph.view(state)
        joined = graph.compute(inner * self.tokens * F32 + state_bytes, *repeated, values, kept)
        graph.expand(graph.store(graph.view(joined)))
        normed = self._op(inner, self._op(inner, graph.view(joined)))
        gate = graph.in_place(graph.view(self._linear(source, "attn_gate", inner)))
        return self._linear(graph.in_place(normed, gate), "ssm_out", self.geometry.hidden)

    # feed-forward

    def _feed_forward(self, residual: Node, layer: Layer) -> Node:
        hidden = self.geometry.hidden
        if "attn_output_norm.weight" in self.at and not self.reserved.causal:
            residual = self._norm(residual, "attn_output_norm")
        has_mixture = "ffn_gate_inp.weight" in self.at
        if not has_mixture and not self._width("ffn_up") and not self._width("ffn_down"):
            return residual
        norm = "ffn_norm" if "ffn_norm.weight" in self.at else "post_attention_norm"
        source = self._norm(residual, norm)
        current = self._mixture(source, layer) if has_mixture else self._dense(source, "ffn_up", "ffn_gate", "ffn_down")
        current = self._after(current, "post_ffw_norm")
        joined = self._op(hidden, current, residual)
        return self._norm(joined, "layer_output_norm")

    def _dense(self, source: Node, up_name: str, gate_name: str, down_name: str) -> Node:
        width = self.at.get(f"{down_name}.weight", (self.geometry.ff,))[0]
        if f"{gate_name}.weight" in self.at:
            active = self._op(width, self._linear(source, gate_name, width), self._linear(source, up_name, width))
        else:
            raised = self._linear(source, up_name, width)
            fused = raised.size_bytes > width * self.tokens * F32  # both halves in one matrix
            active = self._op(width, raised) if fused else self.graph.in_place(raised)
        return self._linear(active, down_name, self.geometry.hidden)

    def _mixture(self, source: Node, layer: Layer) -> Node:
        """build_moe_ffn: the experts of each token side by side, weighted and summed one after the other."""
        graph, geometry, used = self.graph, self.geometry, self.geometry.experts_used
        gates = self.at.get("ffn_gate_exps.weight") or self.at.get("ffn_up_exps.weight") or (0, geometry.expert_ff)
        width, hidden = gates[1], geometry.hidden
        scores = self._op(geometry.experts, self._op(geometry.experts, self.weight, source))
        chosen = graph.view(self._op(geometry.experts, scores))
        weights = self._op(used, self._op(used, graph.view(scores), chosen))
        graph.expand(weights)
        parts = []
        for name in ("ffn_gate_exps", "ffn_up_exps"):
            if f"{name}.weight" in self.at:
                part = self._op(used * width, self.weight, graph.view(source), chosen)
                parts.append(graph.in_place(part, chosen) if f"{name}.bias" in self.at else part)
        down = self._op(used * hidden, self.weight, self._op(used * width, *parts), chosen)
        if "ffn_down_exps.bias" in self.at:
            down = graph.in_place(down, chosen)
        weighted = self._op(used * hidden, down, weights)
        total = graph.view(weighted)
        for _ in range(used - 1):
            total = self._op(hidden, total, graph.view(weighted))
        graph.expand(total)
        if "ffn_up_shexp.weight" in self.at:
            shared = self._dense(source, "ffn_up_shexp", "ffn_gate_shexp", "ffn_down_shexp")
            if "ffn_gate_inp_shexp.weight" in self.at:
                shared = self._op(hidden, shared)
            total = self._op(hidden, total, shared)
        return total
