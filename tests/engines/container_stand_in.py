"""Stands in for docker and podman: the same processes and manners, no isolation.

    docker   a client that asks a daemon, whose child the container is; SIGTERM is passed on, SIGKILL is not
    podman   no daemon: a monitor (conmon) between, which leaves the client's family and runs the container

What the container sees of the environment is what `--env NAME` passes in. `python container_stand_in.py daemon
FOLDER` is the daemon; its socket, and what podman knows of its containers, are in that folder.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

VALUED = frozenset(
    {"--name", "--label", "--network", "--ipc", "--gpus", "--device", "--mount", "--env", "--entrypoint"}
)


class Container:
    """One that `docker run` asked for."""

    def __init__(self, asked: dict[str, Any]) -> None:
        self.label = asked["label"]
        self.pid = spawned(asked)
        self.ended = threading.Event()
        threading.Thread(target=self._wait, daemon=True).start()

    def _wait(self) -> None:
        self.status = os.waitpid(self.pid, 0)[1]
        self.ended.set()


def parsed(words: list[str]) -> dict[str, Any]:
    """What is asked for by the words after `run`, up to the image and its arguments."""
    asked: dict[str, Any] = {"env": {}, "options": words}
    rest = list(words)
    while rest[0].startswith("-"):
        name, _, value = rest.pop(0).partition("=")
        if name in VALUED and not value:
            value = rest.pop(0)
        if name == "--env":
            asked["env"][value] = os.environ[value]
            continue
        asked[name.removeprefix("--")] = value
    asked["argv"] = [asked["entrypoint"], *rest[1:]]
    return asked


def spawned(asked: dict[str, Any]) -> int:
    """The pid of the container's first process, in a session of its own."""
    pid = os.fork()
    if pid == 0:
        os.setsid()
        os.execvpe(asked["argv"][0], asked["argv"], {"PATH": os.environ["PATH"], **asked["env"]})
    return pid


def daemon(folder: Path) -> None:
    containers: dict[str, Container] = {}
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(folder / "docker.sock"))
    listener.listen(16)
    print("listening", flush=True)
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=served, args=(connection, containers), daemon=True).start()


def served(connection: socket.socket, containers: dict[str, Container]) -> None:
    with connection, connection.makefile("rw") as stream:
        asked = json.loads(stream.readline())
        if asked["do"] == "run":
            container = containers[asked["name"]] = Container(asked)
            threading.Thread(target=passed_on, args=(stream, container), daemon=True).start()
            container.ended.wait()
            containers.pop(asked["name"], None)
            answer: object = os.waitstatus_to_exitcode(container.status)
        elif asked["do"] == "rm":
            container = containers.get(asked["name"])  # type: ignore[assignment]
            if container is not None:
                os.killpg(container.pid, signal.SIGKILL)
                container.ended.wait()
            answer = 0
        else:
            answer = [f"{name}\t{container.label.partition('=')[2]}" for name, container in containers.items()]
        try:
            stream.write(json.dumps(answer) + "\n")
            stream.flush()
        except OSError:
            pass  # the client was killed


def passed_on(stream: Any, container: Container) -> None:
    for line in stream:
        if line.strip() == "TERM":
            os.kill(container.pid, signal.SIGTERM)


def docker(folder: Path, words: list[str]) -> int:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(folder / "docker.sock"))
        stream = connection.makefile("rw")

        def say(what: object) -> None:
            stream.write(f"{what}\n")
            stream.flush()

        if words[0] == "run":
            asked = parsed(words[1:])
            signal.signal(signal.SIGTERM, lambda *_: say("TERM"))
            say(json.dumps({**asked, "do": "run"}))
            return abs(int(json.loads(stream.readline())))
        say(json.dumps({"do": words[0], "name": words[-1]}))
        answer = json.loads(stream.readline())
        if isinstance(answer, list):
            print("\n".join(answer))
            return 0
        return int(answer)


def podman(folder: Path, words: list[str]) -> int:
    if words[0] == "rm":
        known = folder / words[-1]
        if known.exists():
            with suppress(ProcessLookupError):
                os.killpg(int(known.read_text()), signal.SIGKILL)
            known.unlink()
        return 0
    if words[0] == "ps":
        return 0
    asked = parsed(words[1:])
    said, say = os.pipe()
    if os.fork() == 0:  # conmon
        os.setsid()
        if os.fork():
            os._exit(0)
        pid = spawned(asked)
        (folder / asked["name"]).write_text(str(pid))
        os.write(say, f"{pid}\n".encode())
        status = os.waitpid(pid, 0)[1]
        os.write(say, f"{os.waitstatus_to_exitcode(status)}\n".encode())
        os._exit(0)
    os.close(say)
    stream = os.fdopen(said)
    pid = int(stream.readline())
    signal.signal(signal.SIGTERM, lambda *_: os.kill(pid, signal.SIGTERM))
    return abs(int(stream.readline() or 1))


def install(folder: Path, name: str) -> None:
    """A program of that name in `folder`/bin; `folder` is where it keeps what it knows."""
    program = folder / "bin" / name
    program.parent.mkdir(exist_ok=True)
    program.write_text(f"#!{sys.executable} -S\n" + Path(__file__).read_text())
    program.chmod(0o755)


if __name__ == "__main__":
    if sys.argv[1] == "daemon":
        daemon(Path(sys.argv[2]))
    home = Path(sys.argv[0]).parent.parent
    run = docker if Path(sys.argv[0]).name == "docker" else podman
    with open(home / "calls", "a") as calls:
        calls.write(json.dumps(sys.argv) + "\n")
    sys.exit(run(home, sys.argv[1:]))
