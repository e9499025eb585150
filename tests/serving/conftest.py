"""One gateway behind uvicorn, one allocator in memory and two real engines per test."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import aiohttp
import pytest
from yarl import URL

from rayscheduler.cluster.holder import LeaseLimits
from rayscheduler.serving.gateway import Gateway, GatewayLimits
from rayscheduler.serving.relay import RelayLimits
from tests.serving.doubles import Engine, FakeAllocator, serving, under_uvicorn

QUICK = GatewayLimits(
    body_bytes_max=100_000,
    body_idle_s_max=5.0,
    keys_s=0.005,
    leases=LeaseLimits(away_s_max=0.2, pause_s_min=0.001, pause_s_max=0.01, heartbeat_s=0.02),
    relay=RelayLimits(idle_s_max=60.0, sweep_s=0.01, connect_s_max=2.0),
)


@dataclass
class World:
    """Model `m` has two replicas; alias `nick` is `m`."""

    url: str
    gateway: Gateway
    allocator: FakeAllocator
    one: Engine
    two: Engine
    client: aiohttp.ClientSession
    responses: list[aiohttp.ClientResponse] = field(default_factory=list)

    async def ask(self, path: str = "/v1/chat/completions", **options: object) -> aiohttp.ClientResponse:
        if not {"data", "json"} & options.keys():
            options["json"] = {"model": "m", "messages": []}
        response = await self.client.post(URL(self.url + path, encoded=True), **options)  # type: ignore[arg-type]
        self.responses.append(response)
        return response

    async def all_ended(self) -> None:
        """Waits until nothing is held or waited for, here and at the allocator."""
        await self.allocator.until(lambda: not (self.allocator.leases or self.allocator.waiting))
        await self.gateway.leases.flushed()
        assert self.gateway.leases.held == []
        ended = [request_id for batch in self.allocator.released for request_id in batch]
        assert len(ended) == len(set(ended)), "a request was released twice"


@contextlib.asynccontextmanager
async def a_world(limits: GatewayLimits = QUICK) -> AsyncIterator[World]:
    allocator = FakeAllocator()
    gateway = Gateway(allocator, limits, holder="gw")
    async with (
        serving(Engine("one", "key-1")) as one,
        serving(Engine("two", "key-2")) as two,
        under_uvicorn(gateway) as url,
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=20)) as client,
    ):
        allocator.replicas["m"] = [("m#1", one.endpoint, one.key), ("m#2", two.endpoint, two.key)]
        allocator.aliases["nick"] = "m"
        world = World(url, gateway, allocator, one, two, client)
        try:
            yield world
        finally:
            for response in world.responses:
                response.close()


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with a_world() as made:
        yield made
        await made.all_ended()
