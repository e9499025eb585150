"""How a mistake is planted: a registry of patches, and the one way to put something around a function.

Rules of this file: it knows no mistake. They are in `mistakes_of_memory.py` and `mistakes_of_service.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

MISTAKES: dict[str, Callable[[pytest.MonkeyPatch], None]] = {}


def mistake(plant: Callable[[pytest.MonkeyPatch], None]) -> Callable[[pytest.MonkeyPatch], None]:
    MISTAKES[plant.__name__] = plant
    return plant


def wrap(patch: pytest.MonkeyPatch, owner: Any, name: str, instead: Callable[..., Any]) -> None:
    """Let `instead(original, *arguments)` stand where `owner.name` stood."""
    original = getattr(owner, name)
    patch.setattr(owner, name, lambda *args, **kwargs: instead(original, *args, **kwargs))
