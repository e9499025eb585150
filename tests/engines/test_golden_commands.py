"""What engines are started with: in every situation exactly the command that is written down, and never too much."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from rayscheduler.engines import EngineRequest, by_name
from rayscheduler.engines.model_needs import model_needs
from tests.engines.golden import FILES, HOST, KEY, MODELS, PORT, command_of, request_of, written

GIB = 1 << 30


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.stem)
def test_the_command_is_the_one_written_down(file: Path) -> None:
    situation = json.loads(file.read_text())
    renewed = written({**situation, "command": command_of(situation)})
    assert file.read_text() == renewed, "if this is right, run: python -m tests.engines.golden"


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.stem)
def test_the_key_is_not_in_argv(file: Path) -> None:
    request = request_of(json.loads(file.read_text()))
    command = by_name(file.stem.split("-")[0]).command(request, PORT, KEY, HOST)
    assert KEY not in " ".join(command.argv)


@pytest.mark.parametrize(
    "file", [file for file in FILES if file.stem.startswith("vllm") and "hub-id" not in file.stem], ids=lambda p: p.stem
)
def test_vllm_stays_within_each_devices_reservation(file: Path) -> None:
    """Written without the code under test: what is needed anyway, and the KV cache, fit into what is promised on
    every device, and on one of them exactly; what has to be free at the start is no more than what is promised."""
    request = request_of(json.loads(file.read_text()))
    argv = by_name("vllm").command(request, PORT, KEY, HOST).argv
    kv_cache = int(argv[argv.index("--kv-cache-memory-bytes") + 1])
    utilization = float(argv[argv.index("--gpu-memory-utilization") + 1])
    needs = model_needs(request, "vllm")
    assert needs is not None
    slack = []
    for index, parts in enumerate(needs.parts):
        anyway = sum(parts.values()) - parts["kv_cache"]
        slack.append(request.device_bytes[index] - anyway - kv_cache)
        before_the_first_tensor = request.device_bytes[index] - parts["context"]
        assert utilization * request.device_capacity_bytes[index] <= before_the_first_tensor
    assert min(slack) == 0


def test_the_two_nodes_of_a_replica_agree() -> None:
    """Each runs its own ranks of one group: all that is common is the same on both."""
    argvs = {}
    for role in ("leader", "follower"):
        situation = json.loads((MODELS.parent / f"vllm-two-nodes-{role}.json").read_text())
        argvs[role] = by_name("vllm").command(request_of(situation), PORT, KEY, HOST).argv
    leader, follower = (" ".join(argvs[role]) for role in ("leader", "follower"))
    for flag in ("tensor-parallel-size", "kv-cache-memory-bytes", "nnodes", "master-addr", "master-port"):
        pattern = rf"--{flag} (\S+)"
        assert re.findall(pattern, leader) == re.findall(pattern, follower) != []
    assert ("--headless" in argvs["leader"], "--headless" in argvs["follower"]) == (False, True)


@pytest.mark.parametrize(
    ("backend", "asked", "nodes", "sleeps"),
    [
        ("nvidia", True, 1, True),
        ("rocm", True, 1, True),
        ("cpu", True, 1, False),
        ("nvidia", False, 1, False),
        ("nvidia", True, 2, False),
    ],
)
def test_where_vllm_can_sleep(backend: str, asked: bool, nodes: int, sleeps: bool) -> None:
    request = EngineRequest("m", "m#1", source="org/m", backend=backend, sleep=asked, node_count=nodes)
    calls = by_name("vllm").sleep_calls(request)
    assert (calls is not None) is sleeps
    if calls is not None:
        assert (calls.sleep.method, calls.sleep.path, calls.wake.path) == ("POST", "/sleep?level=1", "/wake_up")


def test_engines_that_cannot_sleep_say_so() -> None:
    for name in ("transformers", "command", "llama-cpp"):
        assert by_name(name).sleep_calls(EngineRequest("m", "m#1", backend="nvidia", sleep=True)) is None
