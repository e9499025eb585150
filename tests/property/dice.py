"""Decisions of a test read from a string of bytes: as fast as a random generator, and hypothesis can shrink it.

Rules of this file: a byte a throw; zeros after the end. The first of several options is the plain one, so
that shrinking (towards zeros) leads to plain examples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from hypothesis import strategies as st

T = TypeVar("T")


class Dice:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __repr__(self) -> str:
        return f"Dice({self._data.rstrip(bytes(1))!r})"

    def throw(self, sides: int) -> int:
        """0 to `sides` - 1."""
        value = self._data[self._at] if self._at < len(self._data) else 0
        self._at += 1
        return value % sides

    def pick(self, options: Sequence[T]) -> T:
        return options[self.throw(len(options))]

    def one_in(self, count: int) -> bool:
        return self.throw(count) == count - 1

    def more(self) -> bool:
        return self._at < len(self._data)


def dice(bytes_min: int, bytes_max: int) -> st.SearchStrategy[Dice]:
    return st.binary(min_size=bytes_min, max_size=bytes_max).map(Dice)
