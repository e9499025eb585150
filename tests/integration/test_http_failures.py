"""What HTTP clients see, or leave behind, when something dies: clients, engines, runners, loads, the allocator."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import openai
import psutil
import pytest
import ray

from tests.integration.front_door import EngineWindow, FrontDoor
from tests.integration.world import World, is_gone, kill

CHAT = "/v1/chat/completions"
ONE_AT_A_TIME = """
models:
- {name: a, engine: simulated, memory: 600MiB, simulate: {load: 0s}}
- {name: b, engine: simulated, memory: 600MiB, simulate: {load: 0s}}
- {name: slow, engine: simulated, memory: 600MiB, simulate: {load: 0s, tokens_per_second: 20}}
"""


@pytest.fixture
def front(world: World) -> Iterator[FrontDoor]:
    world.deploy(ONE_AT_A_TIME)
    with FrontDoor(world.url) as front:
        yield front


def test_a_client_that_hangs_up_stops_the_generation_and_its_lease(world: World, front: FrontDoor) -> None:
    with EngineWindow(world, "slow") as engine:
        pieces = front.chat_stream("slow", "#tokens=100000")  # an hour and more
        assert next(pieces) == "This"
        assert engine.stats()["in_flight"] == 1, "what it has said was not held back until its end"
        assert world.replica(engine.replica)["leases"] == 1
        pieces.close()  # type: ignore[attr-defined]
        stats = engine.until(lambda stats: stats["aborted"])
        assert (stats["aborted"], stats["in_flight"], stats["served"]) == (1, 0, 0)
    world.until(lambda now: now["replicas"][0]["leases"] == 0)
    assert front.chat("a") == "This is a, simulated.", "and its room can be had"


def test_a_client_that_hangs_up_in_the_queue_leaves_it(world: World, front: FrontDoor) -> None:
    holding = world.ask("a")
    holding.granted()
    started = world.decisions(decision="start")
    with front.hanging_on("b"):
        status = world.until(lambda now: now["queue"])
        assert status["queue"][0]["model"] == "b"
    world.until(lambda now: not now["queue"])
    holding.release()
    assert front.chat("a") == "This is a, simulated."
    assert world.decisions(decision="start") == started, "nobody wanted it any more"


def test_an_engine_killed_before_the_first_byte_is_not_noticed(world: World, front: FrontDoor) -> None:
    assert front.chat("a")
    (first,) = world.until_quiet()["replicas"]
    os.kill(first["engine_pid"], signal.SIGSTOP)  # it takes the request and says nothing
    answer = front.meanwhile(front.chat, "a")
    world.until(lambda now: any(replica["leases"] for replica in now["replicas"]))
    kill(first["engine_pid"])
    assert answer.result() == "This is a, simulated."
    (second,) = world.until_quiet()["replicas"]
    assert second["id"] != first["id"]
    assert [stop["reason"] for stop in world.decisions(decision="stop", replica=first["id"])] == ["crashed"]
    world.until(lambda now: now["replicas"][0]["leases"] == 0)


def test_a_request_that_kills_every_engine_is_tried_twice(world: World, front: FrontDoor) -> None:
    with pytest.raises(openai.InternalServerError, match=r"Replica a#.* It was tried 2 times") as lost:
        front.chat("a", "#crash")
    assert (lost.value.status_code, lost.value.code) == (502, "replica_lost")
    assert front.chat("a") == "This is a, simulated."


def test_an_engine_that_dies_in_the_middle_of_a_stream_is_an_error_in_it(world: World, front: FrontDoor) -> None:
    said: list[str] = []
    with pytest.raises(openai.APIError, match="ended in the middle of its answer"):
        said.extend(front.chat_stream("a", "#tokens=50#crash=midstream"))
    world.until(lambda now: not any(replica["leases"] for replica in now["replicas"]))
    assert front.chat("a") == "This is a, simulated."


def test_the_request_after_a_killed_runner_is_served(world: World, front: FrontDoor) -> None:
    assert front.chat("a")
    (first,) = world.until_quiet()["replicas"]
    kill(first["runner_pid"])
    assert front.chat("a") == "This is a, simulated."
    world.until(lambda now: [replica["id"] for replica in now["replicas"]] != [first["id"]])
    world.until_quiet()
    assert is_gone(first["engine_pid"])


def test_a_load_that_fails_is_a_503_with_the_engines_last_words(world: World, front: FrontDoor) -> None:
    world.deploy("models: [{name: bad, engine: simulated, memory: 300MiB, simulate: {load: 0s, fail: load}}]")
    answer = front.post(CHAT, {"model": "bad", "messages": [{"role": "user", "content": "hello"}]})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["type"]) == (503, "load_failed", "server_error")
    assert int(answer.headers["retry-after"]) >= 1
    assert "exited with status 1" in error["message"]
    assert "bad: simulated failure of the load" in error["message"]
    model = front.get("/v1/models/bad")
    assert (model["state"], model["loaded"]) == ("backing_off", False)
    with pytest.raises(openai.InternalServerError, match="simulated failure") as again:
        front.chat("bad")
    assert again.value.status_code == 503
    assert len(world.decisions(decision="start", model="bad")) == 2, "it waited through the back-off, and was tried"
    world.call("unload", "bad")


def test_no_request_is_lost_with_the_allocator(world: World, front: FrontDoor) -> None:
    with EngineWindow(world, "slow") as engine:
        pieces = front.chat_stream("slow", "#tokens=60")
        said = [next(pieces)]
        waiting = front.meanwhile(front.chat, "b")
        world.until(lambda now: now["queue"])
        ray.kill(world.allocator, no_restart=False)
        warm = front.meanwhile(front.chat, "slow")
        said += pieces
        assert len(said) == 60, "a stream does not need the allocator"
        assert warm.result() == "This is slow, simulated."
        assert waiting.result() == "This is b, simulated."
        assert [stop["reason"] for stop in world.decisions(decision="stop", replica=engine.replica)] == ["evicted"]


def test_the_gateways_death_ends_what_it_relayed_and_nothing_else(world: World, front: FrontDoor) -> None:
    with EngineWindow(world, "slow") as engine:
        pieces = front.chat_stream("slow", "#tokens=100000")
        assert next(pieces)
        kill(pid_of_gateway(world))
        with pytest.raises(openai.APIConnectionError):
            list(pieces)
        engine.until(lambda stats: stats["aborted"])
    # Nearly always it is held back until there is a gateway again; HAProxy may give up a moment too early.
    assert front.chat_in_the_end("slow") == "This is slow, simulated."
    world.until(lambda now: all(replica["leases"] == 0 for replica in now["replicas"]))
    assert [replica["id"] for replica in world.status()["replicas"]] == [engine.replica]


def pid_of_gateway(world: World) -> int:
    assert world.service.head is not None
    (pid,) = [
        process.pid
        for process in psutil.process_iter(["cmdline"])
        if "ServeReplica:rayscheduler:Gateway" in " ".join(process.info["cmdline"] or [])
        and os.getsid(process.pid) == world.service.head.pid
    ]
    return pid
