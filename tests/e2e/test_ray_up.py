"""`ray up cluster.yaml`, as a stranger would: a head and a worker over ssh, a model asked over HTTP, all taken down.

The machines are this one, behind sshds of their own (loopback_node.py); the file is the repository's, with
only what a stranger has to change: addresses, keys, ports, and packages that are installed already.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from getpass import getuser
from pathlib import Path
from secrets import token_hex
from typing import Any

import pytest
import yaml

from tests.e2e.loopback_node import LoopbackNode, NoSshd, forget_connections, free_port

REPOSITORY = Path(__file__).resolve().parents[2]
RAY = Path(sys.executable).parent / "ray"
MIB = 2**20
HEAD_IP, WORKER_IP = "127.0.0.1", "127.0.0.2"
UP_S_MAX = 240.0
DOWN_S_MAX = 120.0
WORKER_S_MAX = 180.0
LOOK_AGAIN_S = 0.25

# Too much for the head, which lends 150 MiB; the worker lends 300.
MODELS = """\
models:
  - name: echo
    engine: simulated
    memory: 200MiB
    simulate: {load: 200ms, reply: 'a loopback answer'}
"""


@dataclass(frozen=True)
class LoopbackCluster:
    """Two machines, and the cluster's file as it is for them."""

    head: LoopbackNode
    worker: LoopbackNode
    gcs_port: int = field(default_factory=free_port)
    dashboard_port: int = field(default_factory=free_port)
    http_port: int = field(default_factory=free_port)
    ray_token: str = field(default_factory=token_hex)
    admin_key: str = field(default_factory=token_hex)

    @property
    def name(self) -> str:
        return f"loopback-{self.gcs_port}"

    def launch(self, verb: str, timeout_s: float) -> None:
        """`ray up` or `ray down`, as from another machine."""
        done = subprocess.run(
            [str(RAY), verb, "-y", str(self.head.folder / "cluster.yaml")],
            env=self.head.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout_s,
        )
        assert done.returncode == 0, done.stdout

    def launcher_log(self) -> str:
        """What the head says about starting the worker."""
        logs = self.head.folder.glob("ray/session_latest/logs/monitor.*")
        return "\n".join(log.read_text(errors="replace")[-3000:] for log in sorted(logs))

    def write_file(self) -> None:
        cluster = yaml.safe_load((REPOSITORY / "cluster.yaml").read_text())
        catalog = self.head.folder / "models.yaml"
        catalog.write_text(MODELS)
        mounts = {"~/models.yaml": str(catalog), "~/rayscheduler/deployments": str(REPOSITORY / "deployments")}
        for remote, secret in (("~/.ray/auth_token", self.ray_token), ("~/admin.key", self.admin_key)):
            mounts[remote] = str(self.head.folder / cluster["file_mounts"][remote])
            Path(mounts[remote]).write_text(secret + "\n")
            Path(mounts[remote]).chmod(0o600)
        assert set(cluster["file_mounts"]) == (set(mounts) | {"~/rayscheduler"}) - {"~/rayscheduler/deployments"}
        cluster |= {
            "cluster_name": self.name,
            "provider": {"type": "local", "head_ip": HEAD_IP, "worker_ips": [WORKER_IP]},
            "auth": {"ssh_user": getuser(), "ssh_private_key": str(self.head.key)},
            "file_mounts": mounts,
            "setup_commands": [],
            "head_start_ray_commands": self._changed(
                cluster["head_start_ray_commands"],
                {
                    "ulimit -n 65536;": "",
                    "--port=6379": f"--port={self.gcs_port} --dashboard-port={self.dashboard_port}",
                    "rayscheduler resources": "rayscheduler resources --lend 150MiB",
                    "--port 8000": f"--port {self.http_port}",
                },
            ),
            "worker_start_ray_commands": self._changed(
                cluster["worker_start_ray_commands"],
                {
                    "ulimit -n 65536;": "",
                    ":6379": f":{self.gcs_port} --node-ip-address={WORKER_IP}",
                    "rayscheduler resources": "rayscheduler resources --lend 300MiB",
                },
            ),
        }
        (self.head.folder / "cluster.yaml").write_text(yaml.safe_dump(cluster))

    @staticmethod
    def _changed(commands: list[str], changes: dict[str, str]) -> list[str]:
        """For machines that share their ports, their memory and their limits with all that runs here."""
        for was, is_now in changes.items():
            assert sum(was in command for command in commands) == 1, f"cluster.yaml has changed: where is {was!r}?"
            commands = [command.replace(was, is_now) for command in commands]
        return commands


@pytest.fixture
def cluster() -> Iterator[LoopbackCluster]:
    try:
        head = LoopbackNode(HEAD_IP)
        worker = LoopbackNode(WORKER_IP, beside=head)
    except NoSshd as problem:
        pytest.skip(f"ray up needs a machine to log in to: {problem}")
    with ExitStack() as machines:
        machines.enter_context(head)
        machines.enter_context(worker)
        cluster = LoopbackCluster(head, worker)
        machines.callback(forget_connections, cluster.name)
        cluster.write_file()
        yield cluster


def ask(url: str, key: str, body: dict[str, Any] | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
    request = urllib.request.Request(url, data, headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def until(holds: Callable[[], bool], timeout_s: float, told: Callable[[], str]) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline_s, told()
        time.sleep(LOOK_AGAIN_S)


def test_ray_up_serves_and_ray_down_leaves_nothing(cluster: LoopbackCluster) -> None:
    gateway, key = f"http://127.0.0.1:{cluster.http_port}", cluster.admin_key

    cluster.launch("up", UP_S_MAX)

    def capacities() -> list[int]:
        devices = [device for node in ask(f"{gateway}/api/v1/nodes", key) for device in node["devices"]]
        return sorted(device["capacity_bytes"] // MIB for device in devices)

    until(lambda: capacities() == [150, 300], WORKER_S_MAX, cluster.launcher_log)

    with pytest.raises(urllib.error.HTTPError, match="401"):
        ask(f"{gateway}/v1/models", "another key")
    question = {"model": "echo", "messages": [{"role": "user", "content": "Who is there?"}]}
    answer = ask(f"{gateway}/v1/chat/completions", key, question)
    assert answer["choices"][0]["message"]["content"].strip() == "a loopback answer"

    dashboard = f"http://127.0.0.1:{cluster.dashboard_port}/api/serve/applications/"
    with pytest.raises(urllib.error.HTTPError, match=r"40[13]"):
        ask(dashboard, key)  # Ray's token is another secret
    applications = ask(dashboard, cluster.ray_token)["applications"]
    assert {name: application["status"] for name, application in applications.items()} == {
        "rayscheduler": "RUNNING",
        "rs-replica:echo@1": "RUNNING",
    }

    cluster.launch("down", DOWN_S_MAX)
    until(lambda: not cluster.head.command_lines(), 30, lambda: "\n".join(cluster.head.command_lines()))
    # `ray down` stops Ray on the head. Workers give up when they miss it, but Ray forgets their log monitor.

    def left_on_worker() -> list[str]:
        return [line for line in cluster.worker.command_lines() if "log_monitor" not in line]

    until(lambda: not left_on_worker(), 90, lambda: "\n".join(left_on_worker()))
