"""The kinds of values that keys take, as pydantic types, and `Section`, the mapping that holds them.

Rules of this file: a kind accepts what a file may say (`Plain` text) and what Python code may say (ints,
bools), and gives back the core's units: bytes, milliseconds, thousandths of a cpu. Written as JSON a
value takes a form that reads back as itself. Null is no value: a key is left out or says something.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainSerializer, model_validator

from rayscheduler.config import units
from rayscheduler.config.values import Plain, Wrong, one_of_these, shown

NAME_CHARACTERS_MAX = 200
_TRUE = frozenset({"true", "yes", "on"})
_FALSE = frozenset({"false", "no", "off"})


class Section(BaseModel):
    """A mapping with known keys. Unknown, empty and missing keys are told here, with what would be right."""

    # The texts below the fields are what editors show (see `schema`).
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    may_be_null: ClassVar[frozenset[str]] = frozenset()
    _keys: ClassVar[frozenset[str]] = frozenset()
    _required: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        cls._keys = frozenset(cls.model_fields)
        cls._required = tuple(name for name, field in cls.model_fields.items() if field.is_required())

    @classmethod
    def example(cls, key: str | None = None) -> str:
        """`key: value` as a message shows it; without a key, the first that has an example."""
        examples = {name: field.examples[0] for name, field in cls.model_fields.items() if field.examples}
        key = key or next(iter(examples))
        return f"{key}: {examples[key]}"

    @model_validator(mode="before")
    @classmethod
    def _checked_keys(cls, data: Any) -> Any:
        if isinstance(data, cls):
            return data
        if not isinstance(data, dict):
            raise Wrong(f"{shown(data)} is not a mapping", f"write keys and values, for example {cls.example()}")
        for key, value in data.items():
            if key not in cls._keys:
                raise Wrong(f"the key {shown(key)} is unknown", one_of_these(str(key), cls._keys, "keys here"), (key,))
            if value is None and key not in cls.may_be_null:
                raise Wrong("is empty", "give it a value or remove the key", (key,))
        for key in cls._required:
            if key not in data:
                raise Wrong(f"the key {key!r} is missing", f"add for example {cls.example(key)}")
        return data


class Drawn:
    """The JSON schema of a kind, a new one for each use: older pydantics write into the one they are given."""

    def __init__(self, schema: dict[str, Any]) -> None:
        self.schema = schema

    def __get_pydantic_json_schema__(self, kind: object, handler: object) -> dict[str, Any]:
        return dict(self.schema)


def text(value: object) -> str:
    """Any text of one line; an unquoted number or boolean is the text that stands there."""
    if isinstance(value, bool):
        return str(value).lower()  # only JSON says `true` without saying it as text
    if isinstance(value, int):
        return str(value) if abs(value) <= units.WHOLE_MAX else shown(value)
    if not isinstance(value, str):
        raise Wrong(f"{shown(value)} is not text", "write one piece of text, in quotes where in doubt")
    if "\0" in value or any("\ud800" <= c <= "\udfff" for c in value):
        raise Wrong(f"{shown(value)} holds a character that no program can be given", "remove it")
    return str(value)


def name(value: object) -> str:
    """What something is called: printable, not empty, no blanks around it."""
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise Wrong(f"{shown(value)} is not a name", "write a name, in quotes where in doubt")
    written = text(value)
    if not written or written != written.strip() or not written.isprintable():
        raise Wrong(f"{shown(written)} is not a name", "write visible characters without blanks around them")
    if len(written) > NAME_CHARACTERS_MAX:
        raise Wrong(f"{shown(written)} is too long for a name", f"use {NAME_CHARACTERS_MAX} characters or fewer")
    return written


def model_name(value: object) -> str:
    """A name without `#`, which separates a model from the serial of its replica."""
    written = name(value)
    if "#" in written:
        raise Wrong(f"{shown(written)} is not a name for a model: # numbers replicas", "use another character than #")
    return written


def flag(value: object) -> bool:
    """`true` or `false`; unquoted `yes`, `no`, `on` and `off` as YAML knows them."""
    if isinstance(value, bool):
        return value
    if isinstance(value, Plain):
        lower = value.lower()
        if lower in _TRUE or lower in _FALSE:
            return lower in _TRUE
    raise Wrong(f"{shown(value)} is neither true nor false", "write true or false")


def word(kind: type[Enum], several: str) -> Callable[[object], Enum]:
    """One word of an enumeration."""
    members = {str(member.value): member for member in kind}

    def read(value: object) -> Enum:
        if isinstance(value, kind):
            return value
        if isinstance(value, str) and value in members:
            return members[value]
        fix = one_of_these(value, members, several) if isinstance(value, str) else f"write one of {', '.join(members)}"
        raise Wrong(f"{shown(value)} is not one of the {several}", fix)

    return read


def word_schema(kind: type[Enum]) -> Drawn:
    return Drawn({"type": "string", "enum": [str(member.value) for member in kind]})


def _size(value: object) -> int:
    return units.size_bytes(value)


@dataclass(frozen=True, slots=True)
class SizeRange:
    """`{min: 20GiB, max: 60GiB}`: at least so many bytes, and what is free up to so many."""

    min: int
    max: int


def _size_or_range(value: object) -> int | SizeRange:
    if isinstance(value, SizeRange):
        return value
    if not isinstance(value, dict):
        return units.size_bytes(value)
    sizes: dict[str, int] = {}
    for key, written in value.items():
        if key not in ("min", "max"):
            raise Wrong(f"the key {shown(key)} is unknown", one_of_these(str(key), ("min", "max"), "keys here"), (key,))
        try:
            sizes[key] = units.size_bytes(written)
        except Wrong as wrong:
            raise Wrong(wrong.what, wrong.fix, (key,)) from None
    for key, example in (("min", "20GiB"), ("max", "60GiB")):
        if key not in sizes:
            raise Wrong(f"the key {key!r} is missing", f"add for example {key}: {example}")
    if sizes["max"] < sizes["min"]:
        what = f"max {units.size_text(sizes['max'])} is less than min {units.size_text(sizes['min'])}"
        raise Wrong(what, f"write max: {units.size_text(sizes['min'])} or more", ("max",))
    return SizeRange(sizes["min"], sizes["max"])


def _range_written(size: int | SizeRange | None) -> int | dict[str, int] | None:
    return {"min": size.min, "max": size.max} if isinstance(size, SizeRange) else size


def _flag_or_size(value: object) -> bool | int:
    try:
        return flag(value)
    except Wrong:
        if isinstance(value, (str, int)):
            return units.size_bytes(value)
        raise Wrong(f"{shown(value)} is neither true, false nor a size", "write true, false or a size") from None


def _exit_status(value: object) -> int:
    status = units.whole_number(value, least=0)
    if status > 255:
        raise Wrong(f"{shown(value)} is not an exit status", "write 0 to 255, for example 1")
    return status


def _size_or_zero(value: object) -> int:
    return units.size_bytes(value, zero=True)


def _duration(value: object) -> int:
    return units.duration_ms(value) or 0


def _duration_or_never(value: object) -> int | None:
    return units.duration_ms(value, never=True)


def _count(value: object) -> int:
    return units.whole_number(value, least=1)


def _count_or_zero(value: object) -> int:
    return units.whole_number(value, least=0, example="0")


def _device_count(value: object) -> int:
    # The keys of a mapping are text even in JSON.
    return units.whole_number(Plain(value) if isinstance(value, str) else value, least=0)


def _priority(value: object) -> int:
    return units.whole_number(value, example="10")


def _duration_text(ms: int | None) -> str:
    return "never" if ms is None else f"{ms}ms" if ms % 1000 else f"{ms // 1000}s"


SIZE_SCHEMA = {"exclusiveMinimum": 0, "type": ["string", "integer"], "pattern": r"^[0-9]+(\.[0-9]+)?[KMGT]iB$"}
_DURATION_PATTERN = r"[0-9]+(\.[0-9]+)?(ms|s|m|h)?"
_DURATION_WRITTEN = PlainSerializer(_duration_text, when_used="json")

Text = Annotated[str, BeforeValidator(text)]
Name = Annotated[str, BeforeValidator(name), Drawn({"type": "string", "minLength": 1})]
ModelText = Annotated[str, BeforeValidator(model_name), Drawn({"type": "string", "minLength": 1, "pattern": "^[^#]+$"})]
Flag = Annotated[bool, BeforeValidator(flag)]
Size = Annotated[int, BeforeValidator(_size), Drawn(SIZE_SCHEMA)]
SizeOrZero = Annotated[int, BeforeValidator(_size_or_zero), Drawn({**SIZE_SCHEMA, "exclusiveMinimum": -1})]
SizeOrRange = Annotated[
    "int | SizeRange",
    BeforeValidator(_size_or_range),
    PlainSerializer(_range_written, when_used="json"),
    Drawn(
        {
            "anyOf": [
                SIZE_SCHEMA,
                {
                    "type": "object",
                    "properties": {"min": SIZE_SCHEMA, "max": SIZE_SCHEMA},
                    "required": ["min", "max"],
                    "additionalProperties": False,
                },
            ]
        }
    ),
]
FlagOrSize = Annotated[
    "bool | int",
    BeforeValidator(_flag_or_size),
    Drawn({"anyOf": [{"type": "boolean"}, SIZE_SCHEMA]}),
]
ExitStatus = Annotated[int, BeforeValidator(_exit_status), Drawn({"type": "integer", "minimum": 0, "maximum": 255})]
Duration = Annotated[
    int,
    BeforeValidator(_duration),
    _DURATION_WRITTEN,
    Drawn({"type": ["string", "number"], "pattern": f"^{_DURATION_PATTERN}$", "minimum": 0}),
]
DurationOrNever = Annotated[
    "int | None",
    BeforeValidator(_duration_or_never),
    _DURATION_WRITTEN,
    Drawn({"type": ["string", "number"], "pattern": f"^({_DURATION_PATTERN}|never)$", "minimum": 0}),
]
Count = Annotated[int, BeforeValidator(_count), Drawn({"type": "integer", "minimum": 1})]
CountOrZero = Annotated[int, BeforeValidator(_count_or_zero), Drawn({"type": "integer", "minimum": 0})]
DeviceCount = Annotated[int, BeforeValidator(_device_count), Drawn({"type": "integer", "minimum": 0})]
Priority = Annotated[int, BeforeValidator(_priority), Drawn({"type": "integer"})]
Millicpus = Annotated[
    int,
    BeforeValidator(units.millicpus),
    PlainSerializer(lambda thousandths: thousandths / 1000, when_used="json"),
    Drawn({"type": "number", "minimum": 0}),
]
Rate = Annotated[float, BeforeValidator(units.positive_number), Drawn({"type": "number", "exclusiveMinimum": 0})]
