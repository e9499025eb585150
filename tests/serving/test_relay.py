"""A request's way to an engine and back, on real sockets."""

from __future__ import annotations

import asyncio
import io
import json
import os

import pytest
from aiohttp import ClientPayloadError, web

from rayscheduler.serving.gateway import GatewayLimits
from rayscheduler.serving.relay import RelayLimits, forwarded_headers, returned_headers
from tests.serving.conftest import QUICK, World, a_world
from tests.serving.doubles import BOUND_S

SSE = {"Content-Type": "text/event-stream"}


def dies(request: web.Request) -> None:
    """The engine's connection breaks, as when its process is killed."""
    assert request.transport is not None
    request.transport.abort()


async def dead_before_first_byte(request: web.Request) -> web.StreamResponse:
    dies(request)
    return web.Response()


async def dead_after_headers(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers=SSE)
    await response.prepare(request)
    dies(request)
    return response


async def test_answer_comes_back_as_the_engine_gave_it(world: World) -> None:
    response = await world.ask(json={"model": "m", "messages": [{"role": "user", "content": "hé"}]})
    assert response.status == 200
    assert await response.read() == world.one.seen[0][1]
    assert response.headers["X-Engine"] == "one"
    assert response.headers["Content-Type"] == "application/json"
    assert world.allocator.asked[0]["holder"] == "gw"


@pytest.mark.parametrize("status", [200, 400, 422, 500, 503])
async def test_status_and_error_bodies_of_engines_pass_through(world: World, status: int) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        return web.Response(status=status, body=b"its own words", headers={"Retry-After": "7"})

    world.one.handler = answer
    response = await world.ask()
    assert (response.status, await response.read()) == (status, b"its own words")
    assert response.headers["Retry-After"] == "7"


async def test_engine_gets_its_own_key_and_none_of_the_clients_secrets(world: World) -> None:
    secrets = {
        "Authorization": "Bearer client-secret",
        "Cookie": "session=secret",
        "X-Api-Key": "secret",
        "X-Request-Id": "abc",
        "X-Rayscheduler-Tier": "data",
    }
    await world.ask(headers=secrets)
    headers = world.one.seen[0][0].headers
    assert headers["Authorization"] == "Bearer key-1"
    assert headers["X-Request-Id"] == "abc"
    assert "secret" not in str(headers)
    assert "X-Rayscheduler-Tier" not in headers
    assert world.allocator.asked[0]["tier"] == "data"


async def test_each_chunk_arrives_before_the_next_one_is_made(world: World) -> None:
    chunks = [os.urandom(1 + 37 * n) for n in range(20)]
    seen_by_client = asyncio.Semaphore(0)

    async def stream(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers=SSE)
        await response.prepare(request)
        for chunk in chunks:
            await response.write(chunk)
            await asyncio.wait_for(seen_by_client.acquire(), BOUND_S)
        return response

    world.one.handler = stream
    response = await world.ask()
    got = []
    while chunk := await response.content.readany():
        got.append(chunk)
        seen_by_client.release()
    assert got == chunks
    assert response.headers["Content-Type"] == "text/event-stream"


async def test_large_bodies_pass_both_ways() -> None:
    limits = GatewayLimits(leases=QUICK.leases, relay=QUICK.relay)
    async with a_world(limits) as world:
        body = json.dumps({"model": "m", "blob": "x" * (3 << 20)}).encode()
        response = await world.ask(data=io.BytesIO(body))
        assert await response.read() == body
        await world.all_ended()


async def test_connections_to_an_engine_are_reused(world: World) -> None:
    for _ in range(4):
        world.allocator.replicas["m"] = [("m#1", world.one.endpoint, world.one.key)]
        await (await world.ask()).read()
    peers = {request.transport and request.get_extra_info("peername") for request, _ in world.one.seen}
    assert len(world.one.seen) == 4
    assert len(peers) == 1


async def test_alias_becomes_the_name_that_the_engine_knows(world: World) -> None:
    await world.ask(json={"model": "nick", "n": 1.0, "messages": ["\ud800é"]})
    assert world.one.json() == {"model": "m", "n": 1.0, "messages": ["\ud800é"]}
    assert world.allocator.asked[0]["model"] == "nick"


async def test_multipart_form_with_an_alias(world: World) -> None:
    form = (
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="model"\r\n\r\n\x00\xff\r\n'
        b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nnick\r\n--b--\r\n'
    )
    headers = {"Content-Type": 'multipart/form-data; boundary="b"'}
    response = await world.ask("/v1/audio/transcriptions", data=form, headers=headers)
    assert response.status == 200
    request, body = world.one.seen[0]
    assert body == form.replace(b"nick", b"m")
    assert request.content_type == "multipart/form-data"


async def test_json_under_a_wrong_content_type_reaches_the_engine_as_json(world: World) -> None:
    response = await world.ask(data=b'{"model": "m"}', headers={"Content-Type": "application/x-www-form-urlencoded"})
    assert response.status == 200
    assert world.one.seen[0][0].content_type == "application/json"


async def test_query_is_kept(world: World) -> None:
    await world.ask("/v1/completions?api-version=1%2F2&x")
    assert world.one.seen[0][0].raw_path == "/v1/completions?api-version=1%2F2&x"


@pytest.mark.parametrize("death", [dead_before_first_byte, dead_after_headers])
async def test_replica_that_dies_before_its_first_byte_is_tried_elsewhere(world: World, death: object) -> None:
    world.one.handler = death  # type: ignore[assignment]
    response = await world.ask()
    assert (response.status, response.headers["X-Engine"]) == (200, "two")
    first, second = (asked["request_id"] for asked in world.allocator.asked)
    assert first != second
    assert world.allocator.unreachable == [("m#1", first)]
    assert world.one.json() == world.two.json()


async def test_replica_that_nobody_listens_for_is_tried_elsewhere(world: World) -> None:
    world.allocator.replicas["m"][0] = ("m#1", "http://127.0.0.1:1", "key")
    response = await world.ask()
    assert response.headers["X-Engine"] == "two"


async def test_port_that_another_engine_has_now_is_tried_elsewhere(world: World) -> None:
    world.allocator.replicas["m"][0] = ("m#1", world.one.endpoint, "a stale key")
    response = await world.ask(headers={"Authorization": "Bearer key-1"})
    assert response.headers["X-Engine"] == "two"
    assert world.allocator.unreachable[0][0] == "m#1"


async def test_second_death_is_the_last(world: World) -> None:
    world.one.handler = world.two.handler = dead_before_first_byte
    response = await world.ask()
    error = (await response.json())["error"]
    assert response.status == 502
    assert (error["code"], error["type"]) == ("replica_lost", "server_error")
    assert "m#2" in error["message"]
    assert len(world.allocator.unreachable) == 2


async def test_retry_goes_on_while_the_allocator_cannot_hear_about_it(world: World) -> None:
    world.one.handler = dead_before_first_byte
    world.allocator.broken = "replica_unreachable"
    response = await world.ask()
    assert response.headers["X-Engine"] == "two"


async def test_death_in_mid_stream_is_an_error_event(world: World) -> None:
    seen_by_client = asyncio.Event()

    async def broken_stream(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers=SSE)
        await response.prepare(request)
        await response.write(b'data: {"choices": []}\n\ndata: {"cho')
        await seen_by_client.wait()
        dies(request)
        return response

    world.one.handler = broken_stream
    response = await world.ask()
    first = await response.content.readany()
    seen_by_client.set()
    rest = await response.content.read()
    assert response.status == 200
    *events, end = (first + rest).split(b"\n\n")
    assert events[:2] == [b'data: {"choices": []}', b'data: {"cho']
    assert json.loads(events[2][len(b"data: ") :])["error"]["code"] == "replica_lost"
    assert end == b""
    assert len(world.allocator.asked) == 1
    await world.allocator.until(lambda: world.allocator.unreachable)


@pytest.mark.parametrize("length", [None, 1000])
async def test_death_in_mid_answer_cuts_the_answer_off(world: World, length: int | None) -> None:
    seen_by_client = asyncio.Event()

    async def broken_answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        response.content_length = length
        await response.prepare(request)
        await response.write(b'{"choices": ')
        await seen_by_client.wait()
        dies(request)
        return response

    world.one.handler = broken_answer
    response = await world.ask()
    await response.content.readany()
    seen_by_client.set()
    with pytest.raises(ClientPayloadError):
        await response.content.read()
    response.close()


@pytest.mark.parametrize("started", [False, True])
async def test_engine_that_falls_silent(started: bool) -> None:
    async def silent(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers=SSE)
        if started:
            await response.prepare(request)
            await response.write(b": hello\n\n")
        await asyncio.Event().wait()
        return response

    limits = GatewayLimits(leases=QUICK.leases, relay=RelayLimits(idle_s_max=0.05, sweep_s=0.01))
    async with a_world(limits) as world:
        world.one.handler = silent
        response = await world.ask()
        text = await response.text()
        assert response.status == (200 if started else 504)
        assert json.loads(text.rpartition("data: ")[2])["error"]["code"] == "engine_silent"
        await world.one.until(lambda: world.one.hung_up)
        await world.all_ended()


async def test_waiting_in_the_queue_is_not_silence() -> None:
    limits = GatewayLimits(leases=QUICK.leases, relay=RelayLimits(idle_s_max=0.02, sweep_s=0.005))
    async with a_world(limits) as world:
        world.allocator.held_back.add("m")
        answer = asyncio.create_task(world.ask())
        beats = len(world.allocator.heartbeats)
        await world.allocator.until(lambda: world.allocator.waiting)
        await world.allocator.until(lambda: len(world.allocator.heartbeats) > beats + 4)  # 80 ms
        world.allocator.grant_all()
        assert (await answer).status == 200
        await world.all_ended()


async def test_many_at_once(world: World) -> None:
    async def one(n: int) -> bytes:
        response = await world.ask(json={"model": "m", "n": n})
        assert response.status == 200
        return await response.read()

    answers = await asyncio.gather(*(one(n) for n in range(100)))
    assert [json.loads(answer)["n"] for answer in answers] == list(range(100))
    await world.all_ended()
    assert world.allocator.exchanges < 100  # many asks, and many ends, in one call


async def test_redirects_are_not_followed(world: World) -> None:
    async def redirect(request: web.Request) -> web.StreamResponse:
        return web.Response(status=307, headers={"Location": "http://127.0.0.1:1/"})

    world.one.handler = redirect
    response = await world.ask(allow_redirects=False)
    assert response.status == 307


def test_headers_of_a_connection_stay_on_it() -> None:
    sent = [
        (b"x-private", b"1"),
        (b"connection", b"X-Private, keep-alive"),
        (b"te", b"trailers"),
        (b"x-kept", b"2"),
        (b"content-type", b"application/json"),
    ]
    assert forwarded_headers(sent) == [("x-kept", "2"), ("Content-Type", "application/json")]
    returned = [(b"Connection", b"close, X-Own"), (b"X-Own", b"1"), (b"Date", b"today"), (b"ETag", b"e")]
    assert returned_headers(returned) == [(b"etag", b"e")]
