"""Reads the header of a GGUF file: its metadata and the name, type and size of each tensor.

Rules of this file: the file is input, and nothing in it is trusted. No length is allocated or looped
over before it is known to lie within the file; what is kept is limited; long arrays are skipped, not
built. The file is read in blocks, not mapped: one that shrinks meanwhile is an error, not a SIGBUS.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3, little-endian.
"""

from __future__ import annotations

import io
import math
import os
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32

BLOCK_BYTES = 1 << 20
ARRAY_LENGTH_MAX = 1024  # longer arrays are skipped; per-layer settings are shorter
STRINGS_MAX = 10_000_000  # in one array; the largest vocabularies have 3 % of that
STRING_BYTES_MAX = 4 << 20
KEPT_BYTES_MAX = 32 << 20  # strings and arrays of one header together
METADATA_MAX = 65_536
TENSORS_MAX = 1_000_000
TENSOR_BYTES_MAX = 1 << 50  # where the file's size does not bound it
DIMENSIONS_MAX = 4
PARTS_MAX = 1_000

_STRING, _ARRAY, _BOOL = 8, 9, 7
_SCALARS: Mapping[int, struct.Struct] = {
    kind: struct.Struct("<" + code)
    for kind, code in zip((0, 1, 2, 3, 4, 5, 6, _BOOL, 10, 11, 12), "BbHhIifBQqd", strict=True)
}
_U32, _U64 = _SCALARS[4], _SCALARS[10]
_METADATA_BYTES_MIN = 8 + 4 + 1  # key length, value type, value
_TENSOR_BYTES_MIN = 8 + 4 + 4 + 8  # name length, dimension count, type, offset

# ggml's tensor types: number in the file -> (name, elements in a block, bytes of a block)
TENSOR_TYPES: Mapping[int, tuple[str, int, int]] = {
    **{0: ("F32", 1, 4), 1: ("F16", 1, 2), 30: ("BF16", 1, 2), 28: ("F64", 1, 8)},
    **{24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8)},
    **{2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22), 7: ("Q5_1", 32, 24)},
    **{8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 40), 41: ("Q1_0", 128, 18)},
    **{10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176)},
    **{14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292)},
    **{16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50)},
    **{20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136)},
    **{29: ("IQ1_M", 256, 56), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66)},
    **{39: ("MXFP4", 32, 17), 40: ("NVFP4", 64, 36)},
}


class GgufError(ValueError):
    """The file is not a whole GGUF model. The message says what is wrong with it, without its path."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """`shape` as in the file (fastest dimension first); `offset` counts from the start of the file."""

    name: str
    shape: tuple[int, ...]
    type: str
    offset: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class SkippedArray:
    """An array that is there but was not read: only its length is known."""

    length: int


Scalar = str | int | float | bool
Value = Scalar | tuple[Scalar, ...] | SkippedArray


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """What one GGUF file says about itself."""

    version: int
    metadata: Mapping[str, Value]
    tensors: tuple[Tensor, ...]
    data_offset: int  # where tensor data begins
    file_bytes: int

    @property
    def architecture(self) -> str:
        return self.text("general.architecture")

    @property
    def weight_bytes(self) -> int:
        """Sum of the tensors of this file."""
        return sum(tensor.size_bytes for tensor in self.tensors)

    @property
    def context_length(self) -> int:
        """The tokens that the model was trained for; 0 if the file does not say."""
        return self.number(f"{self.architecture}.context_length")

    @property
    def chat_template(self) -> str:
        return self.text("tokenizer.chat_template")

    @property
    def part_count(self) -> int:
        """Files that the model is split into; 1 for a whole one."""
        return max(1, self.number("split.count"))

    def text(self, key: str) -> str:
        """The string of that key, or "" where it is absent or no string."""
        value = self.metadata.get(key, "")
        return value if isinstance(value, str) else ""

    def number(self, key: str, default: int = 0) -> int:
        """The whole number of that key, or `default` where it is absent or no whole number."""
        value = self.metadata.get(key)
        return value if isinstance(value, int) and not isinstance(value, bool) else default


def read_header(path: str | Path, *, whole: bool = True) -> GgufHeader:
    """The header of one file. GgufError: it is not a whole GGUF file. OSError: it cannot be read.

    `whole` False: the tensors' data may be missing, as while a file is being fetched; the header may not.
    """
    with io.FileIO(path) as file:
        file_bytes = os.fstat(file.fileno()).st_size
        return _HeaderReader(file, file_bytes, whole).read()


def read_parts(path: str | Path, *, whole: bool = True) -> tuple[tuple[Path, GgufHeader], ...]:
    """The files of a model and their headers: one, or all parts of a split model given its first part.

    GgufError names the part that is wrong or missing, unless it is `path` itself.
    """
    first = read_header(path, whole=whole)
    paths = part_paths(Path(path), first)
    parts = [(paths[0], first)]
    for part in paths[1:]:
        try:
            parts.append((part, read_header(part, whole=whole)))
        except OSError as error:
            raise GgufError(f"its part {part.name} cannot be read: {error.strerror}") from error
        except GgufError as error:
            raise GgufError(f"its part {part.name}: {error}") from error
    return tuple(parts)


def part_paths(path: Path, header: GgufHeader) -> tuple[Path, ...]:
    """The files that a split model consists of, by llama.cpp's naming: NAME-00001-of-00003.gguf."""
    count = header.part_count
    if count == 1:
        return (path,)
    if count > PARTS_MAX:
        raise GgufError(f"it says that it is split into {count} files")
    name = re.fullmatch(r"(.*)-(\d{5})-of-(\d{5})\.gguf", path.name)
    if name is None or int(name[3]) != count:
        raise GgufError(f"it is one of {count} parts but is not named NAME-00001-of-{count:05}.gguf")
    if int(name[2]) != 1:
        raise GgufError(f"it is part {int(name[2])} of {count}; give the first, {name[1]}-00001-of-{name[3]}.gguf")
    return tuple(path.with_name(f"{name[1]}-{part:05}-of-{name[3]}.gguf") for part in range(1, count + 1))


class _HeaderReader:
    """A cursor over the file that holds one block of it, and the grammar of a header."""

    def __init__(self, file: io.FileIO, file_bytes: int, whole: bool) -> None:
        self._file = file
        self._whole = whole
        self._file_bytes = file_bytes
        self._block = b""
        self._block_start = 0  # offset of the block in the file
        self._at = 0  # offset of the cursor in the block
        self._kept_bytes = 0

    def read(self) -> GgufHeader:
        if self._file_bytes < 4 or (magic := self._take(4)) != MAGIC:
            found = f"it begins with {magic!r}" if self._file_bytes >= 4 else f"it has {self._file_bytes} bytes"
            raise GgufError(f"it is not a GGUF file: {found}, not with {MAGIC!r}")
        version = self._number(_U32)
        if version not in VERSIONS:
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big") in VERSIONS
            why = "its numbers are big-endian" if swapped else f"it is GGUF version {version}"
            raise GgufError(f"{why}; versions 2 and 3 in little-endian are read")
        tensor_count, metadata_count = self._number(_U64), self._number(_U64)
        self._check_count("metadata entries", metadata_count, METADATA_MAX, _METADATA_BYTES_MIN)
        self._check_count("tensors", tensor_count, TENSORS_MAX, _TENSOR_BYTES_MIN)
        metadata = self._metadata(metadata_count)
        tensors = [self._tensor() for _ in range(tensor_count)]
        alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or alignment <= 0 or alignment & (alignment - 1):
            raise GgufError(f"its alignment is {alignment!r}, not a power of two")
        data_offset = -(-self._position // alignment) * alignment
        return GgufHeader(
            version=version,
            metadata=metadata,
            tensors=tuple(self._placed(tensors, data_offset)),
            data_offset=data_offset,
            file_bytes=self._file_bytes,
        )

    # the grammar

    def _metadata(self, count: int) -> dict[str, Value]:
        metadata: dict[str, Value] = {}
        for _ in range(count):
            key = self._string()
            if key in metadata:
                raise GgufError(f"it has {_shown(key)} twice")
            kind = self._number(_U32)
            metadata[key] = self._array(key) if kind == _ARRAY else self._scalar(kind, key)
        return metadata

    def _scalar(self, kind: int, key: str) -> Scalar:
        if kind == _STRING:
            return self._string()
        if kind not in _SCALARS:
            raise GgufError(f"{_shown(key)} has the unknown type {kind}")
        value: int | float = self._number(_SCALARS[kind])
        return bool(value) if kind == _BOOL else value

    def _array(self, key: str) -> Value:
        kind, length = self._number(_U32), self._number(_U64)
        if kind == _STRING:
            self._check_count(f"strings in {_shown(key)}", length, STRINGS_MAX, _U64.size)
            if length > ARRAY_LENGTH_MAX:
                self._skip_strings(length)
                return SkippedArray(length)
            self._keep(length * _U64.size)
            return tuple(self._string() for _ in range(length))
        if kind not in _SCALARS:
            raise GgufError(f"{_shown(key)} is an array of the unknown type {kind}")
        size = _SCALARS[kind].size
        self._check_count(f"numbers in {_shown(key)}", length, self._file_bytes, size)
        if length > ARRAY_LENGTH_MAX:
            self._skip(length * size)
            return SkippedArray(length)
        self._keep(length * _U64.size)
        return tuple(self._scalar(kind, key) for _ in range(length))

    def _tensor(self) -> Tensor:
        """One tensor as written: its offset still counts from the start of the tensor data."""
        name = self._string()
        dimension_count = self._number(_U32)
        if dimension_count > DIMENSIONS_MAX:
            raise GgufError(f"tensor {_shown(name)} has {dimension_count} dimensions")
        shape = tuple(self._number(_U64) for _ in range(dimension_count))
        kind, offset = self._number(_U32), self._number(_U64)
        if kind not in TENSOR_TYPES:
            raise GgufError(f"tensor {_shown(name)} has type {kind}, which this version does not know")
        type_name, block_elements, block_bytes = TENSOR_TYPES[kind]
        if shape and shape[0] % block_elements:
            raise GgufError(f"tensor {_shown(name)} has rows of {shape[0]}, no multiple of {block_elements}")
        size_bytes = math.prod(shape) // block_elements * block_bytes
        return Tensor(name, shape, type_name, offset, size_bytes)

    def _placed(self, tensors: list[Tensor], data_offset: int) -> Iterator[Tensor]:
        """The tensors with offsets in the file, each of them within it and with room of its own."""
        for tensor in tensors:
            end = data_offset + tensor.offset + tensor.size_bytes
            if not self._whole and tensor.size_bytes > TENSOR_BYTES_MAX:
                raise GgufError(f"tensor {_shown(tensor.name)} has {tensor.size_bytes:,} bytes")
            if self._whole and end > self._file_bytes:
                raise GgufError(
                    f"it is cut short: tensor {_shown(tensor.name)} ends at byte {end:,}, "
                    f"the file has {self._file_bytes:,}"
                )
            yield replace(tensor, offset=data_offset + tensor.offset)
        if self._whole and sum(tensor.size_bytes for tensor in tensors) > max(0, self._file_bytes - data_offset):
            raise GgufError("its tensors overlap")

    # the cursor

    @property
    def _position(self) -> int:
        return self._block_start + self._at

    def _check_count(self, what: str, count: int, count_max: int, each_bytes: int) -> None:
        left = self._file_bytes - self._position
        if count > count_max or count * each_bytes > left:
            raise GgufError(f"it announces {count:,} {what}, but only {left:,} bytes follow")

    def _need(self, size: int) -> None:
        """Bring `size` bytes from the cursor on into the block."""
        if len(self._block) - self._at >= size:
            return
        start = self._position
        if start + size > self._file_bytes:
            raise GgufError(
                f"it is cut short: its header goes on to byte {start + size:,} at least, "
                f"the file has {self._file_bytes:,}"
            )
        self._file.seek(start)
        block = self._file.read(max(size, BLOCK_BYTES))
        if len(block) < size:
            raise GgufError("it became shorter while it was read")
        self._block, self._block_start, self._at = block, start, 0

    def _take(self, size: int) -> bytes:
        self._need(size)
        taken = self._block[self._at : self._at + size]
        self._at += size
        return taken

    def _number(self, kind: struct.Struct) -> int:
        self._need(kind.size)
        (value,) = kind.unpack_from(self._block, self._at)
        self._at += kind.size
        return value  # type: ignore[no-any-return]

    def _string(self) -> str:
        length = self._number(_U64)
        if length > STRING_BYTES_MAX:
            raise GgufError(f"its header has a string of {length:,} bytes; {STRING_BYTES_MAX:,} are read")
        self._keep(length)
        return self._take(length).decode("utf-8", "replace")

    def _keep(self, size: int) -> None:
        self._kept_bytes += size
        if self._kept_bytes > KEPT_BYTES_MAX:
            raise GgufError(f"its header has more than {KEPT_BYTES_MAX:,} bytes of settings")

    def _skip(self, size: int) -> None:
        if self._position + size > self._file_bytes:
            raise GgufError(
                f"it is cut short: an array goes on to byte {self._position + size:,}, "
                f"the file has {self._file_bytes:,}"
            )
        self._at += size  # may lie beyond the block: the next read seeks

    def _skip_strings(self, count: int) -> None:
        """Walk over `count` strings. A vocabulary has 10^5 of them: this loop is the time of a read."""
        unpack = _U64.unpack_from
        while count:
            self._need(_U64.size)
            block, at = self._block, self._at
            last = len(block) - _U64.size
            for done in range(count):
                if at > last:
                    count -= done
                    break
                (length,) = unpack(block, at)
                at += 8 + length
            else:
                count = 0
            self._at = at
            if self._position > self._file_bytes:
                raise GgufError(
                    f"it is cut short: a string goes on to byte {self._position:,}, the file has {self._file_bytes:,}"
                )


def _shown(name: str) -> str:
    """A name from the file, safe to print: short, and control characters escaped."""
    return repr(name if len(name) <= 80 else name[:77] + "...")
