"""The program that stands over one engine, so that nothing the engine started can outlive its runner.

    runner ──starts──► front ──forks, exits
                         └► supervisor (adopted by init: what ends the runner's children misses it)
                              └► engine (own session; killed by the kernel if the supervisor dies)
                                   └► whatever the engine starts: orphans come back to the supervisor

The supervisor ends every descendant with SIGKILL when the runner dies, when the engine's main process
ends, or when the runner says so, and leaves only when the kernel says that no descendant is left. It
also writes the engine's log, so that a busy runner never stalls the engine.

An engine in a container is not below us: its last act is then a command that removes the container.

Its arguments: the runner's pid, a socket's file descriptor, the log's path, the command that removes what
is not below us (or nothing), `--`, the engine's argv.
On the socket it hears `T` (SIGTERM to the engine's group) and `K` (end all); end of file means that the
runner is gone. It says `started PID OWN-PID`, `exited STATUS` (as of os.wait) or `failed REASON`.

Rules of this file: Linux; the standard library only, and little of it, as it is started for each engine
with `python -I -S` and must be quick and small. No threads, so that fork and parent-death signals are safe.
"""

from __future__ import annotations

import ctypes
import os
import resource
import select
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress

LOG_BYTES_MAX = 1 << 20  # then the log becomes LOG.1 and a new one begins
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
RECHECK_MS = 50
CLEANUP_ATTEMPTS_MAX = 5
CLEANUP_PAUSE_S = 0.5


class Log:
    """A file for its owner only, of at most LOG_BYTES_MAX, and one older file of the same size."""

    def __init__(self, path: str) -> None:
        self._path = path
        # Serve restarts a runner in place: the log of the one before it is kept under its own name.
        for left_over, kept in ((path, path + ".before"), (path + ".1", path + ".1.before")):
            if os.path.isfile(left_over):
                os.replace(left_over, kept)
        self._open()

    def _open(self) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        self._file = os.open(self._path, flags, 0o600)
        self._bytes = 0

    def write(self, text: bytes) -> None:
        if self._bytes and self._bytes + len(text) > LOG_BYTES_MAX:
            os.close(self._file)
            os.replace(self._path, self._path + ".1")
            self._open()
        with suppress(OSError):  # a full disk must not end the engine
            self._bytes += os.write(self._file, text)


class Supervisor:
    """Starts the engine and does not return before it and all that it started are gone."""

    def __init__(
        self, runner_fd: int, control: int, log_path: str, argv: Sequence[str], cleanup: Sequence[str] = ()
    ) -> None:
        self._cleanup = list(cleanup)
        self._runner_fd = runner_fd  # a pidfd: readable when the runner is gone
        self._control = control
        self._log = Log(log_path)
        self._output, output = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._output, False)
        self._woken, wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
            raise OSError(ctypes.get_errno(), "this process cannot become a subreaper")
        self._status: int | None = None
        self.engine_pid = self._start(libc, argv, output)
        os.close(output)

    def _start(self, libc: ctypes.CDLL, argv: Sequence[str], output: int) -> int:
        """Start the engine's main process. OSError: it cannot be run."""
        own_pid = os.getpid()
        failed, fail = os.pipe2(os.O_CLOEXEC)  # closed by a successful exec
        pid = os.fork()
        if pid:
            os.close(fail)
            why = os.read(failed, 4096)
            os.close(failed)
            if why:
                raise OSError(why.decode())
            return pid
        try:
            os.setsid()
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            if os.getppid() != own_pid:
                os._exit(0)  # the supervisor died before the signal was asked for
            os.dup2(output, 1)
            os.dup2(output, 2)
            for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
                if number < 32:
                    signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, ())
            # A core dump of a model's memory would take minutes, and hold that memory meanwhile.
            resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
            os.execvp(argv[0], list(argv))
        except OSError as error:
            os.write(fail, f"cannot run {argv[0]}: {error.strerror}".encode())
        finally:
            os._exit(127)

    def run(self) -> int:
        """Wait for the first reason to end all, then do it. The engine's status, as of os.wait."""
        poll = select.poll()
        for fd in (self._runner_fd, self._control, self._woken, self._output):
            poll.register(fd, select.POLLIN)
        while self._status is None:
            ready = {fd for fd, _ in poll.poll()}
            if self._output in ready and not self._copy_output():
                poll.unregister(self._output)  # the engine closed it: no reason to end
            if self._woken in ready:
                self._reap()
            if self._runner_fd in ready or (self._control in ready and not self._obey()):
                break
        self._end_all()
        while self._copy_output():
            pass
        return self._status or 0

    def _obey(self) -> bool:
        """Do what the runner asks. False: end all."""
        try:
            said = os.read(self._control, 64)
        except ConnectionError:
            return False
        if not said or b"K" in said:
            return False
        if self._status is None:  # not reaped, so the number is still the engine's
            os.killpg(self.engine_pid, signal.SIGTERM)
        return True

    def _copy_output(self) -> bool:
        """Some of the engine's output into the log. False: nothing more will come, or is there now."""
        try:
            text = os.read(self._output, 65536)
        except BlockingIOError:
            return self._status is None
        self._log.write(text)
        return bool(text)

    def _reap(self) -> bool:
        """Take note of ended descendants. False: none is left, ended or not."""
        try:
            while os.read(self._woken, 512):
                pass
        except BlockingIOError:
            pass
        try:
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return True
                if pid == self.engine_pid:
                    self._status = status
        except ChildProcessError:
            return False

    def _end_all(self) -> None:
        woken = select.poll()
        woken.register(self._woken, select.POLLIN)
        while self._reap():
            for pid in descendants(os.getpid()):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            # One that was forked meanwhile comes to us as an orphan, without a signal: look again soon.
            woken.poll(RECHECK_MS)
        for _ in range(CLEANUP_ATTEMPTS_MAX if self._cleanup else 0):
            if os.spawnvp(os.P_WAIT, self._cleanup[0], self._cleanup) == 0:
                break
            time.sleep(CLEANUP_PAUSE_S)  # the daemon that it asks may be starting again


def descendants(root: int) -> list[int]:
    """The processes below `root`, parents first; of what changes meanwhile, some may be missing."""
    found: list[int] = []
    level = [root]
    while level:
        level = [child for pid in level for child in _children(pid)]
        found += level
    return found


def _children(pid: int) -> list[int]:
    children: list[int] = []
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            try:
                with open(f"/proc/{pid}/task/{thread}/children", "rb", buffering=0) as file:
                    children += [int(child) for child in file.read().split()]
            except (FileNotFoundError, ProcessLookupError):
                if not os.path.exists(f"/proc/self/task/{os.getpid()}/children"):
                    return _children_by_parent(pid)
    except (FileNotFoundError, ProcessLookupError):
        pass
    return children


def _children_by_parent(pid: int) -> list[int]:
    """The same from all processes' parents, for kernels without CONFIG_PROC_CHILDREN."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit() and parent_of(int(name)) == pid]


def parent_of(pid: int) -> int:
    """The pid of its parent; 0 if there is no such process."""
    fields = stat_fields(pid)
    return int(fields[1]) if fields else 0


def stat_fields(pid: int) -> list[bytes]:
    """The fields of /proc/PID/stat from the state on (man 5 proc: field 3); [] if there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
            # the name before it may hold spaces and parentheses
            return file.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def main(arguments: Sequence[str]) -> None:
    runner_pid, control, log_path = int(arguments[0]), int(arguments[1]), arguments[2]
    os.set_inheritable(control, False)
    try:
        runner_fd = os.pidfd_open(runner_pid)
        if os.getppid() != runner_pid:
            return  # it is gone already, and its number may be another's
        if os.fork():
            return
        with open("/proc/self/comm", "w") as name:
            name.write("rs-supervisor")
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        dashes = arguments.index("--")
        supervisor = Supervisor(runner_fd, control, log_path, arguments[dashes + 1 :], arguments[3:dashes])
        _say(control, f"started {supervisor.engine_pid} {os.getpid()}")
        _say(control, f"exited {supervisor.run()}")
    except OSError as error:
        _say(control, f"failed {error}")


def _say(control: int, what: str) -> None:
    with suppress(OSError):  # the runner is gone; `run` hears of that too
        os.write(control, what.encode() + b"\n")


if __name__ == "__main__":
    main(sys.argv[1:])
