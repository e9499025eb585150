"""Reads gauges out of a Prometheus page, as engines count their requests there.

Rules of this file: pure; the text format, version 0.0.4 (prometheus.io/docs/instrumenting/exposition_formats).
Only names are looked at: an engine with several ranks has one sample of each.
"""

from __future__ import annotations

import math
from collections.abc import Callable


def sum_of(*names: str) -> Callable[[str], int]:
    """A reader of pages: the sum of all samples of these gauges. ValueError: none of them is there."""

    def read(page: str) -> int:
        values = [value for name, value in _samples(page) if name in names]
        if not values:
            raise ValueError(f"the page has no {' or '.join(names)}")
        return round(sum(values))

    return read


def _samples(page: str) -> list[tuple[str, float]]:
    samples = []
    for line in page.splitlines():
        if not line or line.startswith("#"):
            continue
        name, brace, rest = line.partition("{")
        # A label's value may hold a space or a brace, but after the last brace there is the value.
        value = rest.rpartition("}")[2] if brace else name.partition(" ")[2]
        try:
            number = float(value.split()[0])
        except (ValueError, IndexError):
            continue
        if math.isfinite(number):
            samples.append((name.split(" ", 1)[0].strip(), number))
    return samples
