"""Everything wrong that a client can send, and what the allocator can refuse: one error body, one status."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from urllib.parse import urlsplit

import pytest
from yarl import URL

from tests.serving.conftest import QUICK, World, a_world
from tests.serving.doubles import BOUND_S, rejection

DEEP = b'{"model": "m", "x": ' + b"[" * 45_000 + b"]" * 45_000 + b"}"


@pytest.mark.parametrize(
    ("body", "code", "words"),
    [
        (b"", "empty_body", "no body"),
        (b"not json", "invalid_json", "not valid JSON"),
        (b'{"model": "m"', "invalid_json", "not valid JSON"),
        (b"\xff\xfe{}", "invalid_json", "not valid JSON"),
        (b'["model"]', "invalid_json", "must be a JSON object"),
        (b'"m"', "invalid_json", "must be a JSON object"),
        (DEEP, "invalid_json", "nested too deeply"),
        (b'{"model": "m", "n": ' + b"9" * 5000 + b"}", "invalid_json", "not valid JSON"),
        (b"{}", "missing_model", "names no model"),
        (b'{"model": null}', "missing_model", "names no model"),
        (b'{"model": ""}', "missing_model", "empty"),
        (b'{"model": "  "}', "missing_model", "empty"),
        (b'{"model": 7}', "invalid_model", "must be a string"),
        (b'{"model": ["m"]}', "invalid_model", "must be a string"),
    ],
)
async def test_bad_bodies(world: World, body: bytes, code: str, words: str) -> None:
    response = await world.ask(data=body, headers={"Content-Type": "application/json"})
    error = (await response.json())["error"]
    assert response.status == 400
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["code"], error["type"]) == (code, "invalid_request_error")
    assert words in error["message"]
    assert error["param"] == ("model" if code.endswith("_model") else None)
    assert world.allocator.asked == []


@pytest.mark.parametrize(
    ("content_type", "body", "code"),
    [
        ("multipart/form-data", b"--b\r\n", "invalid_form"),
        ("multipart/form-data; boundary=b", b"--b\r\nno end", "missing_model"),
        (
            "multipart/form-data; boundary=b",
            b'--b\r\nContent-Disposition: form-data; name="n"\r\n\r\n1\r\n--b--\r\n',
            "missing_model",
        ),
        (
            "multipart/form-data; boundary=b",
            b'--b\r\nContent-Disposition: form-data; name="x"; filename="model"\r\n\r\n1\r\n--b--\r\n',
            "missing_model",
        ),
    ],
)
async def test_bad_forms(world: World, content_type: str, body: bytes, code: str) -> None:
    headers = {"Content-Type": content_type}
    response = await world.ask("/v1/audio/transcriptions", data=body, headers=headers)
    assert response.status == 400
    assert (await response.json())["error"]["code"] == code


@pytest.mark.parametrize("size", [100_001, 250_000])
@pytest.mark.parametrize("chunked", [False, True])
async def test_body_too_large(world: World, size: int, chunked: bool) -> None:
    body = json.dumps({"model": "m", "x": "y" * size}).encode()

    async def in_chunks() -> object:
        for begin in range(0, len(body), 10_000):
            yield body[begin : begin + 10_000]

    response = await world.ask(data=in_chunks() if chunked else body)
    assert response.status == 413
    error = (await response.json())["error"]
    assert error["code"] == "request_too_large"
    assert "100000 bytes" in error["message"]


async def test_body_too_large_is_refused_before_it_is_sent_when_the_client_asks_first(world: World) -> None:
    address = urlsplit(world.url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    writer.write(
        b"POST /v1/completions HTTP/1.1\r\nHost: h\r\nContent-Length: 999999999\r\nExpect: 100-continue\r\n\r\n"
    )
    lines = (await asyncio.wait_for(reader.read(), BOUND_S)).decode()
    assert "413 " in lines
    assert '"request_too_large"' in lines
    writer.close()
    await writer.wait_closed()


async def test_body_that_stops_in_the_middle() -> None:
    async with a_world(replace(QUICK, body_idle_s_max=0.02)) as world:
        address = urlsplit(world.url)
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        writer.write(b'POST /v1/completions HTTP/1.1\r\nHost: h\r\nContent-Length: 99\r\n\r\n{"model"')
        lines = (await asyncio.wait_for(reader.read(), BOUND_S)).decode()
        assert "408 " in lines
        assert '"body_timeout"' in lines
        writer.close()
        await writer.wait_closed()


@pytest.mark.parametrize(
    "path",
    [
        "/v1/nothing",
        "/v1/chat/completions/",
        "/sleep",
        "/v1/audio/../../sleep",
        "/page/../gateway.py",
        "/page/secret.py",
        "/api/v1/nothing",
        "/api/v1/models/m/explode",
        "/api/v1/models/load",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_unknown_paths(world: World, path: str, method: str) -> None:
    response = await world.client.request(method, URL(world.url + path, encoded=True))
    assert response.status == 404
    error = (await response.json())["error"]
    assert (error["code"], error["type"]) == ("unknown_path", "invalid_request_error")
    assert world.one.seen == []


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", "/v1/chat/completions", "POST"),
        ("DELETE", "/v1/embeddings", "POST"),
        ("POST", "/v1/models", "GET"),
        ("DELETE", "/v1/models/m", "GET"),
        ("POST", "/health", "GET"),
        ("POST", "/api/v1/status", "GET"),
        ("GET", "/api/v1/models/m/load", "POST"),
        ("PUT", "/", "GET"),
    ],
)
async def test_wrong_methods(world: World, method: str, path: str, allow: str) -> None:
    response = await world.client.request(method, world.url + path)
    assert response.status == 405
    assert response.headers["Allow"] == allow
    assert (await response.json())["error"]["code"] == "method_not_allowed"


@pytest.mark.parametrize(
    ("code", "status", "said_s", "sent_s"),
    [
        ("model_not_found", 404, None, None),
        ("never_fits", 422, None, None),
        ("queue_full", 429, None, "1"),
        ("queue_full", 429, 9, "9"),
        ("replica_lost", 502, None, None),
        ("load_failed", 503, 4, "4"),
        ("unloaded", 503, None, "1"),
        ("shutting_down", 503, None, "1"),
        ("deadline_exceeded", 504, None, None),
    ],
)
async def test_rejections(world: World, code: str, status: int, said_s: int | None, sent_s: str | None) -> None:
    world.allocator.rejections["m"] = rejection(code, status, f"It is {code}.", said_s)
    response = await world.ask()
    assert response.status == status
    assert response.headers.get("Retry-After") == sent_s
    error = (await response.json())["error"]
    assert (error["code"], error["message"]) == (code, f"It is {code}.")
    kind = "rate_limit_error" if status == 429 else "invalid_request_error" if status < 500 else "server_error"
    assert error["type"] == kind
    assert error["param"] == ("model" if status == 404 else None)
    await world.gateway.leases.flushed()
    assert world.allocator.released == []  # what was rejected is held by nobody


async def test_unknown_model(world: World) -> None:
    response = await world.ask(json={"model": "nobody"})
    assert response.status == 404
    assert "`nobody`" in (await response.json())["error"]["message"]


@pytest.mark.parametrize(("name", "value"), [("Priority", "high"), ("Deadline-Ms", "soon"), ("Deadline-Ms", "0")])
async def test_bad_headers_of_ours(world: World, name: str, value: str) -> None:
    response = await world.ask(headers={f"X-Rayscheduler-{name}": value})
    assert response.status == 400
    assert (await response.json())["error"]["code"] == "invalid_header"


async def test_urgency_reaches_the_allocator(world: World) -> None:
    await world.ask(headers={"X-Rayscheduler-Priority": "-3", "X-Rayscheduler-Deadline-Ms": "5000"})
    asked = world.allocator.asked[0]
    assert asked["priority"] == -3
    assert 0 < asked["deadline_ms"] <= 5000


async def test_bug_in_the_allocator_is_a_500_and_leaves_nothing_behind(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.allocator.broken = "asks"
    response = await world.ask()
    assert response.status == 500
    assert (await response.json())["error"]["code"] == "internal"
    assert "a bug in the allocator" in caplog.text
    await world.gateway.leases.flushed()
    assert world.allocator.released == [[world.allocator.asked[0]["request_id"]]]
