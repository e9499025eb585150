"""Events and decisions as plain data (what JSON can hold) and back, without loss.

Rules of this file: a value is `{"is": "RequestArrived", field: …}` with every field that differs from its
default; names of classes and fields are the format, so renaming one is a change of format. What cannot be
read is a `WireError` that says where. No JSON here: the caller reads and writes text.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from enum import Enum
from typing import Any, Union, get_args, get_origin, get_type_hints

from rayscheduler.core import decisions as dec
from rayscheduler.core import events as ev
from rayscheduler.core.types import Settings

KINDS: Mapping[str, type] = {kind.__name__: kind for kind in (*get_args(ev.Event), *get_args(dec.Decision), Settings)}


class WireError(ValueError):
    """The data is not an event, a decision or settings of this version."""


def encode(value: Any) -> dict[str, Any]:
    """An event, a decision or settings as plain data."""
    return {"is": type(value).__name__, **_fields_of(value)}


def _fields_of(value: Any) -> dict[str, Any]:
    told = {}
    for each in fields(value):
        held = getattr(value, each.name)
        if held != _default(each):
            told[each.name] = _plain(held)
    return told


def _default(each: Field[Any]) -> Any:
    if each.default is not MISSING:
        return each.default
    return each.default_factory() if each.default_factory is not MISSING else MISSING


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if is_dataclass(value):
        return _fields_of(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(held) for key, held in value.items()}
    if isinstance(value, frozenset):
        return sorted(_plain(held) for held in value)
    if isinstance(value, tuple):
        return [_plain(held) for held in value]
    return value


def decode(data: Any) -> Any:
    """The event, decision or settings that `encode` told of; WireError when it is none."""
    if not isinstance(data, Mapping) or str(data.get("is")) not in KINDS:
        raise WireError(f"not an event or a decision: {str(data)[:80]}")
    return _made(KINDS[str(data["is"])], {key: held for key, held in data.items() if key != "is"})


def _made(kind: type, told: Mapping[str, Any]) -> Any:
    hints = _HINTS.get(kind)
    if hints is None:
        hints = _HINTS[kind] = get_type_hints(kind)
    unknown = set(told) - set(hints)
    if unknown:
        raise WireError(f"{kind.__name__} has no {', '.join(sorted(unknown))}")
    try:
        return kind(**{name: _value(hints[name], held) for name, held in told.items()})
    except (TypeError, ValueError) as problem:
        raise WireError(f"{kind.__name__}: {problem}") from problem


_HINTS: dict[type, dict[str, Any]] = {}


def _value(hint: Any, told: Any) -> Any:
    hint = getattr(hint, "__supertype__", hint)  # a NewType is the type below it
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        if told is None:
            return None
        return _value(next(arm for arm in get_args(hint) if arm is not type(None)), told)
    if origin is tuple:
        return tuple(_value(get_args(hint)[0], held) for held in told)
    if origin is frozenset:
        return frozenset(_value(get_args(hint)[0], held) for held in told)
    if origin is not None and issubclass(origin, Mapping):
        of_key, of_value = get_args(hint)
        return {_key(of_key, key): _value(of_value, held) for key, held in told.items()}
    if is_dataclass(hint):
        return _made(typing.cast(type, hint), told)
    if isinstance(hint, type) and issubclass(hint, Enum):
        return hint(told)
    if isinstance(hint, type) and not isinstance(told, hint):
        raise WireError(f"{told!r} is not {hint.__name__}")
    return told


def _key(hint: Any, key: str) -> Any:
    return int(key) if hint is int else key
