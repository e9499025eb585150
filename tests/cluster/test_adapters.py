"""LoRA adapters in replicas: loaded once for all who ask, in place of the least recently used, never under a request.

The engine is a real one on the wire: a small HTTP server that knows vLLM's three calls and can be made to hesitate.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from rayscheduler.cluster.adapters import Adapters, pins_its_base
from rayscheduler.cluster.catalog import Catalog
from rayscheduler.cluster.inventory import NodeInventory
from rayscheduler.cluster.lease_book import LeaseBook, Reply
from rayscheduler.cluster.mailbox import Mailbox
from rayscheduler.cluster.progress import Progress
from rayscheduler.cluster.reports import Launch, RunnerReport, RunnerState
from rayscheduler.cluster.roster import Roster, RunnerRecord
from rayscheduler.config.adapters import AdapterSection
from rayscheduler.config.service import config_from_text
from rayscheduler.core.events import RequestEnded
from rayscheduler.core.types import Backend, DeviceId, HolderId, ModelName, NodeName, Placement, ReplicaId, RequestId
from rayscheduler.engines import EngineRequest, http_call
from rayscheduler.engines.protocol import Call

LLAMA, REPLICA, HOLDER, KEY = ModelName("llama"), ReplicaId("llama#1"), HolderId("h"), "the-key"
A, B, C = (AdapterSection(name=name, base="llama", source=f"/adapters/{name}") for name in "abc")
WITHIN_S = 10.0


class FakeEngine:
    """`said`: what it was told. `refusal`: what it answers to loads. `slow`: loads wait until `go` is set."""

    def __init__(self) -> None:
        self.held: dict[str, str] = {}
        self.said: list[str] = []
        self.refusal: tuple[int, str] | None = None
        self.go = asyncio.Event()
        self.go.set()
        self.asked = asyncio.Event()

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        assert f"Authorization: Bearer {KEY}" in head
        length = next((int(line[15:]) for line in head.splitlines() if line.startswith("Content-Length:")), 0)
        path = head.split(" ")[1]
        told = json.loads(await reader.readexactly(length)) if length else {}
        status, text = await self._do(path, told)
        writer.write(f"HTTP/1.0 {status} X\r\n\r\n{text}".encode())
        await writer.drain()
        writer.close()

    async def _do(self, path: str, told: dict[str, str]) -> tuple[int, str]:
        if path == "/v1/models":
            listed: list[dict[str, Any]] = [{"id": "llama", "root": "/llama", "parent": None}]
            listed += [{"id": name, "root": root, "parent": "llama"} for name, root in self.held.items()]
            return 200, json.dumps({"data": listed})
        name = told["lora_name"]
        if path == "/v1/unload_lora_adapter":
            self.said.append(f"unload {name}")
            del self.held[name]
            return 200, "Success"
        self.said.append(f"load {name}")
        self.asked.set()
        await self.go.wait()
        if self.refusal is not None:
            return self.refusal
        self.held[name] = told["lora_path"]
        return 200, "Success"


class Site:
    """A replica of llama with room for `most` adapters, and the allocator's books about it."""

    def __init__(self, endpoint: str, most: int) -> None:
        self.mailbox, self.progress = Mailbox(), Progress()
        self.leases = LeaseBook(self.mailbox)
        self.roster = Roster(self.mailbox, lambda replica: None, lambda replica: None)
        self.adapters = Adapters(self.leases, self.roster, self.progress)
        request = EngineRequest("llama", REPLICA, max_loras=most, load_timeout_ms=10_000)
        place = Placement((NodeName("n"),), (DeviceId("n/0"),), (1,))
        launch = Launch(REPLICA, LLAMA, place, "simulated", request, 1.0)
        report = RunnerReport(launch, "i", RunnerState.RUNNING, "id", 1, 1, endpoint=endpoint, api_key=KEY)
        self.record = self.roster.records[REPLICA] = RunnerRecord(launch, 0, report)
        self.reply: Reply = {"granted": True, "replica": REPLICA, "endpoint": endpoint, "model": "llama"}

    def ask(self, request: str, adapter: AdapterSection) -> asyncio.Future[Reply]:
        """A request that the core has granted the replica."""
        answer = self.leases.ask(LLAMA, RequestId(request), HOLDER, None, None, adapter)
        self.adapters.lend(RequestId(request), REPLICA, adapter, self.reply)
        return answer

    async def served(self, request: str, adapter: AdapterSection) -> None:
        answer = await asyncio.wait_for(self.ask(request, adapter), WITHIN_S)
        assert (answer["granted"], answer["model"]) == (True, adapter.name), answer

    def end(self, *requests: str) -> None:
        self.leases.release(map(RequestId, requests))
        self.progress.advance(1)

    async def round_trips(self) -> None:
        """What was on its way to the engine has arrived, as has what might have followed it."""
        port = int(self.reply["endpoint"].rpartition(":")[2])
        for _ in range(5):
            assert (await http_call.ask("127.0.0.1", port, KEY, Call("GET", "/v1/models"))).ok

    async def until(self, *held: str) -> None:
        clock = asyncio.get_running_loop().time
        deadline_s = clock() + WITHIN_S
        while self.adapters.held(REPLICA) != list(held):
            assert clock() < deadline_s, self.adapters.held(REPLICA)
            await asyncio.sleep(0)


@asynccontextmanager
async def site(most: int = 2) -> AsyncIterator[tuple[Site, FakeEngine]]:
    engine = FakeEngine()
    server = await asyncio.start_server(engine.answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server:
        yield Site(f"http://127.0.0.1:{port}", most), engine


def test_an_adapter_is_its_base_to_the_core() -> None:
    text = "models:\n- {name: llama, aliases: [l], engine: simulated, memory: 1GiB}\n"
    catalog = Catalog(config_from_text(text + "- {name: bot, base: llama, aliases: [support], source: org/bot}\n"))
    assert [catalog.resolve(name) for name in ("llama", "l", "bot", "support", "who")] == [*["llama"] * 4, "who"]
    adapters = [catalog.adapter(name) for name in ("llama", "l", "bot", "support", "who")]
    assert [adapter and adapter.name for adapter in adapters] == [None, None, "bot", "bot", None]
    assert [entry.name for entry in catalog] == ["llama"]
    node = NodeInventory("n", Backend.CPU, ())
    request = catalog.launch(REPLICA, LLAMA, Placement((NodeName("n"),), (), ()), [node]).request
    assert (request.adapters, request.max_loras) == (("org/bot",), 1)


async def test_it_is_loaded_once_for_all_who_ask() -> None:
    async with site() as (here, engine):
        engine.go.clear()
        asks = [here.ask(f"r{number}", A) for number in range(5)]
        await asyncio.wait_for(engine.asked.wait(), WITHIN_S)
        assert not any(ask.done() for ask in asks)
        engine.go.set()
        for ask in asks:
            assert (await asyncio.wait_for(ask, WITHIN_S))["model"] == "a"
        assert engine.said == ["load a"]
        assert here.ask("later", A).done(), "what is there costs nobody a wait"
        assert engine.held == {"a": "/adapters/a"}


async def test_the_least_recently_used_makes_way() -> None:
    async with site(most=2) as (here, engine):
        for request, adapter in (("r1", A), ("r2", B), ("r3", A), ("r4", C)):
            await here.served(request, adapter)
            here.end(request)
        assert engine.said == ["load a", "load b", "unload b", "load c"]
        assert here.adapters.held(REPLICA) == ["a", "c"]


async def test_one_that_serves_stays_where_another_can_go() -> None:
    async with site(most=2) as (here, engine):
        await here.served("long", A)
        await here.served("r2", B)
        here.end("r2")
        await here.served("r3", C)
        assert engine.said == ["load a", "load b", "unload b", "load c"], "a was used before b, but serves"


async def test_where_all_serve_one_gets_no_new_requests_and_leaves_with_its_last() -> None:
    async with site(most=1) as (here, engine):
        await here.served("r1", A)
        other = here.ask("r2", B)
        await here.until()
        again = here.ask("r3", A)
        await here.round_trips()
        assert engine.said == ["load a"]
        assert not other.done()
        assert not again.done(), "a stream of requests for one does not starve the other"
        here.end("r1")
        assert (await asyncio.wait_for(other, WITHIN_S))["model"] == "b"
        assert not again.done()
        here.end("r2")
        assert (await asyncio.wait_for(again, WITHIN_S))["model"] == "a"
        assert engine.said == ["load a", "unload a", "load b", "unload b", "load a"]


async def test_two_that_want_one_place_are_both_served() -> None:
    """Loaded and taken out again before anybody was served would go on for ever."""
    async with site(most=1) as (here, engine):
        first, second = here.ask("r1", A), here.ask("r2", B)
        assert (await asyncio.wait_for(first, WITHIN_S))["model"] == "a"
        here.end("r1")
        assert (await asyncio.wait_for(second, WITHIN_S))["model"] == "b"
        assert engine.said == ["load a", "unload a", "load b"]


@pytest.mark.parametrize(
    ("engine_says", "code", "status", "retry_s"),
    [
        ((404, '{"error": {"message": "No adapter found for /adapters/a"}}'), "adapter_refused", 422, None),
        ((400, '{"success": false, "error_message": "rank 64 is\\n too high"}'), "adapter_refused", 422, None),
        ((500, "Internal Server Error"), "adapter_failed", 503, 1),
    ],
)
async def test_what_the_engine_says_against_it_is_told(
    engine_says: tuple[int, str], code: str, status: int, retry_s: int | None
) -> None:
    async with site() as (here, engine):
        engine.refusal = engine_says
        answer = await asyncio.wait_for(here.ask("r1", A), WITHIN_S)
        assert (answer["granted"], answer["code"], answer["status"]) == (False, code, status)
        assert answer["retry_after_s"] == retry_s
        words = {404: "No adapter found for /adapters/a", 400: "rank 64 is too high", 500: "Internal Server Error"}
        assert answer["message"] == f"a could not be loaded into llama#1 from /adapters/a: {words[engine_says[0]]}"
        assert RequestEnded(RequestId("r1")) in here.mailbox.now_there(), "its lease on the replica has ended"
        engine.refusal = None
        await here.served("r2", A)


async def test_one_that_is_there_already_is_no_failure() -> None:
    async with site() as (here, engine):
        engine.refusal = (400, '{"error": {"message": "The lora adapter \'a\' has already been loaded."}}')
        await here.served("r1", A)


async def test_an_engine_that_is_gone_is_for_the_holder_to_find() -> None:
    """As with a request for the base: the lease is granted, the connection fails, and it is served elsewhere."""
    async with site() as (here, _):
        pass
    answer = await asyncio.wait_for(here.ask("r1", A), WITHIN_S)
    assert answer == here.reply


async def test_a_replica_that_is_lost_during_a_load_leaves_nobody_waiting() -> None:
    async with site() as (here, engine):
        engine.go.clear()
        ask = here.ask("r1", A)
        await asyncio.wait_for(engine.asked.wait(), WITHIN_S)
        here.leases.replica_gone(REPLICA)
        del here.roster.records[REPLICA]
        here.adapters.replica_gone(REPLICA)
        assert (await asyncio.wait_for(ask, WITHIN_S))["granted"]
        assert here.adapters.held(REPLICA) == []
        engine.go.set()


async def test_who_hangs_up_during_a_load_is_not_served_by_it() -> None:
    async with site(most=1) as (here, engine):
        engine.go.clear()
        here.ask("r1", A)
        await asyncio.wait_for(engine.asked.wait(), WITHIN_S)
        here.end("r1")
        engine.go.set()
        await here.until("a")
        assert not here.leases.serves(REPLICA, "a")
        await here.served("r2", B)


async def test_a_new_allocator_asks_what_is_there() -> None:
    async with site(most=2) as (here, engine):
        engine.held = {"a": "/adapters/a", "b": "/elsewhere/b"}
        here.adapters.found(REPLICA)
        await here.until("a", "b")
        assert here.ask("r1", A).done()
        await here.served("r2", B)
        assert engine.said == ["unload b", "load b"], "it was loaded from other files"


async def test_a_lease_from_before_may_use_any_adapter() -> None:
    async with site(most=1) as (here, engine):
        engine.held = {"a": "/adapters/a"}
        here.leases.adopt(RequestId("old"), HOLDER, REPLICA, here.reply)
        ask = here.ask("r1", B)
        await here.until()
        await here.round_trips()
        assert engine.said == []
        here.end("old")
        assert (await asyncio.wait_for(ask, WITHIN_S))["model"] == "b"
        assert engine.said == ["unload a", "load b"]


async def test_an_engine_that_was_started_for_none_is_to_be_loaded_anew() -> None:
    async with site(most=0) as (here, _):
        answer = await asyncio.wait_for(here.ask("r1", A), WITHIN_S)
        assert answer["status"] == 503
        assert answer["message"] == (
            "a cannot be loaded: llama#1 was started without room for adapters; unload llama, and ask again"
        )


async def test_an_operator_loads_and_unloads_one() -> None:
    async with site() as (here, engine):

        async def there(answer: dict[str, Any]) -> dict[str, Any]:
            return answer

        failed = {"error": {"code": "load_failed"}}
        assert await here.adapters.load(A, there(failed)) == failed, "the base is not there"
        told = await asyncio.wait_for(here.adapters.load(A, there({"ok": True})), WITHIN_S)
        assert told == {"ok": True, "message": "a is loaded in llama#1"}
        await here.served("r1", A)
        assert here.adapters.unload(A)["message"] == "a is unloaded from llama#1"
        await here.until()
        await here.round_trips()
        assert engine.said == ["load a"], "it serves"
        here.end("r1")
        await here.served("r2", A)
        assert engine.said == ["load a", "unload a", "load a"]
        assert here.adapters.unload(B)["message"] == "b is loaded nowhere"
        assert pins_its_base(A)["error"]["message"] == "a is an adapter, which is where its base is: pin llama"


async def test_what_another_catalog_does_not_have_leaves() -> None:
    async with site() as (here, engine):
        await here.served("r1", A)
        await here.served("r2", B)
        here.end("r1", "r2")
        moved = AdapterSection(name="a", base="llama", source="/elsewhere/a")
        here.adapters.redeployed([A, B], [moved, B])
        await here.served("r3", moved)
        assert engine.held == {"a": "/elsewhere/a", "b": "/adapters/b"}
