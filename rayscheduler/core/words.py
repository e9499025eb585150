"""Sizes as people read them."""

from __future__ import annotations

MIB, GIB = 1 << 20, 1 << 30


def sized(size_bytes: int) -> str:
    """`60.0 GiB`; below one GiB, `240 MiB`."""
    return f"{size_bytes / GIB:.1f} GiB" if abs(size_bytes) >= GIB else f"{size_bytes / MIB:.0f} MiB"


def share(part_bytes: int, whole_bytes: int) -> str:
    """`3.1 of 14.0 GiB`, both in the unit of the whole."""
    unit, name, digits = (GIB, "GiB", 1) if abs(whole_bytes) >= GIB else (MIB, "MiB", 0)
    return f"{part_bytes / unit:.{digits}f} of {whole_bytes / unit:.{digits}f} {name}"
