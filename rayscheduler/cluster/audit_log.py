"""The audit log: who changed what by hand, and how that ended; one JSON line for each change.

    {"time": "2026-01-31T12:00:00.000Z", "by": "key ops", "verb": "unload", "subject": "llama-70b",
     "outcome": "ok", "message": "llama-70b is unloaded"}

Rules of this file: every change passes through `operate`, and is written before its answer goes out, by a thread.
`outcome` is `ok`, the code of a refusal, or the name of an error. What is changed before the service file has
said where the log is (the first key) is written when it has. No secret is written.
"""

from __future__ import annotations

import asyncio
import logging
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from rayscheduler.cluster.json_lines import JsonLinesFile
from rayscheduler.config.service import AuditLogSection

EARLY_MAX = 1000
# What is changed by a call: its first argument, or, where that is no name, this.
SUBJECTS = {
    "load": None,
    "unload": None,
    "pin": None,
    "create_key": None,
    "revoke_key": None,
    "deploy": "the service file",
    "shutdown": "the service",
}

logger = logging.getLogger(__name__)


class AuditLog:
    def __init__(self) -> None:
        self._section: AuditLogSection | None = None
        self._file: JsonLinesFile | None = None
        self._early: list[dict[str, Any]] | None = []  # None: it was said where to write, or that nobody wants it

    def open(self, section: AuditLogSection | None) -> None:
        """Write there from now on; None: nowhere."""
        if section != self._section and self._file is not None:
            self._file.close()
            self._file = None
        if section is not None and self._file is None:
            self._file = JsonLinesFile(Path(section.path), section.file_size, section.keep)
        self._section = section
        early, self._early = self._early or [], None
        for entry in early:
            if self._file is not None:
                self._file.write(entry)

    async def write(self, by: str, verb: str, subject: str, outcome: str, message: str) -> None:
        now = datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        entry = {"time": now, "by": by, "verb": verb, "subject": subject, "outcome": outcome, "message": message}
        logger.info("%s: %s %s: %s", by, verb, subject, outcome)
        if self._early is not None and len(self._early) < EARLY_MAX:
            self._early.append(entry)
        elif self._file is not None:
            await asyncio.to_thread(self._file.write, entry)


class OperatorCalls:
    """The allocator's one entry for whoever changes something by hand."""

    _audit: AuditLog

    async def operate(self, by: str, verb: str, arguments: list[Any]) -> dict[str, Any]:
        """The answer of the method `verb`, when it is in the audit log. `by`: who asks."""
        subject = SUBJECTS[verb] or _name(arguments[0])
        said = "unpin" if verb == "pin" and not arguments[1] else verb
        try:
            answer: dict[str, Any] = await getattr(self, verb)(*arguments)
        except BaseException as problem:  # a wait that was given up, too
            await asyncio.shield(self._audit.write(by, said, subject, type(problem).__name__, str(problem)))
            raise
        error = answer.get("error")
        outcome, message = (error["code"], error["message"]) if error else ("ok", answer["message"])
        await self._audit.write(by, said, subject, outcome, message)
        return answer


def _name(argument: Any) -> str:
    return str(argument.get("name") if isinstance(argument, dict) else argument)
