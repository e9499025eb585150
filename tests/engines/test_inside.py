"""What runs inside an engine's own environment: the guard before its HTTP server, and the way of the key."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rayscheduler.engines import EngineRequest, by_name
from rayscheduler.engines.inside.rayscheduler_guard import COUNT_PATH, KEY_ENV, Guard
from rayscheduler.engines.prometheus import sum_of
from tests.engines.conftest import Start, simulated
from tests.engines.golden import MODELS
from tests.engines.pids import BOUND_S

Sent = list[dict[str, Any]]


class Server:
    """An ASGI application that notes who came, behind a guard."""

    def __init__(self) -> None:
        self.came: list[str] = []
        self.guard = Guard(self._answer)

    async def _answer(self, scope: Any, receive: Any, send: Any) -> None:
        self.came.append(scope.get("path", scope["type"]))
        self.in_flight = await self.ask(COUNT_PATH, "Bearer right")
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def ask(self, path: str, *keys: str, kind: str = "http") -> Sent:
        sent: Sent = []

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        headers = [(b"authorization", key.encode()) for key in keys]
        await self.guard({"type": kind, "path": path, "headers": headers}, None, send)
        return sent


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    monkeypatch.setenv(KEY_ENV, "right")
    return Server()


async def test_nobody_comes_in_without_the_key(server: Server) -> None:
    for path in ("/sleep", "/wake_up", "/v1/models", "/tokenize", "/health/../sleep", "//sleep", "/healthz"):
        for keys in ((), ("right",), ("Bearer wrong",), ("Bearer ",), ("bearer right",), ("Bearer right", "Bearer x")):
            assert (await server.ask(path, *keys))[0]["status"] == 401
    assert server.came == []
    assert (await server.ask("/sleep", "Bearer right"))[0]["status"] == 200
    assert server.came == ["/sleep"]


async def test_health_and_metrics_are_for_everybody(server: Server) -> None:
    for path in ("/health", "/metrics"):
        assert (await server.ask(path))[0]["status"] == 200


async def test_a_websocket_is_closed_before_it_is_open(server: Server) -> None:
    assert await server.ask("/v1/realtime", kind="websocket") == [{"type": "websocket.close", "code": 1008}]


async def test_starting_and_ending_are_let_through(server: Server) -> None:
    guard_scope = {"type": "lifespan"}

    async def send(message: dict[str, Any]) -> None:
        pass

    await server.guard(guard_scope, None, send)
    assert server.came == ["lifespan"]


async def test_it_counts_who_is_in(server: Server) -> None:
    await server.ask("/v1/models", "Bearer right")
    assert json.loads(server.in_flight[1]["body"]) == {"in_flight": 1}
    assert json.loads((await server.ask(COUNT_PATH, "Bearer right"))[1]["body"]) == {"in_flight": 0}


async def test_a_guard_without_a_key_lets_nobody_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY_ENV, raising=False)
    for keys in ((), ("Bearer ",), ("Bearer None",)):
        assert (await Server().ask("/v1/models", *keys))[0]["status"] == 401


def test_sglang_gets_its_key_where_nobody_sees_it_and_its_devices_by_number(tmp_path: Path) -> None:
    """With stand-ins for the package, which says its arguments and what others see of them, and for NVML."""
    (tmp_path / "pynvml.py").write_text(
        "nvmlInit = nvmlShutdown = lambda: None\n"
        "nvmlDeviceGetHandleByUUID = ['GPU-x', 'GPU-a', 'GPU-y', 'GPU-b'].index\n"
        "nvmlDeviceGetIndex = int\n"
    )
    package = tmp_path / "sglang"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "launch_server.py").write_text(
        "import os, sys\n"
        "if __name__ == '__main__':\n"
        "    seen = open('/proc/self/cmdline').read().split('\\0')[2:-1]\n"
        "    devices = os.environ['CUDA_VISIBLE_DEVICES'], os.environ['CUDA_DEVICE_ORDER']\n"
        "    print(sys.argv[1:], seen, devices, sep='|')\n"
    )
    request = EngineRequest(
        "m",
        "m#1",
        source=str(MODELS / "llama-8b"),
        context_length=1024,
        device_bytes=(40 << 30,),
        device_capacity_bytes=(80 << 30,),
        visible_devices=("GPU-a",),
        backend="nvidia",
    )
    argv = by_name("sglang").command(request, 1234, "the-key", "10.0.0.1").argv
    assert argv[0] == sys.executable
    environment = {"PYTHONPATH": str(tmp_path), KEY_ENV: "the-key", "CUDA_VISIBLE_DEVICES": "GPU-b,GPU-a"}
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=True)
    told, seen, devices = done.stdout.strip().split("|")
    assert told == str([*argv[2:], "--api-key", "the-key"])
    assert seen == str(list(argv[2:]))
    assert devices == str(("3,1", "PCI_BUS_ID"))


def test_gauges_are_summed_over_ranks_and_names() -> None:
    page = (
        "# HELP vllm:num_requests_running Number of requests.\n# TYPE vllm:num_requests_running gauge\n"
        'vllm:num_requests_running{engine="0",model_name="a } b"} 3.0\n'
        'vllm:num_requests_running{engine="1",model_name="x"} 2.0 1700000000000\n'
        "vllm:num_requests_waiting 1\n"
        'vllm:num_requests_waiting_by_reason{reason="capacity"} 9\n'
        "vllm:other NaN\n"
    )
    assert sum_of("vllm:num_requests_running", "vllm:num_requests_waiting")(page) == 6
    with pytest.raises(ValueError, match="the page has no vllm:other or none"):
        sum_of("vllm:other", "none")(page)


async def test_a_simulated_engine_says_what_it_has_in_flight(start: Start) -> None:
    engine = start("simulated", simulated())
    await engine.wait_ready(BOUND_S)
    assert await engine.in_flight() == 0
    await engine.stop()
    assert await engine.in_flight() is None
