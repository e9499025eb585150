"""Processes that a test has started, however they were started, by a mark in their environment.

Rules of this file: other tests, and other people, run Ray on this machine too; nothing is found by its name.
"""

from __future__ import annotations

from contextlib import suppress

import psutil

MARK = "RAYSCHEDULER_TEST_MARK"
ENDED_WITHIN_S = 10.0


def processes(mark: str) -> list[psutil.Process]:
    """All whose environment says MARK=mark."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get(MARK) == mark:
                found.append(process)
    return found


def command_lines(mark: str) -> list[str]:
    """What they are, as far as they still are."""
    lines = []
    for process in processes(mark):
        with suppress(psutil.Error):
            lines.append(" ".join(process.cmdline()))
    return lines


def end(mark: str) -> None:
    """Kill what is left of them."""
    left = processes(mark)
    for process in left:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(left, timeout=ENDED_WITHIN_S)
