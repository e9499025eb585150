"""Clients that go away, and an allocator that does: nothing stays held, nothing is lost."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from urllib.parse import urlsplit

import pytest
from aiohttp import web

from rayscheduler.errors import AllocatorUnavailable
from rayscheduler.serving.gateway import Gateway
from rayscheduler.serving.relay import RelayLimits
from tests.serving.conftest import QUICK, World, a_world
from tests.serving.doubles import BOUND_S, FakeAllocator, rejection


async def endless(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    await response.write(b"data: 1\n\n")
    await asyncio.Event().wait()
    return response


async def never_answers(request: web.Request) -> web.StreamResponse:
    await asyncio.Event().wait()
    return web.Response()


async def hang_up(request: asyncio.Task[object]) -> None:
    request.cancel()
    await asyncio.gather(request, return_exceptions=True)


async def test_client_hangs_up_in_the_queue(world: World) -> None:
    world.allocator.held_back.add("m")
    request = asyncio.create_task(world.ask())
    await world.allocator.until(lambda: world.allocator.waiting)
    await hang_up(request)
    await world.allocator.until(lambda: not world.allocator.waiting)
    await world.all_ended()
    assert world.one.seen == []


async def test_client_hangs_up_before_the_first_byte(world: World) -> None:
    world.one.handler = never_answers
    request = asyncio.create_task(world.ask())
    await world.one.until(lambda: world.one.seen)
    await hang_up(request)
    await world.one.until(lambda: world.one.hung_up)
    await world.all_ended()
    assert len(world.allocator.asked) == 1


async def test_client_hangs_up_while_it_is_answered(world: World) -> None:
    world.one.handler = endless
    response = await world.ask()
    assert await response.content.readany() == b"data: 1\n\n"
    response.close()
    await world.one.until(lambda: world.one.hung_up)
    await world.all_ended()


async def test_client_hangs_up_while_it_sends_its_body(world: World) -> None:
    address = urlsplit(world.url)
    _, writer = await asyncio.open_connection(address.hostname, address.port)
    writer.write(b'POST /v1/completions HTTP/1.1\r\nHost: h\r\nContent-Length: 99\r\n\r\n{"model"')
    await writer.drain()
    writer.close()
    await writer.wait_closed()
    assert (await world.ask()).status == 200
    assert len(world.allocator.asked) == 1


async def test_hundred_clients_hang_up_at_once(world: World) -> None:
    world.one.handler = world.two.handler = endless
    responses = await asyncio.gather(*(world.ask() for _ in range(100)))
    for response in responses:
        response.close()
    await world.all_ended()
    await world.one.until(lambda: world.one.hung_up == 50)


@pytest.mark.parametrize("limit", ["client_idle_s_max", "answer_s_max"])
async def test_client_that_stops_reading_loses_its_lease(limit: str) -> None:
    async def flood(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        while True:
            await response.write(b"data: more\n\n" * 10_000)

    limits = replace(QUICK, relay=RelayLimits(sweep_s=0.01, **{limit: 0.1}))
    async with a_world(limits) as world:
        world.one.handler = flood
        address = urlsplit(world.url)
        _, writer = await asyncio.open_connection(address.hostname, address.port, limit=1)
        writer.write(b'POST /v1/completions HTTP/1.1\r\nHost: h\r\nContent-Length: 14\r\n\r\n{"model": "m"}')
        await world.one.until(lambda: world.one.hung_up)
        await world.all_ended()
        writer.transport.abort()


async def test_server_that_cancels_the_request_itself() -> None:
    """Ray Serve cancels the task of a client that has gone, and may never say `http.disconnect`."""
    allocator = FakeAllocator()
    allocator.replicas["m"] = [("m#1", "http://127.0.0.1:1", "key")]
    allocator.held_back.add("m")
    body = {"type": "http.request", "body": b'{"model": "m"}'}
    messages = asyncio.Queue[dict[str, object]]()
    messages.put_nowait(body)
    sent: list[object] = []

    async def send(message: object) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": []}
    async with Gateway(allocator, QUICK).running() as gateway:
        request = asyncio.create_task(gateway(scope, messages.get, send))
        await allocator.until(lambda: allocator.waiting)
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
        await allocator.until(lambda: not allocator.waiting)
        await gateway.leases.flushed()
    assert sent == []


async def test_allocator_that_restarts_is_asked_again_for_the_same_request(world: World) -> None:
    world.allocator.away_for = 5
    response = await world.ask()
    assert response.status == 200
    ids = {asked["request_id"] for asked in world.allocator.asked}
    assert len(world.allocator.asked) > 1
    assert len(ids) == 1


async def test_allocator_that_dies_while_a_request_waits(world: World) -> None:
    world.allocator.held_back.add("m")
    request = asyncio.create_task(world.ask(headers={"X-Rayscheduler-Deadline-Ms": "60000"}))
    await world.allocator.until(lambda: world.allocator.waiting)
    world.allocator.held_back.clear()
    for waiter in world.allocator.waiting.values():
        waiter.set_exception(AllocatorUnavailable("It was killed."))
    assert (await request).status == 200
    first, second = world.allocator.asked
    assert first["request_id"] == second["request_id"]
    assert second["deadline_ms"] <= first["deadline_ms"]


async def test_allocator_that_stays_away_is_a_503(world: World) -> None:
    world.allocator.away = True
    response = await world.ask()
    assert response.status == 503
    assert response.headers["Retry-After"] == "1"
    assert (await response.json())["error"]["code"] == "allocator_unavailable"
    world.allocator.away = False
    await world.gateway.leases.flushed()
    assert {"".join(batch) for batch in world.allocator.released} == {world.allocator.asked[0]["request_id"]}


async def test_client_hangs_up_while_the_allocator_is_away(world: World) -> None:
    world.allocator.away = True
    request = asyncio.create_task(world.ask())
    await world.allocator.until(lambda: world.allocator.asked)
    await hang_up(request)
    world.allocator.away = False
    await world.all_ended()


async def test_releases_wait_for_the_allocator(world: World) -> None:
    release_stream = asyncio.Event()

    async def answer_later(request: web.Request) -> web.StreamResponse:
        await asyncio.wait_for(release_stream.wait(), BOUND_S)
        return web.Response(body=b"late")

    world.one.handler = answer_later
    request = asyncio.create_task(world.ask())
    await world.allocator.until(lambda: world.allocator.leases)
    world.allocator.away = True
    release_stream.set()
    assert await (await request).read() == b"late"
    assert world.allocator.leases
    world.allocator.away = False
    await world.all_ended()


async def test_heartbeat_says_what_is_held(world: World) -> None:
    world.one.handler = endless
    response = await world.ask()
    request_id = world.allocator.asked[0]["request_id"]
    await world.allocator.until(lambda: ("gw", [[request_id, "m#1"]]) in world.allocator.heartbeats)
    response.close()
    await world.all_ended()
    beats = len(world.allocator.heartbeats)
    await world.allocator.until(lambda: ("gw", []) in world.allocator.heartbeats[beats:])


async def test_allocator_that_took_us_for_dead_is_asked_anew(world: World) -> None:
    world.allocator.held_back.add("m")
    request = asyncio.create_task(world.ask())
    await world.allocator.until(lambda: world.allocator.waiting)
    world.allocator.held_back.clear()
    for waiter in world.allocator.waiting.values():
        waiter.set_exception(RuntimeError("The holder is lost."))
    assert (await request).status == 200
    assert len({asked["request_id"] for asked in world.allocator.asked}) == 2


async def test_cancelled_twice_by_the_allocator_is_a_503(world: World) -> None:
    world.allocator.rejections["m"] = rejection("cancelled", 499)
    assert (await world.ask()).status == 503


async def test_gateway_gives_back_all_that_it_holds_when_it_stops() -> None:
    async with a_world() as world:
        world.one.handler = endless
        await world.ask()
        assert world.allocator.leases
    assert not world.allocator.leases
