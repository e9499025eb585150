"""One engine's process, from its start to the confirmed exit of all that it started.

Rules of this file: asyncio, no event loop of its own; an `EngineProcess` may be made in any thread and
awaited on any loop. The engine is started by a supervisor (supervisor.py), to which a socket leads: when
this process ends, the supervisor ends the engine. Linux only.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO
from urllib.parse import quote

from rayscheduler.engines import supervisor
from rayscheduler.engines.containers import NAME_PREFIX, contained, remove_container
from rayscheduler.engines.environment import engine_environment
from rayscheduler.engines.http_call import Answer, ask, ask_status
from rayscheduler.engines.orphans import end_marked, mark_for, marked_processes
from rayscheduler.engines.ports import ClaimedPort, claim_port
from rayscheduler.engines.protocol import API_KEY_ENV, MARK_ENV, Call, Command, Engine, EngineRequest, InFlight
from rayscheduler.errors import EngineError, EngineFailed

FIRST_PROBE_S = 0.010
PROBE_PAUSE_MAX_S = 0.250
PROBE_TIMEOUT_S = 5.0
START_TIMEOUT_S = 60.0
KILL_PATIENCE_S = 5.0
STATUS_LINE_BYTES_MAX = 4096

_HINTS = {
    "SIGKILL": "the kernel does that when memory runs out",
    "SIGILL": "this machine's CPU lacks an instruction that the engine was built for",
    "SIGBUS": "a file that it maps may have become shorter",
}


@dataclass(frozen=True, slots=True)
class Exit:
    """How an engine's main process ended. `status` as of os.wait; None: its supervisor was killed."""

    status: int | None

    @property
    def signal_name(self) -> str:
        """`SIGKILL`, or "" if no signal ended it."""
        if self.status is None or not os.WIFSIGNALED(self.status):
            return ""
        number = os.WTERMSIG(self.status)
        return next((known.name for known in signal.Signals if known == number), f"signal {number}")

    @property
    def words(self) -> str:
        """`exited with status 3`, `was killed by SIGKILL`."""
        if self.status is None:
            return "was ended because its supervisor was killed"
        if self.signal_name:
            return f"was killed by {self.signal_name}"
        return f"exited with status {os.WEXITSTATUS(self.status)}"


class EngineProcess:
    """A started engine. `start` makes it, `wait_ready` waits for it, `stop` ends it and everything of it."""

    def __init__(
        self, request: EngineRequest, command: Command, host: str, port: ClaimedPort, in_flight: InFlight | None
    ) -> None:
        """For `start` only."""
        self.request = request
        self.host = host
        self.port = port.number
        self.api_key = ""
        self.pid = 0
        self.log_path = Path()
        self._started_s = time.monotonic()
        self._ready_path = command.ready_path
        self._held_elsewhere_path = command.held_elsewhere_path
        self._claimed = port
        self._mark = ""
        self._cleanup: tuple[str, ...] = ()
        self._in_flight = None if request.node_rank else in_flight
        self.supervisor_pid = 0
        self._exit: Future[Exit] = Future()
        self._exit.set_running_or_notify_cancel()  # cancelling a waiter must not cancel what it waits for
        self._stop_asked = False

    @classmethod
    def start(
        cls, engine: Engine, request: EngineRequest, host: str, log_path: str | Path, port: int | None = None
    ) -> EngineProcess:
        """Start the engine; it is not ready yet. Takes some 50 ms, and what the engine needs to read its source.

        The log goes to `log_path` (mode 0600, its folder is made if need be). EngineError: it cannot
        be started, or `port` is in use; by default a free port is taken.
        """
        api_key = secrets.token_urlsafe(32)
        claimed = claim_port(host, port)
        try:
            command = engine.command(request, claimed.number, api_key, host)
            process = cls(request, command, host, claimed, engine.in_flight())
            process.api_key = api_key
            process.log_path = Path(log_path)
            process._spawn(command)
        except BaseException:
            claimed.release()
            raise
        return process

    @property
    def pgid(self) -> int:
        """The group (and session) of the engine: its main process leads it."""
        return self.pid

    @property
    def endpoint(self) -> str:
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"

    @property
    def exit(self) -> Exit | None:
        """How it ended, once everything of it is gone; None before."""
        return self._exit.result() if self._exit.done() else None

    async def wait_exit(self) -> Exit:
        """Wait until the engine has ended, by itself or stopped, and everything that it started is gone."""
        return await asyncio.wrap_future(self._exit)

    async def wait_ready(self, timeout_s: float | None = None) -> None:
        """Wait until the engine answers its readiness path with 2xx; by default as long as the request allows.
        A follower, which has none, only has to stay alive: whoever waits for its leader waits for it.

        EngineFailed, with the end of the log: the engine ended first, or the time is up. `stop` is the
        caller's duty in the latter case.
        """
        if not self._ready_path:
            return
        limit_s = self.request.load_timeout_ms / 1000 if timeout_s is None else timeout_s
        deadline_s = time.monotonic() + limit_s
        exited = asyncio.wrap_future(self._exit)
        pause_s, answer = FIRST_PROBE_S, "it did not answer"
        try:
            while True:
                left_s = deadline_s - time.monotonic()
                if left_s <= 0:
                    raise self._failed(f"was not ready after {limit_s:.3g} s: {answer}")
                answer = await self._probe(min(PROBE_TIMEOUT_S, left_s))
                if exited.done():
                    raise self._failed(f"{exited.result().words} before it was ready")
                if answer.startswith("HTTP 2"):
                    return
                await asyncio.wait({exited}, timeout=min(pause_s, max(0.0, deadline_s - time.monotonic())))
                pause_s = min(pause_s * 1.5, PROBE_PAUSE_MAX_S)
        finally:
            exited.cancel()

    async def stop(self, grace_s: float = 10.0) -> Exit:
        """End the engine: SIGTERM to its group, after `grace_s` SIGKILL to everything that it started.

        Returns when all of it is gone, also if it takes long (a process in the kernel cannot be killed);
        may be called several times, and by several tasks.
        """
        self._stop_asked = True
        self._tell(b"T")
        if await self._gone_within(grace_s):
            return self._exit.result()
        self._tell(b"K")
        while not await self._gone_within(KILL_PATIENCE_S):
            self._tell(b"K")
        return self._exit.result()

    async def call(self, call: Call) -> Answer:
        """Ask the engine something, with its key. OSError, ValueError: it gives no answer."""
        return await ask(self.host, self.port, self.api_key, call)

    async def in_flight(self, limit_s: float = PROBE_TIMEOUT_S) -> int | None:
        """Requests that it works on or that wait in it; None: it does not tell, or not in time."""
        if self._in_flight is None:
            return None
        try:
            answer = await asyncio.wait_for(self.call(Call("GET", self._in_flight.path)), limit_s)
            return self._in_flight.read(answer.text) if answer.ok else None
        except (OSError, ValueError, KeyError, asyncio.TimeoutError):
            return None

    def pids(self) -> list[int]:
        """The engine's processes, its main process first; without the supervisor."""
        if self._exit.done():
            return []
        below = supervisor.descendants(self.supervisor_pid)
        if not self.request.container_image:
            return below
        known = {*below, self.supervisor_pid}
        return below + [each.pid for each in marked_processes() if each.mark == self._mark and each.pid not in known]

    def measured_bytes(self) -> int:
        """Host memory held by all processes of the engine: shared pages by their share (PSS), else resident."""
        return sum(held_bytes(pid) for pid in self.pids())

    async def held_elsewhere_bytes(self) -> int:
        """Memory that a process which is not the engine's holds for it, as the engine says; 0 if it says nothing."""
        if not self._held_elsewhere_path:
            return 0
        try:
            asked = ask(self.host, self.port, self.api_key, Call("GET", self._held_elsewhere_path))
            answer = await asyncio.wait_for(asked, PROBE_TIMEOUT_S)
            return int(json.loads(answer.text)["held_elsewhere_bytes"])
        except (OSError, ValueError, KeyError, TypeError, asyncio.TimeoutError):
            return 0

    def log_tail(self, lines: int = 20) -> str:
        """The last lines that the engine wrote, at most 64 KiB of them."""
        tail: deque[bytes] = deque(maxlen=lines)
        for path in (Path(f"{self.log_path}.1"), self.log_path):
            try:
                with open(path, "rb") as file:
                    file.seek(max(0, os.fstat(file.fileno()).st_size - (64 << 10)))
                    tail.extend(line for line in file.read().splitlines() if line.strip())
            except FileNotFoundError:
                pass
        return "\n".join(_printable(line) for line in tail)

    # how it is started and watched

    def _spawn(self, command: Command) -> None:
        if sys.platform != "linux":
            raise EngineError(f"engines run on Linux only, not on {sys.platform}")
        nonce = secrets.token_hex(8)
        self._mark = mark_for(self.request.replica, nonce)
        if self.request.container_image:
            name = NAME_PREFIX + nonce
            command = contained(command, self.request, name, self._mark)
        self._cleanup = command.cleanup
        own = {API_KEY_ENV: self.api_key, MARK_ENV: self._mark}
        self.log_path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        ours, theirs = socket.socketpair()
        with theirs:
            control, log_path = str(theirs.fileno()), str(self.log_path.absolute())
            front = subprocess.Popen(
                [
                    *(sys.executable, "-I", "-S", supervisor.__file__),
                    *(str(os.getpid()), control, log_path, *command.cleanup, "--", *command.argv),
                ],
                env=engine_environment(os.environ, self.request, {**command.env, **own}),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        ours.settimeout(START_TIMEOUT_S)
        said = ours.makefile("r", encoding="utf-8", errors="replace")
        try:
            word, _, rest = said.readline(STATUS_LINE_BYTES_MAX).strip().partition(" ")
        except TimeoutError:
            word, rest = "failed", f"its supervisor did not start within {START_TIMEOUT_S:g} s"
        front.wait()
        if word != "started":
            ours.close()
            raise EngineError(f"the engine of {self.request.replica} cannot be started: {rest or 'no reason given'}")
        ours.settimeout(None)
        self._control = ours
        self.pid, self.supervisor_pid = (int(pid) for pid in rest.split())
        threading.Thread(target=self._watch, args=(said,), name=f"engine-{self.pid}", daemon=True).start()

    def _watch(self, said: TextIO) -> None:
        """In a thread of its own: hear how the engine ended, and see to it that all of it is gone."""
        status = None
        with suppress(OSError), said:
            for line in said:
                word, _, rest = line.strip().partition(" ")
                if word == "exited":
                    status = int(rest)
        if status is None:
            end_marked(self._mark)
            remove_container(self._cleanup)
        self._control.close()
        self._claimed.release()
        self._exit.set_result(Exit(status))

    def _tell(self, what: bytes) -> None:
        with suppress(OSError):  # the supervisor is gone, and so `_exit` is set or will be
            self._control.send(what)

    async def _gone_within(self, limit_s: float) -> bool:
        exited = asyncio.wrap_future(self._exit)
        try:
            await asyncio.wait({exited}, timeout=limit_s)
            return exited.done()
        finally:
            exited.cancel()

    async def _probe(self, limit_s: float) -> str:
        """Ask once whether it is ready. `HTTP 200`, or what happened instead."""
        try:
            asked = ask_status(self.host, self.port, self.api_key, Call("GET", self._ready_path))
            return f"HTTP {await asyncio.wait_for(asked, limit_s)} from {self._ready_path}"
        except asyncio.TimeoutError:
            return f"it did not answer {self._ready_path} within {limit_s:.3g} s"
        except (OSError, ValueError) as error:
            return f"it did not answer {self._ready_path} ({error})"

    def _failed(self, what: str) -> EngineFailed:
        """The error that says what happened, how long after the start, and what the engine wrote last."""
        exit = self.exit
        hint = _HINTS.get(exit.signal_name, "") if exit and not self._stop_asked else ""
        after_s = time.monotonic() - self._started_s
        return EngineFailed(
            f"the engine of {self.request.replica} {what}, {after_s:.1f} s after its start"
            + (f" ({hint})" if hint else ""),
            self.log_tail(),
        )


def log_file_name(replica: str, node_rank: int = 0) -> str:
    """A file name for the log of a replica, whose id may hold a slash: `org%2Fmodel#1.log`; of one of its
    followers: `org%2Fmodel#1-node2.log`."""
    return quote(replica, safe="#@:+ ") + (f"-node{node_rank}" if node_rank else "") + ".log"


def held_bytes(pid: int) -> int:
    """Host memory of a process: shared pages by their share (PSS) where the kernel tells; 0 if it is gone."""
    try:
        with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
            for line in file:
                if line.startswith(b"Pss:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def _printable(line: bytes) -> str:
    """A line of a log without what would drive a terminal."""
    return "".join(c if c.isprintable() or c == "\t" else "�" for c in line.decode("utf-8", "replace"))
