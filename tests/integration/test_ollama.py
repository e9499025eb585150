"""Models of Ollama in the running service: in a daemon of the replica's own, and borrowed from the operator's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engines.ollama_site import OllamaStore, Operator
from tests.integration.front_door import FrontDoor
from tests.integration.world import Json, World

MIB = 1 << 20
CATALOG = """
models:
- {name: own, engine: ollama, source: tiny, memory: 300MiB, env: {PATH: "%s", OLLAMA_MODELS: "%s"}}
- {name: lent, aliases: [borrowed], engine: ollama, source: other, daemon: "%s", memory: 300MiB}
"""


@pytest.fixture
def operator(tmp_path: Path) -> Iterator[Operator]:
    store = OllamaStore(tmp_path / "ollama")
    store.add("tiny:latest", size=50 * MIB)
    store.add("other:latest", size=200 * MIB)
    daemon = Operator(store)
    yield daemon
    daemon.close()


def measured(status: Json) -> dict[str, int]:
    return {replica["model"]: replica["measured_bytes"] or 0 for replica in status["replicas"]}


def test_what_a_daemon_holds_for_a_replica_is_the_replicas(world: World, operator: Operator) -> None:
    env = operator.store.env
    world.deploy(CATALOG % (env["PATH"], env["OLLAMA_MODELS"], operator.url))
    with FrontDoor(world.url) as front:
        assert front.chat("own") == "I am tiny:latest"
        assert "".join(front.chat_stream("borrowed")) == "Iamother:latest"
    assert operator.loaded() == ["other:latest"], "the other one has a daemon of its own"
    world.until(lambda now: measured(now).get("lent", 0) > 200 * MIB)  # the adapter's, and what the daemon says
    assert 0 < measured(world.status())["own"] < 200 * MIB, "its processes, as the kernel counts them"
    world.deploy("models: []")
    world.until_quiet()
    assert operator.loaded() == []


def test_a_daemon_that_ends_is_a_crash_with_its_reason(world: World, operator: Operator) -> None:
    env = operator.store.env
    world.deploy(CATALOG % (env["PATH"], env["OLLAMA_MODELS"], operator.url))
    with FrontDoor(world.url) as front:
        assert front.chat("lent") == "I am other:latest"
        operator.die()
        told = front.refused("/v1/chat/completions", {"model": "lent", "messages": []}, 503, "load_failed")
        assert f"no Ollama daemon answers at {operator.url}" in told
