"""What a runner does with its engine when it is told to sleep or wake: a real engine, an agent of a few lines."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest

from rayscheduler.cluster import engine_host as module
from rayscheduler.cluster.engine_host import EngineHost
from rayscheduler.core.types import ReplicaId
from rayscheduler.engines import EngineRequest
from rayscheduler.errors import EngineError

A = ReplicaId("a#1")
KEEPS = {0: 30}
WITHIN_S = 20.0
Up = Callable[..., Awaitable[EngineHost]]


class Agent:
    """Says what it was asked, and refuses what it is told to refuse."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Mapping[int, int]]] = []
        self.problem = ""

    async def await_shrunk(self, kept: Mapping[int, int]) -> None:
        self.asked.append(("shrunk", dict(kept)))
        if self.problem:
            raise EngineError(self.problem)

    async def await_room(self, needed: Mapping[int, int]) -> None:
        self.asked.append(("room", dict(needed)))

    async def memory_back(self, pids: list[int]) -> None:
        pass


@pytest.fixture
def agent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Agent:
    agent = Agent()
    node = SimpleNamespace(get_node_id=lambda: "aa")
    monkeypatch.setattr(module.ray, "get_runtime_context", lambda: node)
    monkeypatch.setattr(module.ray.util, "get_node_ip_address", lambda: "127.0.0.1")
    monkeypatch.setattr(module, "AgentLine", lambda node_id, replica: agent)
    monkeypatch.setattr(module, "_log_path", lambda request: tmp_path / "log")
    return agent


@pytest.fixture
async def up(agent: Agent) -> AsyncIterator[Up]:
    """Brings an engine up; at the end it is gone."""
    hosts: list[EngineHost] = []

    async def bring_up(visible: bool = False, sleeps: bool = True, **simulate: object) -> EngineHost:
        host = EngineHost(A, "simulated", {0: 100})
        hosts.append(host)
        devices = ("GPU-a",) if visible else ()
        plan = {"load": 0, "sleep": 0, "wake": 0, **simulate}
        request = EngineRequest("a", A, simulate=plan, sleep=sleeps, visible_devices=devices)
        await (await host.start(request)).wait_ready(WITHIN_S)
        return host

    yield bring_up
    for host in hosts:
        await host.end(0)


@pytest.mark.parametrize("on_gpu", [True, False])
async def test_asleep_its_memory_is_back_and_it_wakes_when_there_is_room(up: Up, agent: Agent, on_gpu: bool) -> None:
    host = await up(visible=on_gpu)
    await host.sleep(KEEPS, WITHIN_S)
    assert agent.asked == ([("shrunk", KEEPS)] if on_gpu else [])
    await host.wake(KEEPS, WITHIN_S)
    assert agent.asked[1:] == ([("room", {0: 70})] if on_gpu else []), "what it keeps it has already"


async def test_one_whose_memory_does_not_come_back_does_not_sleep(up: Up, agent: Agent) -> None:
    host = await up(visible=True)
    agent.problem = "a#1 still holds 60.0 GiB of device 0"
    with pytest.raises(EngineError, match="still holds"):
        await host.sleep(KEEPS, WITHIN_S)


async def test_what_the_engine_refuses_is_told(up: Up) -> None:
    host = await up(fail="wake")
    await host.sleep(KEEPS, WITHIN_S)
    with pytest.raises(EngineError, match=r"did not wake: HTTP 500 from /wake_up: .*simulated failure to wake"):
        await host.wake(KEEPS, WITHIN_S)


async def test_one_that_takes_too_long_has_failed(up: Up) -> None:
    host = await up(sleep=3_600_000)
    with pytest.raises(EngineError, match=r"did not sleep within 0\.05 s"):
        await host.sleep(KEEPS, 0.05)


async def test_one_that_ends_on_the_way_says_how(up: Up) -> None:
    host = await up(sleep=3_600_000)
    going = asyncio.ensure_future(host.sleep(KEEPS, WITHIN_S))
    await asyncio.sleep(0)
    assert host._engine is not None
    os.kill(host._engine.pid, signal.SIGKILL)
    with pytest.raises(EngineError, match="the engine was killed by SIGKILL"):
        await going


async def test_one_that_was_not_started_for_it_does_not_sleep(up: Up) -> None:
    host = await up(sleeps=False)
    with pytest.raises(EngineError, match="without the means to sleep"):
        await host.sleep(KEEPS, WITHIN_S)
