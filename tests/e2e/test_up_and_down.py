"""The command line as people use it: a service in front and Ctrl-C, and one on a Ray that is not ours."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import psutil
import pytest

from tests.e2e import marked
from tests.e2e.loopback_node import free_port

BIN = Path(sys.executable).parent
MIB = 2**20
UP_S_MAX = 180.0
DOWN_S_MAX = 90.0

MODELS = """\
models:
  - {name: small, aliases: [s], engine: simulated, memory: 100MiB, simulate: {load: 100ms}}
  - {name: whale, engine: simulated, memory: 400GiB, gpus: [1]}
"""


@dataclass(frozen=True)
class Terminal:
    """A user of their own: own state, own Ray folder, and a mark on all that they start."""

    folder: Path
    port: int

    @property
    def catalog(self) -> Path:
        return self.folder / "models.yaml"

    @property
    def environment(self) -> dict[str, str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "RAYSCHEDULER_"))}
        return {
            **clean,
            marked.MARK: str(self.folder),
            "RAYSCHEDULER_STATE_DIR": str(self.folder / "state"),
            "RAY_TMPDIR": str(self.folder),
            "RAY_USAGE_STATS_ENABLED": "0",
            "COLUMNS": "200",
        }

    def run(self, *command: object, timeout_s: float = UP_S_MAX) -> subprocess.CompletedProcess[str]:
        arguments = [str(BIN / str(command[0])), *map(str, command[1:])]
        return subprocess.run(
            arguments, env=self.environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout_s
        )

    def healthy(self) -> bool:
        try:
            with urlopen(f"http://127.0.0.1:{self.port}/health", timeout=10) as answer:
                return bool(answer.status == 200)
        except (URLError, OSError):
            return False

    def state(self) -> list[str]:
        return sorted(path.name for path in (self.folder / "state").glob("service-*"))


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    folder = Path(tempfile.mkdtemp(prefix="rs-up-", dir="/tmp"))  # Ray's sockets need a short path
    terminal = Terminal(folder, free_port())
    terminal.catalog.write_text(MODELS)
    try:
        yield terminal
    finally:
        marked.end(str(folder))
        shutil.rmtree(folder, ignore_errors=True)


def until(holds: Callable[[], bool], timeout_s: float, told: Callable[[], str]) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline_s, told()
        time.sleep(0.1)


def test_a_service_in_front_until_ctrl_c(terminal: Terminal) -> None:
    log = terminal.folder / "up.log"
    command = [BIN / "rayscheduler", "up", "--config", terminal.catalog, "--port", terminal.port, "--lend", "300MiB"]
    with log.open("w") as written:
        up = subprocess.Popen(
            list(map(str, command)), env=terminal.environment, stdin=subprocess.DEVNULL, stdout=written, stderr=written
        )
    until(lambda: "up: ask http" in log.read_text() or up.poll() is not None, UP_S_MAX, log.read_text)
    assert up.poll() is None, log.read_text()
    assert "warning: whale needs 1 x 400.0 GiB and fits no node" in log.read_text()
    assert terminal.healthy()

    # Everything finds it without being told where it is.
    loaded = terminal.run("rayscheduler", "load", "s")
    assert (loaded.returncode, loaded.stdout[:14]) == (0, "small runs: sm"), loaded.stderr
    status = json.loads(terminal.run("rayscheduler", "status", "--json").stdout)
    (device,) = status["nodes"][0]["devices"]
    assert (device["capacity_bytes"], device["reserved_bytes"]) == (300 * MIB, 100 * MIB)
    refused = terminal.run("rayscheduler", "load", "whale")
    assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
    assert "the largest device" in refused.stderr
    again = terminal.run("rayscheduler", "up", "--config", terminal.catalog, "--port", terminal.port)
    assert again.returncode == 1
    assert again.stderr.startswith(f"rayscheduler: port {terminal.port} is in use by ")

    up.send_signal(signal.SIGINT)
    assert up.wait(DOWN_S_MAX) == 130, log.read_text()
    assert "small#1 RUNNING on " in log.read_text(), "what happened is told, a line per change"
    assert marked.command_lines(str(terminal.folder)) == []
    assert terminal.state() == []
    assert terminal.run("rayscheduler", "down").returncode == 1, "there is nothing left to take down"


def test_a_ray_that_was_there_before_goes_on(terminal: Terminal) -> None:
    ray_port = free_port()
    started = terminal.run(
        "ray", "start", "--head", "--port", ray_port, "--dashboard-port", free_port(), "--num-cpus", 1,
        "--dashboard-agent-listen-port", free_port(), "--ray-client-server-port", free_port(),
    )  # fmt: skip
    assert started.returncode == 0, started.stderr
    heads = [p for p in marked.processes(str(terminal.folder)) if p.name() == "gcs_server"]
    address = f"127.0.0.1:{ray_port}"

    up = terminal.run(
        "rayscheduler", "up", "--address", address, "--config", terminal.catalog, "--port", terminal.port,
        "--detach", "--json",
    )  # fmt: skip
    assert up.returncode == 0, up.stderr
    assert json.loads(up.stdout)["url"] == f"http://127.0.0.1:{terminal.port}"
    assert "it lends nothing; restart it with" in up.stderr, "this Ray was started without our resources"
    assert terminal.healthy()

    down = terminal.run("rayscheduler", "down")
    assert down.returncode == 0, down.stderr
    assert not terminal.healthy()
    assert [head.status() for head in heads] == [psutil.STATUS_SLEEPING], "Ray is not ours to stop"
    ours = [line for line in marked.command_lines(str(terminal.folder)) if "Serve" in line or "allocator" in line]
    assert ours == []
    assert terminal.state() == []
