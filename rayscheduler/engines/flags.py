"""The `args` of engines whose flags are passed on as they are: what must not be among them, and what to use instead.

Rules of this file: an engine brings a table, here it is applied. Programs that read flags take `--a_b`,
`--a-b`, `--a-b=1` and any beginning of a name that is not another's, so all of these are recognised.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rayscheduler.errors import EngineError

CHOSEN_BY_US = "it is chosen by rayscheduler"
BEGINNING_CHARACTERS_MIN = len("--ab")


def refuse_decided(args: Sequence[str], decided: Mapping[str, str], engine: str, model: str) -> None:
    """EngineError if `args` holds a flag that is decided elsewhere. `decided`: flag -> what to use instead."""
    for arg in args:
        meant = _meant(arg, decided)
        if meant is not None:
            raise EngineError(f"model {model}: {engine} takes no {arg.split('=')[0]} in args; {decided[meant]}")


def _meant(arg: str, decided: Mapping[str, str]) -> str | None:
    """The flag among `decided` that the program would read here, or None."""
    if not arg.startswith("--"):
        name = arg.split("=", 1)[0]
        beginning, rest = arg[:2], arg[2:]
        return name if name in decided else beginning if beginning in decided and rest.isdecimal() else None
    # What follows a dot is a key of the flag before it.
    name = arg.split("=", 1)[0].split(".", 1)[0].replace("_", "-")
    if name in decided:
        return name
    if len(name) < BEGINNING_CHARACTERS_MIN:
        return None
    return next((flag for flag in sorted(decided) if flag.startswith(name)), None)
