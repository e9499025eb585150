"""A file of JSON lines that rotates by size (`LOG`, `LOG.1`, …): the event log and the audit log are such files.

Rules of this file: blocking; one thread at a time writes (the handler's lock). A disk that is full costs lines.
"""

from __future__ import annotations

import json
import logging
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any


class JsonLinesFile(RotatingFileHandler):
    """`bytes_max` of one part, `keep` older ones beside it. Every part begins with `first_line`, if there is one."""

    def __init__(self, path: Path, bytes_max: int, keep: int, first_line: dict[str, Any] | None = None) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._first_line = "" if first_line is None else text(first_line) + self.terminator
        super().__init__(path, maxBytes=bytes_max, backupCount=keep, encoding="utf-8")
        self._begin()

    def doRollover(self) -> None:
        super().doRollover()
        self._begin()

    def write(self, line: dict[str, Any]) -> None:
        self.handle(logging.LogRecord("json_lines", logging.INFO, "", 0, text(line), None, None))

    def format(self, record: logging.LogRecord) -> str:
        return str(record.msg)

    def _begin(self) -> None:
        if self.stream is not None:
            self.stream.write(self._first_line)


def text(line: dict[str, Any]) -> str:
    return json.dumps(line, separators=(",", ":"), ensure_ascii=False)
