"""A limit on everything that a client sends or makes us wait for, and what it gets beyond it."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import pytest
from aiohttp import web

from rayscheduler.serving.relay import RelayLimits
from tests.serving.conftest import QUICK, a_world
from tests.serving.doubles import BOUND_S

SSE = {"Content-Type": "text/event-stream"}


@pytest.mark.parametrize(
    "headers",
    [{"X-Long": "x" * 2000}, {f"X-{n}": "1" for n in range(40)}, {"Cookie": "c" * 2000}],
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/api/v1/models/m/load"])
async def test_too_many_or_too_long_headers(headers: dict[str, str], path: str) -> None:
    async with a_world(replace(QUICK, header_bytes_max=1500, headers_max=30)) as world:
        response = await world.ask(path, headers=headers)
        assert response.status == 431
        assert (await response.json())["error"]["code"] == "headers_too_large"
        assert (world.allocator.asked, world.allocator.verbs) == ([], [])


async def test_too_long_a_path() -> None:
    async with a_world(replace(QUICK, header_bytes_max=1500)) as world:
        assert (await world.client.get(f"{world.url}/v1/models/{'x' * 2000}")).status == 431
        assert (await world.client.get(f"{world.url}/v1/models?{'x' * 2000}")).status == 431
        assert (await world.ask()).status == 200


async def test_body_that_comes_byte_by_byte_without_end() -> None:
    async with a_world(replace(QUICK, body_s_max=0.1)) as world:
        address = urlsplit(world.url)
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: h\r\nContent-Length: 99999\r\n\r\n")

        async def drip() -> None:
            while True:
                writer.write(b" ")
                await asyncio.sleep(0.005)

        dripping = asyncio.create_task(drip())
        said = (await asyncio.wait_for(reader.readuntil(b"}}"), BOUND_S)).decode()
        dripping.cancel()
        assert "408 " in said
        assert "not whole after 0.1 s" in said
        assert world.allocator.asked == []
        writer.transport.abort()


@pytest.mark.parametrize(
    ("limit_ms", "said", "asked"),
    [(None, None, None), (None, "700", 700), (500, None, 500), (500, "700", 500), (900, "700", 700)],
)
async def test_how_long_a_request_may_wait(limit_ms: int | None, said: str | None, asked: int | None) -> None:
    async with a_world(replace(QUICK, queue_wait_ms_max=limit_ms)) as world:
        headers = {} if said is None else {"x-rayscheduler-deadline-ms": said}
        assert (await world.ask(headers=headers)).status == 200
        deadline_ms = world.allocator.asked[0]["deadline_ms"]
        assert deadline_ms == asked if asked is None else asked - 400 < deadline_ms <= asked


@pytest.mark.parametrize("started", [False, True])
async def test_an_answer_that_never_ends(started: bool) -> None:
    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers=SSE)
        if started:
            await response.prepare(request)
        while True:
            if started:
                await response.write(b"data: 1\n\n")
            await asyncio.sleep(0.005)

    limits = replace(QUICK, relay=RelayLimits(answer_s_max=0.1, sweep_s=0.01))
    async with a_world(limits) as world:
        world.one.handler = endless
        response = await world.ask()
        text = await response.text()
        assert response.status == (200 if started else 504)
        assert json.loads(text.rpartition("data: ")[2])["error"]["code"] == "answer_timeout"
        await world.one.until(lambda: world.one.hung_up)
        await world.all_ended()


async def test_a_slow_engine_is_not_the_clients_fault() -> None:
    """The time before the first byte is the engine's; only what is not taken counts against a client."""
    async with a_world(replace(QUICK, relay=RelayLimits(client_idle_s_max=0.05, sweep_s=0.005))) as world:

        async def late(request: web.Request) -> web.StreamResponse:
            beats = len(world.allocator.heartbeats)
            await world.allocator.until(lambda: len(world.allocator.heartbeats) > beats + 10)  # 200 ms
            return web.json_response({"late": True})

        world.one.handler = late
        response = await world.ask()
        answer: Any = await response.json()
        assert (response.status, answer) == (200, {"late": True})
        await world.all_ended()
