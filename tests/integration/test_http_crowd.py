"""Fifty clients at once on three models in a space for two: no error, the right model's answers, no over-commit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future

import pytest

from tests.integration.front_door import FrontDoor
from tests.integration.world import Json, World, is_gone

CLIENTS, REQUESTS_EACH = 50, 4
MODELS = ("red", "green", "blue")
CATALOG = """
models:
- {name: red, engine: simulated, memory: 450MiB, concurrency: 4, simulate: {load: 0s}}
- {name: green, engine: simulated, memory: 450MiB, concurrency: 4, simulate: {load: 0s}}
- {name: blue, engine: simulated, memory: 450MiB, concurrency: 4, simulate: {load: 0s}}
"""


@pytest.fixture
def front(world: World) -> Iterator[FrontDoor]:
    world.deploy(CATALOG)
    with FrontDoor(world.url) as front:
        yield front


def test_a_crowd(world: World, front: FrontDoor) -> None:
    since = world.status()["serial"]
    clients = [front.meanwhile(one_client, front, number) for number in range(CLIENTS)]
    engines = watch(world, clients)
    answers = [answer for client in clients for answer in client.result()]

    assert [answer for model, answer in answers if answer != f"This is {model}, simulated."] == []
    asked = Counter(model for model, _ in answers)
    assert sum(asked.values()) == CLIENTS * REQUESTS_EACH
    assert set(asked) == set(MODELS)
    started = {start["model"] for start in world.decisions(decision="start") if start["serial"] > since}
    assert started == set(MODELS)
    status = world.until_quiet()  # the table of placement groups is the ledger
    assert 1 <= len(status["replicas"]) <= 2
    assert status["queue"] == []
    world.until(lambda now: not any(replica["leases"] for replica in now["replicas"]))
    left = {pid for pid in engines if not is_gone(pid)}
    assert left == {replica["engine_pid"] for replica in world.status()["replicas"]}


def one_client(front: FrontDoor, number: int) -> list[tuple[str, str]]:
    """Asks one after the other, every client beginning with another model; half of them stream."""
    answers = []
    for turn in range(REQUESTS_EACH):
        model = MODELS[(number + turn) % len(MODELS)]
        if number % 2:
            answers.append((model, "".join(front.chat_stream(model))))
        else:
            answers.append((model, front.chat(model)))
    return answers


def watch(world: World, clients: list[Future[list[tuple[str, str]]]]) -> set[int]:
    """Until all clients are done: never more is promised or runs than fits. The pids of the engines seen."""
    seen: set[int] = set()

    def all_done(status: Json) -> bool:
        (node,) = [node for node in status["nodes"] if node["alive"]]
        (device,) = node["devices"]
        assert device["reserved_bytes"] <= device["capacity_bytes"], status
        seen.update(replica["engine_pid"] for replica in status["replicas"] if replica["engine_pid"])
        assert sum(not is_gone(pid) for pid in seen) <= 2, "an engine was started before another was gone"
        return all(client.done() for client in clients)

    world.until(all_done, within_s=180)
    return seen
