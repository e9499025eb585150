"""What models take: stated, estimated, reserved and measured side by side, from the `status` dictionary.

Rules of this file: dictionaries in, rows or Rich tables out; nothing is asked of the cluster. Bytes are those of
one device, the fullest, as in the status. An error is the estimate's: (estimate - measured) / measured.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

Json = Mapping[str, Any]
MIB, GIB = 2**20, 2**30


def rows(status: Json, measured_only: bool = False) -> list[dict[str, Any]]:
    """One for each model and device count of which more is known than what its entry says. `measured_only`: of
    those that have run. `error_percent` None: nothing to compare."""
    return [row for model in status["models"] for row in _rows(model) if row["measured_bytes"] or not measured_only]


def _rows(model: Json) -> Iterator[dict[str, Any]]:
    for figure in (model.get("memory") or {}).get("by_count", ()):
        estimated, measured = figure["estimated_bytes"], figure["measured_bytes"]
        if estimated is None and measured is None:
            continue
        error = None if not estimated or not measured else round(100 * (estimated - measured) / measured, 1)
        yield {
            "model": model["name"],
            "devices": figure["count"],
            "stated_bytes": figure["stated_bytes"],
            "estimated_bytes": estimated,
            "parts_bytes": dict(figure["parts_bytes"]),
            "reserved_bytes": figure["reserved_bytes"],
            "source": figure["source"],
            "measured_bytes": measured,
            "exercised": figure["exercised"],
            "error_percent": error,
        }


def table(found: Sequence[Json], title: str = "Memory of one replica, on each device") -> Table:
    """Rows as people read them. `idle only` marks a measurement of engines that had little to do."""
    drawn = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for name in ("model", "devices", "stated", "estimated", "reserved", "measured", "error"):
        drawn.add_column(name, justify="left" if name == "model" else "right", header_style="dim", no_wrap=True)
    drawn.add_column("", header_style="dim")
    for row in found:
        notes = [f"reserved as {row['source']}"]
        if row["measured_bytes"] and not row["exercised"]:
            notes.append("idle only")
        if row["parts_bytes"]:
            notes.append(parts(row["parts_bytes"]))
        sizes = (row[f"{name}_bytes"] for name in ("stated", "estimated", "reserved", "measured"))
        error = "-" if row["error_percent"] is None else f"{row['error_percent']:+.1f} %"
        cells = [row["model"], str(row["devices"]), *map(fine, sizes), error, "; ".join(notes)]
        drawn.add_row(*map(Text, cells))
    return drawn


def parts(parts_bytes: Mapping[str, int]) -> str:
    """`weights 4.10 GiB + kv cache 1.00 GiB`, the largest first."""
    largest_first = sorted(parts_bytes.items(), key=lambda part: (-part[1], part[0]))
    return " + ".join(f"{name.replace('_', ' ')} {fine(size)}" for name, size in largest_first if size)


def fine(size_bytes: int | None) -> str:
    """Finer than elsewhere: estimates and measurements differ by a few MiB. `1.52 GiB`, `180.3 MiB`; `-`."""
    if size_bytes is None:
        return "-"
    return f"{size_bytes / GIB:.2f} GiB" if size_bytes >= GIB else f"{size_bytes / MIB:.1f} MiB"
