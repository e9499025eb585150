"""Finds and ends engine processes whose runner is gone: the last net, under the supervisor.

A supervisor ends all its engine started; an engine can outlive its runner only if both the runner and
the supervisor were killed. Every engine carries a mark in its environment, and so does whatever it
starts; the mark names the runner by its pid and start time, which no later process can have, and the
namespace that the pid is of: containers that see each other's processes count them differently.

Rules of this file: Linux; only processes that carry a mark are ever signalled.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import cache

from rayscheduler.engines.protocol import MARK_ENV
from rayscheduler.engines.supervisor import stat_fields

_MARK = MARK_ENV.encode() + b"="
_STATE, _START_TIME = 0, 19  # indices into what `stat_fields` returns
_GONE = (b"Z", b"X")


@dataclass(frozen=True, slots=True)
class Marked:
    """A process of an engine: whose, and started by which runner."""

    pid: int
    replica: str
    runner_pid: int
    runner_alive: bool
    mark: str


def mark_for(replica: str, nonce: str) -> str:
    """The value of MARK_ENV for an engine that this process starts."""
    return f"{os.getpid()}:{start_time(os.getpid())}:{_namespace()}:{nonce}:{replica}"


def start_time(pid: int) -> int:
    """When the process started, in clock ticks since boot; 0 if there is no such process."""
    fields = stat_fields(pid)
    return int(fields[_START_TIME]) if fields and fields[_STATE] not in _GONE else 0


def marked_processes() -> list[Marked]:
    """The processes of engines on this machine (or in this container) that this user may see, supervisors included."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit() and (mark := _mark_of(int(name))):
            runner_pid, runner_start, _, _, replica = mark.split(":", 4)
            alive = start_time(int(runner_pid)) == int(runner_start)
            found.append(Marked(int(name), replica, int(runner_pid), alive, mark))
    return found


def replica_marked(pid: int) -> str:
    """The replica whose engine this process is part of, by its mark; "" if it has none that we can see."""
    mark = _mark_of(pid)
    return mark.split(":", 4)[4] if mark else ""


def sweep_orphans() -> list[Marked]:
    """End every engine process whose runner is gone; those that were found. Returns when they are gone."""
    swept: dict[int, Marked] = {}
    while orphans := [process for process in marked_processes() if not process.runner_alive]:
        swept.update((process.pid, process) for process in orphans)
        _kill(orphans)
    return list(swept.values())


def end_marked(mark: str) -> None:
    """End every process that carries this mark. Returns when they are gone."""
    while processes := [process for process in marked_processes() if process.mark == mark]:
        _kill(processes)


def runner_is_gone(mark: str) -> bool:
    """Whether this is the mark of an engine that a process of this namespace started which is no more."""
    fields = mark.split(":", 4)
    if len(fields) < 5 or not (fields[0].isdecimal() and fields[1].isdecimal()) or fields[2] != _namespace():
        return False
    return start_time(int(fields[0])) != int(fields[1])


@cache
def _namespace() -> str:
    """The pid namespace of this process, as the number that the kernel gives it."""
    return str(os.stat("/proc/self/ns/pid").st_ino)


def _kill(processes: list[Marked]) -> None:
    for process in processes:
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
    time.sleep(0.005)  # they are no children of ours: there is nothing to wait on


def _mark_of(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/environ", "rb", buffering=0) as file:
            environment = file.readall()
    except OSError:
        return ""  # another user's, or gone
    for entry in environment.split(b"\0"):
        if entry.startswith(_MARK):
            mark = entry[len(_MARK) :].decode("utf-8", "replace")
            fields = mark.split(":", 4)
            ours = len(fields) == 5 and fields[0].isdecimal() and fields[1].isdecimal() and fields[2] == _namespace()
            return mark if ours else ""
    return ""
