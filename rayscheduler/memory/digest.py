"""Which model a file is, cheaply: a digest that another model of the same name does not share.

    sha256 of, for each file of the model in the order of their names:
        its name, its size, its first MiB (headers, vocabularies), its last 64 KiB, and SAMPLES blocks of 4 KiB
        at equal distances between them

Rules of this file: at most some 1.2 MiB of a file are read, so 100 GB take as long as 1 GB. It tells models
apart that differ in anything that a header says, and nearly always those that differ in their weights only: a
fine-tune changes all of them. It is no defence against somebody who wants two files to look alike.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

HEAD_BYTES = 1 << 20
TAIL_BYTES = 64 << 10
BLOCK_BYTES = 4 << 10
SAMPLES = 16
FILES_MAX = 1_000
_PART = re.compile(r"(.+)-[0-9]{5}-of-([0-9]{5})\.gguf")


def digest_of(source: str | Path) -> str:
    """32 hexadecimal digits for a model's file, the first file of a split one, or its directory.

    OSError: it cannot be read, or has no files.
    """
    digest = hashlib.sha256()
    for path in _files(Path(source)):
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            digest.update(f"{path.name}\n{size}\n".encode())
            for start, length in _samples(size):
                file.seek(start)
                digest.update(file.read(length))
    return digest.hexdigest()[:32]


def _files(source: Path) -> list[Path]:
    """A split GGUF model is told by the name of its parts; of a directory, what lies in it directly."""
    if source.is_dir():
        inside = sorted(path for path in source.iterdir() if path.is_file() and not path.name.startswith("."))
        if not inside:
            raise FileNotFoundError(2, "no files in this directory", str(source))
        return inside[:FILES_MAX]
    part = _PART.fullmatch(source.name)
    if part is None:
        return [source]
    return sorted(source.parent.glob(f"{_literal(part.group(1))}-?????-of-{part.group(2)}.gguf"))[:FILES_MAX]


def _literal(name: str) -> str:
    """A name in which no character is a pattern."""
    return re.sub(r"([*?[])", r"[\1]", name)


def _samples(size: int) -> list[tuple[int, int]]:
    """Where to read, and how much: (start, length)."""
    if size <= HEAD_BYTES + TAIL_BYTES + SAMPLES * BLOCK_BYTES:
        return [(0, size)]
    between = size - HEAD_BYTES - TAIL_BYTES - BLOCK_BYTES
    blocks = [(HEAD_BYTES + between * index // SAMPLES, BLOCK_BYTES) for index in range(SAMPLES)]
    return [(0, HEAD_BYTES), *blocks, (size - TAIL_BYTES, TAIL_BYTES)]
