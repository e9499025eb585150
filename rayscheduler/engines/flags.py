"""The `args` of engines whose flags are passed on as they are: what must not be among them, and what to use instead.

Rules of this file: an engine brings a table, here it is applied. Programs that read flags take `--a_b`,
`--a-b`, `--a-b=1` and any beginning of a name that is not another's, so all of these are recognised.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rayscheduler.errors import EngineError

CHOSEN_BY_US = "it is chosen by rayscheduler"
BEGINNING_CHARACTERS_MIN = len("--abc")


def refuse_decided(
    args: Sequence[str], decided: Mapping[str, str], engine: str, model: str, unlike: frozenset[str] = frozenset()
) -> None:
    """EngineError if `args` holds a flag that is decided elsewhere.

    `decided`: flag -> what to use instead. `unlike`: flags of the engine that are the beginning of one of them.
    """
    for arg in args:
        if not arg.startswith("-") or arg == "-":
            continue
        name = _spelled(arg)
        meant = name if name in decided else _completed(name, decided, unlike)
        if meant is not None:
            raise EngineError(f"model {model}: {engine} takes no {arg.split('=')[0]} in args; {decided[meant]}")


def has_flag(args: Sequence[str], *names: str) -> bool:
    """Whether one of these flags is among `args`, under any spelling of it."""
    return any(arg.startswith("-") and _spelled(arg) in names for arg in args)


def _spelled(arg: str) -> str:
    name = arg.split("=", 1)[0]
    return name.replace("_", "-") if name.startswith("--") else name


def _completed(name: str, decided: Mapping[str, str], unlike: frozenset[str]) -> str | None:
    """The flag that `name` is the beginning of. (A nested one, `--config.key`, belongs to the one before the dot.)"""
    whole = name.split(".", 1)[0]
    if whole in decided:
        return whole
    if name in unlike or not name.startswith("--") or len(name) < BEGINNING_CHARACTERS_MIN:
        return None
    return next((flag for flag in sorted(decided) if flag.startswith(name)), None)
