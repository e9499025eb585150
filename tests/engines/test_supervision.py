"""Nothing that an engine started outlives its runner, its main process, or a stop: with processes that try.

Rules of this file: real processes and real signals; every wait is on the event itself and has a bound.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rayscheduler.engines.orphans import marked_processes, sweep_orphans
from tests.engines.conftest import Start, command
from tests.engines.pids import BOUND_S, NASTY, RUNNER, NamedPipe, Watched, python


@pytest.fixture
def runner(tmp_path: Path, pipe: NamedPipe) -> Iterator[tuple[subprocess.Popen[str], Watched, Watched]]:
    """A runner of its own process with a nasty engine, the engine's main process, and its supervisor."""
    argv = [sys.executable, "-c", RUNNER, str(tmp_path / "engine.log"), *python(NASTY, pipe.path)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        engine, supervisor, fork = (Watched(int(pid)) for pid in process.stdout.readline().split())
        yield process, engine, supervisor
        process.kill()
        os.kill(fork.pid, signal.SIGKILL)
    for watched in (engine, supervisor, fork):
        watched.close()


async def test_a_killed_runner_takes_engine_and_grandchildren_with_it(
    runner: tuple[subprocess.Popen[str], Watched, Watched], pipe: NamedPipe
) -> None:
    process, engine, supervisor = runner
    family = pipe.family()
    assert family[0].pid == engine.pid
    assert not any(member.gone for member in family), "the thread that started them has ended, they have not"
    process.kill()
    assert all(member.gone_within() for member in family)
    assert supervisor.gone_within()


async def test_runner_and_supervisor_killed_at_once(
    runner: tuple[subprocess.Popen[str], Watched, Watched], pipe: NamedPipe
) -> None:
    """The kernel ends the engine; what that had started is found by its mark, by the next sweep."""
    process, engine, supervisor = runner
    family = pipe.family()
    os.kill(supervisor.pid, signal.SIGSTOP)  # it must not notice the death of the runner first
    process.kill()
    process.wait()
    os.kill(supervisor.pid, signal.SIGKILL)
    assert engine.gone_within()
    sweep_orphans()
    assert all(member.gone for member in family)
    assert [left for left in marked_processes() if left.runner_pid == process.pid] == []


async def test_a_sweep_leaves_engines_of_living_runners_alone(start: Start, pipe: NamedPipe) -> None:
    start("command", command(*python(NASTY, pipe.path)))
    family = pipe.family()
    sweep_orphans()
    assert not any(member.gone for member in family)
    assert {member.pid for member in family} <= {process.pid for process in marked_processes()}


@pytest.mark.parametrize(
    ("mark", "swept"),
    [
        ("{pid}:1:{namespace}:x:m#1", True),  # its runner's number is another process's now
        ("{pid}:1:1:x:m#1", False),  # of a container that counts processes on its own
        ("", False),
        ("nonsense", False),
        ("a:b:c:d:e", False),
    ],
)
def test_only_what_is_surely_an_orphan_is_swept(mark: str, swept: bool) -> None:
    own = {"pid": os.getpid(), "namespace": os.stat("/proc/self/ns/pid").st_ino}
    environment = {"RAYSCHEDULER_ENGINE": mark.format(**own)}
    with subprocess.Popen(python("print(); input()"), env=environment, stdin=-1, stdout=-1) as process:
        assert process.stdout is not None
        process.stdout.readline()
        sweep_orphans()
        assert (process.poll() is not None) is swept
        process.kill()


async def test_a_killed_supervisor_ends_its_engine(start: Start, pipe: NamedPipe) -> None:
    engine = start("command", command(*python(NASTY, pipe.path)))
    family = pipe.family()
    os.kill(engine.supervisor_pid, signal.SIGKILL)
    ended = await asyncio.wait_for(engine.wait_exit(), BOUND_S)
    assert ended.words == "was ended because its supervisor was killed"
    assert all(member.gone for member in family)


async def test_stop_ends_what_ignores_sigterm_and_what_left_the_session(start: Start, pipe: NamedPipe) -> None:
    engine = start("command", command(*python(NASTY, pipe.path)))
    family = pipe.family()
    assert engine.pgid == os.getpgid(family[0].pid) == os.getsid(family[0].pid)
    assert {member.pid for member in family} <= set(engine.pids())
    ended = await asyncio.wait_for(engine.stop(grace_s=0.05), BOUND_S)
    assert ended.words == "was killed by SIGKILL"
    assert all(member.gone for member in family), "stop returns only when everything is gone"
    assert engine.pids() == []


async def test_an_engine_whose_main_process_ends_is_gone_as_a_whole(start: Start, pipe: NamedPipe) -> None:
    engine = start("command", command(*python(NASTY, pipe.path, "leave")))
    family = pipe.family()
    ended = await asyncio.wait_for(engine.wait_exit(), BOUND_S)
    assert ended.words == "exited with status 7"
    assert all(member.gone for member in family)


async def test_stop_is_quick_for_an_engine_that_heeds_sigterm(start: Start) -> None:
    engine = start("command", command(*python("import signal; signal.pause()")))
    ended = await asyncio.wait_for(engine.stop(grace_s=3600), BOUND_S)
    assert ended.signal_name == "SIGTERM"


async def test_stop_may_be_asked_for_twice_and_after_the_end(start: Start) -> None:
    engine = start("command", command(*python("import signal; signal.pause()")))
    ends = await asyncio.gather(engine.stop(), engine.stop(grace_s=0), engine.wait_exit())
    assert len(set(ends)) == 1
    assert await engine.stop() == ends[0] == engine.exit


async def test_sigterm_reaches_the_engines_whole_group_once(start: Start, pipe: NamedPipe) -> None:
    program = (
        "import os, signal, sys\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])\n"
        "pipe = os.open(sys.argv[1], os.O_WRONLY)\n"
        "child = os.fork()\n"
        "os.write(pipe, b'ready\\n')\n"
        "signal.sigwait([signal.SIGTERM])\n"
        "os.write(pipe, b'stopped\\n')\n"
        "os.waitpid(child, 0) if child else None\n"
        "assert not signal.sigpending()\n"
    )
    engine = start("command", command(*python(program, pipe.path)))
    assert [pipe.line(), pipe.line()] == ["ready", "ready"]
    ended = await asyncio.wait_for(engine.stop(grace_s=BOUND_S), BOUND_S)
    assert [pipe.line(), pipe.line()] == ["stopped", "stopped"]
    assert ended.words == "exited with status 0"
