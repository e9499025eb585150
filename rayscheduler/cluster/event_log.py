"""The event log: every batch of events and what was decided on it, as JSON lines, for `replay` and `simulate --trace`.

Rules of this file: the allocator's loop only puts values into a queue; a thread turns them into text and
writes. Files rotate by size, each begins with the header. A disk that is full costs log lines, never a decision.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from logging.handlers import QueueHandler, QueueListener
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from rayscheduler.cluster.json_lines import JsonLinesFile, text
from rayscheduler.config.service import ServiceConfig
from rayscheduler.core.decisions import Decision
from rayscheduler.core.events import Event
from rayscheduler.core.types import Settings
from rayscheduler.simulation.trace import entry, header, restored

Line = Callable[[], dict[str, Any]]  # made in the writing thread


class _Made(JsonLinesFile):
    """Its lines are made in the writing thread."""

    def format(self, record: logging.LogRecord) -> str:
        make: Line = record.msg  # type: ignore[assignment]
        return text(make())


class _Put(QueueHandler):
    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        return record  # the default makes text of it, here in the loop


class EventLog:
    """`bytes_max` of one file, `keep` older ones beside it. `close` writes what is still queued."""

    def __init__(self, path: Path, settings: Settings, bytes_max: int, keep: int) -> None:
        queue: SimpleQueue[Any] = SimpleQueue()
        self._put = _Put(queue)
        self._listener = QueueListener(queue, _Made(path, bytes_max, keep, header(settings)))
        self._listener.start()

    def restored(self, now_ms: int, events: Iterable[Event], serials: Mapping[str, int] | None = None) -> None:
        """What the allocator found when it started, and the serials that were used before."""
        found = tuple(events)
        self._write(lambda: restored(now_ms, found, serials))

    def handled(self, now_ms: int, events: Iterable[Event], decisions: Iterable[Decision]) -> None:
        batch, decided = tuple(events), tuple(decisions)
        self._write(lambda: entry(now_ms, batch, decided))

    def close(self) -> None:
        self._listener.stop()
        for handler in self._listener.handlers:
            handler.close()

    def _write(self, line: Line) -> None:
        record = logging.LogRecord("event_log", logging.INFO, "", 0, line, None, None)
        self._put.handle(record)


def event_log_of(config: ServiceConfig) -> EventLog | None:
    """The log that a service file asks for; None: it asks for none."""
    section = config.event_log
    if section is None:
        return None
    return EventLog(Path(section.path), config.settings(), section.file_size, section.keep)
