"""Engines in containers, with stand-ins for docker and podman: nothing secret in argv, and nothing left behind."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from rayscheduler.engines import EngineRequest, by_name
from rayscheduler.engines.containers import contained, sweep_containers
from rayscheduler.engines.orphans import marked_processes
from rayscheduler.engines.process import EngineProcess
from rayscheduler.errors import EngineError, EngineMissing
from tests.engines import container_stand_in
from tests.engines.conftest import Start, simulated
from tests.engines.pids import BOUND_S, Watched, argv_of, environment_of

RUNNER = """
import asyncio, sys
from rayscheduler.engines import by_name
from rayscheduler.engines.process import EngineProcess
from tests.engines.conftest import simulated
request = simulated(container_image="image", container_program="docker", simulate={"load": 0})
engine = EngineProcess.start(by_name("simulated"), request, "127.0.0.1", sys.argv[1])
asyncio.run(engine.wait_ready(60))
print(engine.supervisor_pid, flush=True)
asyncio.run(engine.wait_exit())
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A machine with docker and podman, and an image whose `python3` is ours."""
    for name in ("docker", "podman"):
        container_stand_in.install(tmp_path, name)
    (tmp_path / "bin" / "python3").symlink_to(sys.executable)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    program = [sys.executable, "-S", container_stand_in.__file__, "daemon", str(tmp_path)]
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as daemon:
        assert daemon.stdout is not None
        assert daemon.stdout.readline() == "listening\n"
        yield tmp_path
        daemon.kill()


def in_container(program: str, **more: object) -> EngineRequest:
    return simulated(container_image="registry/image:1", container_program=program, **more)


def servers(engine: EngineProcess) -> list[Watched]:
    """The engine's own processes in the container: those that carry its mark, without client and supervisor."""
    marks = {each.mark for each in marked_processes() if each.pid == engine.supervisor_pid}
    pids = [each.pid for each in marked_processes() if each.mark in marks]
    return [Watched(pid) for pid in pids if "simulated_server" in " ".join(argv_of(pid)[:4])]


@pytest.mark.parametrize("program", ["docker", "podman"])
async def test_an_engine_in_a_container_answers_and_ends(start: Start, home: Path, program: str) -> None:
    engine = start("simulated", in_container(program, env={"SECRET": "do not show"}))
    await engine.wait_ready(BOUND_S)
    inside = servers(engine)
    assert len(inside) == 1
    assert inside[0].pid in engine.pids()
    key = {"Authorization": f"Bearer {engine.api_key}"}
    async with httpx.AsyncClient(base_url=engine.endpoint, headers=key) as client:
        assert (await client.get("/v1/models")).json()["data"][0]["id"] == "a"
    assert environment_of(inside[0].pid)["SECRET"] == "do not show"
    shown = " ".join(word for pid in engine.pids() for word in argv_of(pid))
    assert engine.api_key not in shown
    assert "do not show" not in shown
    ended = await engine.stop(grace_s=BOUND_S)
    assert ended.status == 0, "it was asked to end, and did"
    assert inside[0].gone


@pytest.mark.parametrize("program", ["docker", "podman"])
async def test_a_killed_client_takes_its_container_along(start: Start, home: Path, program: str) -> None:
    engine = start("simulated", in_container(program))
    await engine.wait_ready(BOUND_S)
    inside = servers(engine)
    os.kill(engine.pid, signal.SIGKILL)
    await asyncio.wait_for(engine.wait_exit(), BOUND_S)
    assert [process.gone for process in inside] == [True]


@pytest.mark.parametrize("program", ["docker", "podman"])
async def test_one_that_heeds_no_stop_is_removed_when_its_grace_is_over(start: Start, home: Path, program: str) -> None:
    engine = start("simulated", in_container(program, simulate={"unload": 3_600_000}))
    await engine.wait_ready(BOUND_S)
    inside = servers(engine)
    await engine.stop(grace_s=0.1)
    assert [process.gone for process in inside] == [True]


async def test_a_killed_supervisor_leaves_no_container(start: Start, home: Path) -> None:
    engine = start("simulated", in_container("docker"))
    await engine.wait_ready(BOUND_S)
    inside = servers(engine)
    os.kill(engine.supervisor_pid, signal.SIGKILL)
    ended = await asyncio.wait_for(engine.wait_exit(), BOUND_S)
    assert ended.status is None
    assert [process.gone for process in inside] == [True]


def test_the_next_agent_removes_what_runner_and_supervisor_left(home: Path) -> None:
    """With both killed, nobody is left who knows the container but its own label."""
    runner = subprocess.Popen([sys.executable, "-c", RUNNER, str(home / "log")], stdout=subprocess.PIPE, text=True)
    assert runner.stdout is not None
    supervisor = Watched(int(runner.stdout.readline()))
    with_container = [each.pid for each in marked_processes() if each.runner_pid == runner.pid]
    inside = [Watched(pid) for pid in with_container if "simulated_server" in " ".join(argv_of(pid)[:4])]
    assert sweep_containers() == [], "its runner lives"
    os.kill(supervisor.pid, signal.SIGSTOP)  # so that it cannot see its runner die
    runner.kill()
    runner.wait()
    os.kill(supervisor.pid, signal.SIGKILL)
    assert supervisor.gone_within()
    assert [process.gone for process in inside] == [False]
    assert len(sweep_containers()) == 1
    assert inside[0].gone_within()
    runner.stdout.close()


GPUS = {"visible_devices": ("GPU-a", "GPU-b"), "backend": "nvidia", "device_bytes": (1, 1)}


@pytest.mark.parametrize(
    ("program", "more", "devices"),
    [
        ("docker", GPUS, ["--gpus", '"device=GPU-a,GPU-b"']),
        ("docker", {**GPUS, "visible_devices": ("GPU-a",)}, ["--gpus", "device=GPU-a"]),
        ("podman", GPUS, ["--device", "nvidia.com/gpu=GPU-a", "--device", "nvidia.com/gpu=GPU-b"]),
        (
            "docker",
            {**GPUS, "backend": "rocm"},
            ["--device", "/dev/kfd", "--device", "/dev/dri", "--group-add", "video"],
        ),
        ("docker", {}, []),
    ],
)
def test_a_container_sees_the_devices_that_are_reserved(
    home: Path, program: str, more: dict[str, object], devices: list[str]
) -> None:
    request = EngineRequest(
        "m",
        "m#1",
        args=("my-server", "--weights", "${SOURCE}"),
        source="/models/m",
        env={"B": "2"},
        container_image="image",
        container_program=program,
        container_options=("--shm-size=8g",),
        **more,  # type: ignore[arg-type]
    )
    engine = by_name("command")
    engine.check(request)
    command = contained(engine.command(request, 1234, "key", "10.0.0.1"), request, "rayscheduler-1", "1:2:3:4:m#1")
    visible = "ROCR_VISIBLE_DEVICES" if request.backend == "rocm" else "CUDA_VISIBLE_DEVICES"
    names = sorted(["B", "PYTHONUNBUFFERED", "RAYSCHEDULER_API_KEY", "RAYSCHEDULER_ENGINE", visible])
    assert list(command.argv) == [
        *(str(home / "bin" / program), "run", "--rm", "--name", "rayscheduler-1"),
        *("--label", "rayscheduler.engine=1:2:3:4:m#1", "--network", "host", "--ipc", "host"),
        *devices,
        *("--mount", "type=bind,source=/models/m,target=/models/m,readonly"),
        *(word for name in names for word in ("--env", name)),
        "--shm-size=8g",
        *("--entrypoint", "my-server", "image", "--weights", "/models/m"),
    ]
    quick = ["--time", "0"] if program == "podman" else []
    assert list(command.cleanup) == [str(home / "bin" / program), "rm", "--force", *quick, "rayscheduler-1"]


def test_without_a_program_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    request = in_container("")
    command = by_name("simulated").command(request, 1, "", "")
    with pytest.raises(
        EngineMissing, match="runs in a container, but there is no docker and no podman on this machine"
    ):
        contained(command, request, "name", "mark")


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"container_program": "lxc"}, "'lxc' runs no containers; use docker or podman"),
        ({"python": "/venv"}, "has both `python` and `container`"),
        ({"container_options": ("--gpus=all",)}, "--gpus is not taken in run_options; its devices are chosen by the"),
        ({"container_options": ("-e", "TOKEN=1")}, "-e is not taken in run_options; write it into `env`"),
        ({"container_options": ("--network", "none")}, "engines use the host's network"),
    ],
)
def test_what_a_container_may_not_be_told(more: dict[str, object], told: str) -> None:
    with pytest.raises(EngineError, match=told):
        by_name("simulated").validate(replace(in_container(""), **more))  # type: ignore[arg-type]


def test_a_path_that_cannot_be_mounted(home: Path) -> None:
    request = replace(in_container("docker"), source="/models/a,b", args=("serve",))
    with pytest.raises(EngineError, match="/models/a,b cannot be shown to a container"):
        contained(by_name("command").command(request, 1, "", ""), request, "name", "mark")


def test_the_stand_ins_were_asked_as_docker_and_podman_are(home: Path) -> None:
    """`rm` of what is not there is no failure, so that a removal after a clean end is none."""
    for name in ("docker", "podman"):
        done = subprocess.run([name, "rm", "--force", "nothing"], check=False)
        assert done.returncode == 0
    calls = [json.loads(line) for line in (home / "calls").read_text().splitlines()]
    assert [call[1:] for call in calls] == [["rm", "--force", "nothing"]] * 2
