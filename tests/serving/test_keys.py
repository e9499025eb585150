"""Who gets in over HTTP, and what each key may do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from rayscheduler.cluster.keys import Key, digest_of, new_token
from tests.serving.conftest import QUICK, World, a_world
from tests.serving.doubles import rejection

TOKEN, OTHER = new_token(), new_token()
BOTH = ("inference", "admin")
MODEL = {"aliases": [], "engine": "simulated", "state": "unloaded", "pinned": False}


def bearer(token: str = TOKEN) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


async def let_in(world: World, *keys: Key) -> None:
    world.allocator.api_keys = list(keys)
    await world.allocator.known_keys()


def key(token: str = TOKEN, **settings: Any) -> Key:
    return Key(**{"name": "team-a", "digest": digest_of(token), **settings})


async def error_of(response: aiohttp.ClientResponse) -> dict[str, Any]:
    error: dict[str, Any] = (await response.json())["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


@pytest.fixture
async def guarded() -> AsyncIterator[World]:
    """A service that other machines reach."""
    async with a_world(replace(QUICK, needs_key=True)) as made:
        yield made
        await made.all_ended()


async def test_without_any_key_this_machine_may_do_all(world: World) -> None:
    assert (await world.ask()).status == 200
    assert (await world.client.post(f"{world.url}/api/v1/models/m/load")).status == 200


@pytest.mark.parametrize(
    "headers",
    [{}, bearer("wrong"), bearer(OTHER), bearer(TOKEN + "x"), bearer(""), {"Authorization": f"Basic {TOKEN}"}],
)
@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/m", "/api/v1/status", "/api/v1/nothing"])
async def test_nobody_looks_without_a_key(world: World, headers: dict[str, str], path: str) -> None:
    await let_in(world, key())
    response = await world.client.get(world.url + path, headers=headers)
    assert response.status == 401
    assert response.headers["WWW-Authenticate"] == "Bearer"
    assert (await error_of(response))["code"] in ("missing_api_key", "invalid_api_key")
    assert TOKEN not in await response.text()


async def test_nobody_asks_or_acts_without_a_key_and_nothing_of_it_is_read(world: World) -> None:
    await let_in(world, key(scopes=BOTH))
    assert (await world.ask(data=b"not json")).status == 401
    assert (await world.client.post(f"{world.url}/api/v1/models/m/unload")).status == 401
    assert world.allocator.asked == []
    assert world.allocator.verbs == []


async def test_the_last_key_revoked_opens_nothing_where_others_reach_it(guarded: World) -> None:
    assert (await guarded.ask()).status == 401
    await let_in(guarded, key())
    assert (await guarded.ask(headers=bearer())).status == 200
    await let_in(guarded)
    assert (await guarded.ask()).status == 401
    assert (await guarded.ask(headers=bearer())).status == 401


async def test_health_and_the_page_are_for_everybody(guarded: World) -> None:
    for path in ("/health", "/", "/page/page.js"):
        assert (await guarded.client.get(guarded.url + path)).status == 200


async def test_a_gateway_that_knows_no_keys_yet_lets_nobody_in(world: World) -> None:
    world.gateway.keyring._table = None
    world.allocator.broken = "keys"
    response = await world.ask()
    assert (response.status, response.headers["Retry-After"]) == (503, "1")
    world.allocator.broken = None


@pytest.mark.parametrize("header", ["Authorization", "X-Api-Key", "Api-Key"])
async def test_the_engine_sees_nothing_of_the_key(world: World, header: str) -> None:
    await let_in(world, key())
    value = f"Bearer {TOKEN}" if header == "Authorization" else TOKEN
    assert (await world.ask(headers={header: value})).status == 200
    request, body = world.one.seen[0]
    assert request.headers["Authorization"] == "Bearer key-1"
    assert TOKEN not in str(request.headers)
    assert TOKEN.encode() not in body


async def test_a_revoked_key_is_refused_and_the_keys_hold_while_the_allocator_is_away(world: World) -> None:
    await let_in(world, key(), key(OTHER, name="team-b"))
    world.allocator.broken = "keys"
    assert (await world.ask(headers=bearer())).status == 200
    world.allocator.broken = None
    await let_in(world, key(OTHER, name="team-b"))
    assert (await world.ask(headers=bearer())).status == 401
    assert (await world.ask(headers=bearer(OTHER))).status == 200


async def test_scopes(world: World) -> None:
    await let_in(world, key(), key(OTHER, name="ops", scopes=("admin",)))
    load = f"{world.url}/api/v1/models/m/load"
    assert (await world.client.get(f"{world.url}/api/v1/status", headers=bearer())).status == 200
    refused = await world.client.post(load, headers=bearer())
    error = await error_of(refused)
    assert (refused.status, error["code"], error["type"]) == (403, "insufficient_scope", "permission_error")
    assert world.allocator.verbs == []
    assert (await world.client.post(load, headers=bearer(OTHER))).status == 200
    assert (await world.ask(headers=bearer(OTHER))).status == 403
    assert world.allocator.asked == []


async def test_whoever_acts_is_told_to_the_allocator_by_name(world: World) -> None:
    unload = f"{world.url}/api/v1/models/m/unload"
    assert (await world.client.post(unload)).status == 200
    await let_in(world, key(scopes=BOTH))
    for verb in ("load", "unload", "pin", "unpin"):
        assert (await world.client.post(f"{world.url}/api/v1/models/m/{verb}", headers=bearer())).status == 200
    assert world.allocator.acted == ["HTTP without a key", *["key team-a"] * 4]


async def test_models_of_a_key(world: World) -> None:
    await let_in(world, key(models=("m", "nick")))
    world.allocator.replicas["other"] = world.allocator.replicas["m"]
    world.allocator.state["models"] = [{"name": name, **MODEL} for name in ("m", "other")]
    assert (await world.ask(headers=bearer(), json={"model": "nick"})).status == 200
    refused = await world.ask(headers=bearer(), json={"model": "other"})
    error = await error_of(refused)
    assert (refused.status, error["code"], error["param"]) == (403, "model_not_allowed", "model")
    assert [asked["model"] for asked in world.allocator.asked] == ["nick"]
    listed = await (await world.client.get(f"{world.url}/v1/models", headers=bearer())).json()
    assert [model["id"] for model in listed["data"]] == ["m"]


async def test_requests_per_minute(world: World) -> None:
    await let_in(world, key(requests_per_minute=2), key(OTHER, name="team-b"))
    now_s = 1000.0
    world.gateway.keyring._clock = lambda: now_s
    assert (await world.ask(headers=bearer())).status == 200
    now_s += 20
    assert (await world.ask(headers=bearer())).status == 200
    refused = await world.ask(headers=bearer())
    assert (refused.status, refused.headers["Retry-After"]) == (429, "40")
    assert (await error_of(refused))["code"] == "rate_limit_exceeded"
    assert (await world.ask(headers=bearer(OTHER))).status == 200, "another key's business"
    now_s += 40
    assert (await world.ask(headers=bearer())).status == 200
    assert (await world.ask(headers=bearer())).status == 429


async def test_requests_at_a_time(world: World) -> None:
    release = asyncio.Event()

    async def slow(request: web.Request) -> web.StreamResponse:
        await release.wait()
        return web.json_response({})

    world.one.handler = world.two.handler = slow
    await let_in(world, key(concurrency=1))
    first = asyncio.create_task(world.ask(headers=bearer()))
    await world.one.until(lambda: world.one.seen)
    refused = await world.ask(headers=bearer())
    assert (refused.status, refused.headers["Retry-After"]) == (429, "1")
    assert (await error_of(refused))["code"] == "concurrency_exceeded"
    release.set()
    assert (await first).status == 200
    await first.result().read()
    assert (await world.ask(headers=bearer())).status == 200, "its place was given back"


async def test_a_request_that_fails_gives_its_place_back(world: World) -> None:
    await let_in(world, key(concurrency=1))
    world.allocator.rejections["m"] = rejection("queue_full", 429)
    for _ in range(3):
        assert (await error_of(await world.ask(headers=bearer())))["code"] == "queue_full"
        assert (await world.ask(headers=bearer(), data=b"{")).status == 400


@pytest.mark.parametrize(
    ("said", "asked"),
    [
        ({}, 50),
        ({"x-rayscheduler-priority": "10"}, 10),
        ({"x-rayscheduler-priority": "1000"}, 50),
        ({"x-rayscheduler-tier": "interactive"}, 50),
        ({"x-rayscheduler-tier": "batch"}, 0),
    ],
)
async def test_priority_of_a_key_is_the_most_that_it_may_say(world: World, said: dict[str, str], asked: int) -> None:
    await let_in(world, key(priority=50))
    assert (await world.ask(headers={**bearer(), **said})).status == 200
    assert (world.allocator.asked[0]["priority"], world.allocator.asked[0]["tier"]) == (asked, None)


async def test_a_key_with_a_priority_names_no_unknown_tier(world: World) -> None:
    await let_in(world, key(priority=50))
    refused = await world.ask(headers={**bearer(), "x-rayscheduler-tier": "vip"})
    assert (refused.status, (await error_of(refused))["code"]) == (400, "unknown_tier")
    assert world.allocator.asked == []
