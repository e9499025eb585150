"""The Python client, both twins, on an allocator in memory."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading

import pytest

from rayscheduler.client import AllocatorClient, AsyncAllocatorClient, _join
from rayscheduler.cluster.holder import LeaseLimits
from rayscheduler.errors import AllocatorUnavailable, RequestRejected
from tests.serving.doubles import FakeAllocator, rejection

QUICK = LeaseLimits(away_s_max=0.1, pause_s_min=0.001, pause_s_max=0.01, heartbeat_s=0.01)


@pytest.fixture
def allocator() -> FakeAllocator:
    made = FakeAllocator()
    made.replicas["m"] = [("m#1", "http://127.0.0.1:9999", "key")]
    made.aliases["nick"] = "m"
    return made


async def test_lease_is_given_back_when_the_block_ends(allocator: FakeAllocator) -> None:
    async with AsyncAllocatorClient(allocator, QUICK) as client:
        async with client.lease("nick", tier="data", timeout_s=5) as lease:
            assert (lease.replica, lease.model, lease.api_key) == ("m#1", "m", "key")
            assert lease.endpoint == "http://127.0.0.1:9999"
            held = [[lease.request_id, "m#1"]]
            await allocator.until(lambda: held in [beat[1] for beat in allocator.heartbeats])
        await allocator.until(lambda: not allocator.leases)
    (asked,) = allocator.asked
    assert asked["tier"] == "data"
    assert asked["deadline_ms"] <= 5000


async def test_lease_is_given_back_when_the_block_fails(allocator: FakeAllocator) -> None:
    async with AsyncAllocatorClient(allocator, QUICK) as client:
        with pytest.raises(KeyError):
            async with client.lease("m"):
                raise KeyError("x")
    assert not allocator.leases
    assert len(allocator.released) == 1


async def test_lease_that_nobody_waits_for_any_more(allocator: FakeAllocator) -> None:
    allocator.held_back.add("m")
    async with AsyncAllocatorClient(allocator, QUICK) as client:

        async def take() -> None:
            async with client.lease("m"):
                raise AssertionError("it was not granted")

        taking = asyncio.create_task(take())
        await allocator.until(lambda: allocator.waiting)
        taking.cancel()
        await asyncio.gather(taking, return_exceptions=True)
        await allocator.until(lambda: not allocator.waiting)


async def test_rejection_carries_code_and_status(allocator: FakeAllocator) -> None:
    allocator.rejections["m"] = rejection("queue_full", 429, "Too many wait.", 3)
    async with AsyncAllocatorClient(allocator, QUICK) as client:
        with pytest.raises(RequestRejected, match="Too many wait") as caught:
            async with client.lease("m"):
                pass
    assert (caught.value.code, caught.value.status, caught.value.retry_after_s) == ("queue_full", 429, 3)


async def test_keys(allocator: FakeAllocator) -> None:
    with AllocatorClient(AsyncAllocatorClient(allocator, QUICK)) as client:
        assert await asyncio.to_thread(client.create_key, {"name": "ops", "digest": "0" * 64})
        assert await asyncio.to_thread(client.api_keys) == [{"name": "ops"}]
        assert (await asyncio.to_thread(client.revoke_key, "ops"))["ok"] is True
        with pytest.raises(RequestRejected, match="no key 'ops'"):
            await asyncio.to_thread(client.revoke_key, "ops")


async def test_verbs(allocator: FakeAllocator) -> None:
    async with AsyncAllocatorClient(allocator, QUICK) as client:
        assert (await client.load("m"))["ok"] is True
        await client.load("m", wait=False)
        await client.unload("m")
        await client.pin("m")
        await client.unpin("m")
        assert await client.status() == allocator.state
        assert await client.models() == []
        assert (await client.decisions(3, "m"))[0]["decision"] == "start"
    assert allocator.verbs == [
        ("load", "m", True),
        ("load", "m", False),
        ("unload", "m", None),
        ("pin", "m", True),
        ("pin", "m", False),
        ("decisions", "3", "m"),
    ]


@pytest.mark.parametrize("verb", ["load", "unload", "pin", "unpin"])
async def test_verb_on_an_unknown_model(allocator: FakeAllocator, verb: str) -> None:
    async with AsyncAllocatorClient(allocator, QUICK) as client:
        with pytest.raises(RequestRejected) as caught:
            await getattr(client, verb)("nobody")
    assert (caught.value.code, caught.value.status) == ("model_not_found", 404)


async def test_restart_is_waited_out_and_absence_is_not(allocator: FakeAllocator) -> None:
    async with AsyncAllocatorClient(allocator, QUICK) as client:
        allocator.away_for = 3
        assert await client.status() == allocator.state
        allocator.away = True
        with pytest.raises(AllocatorUnavailable):
            await client.status()


async def test_load_that_takes_longer_than_its_bound(allocator: FakeAllocator) -> None:
    never = asyncio.Event()

    async def loads_for_ever(model: str, wait: bool = False) -> dict[str, object]:
        await never.wait()
        return {}

    allocator.load = loads_for_ever  # type: ignore[method-assign,assignment]
    async with AsyncAllocatorClient(allocator, QUICK) as client:
        with pytest.raises(asyncio.TimeoutError):
            await client.load("m", timeout_s=0.01)


def test_sync_twin(allocator: FakeAllocator) -> None:
    before = threading.active_count()
    with AllocatorClient(AsyncAllocatorClient(allocator, QUICK)) as client:
        with client.lease("nick") as lease:
            assert lease.model == "m"
            assert allocator.leases == {lease.request_id: "m#1"}
        client.load("m")
        client.unload("m")
        client.pin("m")
        client.unpin("m")
        assert client.status() == allocator.state
        assert client.models() == []
        assert client.decisions()[0]["serial"] == 1
        with pytest.raises(RequestRejected), client.lease("nobody"):
            pass
        with pytest.raises(KeyError), client.lease("m"):
            raise KeyError("x")
    client.close()
    assert not allocator.leases
    assert threading.active_count() == before


def test_closing_ends_the_calls_of_other_threads(allocator: FakeAllocator) -> None:
    asked = threading.Event()

    async def never_answers(model: str, wait: bool = False) -> dict[str, object]:
        asked.set()
        await asyncio.Event().wait()
        return {}

    allocator.load = never_answers  # type: ignore[method-assign,assignment]
    client = AllocatorClient(AsyncAllocatorClient(allocator, QUICK))
    caught: list[BaseException] = []

    def load() -> None:
        try:
            client.load("m")
        except BaseException as error:
            caught.append(error)

    thread = threading.Thread(target=load)
    thread.start()
    assert asked.wait(10)
    client.close()
    thread.join(10)
    assert isinstance(caught[0], concurrent.futures.CancelledError)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "[::1]:1", "127.0.0.1:99999"])
def test_nobody_listens_there(address: str) -> None:
    with pytest.raises(AllocatorUnavailable, match="rayscheduler up"):
        _join(address)
