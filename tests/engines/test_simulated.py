"""The simulated engine answers as OpenAI's API does, fails when told to, and notices clients that leave."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI

from rayscheduler.engines import by_name
from rayscheduler.engines.process import EngineProcess
from rayscheduler.engines.protocol import Call
from rayscheduler.engines.supervisor import stat_fields
from rayscheduler.errors import EngineError, EngineFailed
from tests.engines.conftest import Start, refusal_of, simulated
from tests.engines.pids import BOUND_S

CHAT: Any = {"messages": [{"role": "user", "content": "who are you?"}]}


async def ready(start: Start, **given: Any) -> EngineProcess:
    engine = start("simulated", simulated(**given))
    await engine.wait_ready(BOUND_S)
    return engine


def client_of(engine: EngineProcess) -> httpx.AsyncClient:
    headers = {"Authorization": f"Bearer {engine.api_key}"}
    return httpx.AsyncClient(base_url=engine.endpoint, headers=headers, timeout=BOUND_S)


@pytest.fixture
async def client(start: Start) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(await ready(start, model="alpha")) as client:
        yield client


async def stats_when(client: httpx.AsyncClient, **wanted: int) -> dict[str, int]:
    """The server's counters as soon as they are as wanted."""

    async def asked() -> dict[str, int]:
        while True:
            stats: dict[str, int] = (await client.get("/stats")).json()
            if wanted.items() <= stats.items():
                return stats

    return await asyncio.wait_for(asked(), BOUND_S)


# answers


async def test_the_openai_client_understands_every_answer(start: Start) -> None:
    engine = await ready(start, model="alpha")
    async with AsyncOpenAI(base_url=engine.endpoint + "/v1", api_key=engine.api_key, max_retries=0) as openai:
        whole = await openai.chat.completions.create(model="alpha", messages=CHAT["messages"])
        assert whole.choices[0].message.content == "This is alpha, simulated."
        assert whole.choices[0].finish_reason == "stop"
        assert whole.usage is not None
        assert whole.usage.completion_tokens == 4
        assert [model.id async for model in openai.models.list()] == ["alpha"]
        plain = await openai.completions.create(model="alpha", prompt="so", max_tokens=2)
        assert (plain.choices[0].text, plain.choices[0].finish_reason) == ("This is", "length")
        vectors = await openai.embeddings.create(model="alpha", input=["one", "two", "one"])
        one, two, again = (entry.embedding for entry in vectors.data)
        assert one == again != two
        assert sum(value * value for value in one) == pytest.approx(1)

        stream = await openai.chat.completions.create(
            model="alpha",
            messages=CHAT["messages"],
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = [chunk async for chunk in stream]
        assert chunks[0].choices[0].delta.role == "assistant"
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert text == "This is alpha, simulated."
        assert chunks[-2].choices[0].finish_reason == "stop"
        assert chunks[-1].choices == []
        assert chunks[-1].usage is not None
        assert {chunk.id for chunk in chunks} == {chunks[0].id}
        pieces = await openai.completions.create(model="alpha", prompt="so", stream=True)
        assert "".join([piece.choices[0].text async for piece in pieces]) == "This is alpha, simulated."


async def test_a_stream_ends_as_openai_says(client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/chat/completions", json={**CHAT, "stream": True, "max_tokens": 2})
    assert answer.headers["content-type"] == "text/event-stream"
    *events, done, rest = answer.text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    choices = [json.loads(event.removeprefix("data: "))["choices"][0] for event in events]
    assert [choice["delta"] for choice in choices] == [
        {"role": "assistant", "content": ""},
        {"content": "This"},
        {"content": " is"},
        {},
    ]
    assert [choice["finish_reason"] for choice in choices] == [None, None, None, "length"]


@pytest.mark.parametrize("stream", [False, True])
async def test_no_tokens_at_all(client: httpx.AsyncClient, stream: bool) -> None:
    answer = await client.post("/v1/chat/completions", json={**CHAT, "max_tokens": 0, "stream": stream})
    assert answer.status_code == 200
    assert '"finish_reason": "length"' in answer.text


async def test_a_reply_of_ones_own_and_its_length_by_directive(start: Start) -> None:
    async with client_of(await ready(start, simulate={"reply": "tick tock"})) as client:
        answer = await client.post("/v1/completions", json={"prompt": "#tokens=5"})
        assert answer.json()["choices"][0]["text"] == "tick tock tick tock tick"


async def test_tokens_come_at_the_given_speed(start: Start) -> None:
    async with client_of(await ready(start, simulate={"tokens_per_second": 100})) as client:
        began_s = time.monotonic()
        await client.post("/v1/completions", json={"prompt": "#tokens=20"})
        assert time.monotonic() - began_s >= 0.2


async def test_requests_beyond_the_concurrency_wait_their_turn(start: Start) -> None:
    engine = await ready(start, concurrency=1, simulate={"tokens_per_second": 1000})
    async with client_of(engine) as client:
        endless = asyncio.create_task(client.post("/v1/completions", json={"prompt": "#tokens=1000000"}))
        await stats_when(client, in_flight=1)
        second = asyncio.create_task(client.post("/v1/completions", json={"prompt": "#tokens=1"}))
        await stats_when(client, in_flight=2, served=0)
        assert not second.done()
        endless.cancel()
        assert (await second).status_code == 200
        await stats_when(client, in_flight=0, served=1, aborted=1)


# refusals


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "told"),
    [
        ("GET", "/v1/nope", b"", 404, "no /v1/nope"),
        ("GET", "/v1/chat/completions", b"", 405, "takes POST, not GET"),
        ("POST", "/v1/chat/completions", b"{not json", 400, "not a JSON object"),
        ("POST", "/v1/chat/completions", b"[1]", 400, "not a JSON object"),
        ("POST", "/v1/chat/completions", b"\xff", 400, "not a JSON object"),
        ("POST", "/v1/chat/completions", b"[" * 100_000, 400, "not a JSON object"),
        ("POST", "/v1/chat/completions", b"{}", 400, "neither messages nor a prompt"),
        ("POST", "/v1/completions", b'{"prompt": "a", "max_tokens": "x"}', 400, "max_tokens"),
    ],
)
async def test_bad_requests_get_openais_error(
    client: httpx.AsyncClient, method: str, path: str, body: bytes, status: int, told: str
) -> None:
    answer = await client.request(method, path, content=body)
    assert answer.status_code == status
    assert told in answer.json()["error"]["message"]
    assert (await stats_when(client, in_flight=0))["aborted"] == 0


async def test_only_those_with_the_key_are_answered(client: httpx.AsyncClient) -> None:
    for headers in ({"Authorization": "Bearer wrong"}, {"Authorization": ""}):
        for path in ("/v1/models", "/stats", "/nope"):
            answer = await client.get(path, headers=headers)
            assert answer.status_code == 401
    assert (await client.get("/health", headers={"Authorization": ""})).status_code == 200


async def test_while_it_loads_it_says_503(start: Start) -> None:
    engine = start("simulated", simulated(simulate={"load": 3_600_000}))
    assert "HTTP 503" in await refusal_of(engine)
    async with client_of(engine) as client:
        answer = await client.post("/v1/chat/completions", json=CHAT)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert "is loading" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "sent",
    [
        b"\r\n\r\n",
        b"GET\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: x\r\n\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"x" * 70_000,
    ],
)
async def test_what_is_not_http_is_refused_and_ends_nothing(start: Start, sent: bytes) -> None:
    engine = await ready(start)
    reader, writer = await asyncio.open_connection(engine.host, engine.port)
    writer.write(sent)
    answer = await asyncio.wait_for(reader.read(), BOUND_S)
    assert answer.startswith(b"HTTP/1.1 4")
    writer.close()
    await writer.wait_closed()
    assert engine.exit is None


async def test_chunked_bodies_in_small_pieces_and_requests_in_a_row(start: Start) -> None:
    engine = await ready(start)
    reader, writer = await asyncio.open_connection(engine.host, engine.port)
    head = (
        f"POST /v1/completions HTTP/1.1\r\nAuthorization: Bearer {engine.api_key}\r\n"
        "Transfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n"
    )
    writer.write(head.encode())
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    for byte in b'b\r\n{"prompt":"\r\n4\r\nhi"}\r\n0\r\n\r\n':
        writer.write(bytes([byte]))
        await writer.drain()
    writer.write(b"GET /health HTTP/1.1\r\nConnection: close\r\n\r\n")
    answers = await asyncio.wait_for(reader.read(), BOUND_S)
    assert answers.count(b"HTTP/1.1 200 OK") == 2
    assert answers.endswith(b'{"status": "ok"}')
    writer.close()
    await writer.wait_closed()


# clients that leave, engines that fail


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_stops_the_generation(start: Start, stream: bool) -> None:
    async with client_of(await ready(start, simulate={"tokens_per_second": 1000})) as client:
        body = {"prompt": "#tokens=1000000", "stream": stream}
        leaving = asyncio.create_task(client.post("/v1/completions", json=body))
        await stats_when(client, in_flight=1)
        leaving.cancel()
        stats = await stats_when(client, in_flight=0, aborted=1, served=0)
        assert 0 <= stats["tokens"] < 1_000_000


async def test_a_client_that_does_not_read_holds_the_generation_up(start: Start) -> None:
    """The server stops at full buffers, so its memory does not grow with the answer."""
    engine = await ready(start)
    async with client_of(engine) as client:
        reader, writer = await asyncio.open_connection(engine.host, engine.port, limit=1024)
        body = json.dumps({"prompt": "#tokens=100000000", "stream": True})
        writer.write(
            f"POST /v1/completions HTTP/1.1\r\nAuthorization: Bearer {engine.api_key}\r\n"
            f"Content-Length: {len(body)}\r\n\r\n{body}".encode()
        )
        await reader.readuntil(b"\r\n\r\n")
        before, now = -1, 0
        while before != now:  # a request takes longer than a token, so equal means that it stands still
            before, now = now, (await client.get("/stats")).json()["tokens"]
        assert 0 < now < 1_000_000
        writer.transport.abort()
        await stats_when(client, aborted=1)


async def test_a_load_that_fails(start: Start) -> None:
    engine = start("simulated", simulated(simulate={"load": 50, "fail": "load", "fail_status": 5}))
    told = r"(?s)exited with status 5 before it was ready.*\na: simulated failure of the load"
    with pytest.raises(EngineFailed, match=told):
        await engine.wait_ready(BOUND_S)


async def test_a_crash_some_time_after_it_was_ready(start: Start) -> None:
    engine = start("simulated", simulated(simulate={"fail": "crash", "fail_after": 1}))
    assert (await asyncio.wait_for(engine.wait_exit(), BOUND_S)).words == "exited with status 1"
    assert engine.log_tail() == "a: simulated crash"


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/embeddings"])
async def test_a_crash_at_the_first_request(start: Start, path: str) -> None:
    engine = await ready(start, simulate={"fail": "crash"})
    async with client_of(engine) as client:
        with pytest.raises(httpx.RemoteProtocolError):
            await client.post(path, json={"prompt": "hi", "input": "hi"})
    assert (await asyncio.wait_for(engine.wait_exit(), BOUND_S)).status == 1 << 8


async def test_a_prompt_may_ask_for_a_crash_before_the_first_byte(start: Start) -> None:
    engine = await ready(start)
    async with client_of(engine) as client:
        assert (await client.post("/v1/completions", json={"prompt": "hi"})).status_code == 200
        with pytest.raises(httpx.RemoteProtocolError):
            await client.post("/v1/completions", json={"prompt": "please #crash", "stream": True})
    assert await asyncio.wait_for(engine.wait_exit(), BOUND_S)


async def test_a_prompt_may_ask_for_a_crash_in_the_middle(start: Start) -> None:
    engine = await ready(start)
    received: list[str] = []

    async def receive(client: httpx.AsyncClient) -> None:
        body = {"prompt": "#crash=midstream", "stream": True}
        async with client.stream("POST", "/v1/completions", json=body) as answer:
            async for text in answer.aiter_text():
                received.append(text)

    async with client_of(engine) as client:
        with pytest.raises(httpx.RemoteProtocolError):
            await receive(client)
    assert "".join(received).count("data: {") == 3
    assert "[DONE]" not in "".join(received)


async def test_an_unload_takes_its_time_unless_the_grace_is_over(start: Start) -> None:
    patient = await ready(start, model="a", simulate={"unload": 150})
    began_s = time.monotonic()
    assert (await patient.stop(grace_s=BOUND_S)).words == "exited with status 0"
    assert time.monotonic() - began_s >= 0.15
    hurried = await ready(start, model="b", simulate={"unload": 3_600_000})
    assert (await hurried.stop(grace_s=0.05)).words == "was killed by SIGKILL"


# what it costs, and what is wrong with a request


async def test_a_start_costs_little(start: Start) -> None:
    engine = await ready(start)
    user_ticks, system_ticks = (int(ticks) for ticks in stat_fields(engine.pid)[11:13])
    assert (user_ticks + system_ticks) / os.sysconf("SC_CLK_TCK") < 0.3
    await engine.stop()


@pytest.mark.parametrize(
    ("simulate", "told"),
    [
        ({"lod": 1}, "simulate has no 'lod'; known are load, unload, tokens_per_second"),
        ({"fail": "always"}, "simulate.fail is 'always'; it is never, load or crash"),
        ({"load": -1}, "simulate.load is -1; give a number of at least 0"),
        ({"allocate": "1GiB"}, "simulate.allocate is '1GiB'"),
    ],
)
def test_a_wrong_simulation_is_named(simulate: dict[str, object], told: str) -> None:
    with pytest.raises(EngineError, match=told):
        by_name("simulated").check(simulated(simulate=simulate))


# adapters


async def test_it_takes_adapters_as_vllm_does(start: Start, tmp_path: Path) -> None:
    engine = await ready(start, model="llama", max_loras=2)
    calls = by_name("simulated").adapter_calls(engine.request)
    assert calls is not None
    async with client_of(engine) as client:

        async def told(call: Call) -> tuple[int, str]:
            answer = await client.request(call.method, call.path, content=call.body)
            return answer.status_code, answer.text

        async def said_by(name: str) -> tuple[int, str]:
            answer = await client.post("/v1/chat/completions", json={"model": name, **CHAT})
            whole = answer.json()
            return answer.status_code, whole["choices"][0]["message"]["content"] if answer.is_success else ""

        assert (await told(calls.load("bot", str(tmp_path))))[0] == 200
        assert await said_by("bot") == (200, "This is bot, simulated.")
        assert await said_by("llama") == (200, "This is llama, simulated.")
        assert (await said_by("sql"))[0] == 404, "nobody has loaded it"
        status, why = await told(calls.load("bot", str(tmp_path)))
        assert (status, "has already been loaded" in why) == (400, True)
        assert (await told(calls.load("lost", "/nowhere/lost")))[0] == 404
        assert (await told(calls.load("sql", "org/sql")))[0] == 200
        assert (await told(calls.load("third", "org/third")))[0] == 400, "there is room for two"
        listed = (await client.get("/v1/models")).json()["data"]
        assert [(entry["id"], entry.get("parent")) for entry in listed] == [
            ("llama", None), ("bot", "llama"), ("sql", "llama"),
        ]  # fmt: skip
        assert (await told(calls.unload("bot")))[0] == 200
        assert (await told(calls.unload("bot")))[0] == 404
        await stats_when(client, adapter_loads=2, adapter_unloads=1)


async def test_without_adapters_one_model_answers_to_every_name(client: httpx.AsyncClient) -> None:
    assert (await client.post("/v1/chat/completions", json={"model": "whoever", **CHAT})).status_code == 200
    assert (await client.post("/v1/load_lora_adapter", json={})).status_code == 404
