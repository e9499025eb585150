"""How the command line speaks: answers on stdout, everything else as one line on stderr.

Rules of this file: a problem is one line that says what to do, never a traceback; with `--json` stdout
holds JSON only. Nothing here imports Ray or pydantic: `--help` must be instant.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Console, RenderableType
from rich.text import Text

from rayscheduler.config.values import nearest as nearest_word

EXIT_PROBLEM = 1  # it could not be done
EXIT_BAD_INPUT = 2  # a bad file or a bad command line
EXIT_INTERRUPTED = 130


def stdout() -> Console:
    """Made anew for each use: tests and pipes replace `sys.stdout`."""
    return Console(file=sys.stdout, highlight=False, soft_wrap=not sys.stdout.isatty())


def show(answer: RenderableType) -> None:
    stdout().print(answer)


def show_line(line: str) -> None:
    """An answer in words. Names in it are from elsewhere, so nothing in it is markup."""
    show(Text(line))


def show_json(answer: Any) -> None:
    """One JSON document, indented, keys in the order in which they were made."""
    sys.stdout.write(json.dumps(answer, indent=2, ensure_ascii=False, default=_plain) + "\n")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Iterable):
        return list(value)
    return str(value)


def say(line: str) -> None:
    """Progress and notes, on stderr so that they never mix with an answer."""
    _stderr(line, "")


def warn(line: str) -> None:
    _stderr(f"warning: {line}", "yellow")


def complain(text: str) -> None:
    """Of a text of several lines (the end of a log) the first, which says what, and the last, which says why."""
    lines = [line for line in text.splitlines() if line.strip()]
    _stderr(" ".join(lines if len(lines) < 3 else [lines[0], lines[-1]]), "red")


def _stderr(line: str, style: str) -> None:
    one_line = " ".join(line.split())
    Console(file=sys.stderr, highlight=False, soft_wrap=True).print(Text(one_line, style=style))


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean NAME?`, or nothing where no known name is near."""
    near = nearest_word(name, known)
    return f"; did you mean {near}?" if near is not None else ""
