"""Runs an engine in a container image: what its command becomes, and how nothing of it is left.

    docker run … image argv     a client; the container belongs to the daemon and outlives the client's SIGKILL
    podman run … image argv     no daemon; the container's processes come back to the engine's supervisor

So each container has a name, by which the supervisor removes it when everything else is gone, and a label
with the engine's mark, by which the next agent of the node finds those whose runner and supervisor were killed.

Rules of this file: values go in by the environment and only their names by argv, which others can read.
Paths are the same inside and outside. The network is the host's: the engine's port was claimed there.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import replace

from rayscheduler.engines.flags import CHOSEN_BY_US
from rayscheduler.engines.orphans import runner_is_gone, sweep_orphans
from rayscheduler.engines.protocol import API_KEY_ENV, DEVICE_ENVS, MARK_ENV, Command, EngineRequest
from rayscheduler.errors import EngineError, EngineMissing

PROGRAMS = ("docker", "podman")
LABEL = "rayscheduler.engine"
NAME_PREFIX = "rayscheduler-"
REMOVE_TIMEOUT_S = 60.0
# What a run option would contradict -> what to use instead.
DECIDED_ELSEWHERE: Mapping[str, str] = {
    **dict.fromkeys(("--name", "--rm", "--detach", "-d", "--entrypoint", "--label", "-l"), CHOSEN_BY_US),
    **dict.fromkeys(("--network", "--net", "--publish", "-p"), "engines use the host's network"),
    **dict.fromkeys(("--gpus",), "its devices are chosen by the scheduler; use `placement` or `requires`"),
    **dict.fromkeys(("--restart", "--tty", "-t", "--interactive", "-i", "-it"), "an engine is no service of its own"),
    "--env": "write it into `env`",
    "-e": "write it into `env`",
}


def check_container(request: EngineRequest) -> None:
    """What can be said on any machine. EngineError: a program or an option that is not its own."""
    if not request.container_image:
        return
    told = f"model {request.model}"
    if request.container_program and request.container_program not in PROGRAMS:
        raise EngineError(f"{told}: {request.container_program!r} runs no containers; use {' or '.join(PROGRAMS)}")
    if request.python:
        raise EngineError(f"{told} has both `python` and `container`; keep one of them, the image has its own Python")
    for option in request.container_options:
        name = option.split("=", 1)[0]
        if name in DECIDED_ELSEWHERE:
            raise EngineError(f"{told}: {name} is not taken in run_options; {DECIDED_ELSEWHERE[name]}")


def container_program(request: EngineRequest) -> str:
    """The program that runs it. EngineMissing: it is not on this machine."""
    wanted = (request.container_program,) if request.container_program else PROGRAMS
    for program in wanted:
        if found := shutil.which(program):
            return found
    raise EngineMissing(
        f"model {request.model} runs in a container, but there is no {' and no '.join(wanted)} on this machine; "
        "install one of them, or leave out `container`"
    )


def contained(command: Command, request: EngineRequest, name: str, mark: str) -> Command:
    """The command that runs `command` in a container of that name, and how to remove that."""
    program = container_program(request)
    kind = os.path.basename(program)
    names = sorted({*request.env, *command.env, API_KEY_ENV, MARK_ENV, "PYTHONUNBUFFERED", *_device_names(request)})
    argv = (
        *(program, "run", "--rm", "--name", name, "--label", f"{LABEL}={mark}", "--network", "host", "--ipc", "host"),
        *_devices(kind, request),
        *(part for path in command.mounts for part in ("--mount", _mount(path, request))),
        *(part for each in names for part in ("--env", each)),
        *request.container_options,
        *("--entrypoint", command.argv[0], request.container_image, *command.argv[1:]),
    )
    return replace(command, argv=argv, cleanup=_removal(program, name))


def sweep() -> None:
    """End everything of engines whose runner is gone: their processes, and the containers that are none of ours."""
    sweep_orphans()
    sweep_containers()


def sweep_containers() -> list[str]:
    """Remove the containers of engines whose runner is gone; their names. Quick where there is no program for it."""
    swept = []
    for program in filter(None, map(shutil.which, PROGRAMS)):
        form = '{{.Names}}\t{{.Label "' + LABEL + '"}}' if _is_docker(program) else "{{.Names}}\t{{.Labels}}"
        listing = _output(program, "ps", "--all", "--filter", f"label={LABEL}", "--format", form)
        for line in listing.splitlines():
            name, _, label = line.partition("\t")
            if name.startswith(NAME_PREFIX) and runner_is_gone(_mark_in(label)):
                _output(*_removal(program, name))
                swept.append(name)
    return swept


def remove_container(cleanup: tuple[str, ...]) -> None:
    """Do what a supervisor would have done that was killed."""
    if cleanup:
        _output(*cleanup)


def _devices(kind: str, request: EngineRequest) -> tuple[str, ...]:
    uuids = request.visible_devices
    if not uuids:
        return ()
    if request.backend == "rocm":
        return ("--device", "/dev/kfd", "--device", "/dev/dri", "--group-add", "video")
    if kind == "podman":
        return tuple(part for uuid in uuids for part in ("--device", f"nvidia.com/gpu={uuid}"))
    several = "device=" + ",".join(uuids)
    return ("--gpus", f'"{several}"' if len(uuids) > 1 else several)  # a comma would end the value


def _device_names(request: EngineRequest) -> tuple[str, ...]:
    return ("ROCR_VISIBLE_DEVICES",) if request.backend == "rocm" else DEVICE_ENVS[:1]


def _mount(path: str, request: EngineRequest) -> str:
    if "," in path or '"' in path:
        raise EngineError(
            f"model {request.model}: {path} cannot be shown to a container, as it holds a comma or a quote; rename it"
        )
    return f"type=bind,source={path},target={path},readonly"


def _removal(program: str, name: str) -> tuple[str, ...]:
    """Docker's kills at once. Podman's would first wait for a graceful stop, which the engine has had."""
    return (program, "rm", "--force", *(() if _is_docker(program) else ("--time", "0")), name)


def _is_docker(program: str) -> bool:
    return os.path.basename(program) == "docker"


def _mark_in(label: str) -> str:
    """Podman prints all labels, as `map[a:b c:d]`; a mark holds no blank but in the replica's name, at its end."""
    return label.partition(f"{LABEL}:")[2] if label.startswith("map[") else label


def _output(*argv: str) -> str:
    """What the program says; "" if it fails: then there is nothing that it knows of."""
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=REMOVE_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""
