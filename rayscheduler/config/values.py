"""What a scalar of a file is before anybody knows what it should mean, and how an error speaks of it.

Rules of this file: an unquoted scalar keeps its text, so a model may be called `1.5` or `on`, and a key
that wants a number is the one to read it as a number. `Wrong` carries the two halves of every message:
what happened, and what would be right.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

SHOWN_CHARACTERS = 60
WORDS_LISTED_MAX = 60
_SIMPLE_KEY = re.compile(r"[A-Za-z0-9_-]+")

Path = tuple[str | int, ...]  # keys and indices from the root of a file to a value


class Plain(str):
    """An unquoted scalar other than null, exactly as it stands in the file."""

    __slots__ = ()


class Wrong(ValueError):
    """A value is wrong: what happened, what would be right, and where below the value it was noticed."""

    def __init__(self, what: str, fix: str, at: Path = ()) -> None:
        super().__init__(f"{what}; {fix}")
        self.what = what
        self.fix = fix
        self.at = at


def shown(value: object) -> str:
    """How a message quotes a value: one short line."""
    if value is None:
        return "nothing"
    if value is True or value is False:
        return str(value).lower()
    if isinstance(value, str):
        cut = value if len(value) <= SHOWN_CHARACTERS else value[:SHOWN_CHARACTERS] + "…"
        return repr(str(cut))
    if isinstance(value, (int, float)):
        return f"{value:.6g}" if abs(value) > 10**15 else repr(value)
    if isinstance(value, (list, tuple, set, frozenset)):
        return "a list"
    if isinstance(value, dict):
        return "a mapping"
    return f"a {type(value).__name__}"


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that `word` was probably meant to be, or None."""
    by_lower = {each.lower(): each for each in sorted(known, reverse=True)}
    found = difflib.get_close_matches(word.lower()[:SHOWN_CHARACTERS], by_lower, n=1, cutoff=0.6)
    return by_lower[found[0]] if found else None


def one_of_these(word: str, known: Iterable[str], several: str) -> str:
    """The fix for a word that is not known: the nearest one, or all of them (`several` says what they are)."""
    words = sorted(known)
    near = nearest(word, words)
    if near is not None:
        return f"did you mean {near}?"
    if not words:
        return f"there are no {several}"
    listed = ", ".join(words[:WORDS_LISTED_MAX]) + (", …" if len(words) > WORDS_LISTED_MAX else "")
    return f"the {several} are: {listed}"


def path_text(path: Path) -> str:
    """`nodes[0].devices[1]`."""
    text = ""
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
            continue
        key = step if _SIMPLE_KEY.fullmatch(step) else shown(step)
        text += f".{key}" if text else key
    return text
