"""Reads what a checkpoint directory says of its weights: config.json, the index, the headers of safetensors files.

Rules of this file: files are input. A JSON text is read only after its size is known to be within a limit and
within the file; tensor data is never read, so truncated files are fine. What can be known exactly (the headers)
goes before what is only stated (the index's total); a directory with neither is a config alone.
Format: https://huggingface.co/docs/safetensors/index#format.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CONFIG = "config.json"
INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
HEADER_BYTES_MAX = 32 << 20  # of one file; the largest seen have a tenth of that
JSON_BYTES_MAX = 64 << 20  # config or index
TENSOR_BYTES_MAX = 1 << 50
FILES_MAX = 10_000

DTYPE_BITS: Mapping[str, int] = {
    **{"BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8},
    **{"I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32},
    **{"F64": 64, "I64": 64, "U64": 64, "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6},
}


class SafetensorsError(ValueError):
    """A checkpoint cannot be read. The message says which file and why, without the directory's path."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """`size_bytes` as stored, also where the file is cut short before it."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a directory says. `tensors` is empty without headers, `total_bytes` 0 where nothing states it."""

    directory: Path
    config: Mapping[str, Any]
    total_bytes: int = 0
    tensors: tuple[StoredTensor, ...] = ()
    names: frozenset[str] = field(default_factory=frozenset)


def read_checkpoint(source: Path) -> Checkpoint:
    """The checkpoint of a directory, or of one file in it (config, index or weights). OSError, SafetensorsError."""
    directory = source if source.is_dir() else source.parent
    config = _json_object(directory / CONFIG)
    stated, files, names = _index(directory)
    if source.suffix == ".safetensors" and not files:
        files = [source]
    elif not files:
        files = _weight_files(directory)
    if len(files) > FILES_MAX:
        raise SafetensorsError(f"it consists of {len(files):,} files")
    present = [path for path in files if path.is_file() and path.suffix == ".safetensors"]
    if len(present) < len(files) or not present:
        if not stated and files:
            return Checkpoint(directory, config, _sizes(files), (), names)
        return Checkpoint(directory, config, stated, (), names)
    try:
        tensors = tuple(tensor for path in present for tensor in read_header(path))
    except SafetensorsError:
        if not stated:
            raise
        return Checkpoint(directory, config, stated, (), names)  # cut short within a header: the total is what is left
    total = sum(tensor.size_bytes for tensor in tensors)
    return Checkpoint(directory, config, total, tensors, frozenset(tensor.name for tensor in tensors))


def read_header(path: Path) -> tuple[StoredTensor, ...]:
    """The tensors that one file announces; their data may be missing."""
    with path.open("rb") as file:
        file_bytes = os.fstat(file.fileno()).st_size
        start = file.read(8)
        if len(start) < 8:
            raise SafetensorsError(f"{path.name} has {len(start)} bytes, too few for a header")
        size = int.from_bytes(start, "little")
        if size > min(HEADER_BYTES_MAX, file_bytes - 8):
            raise SafetensorsError(
                f"{path.name} announces a header of {size:,} bytes, but {file_bytes - 8:,} follow "
                f"and {HEADER_BYTES_MAX:,} are read at most"
            )
        header = _parsed(file.read(size), path.name)
    return tuple(_tensors(header, path.name))


def _tensors(header: Mapping[str, Any], file: str) -> Iterator[StoredTensor]:
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if not isinstance(entry, dict):
            raise SafetensorsError(f"{file}: the entry of {_shown(name)} is no object")
        dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
        if not isinstance(shape, list) or not isinstance(offsets, list) or len(offsets) != 2:
            raise SafetensorsError(f"{file}: tensor {_shown(name)} has no shape or no place")
        if not _whole_numbers(shape) or not _whole_numbers(offsets):
            raise SafetensorsError(f"{file}: tensor {_shown(name)} has a senseless shape or place")
        size = offsets[1] - offsets[0]
        if not 0 <= size <= TENSOR_BYTES_MAX:
            raise SafetensorsError(f"{file}: tensor {_shown(name)} has {size:,} bytes")
        bits = DTYPE_BITS.get(str(dtype))
        if bits is not None and math.prod(shape) * bits != size * 8:
            raise SafetensorsError(f"{file}: tensor {_shown(name)} of {dtype} {shape} cannot have {size:,} bytes")
        yield StoredTensor(name, str(dtype), tuple(shape), size)


def _whole_numbers(values: list[Any]) -> bool:
    numbers = all(isinstance(each, int) and not isinstance(each, bool) and 0 <= each <= 1 << 60 for each in values)
    return numbers and len(values) <= 16


def _index(directory: Path) -> tuple[int, list[Path], frozenset[str]]:
    """Total bytes as stated, the files, and the tensors' names; nothing where there is no index."""
    for name in INDEXES:
        path = directory / name
        if not path.is_file():
            continue
        index = _json_object(path)
        stated = index.get("metadata")
        total = stated.get("total_size", 0) if isinstance(stated, dict) else 0
        total = int(total) if isinstance(total, (int, float)) and 0 <= total <= TENSOR_BYTES_MAX else 0
        where = index.get("weight_map")
        where = where if isinstance(where, dict) else {}
        inside = sorted({str(file) for file in where.values()})
        if any(os.path.basename(file) != file for file in inside):
            raise SafetensorsError(f"{name} points out of its directory")
        return total, [directory / file for file in inside], frozenset(map(str, where))
    return 0, [], frozenset()


def _weight_files(directory: Path) -> list[Path]:
    """Weights without an index: one file, or those that were saved so. `consolidated` repeats the others."""
    found = sorted(directory.glob("*.safetensors"))
    named = [path for path in found if not path.name.startswith("consolidated")]
    if named or found:
        return named or found
    return [path for path in sorted(directory.glob("pytorch_model*.bin")) if path.is_file()]


def _sizes(files: list[Path]) -> int:
    """Of weights in another format: the files' own sizes."""
    missing = [path.name for path in files if not path.is_file()]
    if missing:
        raise SafetensorsError(f"{missing[0]} is missing and the index states no total size")
    return sum(path.stat().st_size for path in files)


def _json_object(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > JSON_BYTES_MAX:
            raise SafetensorsError(f"{path.name} has {size:,} bytes; {JSON_BYTES_MAX:,} are read")
        return _parsed(file.read(JSON_BYTES_MAX + 1), path.name)


def _parsed(text: bytes, file: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SafetensorsError(f"{file} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise SafetensorsError(f"{file} holds no JSON object")
    return value


def _shown(name: str) -> str:
    return repr(name if len(name) <= 80 else name[:77] + "...")
