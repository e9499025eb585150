"""Waiting for processes, with a bound, and the stories that engine processes act out in tests.

Rules of this file: a process is watched by a pidfd, so that its number cannot mean another one.
"""

from __future__ import annotations

import os
import select
import sys
from pathlib import Path

BOUND_S = 20.0

# An engine as nasty as they come: it has a child in its own group and one in its own session, none of which
# heeds SIGTERM, and none of which dies by itself; their numbers are said in one line when all are ready.
NASTY = """
import os, signal, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
said, say = os.pipe()
for leave in (lambda: None, lambda: os.setpgid(0, 0), os.setsid):
    if os.fork() == 0:
        leave()
        if os.fork() == 0:
            os.write(say, b"%d\\n" % os.getpid())
        signal.pause()
numbers = b""
while numbers.count(b"\\n") < 3:
    numbers += os.read(said, 100)
with open(sys.argv[1], "w") as pipe:
    print(os.getpid(), *numbers.decode().split(), file=pipe)
if "leave" in sys.argv:
    sys.exit(7)
while True:
    signal.pause()
"""

# A runner that starts the engine of its arguments and says its pids; it ends when it is killed. A fork of it
# lives on and holds all that it had open, as the workers of a multiprocessing pool do.
RUNNER = """
import asyncio, os, signal, sys, threading
from rayscheduler.engines import EngineRequest, by_name
from rayscheduler.engines.process import EngineProcess
request = EngineRequest("c", "c#1", args=tuple(sys.argv[2:]))
started = []
def start():
    started.append(EngineProcess.start(by_name("command"), request, "127.0.0.1", sys.argv[1]))
thread = threading.Thread(target=start)  # an engine must not die with the thread that started it
thread.start()
thread.join()
fork = os.fork()
if fork == 0:
    signal.pause()
print(started[0].pid, started[0].supervisor_pid, fork, flush=True)
asyncio.run(started[0].wait_exit())
"""


class Watched:
    """A process that is somebody else's child."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._pidfd = os.pidfd_open(pid)

    @property
    def gone(self) -> bool:
        return self.gone_within(0)

    def gone_within(self, limit_s: float = BOUND_S) -> bool:
        """Has it ended, or does it within that time?"""
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        return bool(poll.poll(limit_s * 1000))

    def close(self) -> None:
        os.close(self._pidfd)


def python(program: str, *arguments: str) -> tuple[str, ...]:
    """The argv that runs a text as a Python program, quickly."""
    return (sys.executable, "-I", "-S", "-u", "-c", program, *arguments)


class NamedPipe:
    """Where a process under test says something, which the test waits for."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self.path = str(path)
        self._fd = os.open(path, os.O_RDWR | os.O_NONBLOCK)  # never at its end, whoever has it open
        self._read = b""

    def line(self, limit_s: float = BOUND_S) -> str:
        """The next line."""
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        while b"\n" not in self._read:
            assert poll.poll(limit_s * 1000), f"nothing was said within {limit_s:g} s"
            self._read += os.read(self._fd, 4096)
        line, _, self._read = self._read.partition(b"\n")
        return line.decode()

    def family(self) -> list[Watched]:
        """The processes whose numbers are said: of NASTY, its main process first."""
        return [Watched(int(pid)) for pid in self.line().split()]

    def close(self) -> None:
        os.close(self._fd)


def environment_of(pid: int) -> dict[str, str]:
    entries = Path(f"/proc/{pid}/environ").read_text().split("\0")
    return dict(entry.split("=", 1) for entry in entries if "=" in entry)


def argv_of(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/cmdline").read_text().split("\0")
