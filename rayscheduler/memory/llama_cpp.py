"""What a llama.cpp server takes, from the header of its GGUF file.

Rules of this file: weights, KV cache, compute and output buffers are those that llama.cpp prints when it loads, by
the arithmetic of its own source; what a process takes beside them is `overhead` on the host and `context` on a
device. Sources: src/llama-kv-cache.cpp, llama-kv-cache-iswa.cpp, llama-memory-recurrent.cpp (KV), llama-model.cpp
load_tensors (which device gets what), llama-context.cpp (what graphs and outputs are reserved for).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

from rayscheduler.errors import SourceError
from rayscheduler.memory.geometry import Geometry, Layer, Memory
from rayscheduler.memory.gguf import GgufError, GgufHeader, Tensor, read_header, read_parts
from rayscheduler.memory.gguf_geometry import gguf_geometry
from rayscheduler.memory.kv_types import kv_type_bytes
from rayscheduler.memory.llama_cpp_graph import Reserved, compute_buffer_bytes
from rayscheduler.memory.values import GIB, KV_CACHE, MIB, WEIGHTS, Ask, Estimate, built, rounded_up

NAME = "llama-cpp"
CONTEXT_DEFAULT = 4096  # tokens of one request where nothing is said; the engine llama-cpp gives the same
CELLS_MULTIPLE = 256
UBATCH_DEFAULT = 512
CONTEXT_BYTES = int(0.35 * GIB)  # CUDA context and cuBLAS, per device: 0.3 to 0.6 GiB were seen
PROCESS_BYTES = 36 * MIB  # Python, the server and its code: what is resident with a model of 2 MB
F32 = 4
# Matrices whose rows are a multiple of these are kept a second time by a processor with AVX2 (ggml-cpu/repack.cpp).
REPACKED_ROWS: Mapping[str, int] = {"Q4_0": 8, "Q4_K": 8, "IQ4_NL": 8}
ON_HOST = ("token_embd.", "per_layer_token_embd.", "position_embd.", "token_types.")


@dataclass(frozen=True, slots=True)
class _Model:
    """A model's files, read, and what is asked of it. `cells` are those of one stream that sees everything."""

    tensors: tuple[Tensor, ...]
    geometry: Geometry
    slots: int
    streams: int
    cells: int
    tokens: int  # of the largest micro-batch
    key_bytes: Fraction
    value_bytes: Fraction
    flash_attention: bool

    @property
    def weight_bytes(self) -> int:
        return sum(tensor.size_bytes for tensor in self.tensors)

    def layer_cells(self, layer: Layer) -> int:
        """A window for every sequence of the stream, and one micro-batch."""
        if layer.memory is not Memory.WINDOW:
            return self.cells
        sequences = self.slots // self.streams
        return min(self.cells, rounded_up(layer.window * sequences + self.tokens, CELLS_MULTIPLE))

    def token_bytes(self, layer: Layer) -> Fraction:
        if not layer.keeps_tokens:
            return Fraction(0)
        return layer.kv_heads * (layer.key_dim * self.key_bytes + layer.value_dim * self.value_bytes)

    def cache_bytes(self, layers: range) -> int:
        """Keys, values and recurrent states (in float32) of these layers."""
        shapes = [self.geometry.layers[index] for index in layers]
        tokens = sum(int(self.layer_cells(layer) * self.streams * self.token_bytes(layer)) for layer in shapes)
        return tokens + sum((layer.conv_elements + layer.state_elements) * F32 * self.slots for layer in shapes)

    def compute_bytes(self, layers: range) -> int:
        windows = [self.layer_cells(layer) for layer in self.geometry.layers if layer.memory is Memory.WINDOW]
        whole = self.key_bytes.denominator == self.value_bytes.denominator == 1
        causal = any(layer.memory is not Memory.NOTHING for layer in self.geometry.layers)
        reserved = Reserved(
            tokens=self.tokens,
            outputs=self.slots if causal else self.tokens,
            slots=self.slots,
            cells=self.cells if causal else self.tokens,
            window_cells=max(windows, default=0),
            flash_attention=self.flash_attention,
            rotated=not whole,
            causal=causal,
        )
        return compute_buffer_bytes(self.tensors, self.geometry, reserved, layers)

    @property
    def output_bytes(self) -> int:
        """Logits of one token of each slot, kept for the host."""
        return self.geometry.vocab * F32 * self.slots


def estimate_llama_cpp(source: Path, ask: Ask) -> Estimate:
    """The model's file (or all its parts), its projector and its draft model; per device, or for the host alone."""
    if ask.pipeline > 1:
        raise SourceError(f"llama.cpp splits layers over devices by itself; give --gpus {ask.gpus} without --pipeline")
    model = _model(source, ask)
    notes: list[str] = []
    parts = [_on_host(model, notes)] if ask.gpus == 0 else _on_devices(model, ask.gpus)
    if ask.projector:
        parts[0] |= _projector(Path(ask.projector))
    if ask.draft:
        draft = estimate_llama_cpp(Path(ask.draft), replace(ask, draft="", projector="", gpus=min(ask.gpus, 1)))
        beside = {name: size for name, size in draft.parts[0].items() if name not in ("context", "overhead")}
        parts[0]["draft"] = sum(beside.values())
    table = sum(tensor.size_bytes for tensor in model.tensors if tensor.name.startswith(ON_HOST))
    return built(
        NAME,
        parts,
        int(sum(model.token_bytes(layer) for layer in model.geometry.layers)),
        model.cells * model.streams,
        notes,
        host_bytes=0 if ask.gpus == 0 else PROCESS_BYTES + table + model.output_bytes,
    )


def read_gguf(source: Path) -> list[GgufHeader]:
    """The headers of all parts of a model; their data may be missing. SourceError: one is no GGUF file."""
    try:
        return [header for _, header in read_parts(source, whole=False)]
    except GgufError as error:
        raise SourceError(f"{source} cannot be used: {error}; give a .gguf model") from error
    except OSError as error:
        raise SourceError(f"{source} cannot be read: {error.strerror}; give the path of a .gguf file") from error


def _model(source: Path, ask: Ask) -> _Model:
    headers = read_gguf(source)
    tensors = tuple(tensor for header in headers for tensor in header.tensors)
    try:
        geometry = gguf_geometry(headers[0], tensors)
    except GgufError as error:
        raise SourceError(f"{source} cannot be used: {error}; give a .gguf language model") from error
    context = ask.context_length or min(CONTEXT_DEFAULT, geometry.context_length or CONTEXT_DEFAULT)
    total, streams = context * ask.concurrency, 1 if ask.kv_unified else ask.concurrency
    cells = rounded_up(-(-total // streams), CELLS_MULTIPLE)
    key_type, _, value_type = ask.kv_type.partition(",")
    ubatch = ask.max_batched_tokens or (context if ask.embedding else UBATCH_DEFAULT)
    return _Model(
        tensors=tensors,
        geometry=geometry,
        slots=ask.concurrency,
        streams=streams,
        cells=cells,
        tokens=min(ubatch, cells * streams),
        key_bytes=kv_type_bytes(key_type, 2),
        value_bytes=kv_type_bytes(value_type or key_type, 2),
        flash_attention=ask.flash_attention,
    )


def _on_host(model: _Model, notes: list[str]) -> dict[str, int]:
    everything = range(model.geometry.layer_count)
    repacked = _repacked_bytes(model.tensors)
    if repacked:
        notes.append(f"overhead includes {repacked / MIB:.1f} MiB of weights that AVX2 keeps a second time, repacked")
    return {
        WEIGHTS: model.weight_bytes,
        KV_CACHE: model.cache_bytes(everything),
        "compute": model.compute_bytes(everything),
        "output": model.output_bytes,
        "overhead": PROCESS_BYTES + repacked,
    }


def _repacked_bytes(tensors: Sequence[Tensor]) -> int:
    return sum(
        tensor.size_bytes
        for tensor in tensors
        if tensor.type in REPACKED_ROWS
        and len(tensor.shape) > 1
        and tensor.shape[1] % REPACKED_ROWS[tensor.type] == 0
        and not tensor.name.startswith(ON_HOST)
    )


def _on_devices(model: _Model, devices: int) -> list[dict[str, int]]:
    """Whole layers on each device, the output matrix as one more layer behind them; the embedding table on the host.

    An output that is tied to the embedding table is loaded a second time, to the last device.
    """
    count = model.geometry.layer_count
    owner = [index * devices // (count + 1) for index in range(count + 1)]
    layer_bytes, output_bytes = _tensor_bytes(model)
    parts = []
    for device in range(devices):
        mine = [index for index in range(count) if owner[index] == device]
        layers = range(mine[0], mine[-1] + 1) if mine else range(0)
        weights = sum(layer_bytes[index] for index in layers) + (output_bytes if owner[-1] == device else 0)
        parts.append(
            {
                "context": CONTEXT_BYTES,
                WEIGHTS: weights,
                KV_CACHE: model.cache_bytes(layers),
                "compute": model.compute_bytes(layers) if layers else 0,
            }
        )
    return parts


def _tensor_bytes(model: _Model) -> tuple[list[int], int]:
    """Of each layer; of the output with all that belongs to no layer and is not left on the host."""
    layers, output, table = [0] * model.geometry.layer_count, 0, 0
    for tensor in model.tensors:
        place = re.match(r"blk\.(\d+)\.", tensor.name)
        if place and int(place[1]) < len(layers):
            layers[int(place[1])] += tensor.size_bytes
        elif tensor.name.startswith(ON_HOST):
            table += tensor.size_bytes if tensor.name.startswith("token_embd.") else 0
        else:
            output += tensor.size_bytes
    return layers, output + (table if model.geometry.tied else 0)


def _projector(path: Path) -> dict[str, int]:
    """The encoder of another sense (tools/mtmd/clip.cpp): its weights, and the activations of its widest layer."""
    try:
        header = read_header(path, whole=False)
    except (GgufError, OSError) as error:
        raise SourceError(f"the projector {path} cannot be read: {error}; give the mmproj .gguf file") from error
    for sense in ("vision", "audio"):
        if width := header.number(f"clip.{sense}.embedding_length"):
            break
    patch = header.number(f"clip.{sense}.patch_size", 14)
    side = header.number(f"clip.{sense}.image_size", 448) // max(1, patch)
    ff, heads = header.number(f"clip.{sense}.feed_forward_length"), header.number(f"clip.{sense}.attention.head_count")
    patches = min(side * side, 1 << 14)
    compute = patches * F32 * (5 * width + 2 * ff + 2 * min(heads, 64) * patches)
    return {"projector": header.weight_bytes + compute}
