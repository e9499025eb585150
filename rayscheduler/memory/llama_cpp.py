"""What a llama.cpp server takes, from the header of its GGUF file.

Rules of this file: the buffers are those that llama.cpp prints when it loads (model, KV, compute, output), by
the arithmetic of its own source; what the process takes beside them is `overhead`, and on a GPU `context`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from rayscheduler.errors import SourceError
from rayscheduler.memory.geometry import Geometry, Layer, Memory
from rayscheduler.memory.gguf import GgufError, GgufHeader, read_parts
from rayscheduler.memory.gguf_geometry import gguf_geometry
from rayscheduler.memory.kv_types import kv_type_bytes
from rayscheduler.memory.values import GIB, KV_CACHE, MIB, WEIGHTS, Ask, Estimate, built, rounded_up

NAME = "llama-cpp"
CONTEXT_DEFAULT = 4096  # tokens of one request, where nothing is said; the engine llama-cpp gives the same
CELLS_MULTIPLE = 256
UBATCH_DEFAULT = 512
CONTEXT_BYTES = int(0.35 * GIB)  # CUDA context and cuBLAS, per device: 0.3 to 0.6 GiB were seen
PROCESS_BYTES = 36 * MIB  # Python, the server and its code, of a model of 2 MB
F32 = 4


@dataclass(frozen=True, slots=True)
class _Run:
    """The question, resolved. `cells` per stream of layers that see everything."""

    slots: int
    streams: int
    cells: int
    ubatch: int
    key_bytes: Fraction
    value_bytes: Fraction
    flash_attention: bool
    embedding: bool

    def layer_cells(self, layer: Layer) -> int:
        """llama-kv-cache-iswa.cpp: a window for every sequence of the stream and one micro-batch."""
        if layer.memory is not Memory.WINDOW:
            return self.cells
        sequences = self.slots // self.streams
        return min(self.cells, rounded_up(layer.window * sequences + self.ubatch, CELLS_MULTIPLE))

    def kv_bytes(self, layer: Layer) -> int:
        return int(self.layer_cells(layer) * self.streams * self.token_bytes(layer))

    def token_bytes(self, layer: Layer) -> Fraction:
        if not layer.keeps_tokens:
            return Fraction(0)
        return layer.kv_heads * (layer.key_dim * self.key_bytes + layer.value_dim * self.value_bytes)

    def state_bytes(self, layer: Layer) -> int:
        return (layer.conv_elements + layer.state_elements) * F32 * self.slots


def estimate_llama_cpp(source: Path, ask: Ask) -> Estimate:
    """The model's file (or all its parts), its projector and its draft model; per device, or for the host alone."""
    headers = read_gguf(source)
    geometry = _geometry(source, headers[0])
    run = _run(ask, geometry)
    if ask.pipeline > 1:
        raise SourceError(f"llama.cpp splits layers over devices by itself; give --gpus {ask.gpus} without --pipeline")
    parts = _on_host(headers, geometry, run) if ask.gpus == 0 else _on_devices(headers, geometry, run, ask.gpus)
    per_token = sum(run.token_bytes(layer) for layer in geometry.layers)
    return built(NAME, parts, int(per_token), run.cells * run.streams, [])


def read_gguf(source: Path) -> list[GgufHeader]:
    """The headers of all parts of a model. SourceError: the file is not a whole GGUF file."""
    try:
        return [header for _, header in read_parts(source)]
    except GgufError as error:
        raise SourceError(f"{source} cannot be used: {error}; give a whole .gguf model") from error
    except OSError as error:
        raise SourceError(f"{source} cannot be read: {error.strerror}; give the path of a .gguf file") from error


def _geometry(source: Path, header: GgufHeader) -> Geometry:
    try:
        return gguf_geometry(header)
    except GgufError as error:
        raise SourceError(f"{source} cannot be used: {error}; give a .gguf language model") from error


def _run(ask: Ask, geometry: Geometry) -> _Run:
    trained = geometry.context_length or CONTEXT_DEFAULT
    context = ask.context_length or min(CONTEXT_DEFAULT, trained)
    total = context * ask.concurrency
    streams = 1 if ask.kv_unified else ask.concurrency
    cells = rounded_up(-(-total // streams), CELLS_MULTIPLE)
    key_type, _, value_type = ask.kv_type.partition(",")
    return _Run(
        slots=ask.concurrency,
        streams=streams,
        cells=cells,
        ubatch=min(ask.max_batched_tokens or UBATCH_DEFAULT, rounded_up(total, CELLS_MULTIPLE)),
        key_bytes=kv_type_bytes(key_type, 2),
        value_bytes=kv_type_bytes(value_type or key_type, 2),
        flash_attention=ask.flash_attention,
        embedding=ask.embedding,
    )


def _on_host(headers: Sequence[GgufHeader], geometry: Geometry, run: _Run) -> list[dict[str, int]]:
    return [
        {
            WEIGHTS: sum(header.weight_bytes for header in headers),
            KV_CACHE: sum(run.kv_bytes(layer) + run.state_bytes(layer) for layer in geometry.layers),
            "compute": _compute_bytes(geometry, run),
            "output": geometry.vocab * F32 * run.slots,
            "overhead": PROCESS_BYTES,
        }
    ]


def _on_devices(headers: Sequence[GgufHeader], geometry: Geometry, run: _Run, devices: int) -> list[dict[str, int]]:
    """Whole layers on each device, the output matrix as one more layer behind them; the embedding table on the host.

    llama-model.cpp, load_tensors: get_layer_buft_list with equal splits; an output that is tied to the embedding
    table is loaded a second time, to the last device.
    """
    layer_bytes, output_bytes, _ = _tensor_bytes(headers, geometry)
    owner = [layer * devices // (geometry.layer_count + 1) for layer in range(geometry.layer_count + 1)]
    parts = []
    for device in range(devices):
        mine = [layer for layer in range(geometry.layer_count) if owner[layer] == device]
        shapes = [geometry.layers[layer] for layer in mine]
        last = owner[-1] == device
        parts.append(
            {
                "context": CONTEXT_BYTES,
                WEIGHTS: sum(layer_bytes[layer] for layer in mine) + (output_bytes if last else 0),
                KV_CACHE: sum(run.kv_bytes(shape) + run.state_bytes(shape) for shape in shapes),
                "compute": _compute_bytes(geometry, run),
            }
        )
    return parts


def _tensor_bytes(headers: Sequence[GgufHeader], geometry: Geometry) -> tuple[list[int], int, int]:
    """Of each layer, of the output with what belongs to no layer, and of the embedding table."""
    layers, output, table = [0] * geometry.layer_count, 0, 0
    for header in headers:
        for tensor in header.tensors:
            place = re.match(r"blk\.(\d+)\.", tensor.name)
            if place and int(place[1]) < geometry.layer_count:
                layers[int(place[1])] += tensor.size_bytes
            elif tensor.name.startswith(("token_embd.", "per_layer_token_embd.", "position_embd.", "token_types.")):
                table += tensor.size_bytes
            else:
                output += tensor.size_bytes
    return layers, output + (table if geometry.tied else 0), table


def _compute_bytes(geometry: Geometry, run: _Run) -> int:
    """First approximation: the wider of attention and feed-forward, and the masks."""
    width = max(8 * geometry.hidden, 3 * geometry.ff + 5 * geometry.hidden)
    masks = {run.layer_cells(layer) for layer in geometry.layers if layer.keeps_tokens}
    return run.ubatch * F32 * width + sum(masks) * run.ubatch * 2
