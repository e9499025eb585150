"""Whose a process is: a replica's, by the tree below its engine's supervisor or by the mark in its environment.

Rules of this file: it reads /proc and keeps what cannot change of a process for as long as the process is asked
about. A process of another namespace, or of another user, may show nothing of itself.
"""

from __future__ import annotations

import os
import pwd
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache

import psutil

from rayscheduler.cluster.reports import Watched
from rayscheduler.core.types import ReplicaId
from rayscheduler.engines.orphans import replica_marked, start_time
from rayscheduler.engines.supervisor import descendants, parent_of

_FIRST_PID_NAMESPACE = 0xEFFFFFFC  # its inode number, in every kernel (PROC_PID_INIT_INO)


@dataclass(frozen=True, slots=True)
class Who:
    """What can be seen of a process; "" where nothing can. `replica`: whose mark it carries."""

    name: str = ""
    user: str = ""
    replica: str = ""


class Attribution:
    """Not for two threads at a time."""

    def __init__(self) -> None:
        self._supervisors: dict[int, int] = {}  # engine's pid -> its supervisor's
        self._known: dict[int, tuple[int, Who]] = {}  # pid -> when it started, who it is

    def engines(self, watched: Sequence[Watched]) -> dict[ReplicaId, list[int]]:
        """The processes of each replica's engine: all that its supervisor has below it."""
        engines = {each.engine_pid for each in watched if each.engine_pid}
        self._supervisors = {pid: self._supervisors.get(pid) or parent_of(pid) for pid in engines}
        return {
            each.replica: descendants(self._supervisors[each.engine_pid])
            for each in watched
            if each.engine_pid and self._supervisors[each.engine_pid] > 1
        }

    def who(self, pids: Iterable[int]) -> Mapping[int, Who | None]:
        """The processes of these that are there, seen from here; None for one that is not."""
        found: dict[int, Who | None] = {}
        kept: dict[int, tuple[int, Who]] = {}
        for pid in pids:
            started = start_time(pid)
            known = self._known.get(pid)
            if not started:
                found[pid] = None
                continue
            kept[pid] = known if known is not None and known[0] == started else (started, _look_at(pid))
            found[pid] = kept[pid][1]
        self._known = kept
        return found


@cache
def in_first_pid_namespace() -> bool:
    """Whether this machine's drivers and we number processes alike."""
    return os.stat("/proc/self/ns/pid").st_ino == _FIRST_PID_NAMESPACE


def _look_at(pid: int) -> Who:
    name = user = ""
    with suppress(psutil.Error, OSError):
        name = psutil.Process(pid).name()
    with suppress(OSError, KeyError):
        owner = os.stat(f"/proc/{pid}").st_uid
        user = str(owner)
        user = pwd.getpwuid(owner).pw_name
    return Who(name, user, replica_marked(pid))
