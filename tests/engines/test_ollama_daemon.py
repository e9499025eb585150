"""The engine `ollama` with the operator's daemon: what is borrowed there is given back, and the rest is left alone."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from rayscheduler.engines import EngineRequest, ollama
from rayscheduler.engines.ports import claim_port
from rayscheduler.engines.process import EngineProcess
from rayscheduler.errors import EngineError
from tests.engines.conftest import Start, refusal_of
from tests.engines.ollama_site import OllamaStore, Operator
from tests.engines.pids import BOUND_S
from tests.engines.test_ollama import CHAT, client_of, failure_of

MIB = 1 << 20


@pytest.fixture
def operator(ollama_store: OllamaStore) -> Iterator[Operator]:
    for name in ("tiny:latest", "other:latest"):
        ollama_store.add(name, size=60 * MIB)
    daemon = Operator(ollama_store)
    yield daemon
    daemon.close()


@pytest.fixture(autouse=True)
def notes_of_this_test(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path_factory.mktemp("notes")))


@pytest.fixture
def short_loan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ollama, "KEEP_ALIVE_S", 2.0)
    monkeypatch.setattr(ollama, "RENEW_S", 0.1)
    monkeypatch.setattr(ollama, "WATCH_S", 0.1)


@pytest.fixture
def close_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ollama, "WATCH_S", 0.1)


def request(daemon: Operator | str, source: str = "tiny", replica: str = "m#1", **more: Any) -> EngineRequest:
    url = daemon if isinstance(daemon, str) else daemon.url
    return EngineRequest("m", replica, source=source, daemon=url, **more)


async def until(seen: Callable[[], bool]) -> None:
    async def watch() -> None:
        while not await asyncio.to_thread(seen):
            pass

    await asyncio.wait_for(watch(), BOUND_S)


async def end_of(engine: EngineProcess) -> str:
    """What a served engine said when it ended by itself."""
    assert (await asyncio.wait_for(engine.wait_exit(), BOUND_S)).words == "exited with status 1"
    return engine.log_tail(1)


# the command


def test_the_command_of_a_replica_in_the_operators_daemon() -> None:
    asked = request("http://localhost:11434/", device_bytes=(64 * MIB,), env={"TMPDIR": "/var/tmp"}, embedding=True)
    ollama.Ollama().check(asked)
    command = ollama.Ollama().command(asked, 20_001, "secret", "127.0.0.1")
    assert json.loads(command.argv[3]) == {
        "model": "m",
        "tag": "tiny",
        "host": "127.0.0.1",
        "port": 20_001,
        "daemon": "http://localhost:11434",
        "embedding": True,
        "on_gpus": False,
        "reserved_bytes": 64 * MIB,
        "context_length": None,
        "keep_alive_s": 120,
        "renew_s": 20,
        "watch_s": 5,
    }
    assert command.env == {"TMPDIR": "/var/tmp"}
    assert command.held_elsewhere_path == "/stats"


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("localhost:11434", "is no address of a daemon; give one such as http://127.0.0.1:11434"),
        ("http://127.0.0.1", "is no address of a daemon"),
        ("http://127.0.0.1:11434/api", "is no address of a daemon"),
        ("https://127.0.0.1:11434", "is no address of a daemon"),
        ("http://127.0.0.1:x", "is no URL"),
        ("http://10.0.0.7:11434", "may be on another machine, whose memory nobody here counts"),
        ("http://gpu-box:11434", "may be on another machine"),
    ],
)
def test_a_daemon_is_one_of_this_machine(url: str, told: str) -> None:
    with pytest.raises(EngineError, match=told):
        ollama.Ollama().validate(request(url))


@pytest.mark.parametrize("url", ["http://127.0.0.1:11434", "http://[::1]:11434", "http://localhost:11434/"])
def test_addresses_of_this_machine(url: str) -> None:
    ollama.Ollama().validate(request(url))


def test_a_running_daemon_has_its_settings_already() -> None:
    with pytest.raises(EngineError, match="sets OLLAMA_KV_CACHE_TYPE in its env, but its daemon runs already"):
        ollama.Ollama().validate(request("http://127.0.0.1:11434", env={"OLLAMA_KV_CACHE_TYPE": "q8_0"}))


# borrowing and giving back


async def test_two_models_in_one_daemon_come_and_go(start: Start, operator: Operator) -> None:
    operator.ask("other", -1)  # the operator's own business
    engine = start("ollama", request(operator, device_bytes=(64 * MIB,)))
    await engine.wait_ready(BOUND_S)
    assert operator.loaded() == ["other:latest", "tiny:latest"]
    assert await engine.held_elsewhere_bytes() == 60 * MIB
    async with client_of(engine) as client:
        answer = (await client.post("/v1/chat/completions", json=CHAT)).json()
        assert answer["choices"][0]["message"]["content"] == "I am tiny:latest"
    assert operator.loads() == 2, "a request must not load it anew"
    assert (await engine.stop(grace_s=BOUND_S)).words == "exited with status 0"
    assert operator.loaded() == ["other:latest"]


async def test_a_model_is_kept_while_its_replica_lives(start: Start, operator: Operator, short_loan: None) -> None:
    """Longer than the daemon would keep it by itself; and when the replica is killed, no longer than that."""
    engine = start("ollama", request(operator))
    await engine.wait_ready(BOUND_S)
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(engine.wait_exit(), 2 * ollama.KEEP_ALIVE_S)
    assert operator.loaded() == ["tiny:latest"]
    assert operator.loads() == 1
    await engine.stop(grace_s=0)
    await until(lambda: operator.loaded() == [])


async def test_what_a_killed_replica_left_is_unloaded_by_the_next(start: Start, operator: Operator) -> None:
    first = start("ollama", request(operator))
    await first.wait_ready(BOUND_S)
    os.kill(first.pid, signal.SIGKILL)
    await asyncio.wait_for(first.wait_exit(), BOUND_S)
    assert operator.loaded() == ["tiny:latest"], "nobody was left to unload it"
    again = start("ollama", request(operator))
    await again.wait_ready(BOUND_S)
    assert operator.loads() == 2
    await again.stop(grace_s=BOUND_S)
    assert operator.loaded() == []


async def test_a_stop_in_the_middle_of_a_load_leaves_nothing(
    start: Start, operator: Operator, ollama_store: OllamaStore
) -> None:
    ollama_store.add("slow:latest", gate="/no/such/gate")
    engine = start("ollama", request(operator, "slow"))
    await refusal_of(engine)
    await engine.stop(grace_s=BOUND_S)
    assert operator.loaded() == []


async def test_a_load_that_takes_too_much_is_unloaded(start: Start, operator: Operator) -> None:
    told = await failure_of(start("ollama", request(operator, device_bytes=(50 * MIB,))))
    assert "it takes 60 MiB, and 50 MiB are reserved for it" in told
    assert operator.loaded() == []


# whose model it is


async def test_a_daemon_holds_a_model_for_one_replica(start: Start, operator: Operator) -> None:
    first = start("ollama", request(operator))
    await first.wait_ready(BOUND_S)
    told = await failure_of(start("ollama", request(operator, "tiny:latest", replica="m#2")))
    assert f"another replica has it loaded in the daemon at {operator.url}, which holds a model once" in told
    assert operator.loaded() == ["tiny:latest"], "the first one has it still"
    async with client_of(first) as client:
        assert (await client.post("/v1/chat/completions", json=CHAT)).status_code == 200


async def test_a_model_that_the_operator_has_loaded_is_left_alone(start: Start, operator: Operator) -> None:
    operator.ask("tiny", -1)
    told = await failure_of(start("ollama", request(operator)))
    assert "already, and not by us; run `ollama stop tiny`, or leave out `daemon`" in told
    assert operator.loaded() == ["tiny:latest"]


async def test_an_old_note_makes_nobodys_model_ours(start: Start, operator: Operator, short_loan: None) -> None:
    first = start("ollama", request(operator))
    await first.wait_ready(BOUND_S)
    os.kill(first.pid, signal.SIGKILL)
    await asyncio.wait_for(first.wait_exit(), BOUND_S)
    await until(lambda: operator.loaded() == [])
    (note,) = (Path(os.environ["TMPDIR"]) / f"rayscheduler-ollama-{os.getuid()}").iterdir()
    os.utime(note, (0, 0))
    operator.ask("tiny", -1)
    assert "not by us" in await failure_of(start("ollama", request(operator)))
    assert operator.loaded() == ["tiny:latest"]


# when it is gone


async def test_no_daemon_there(start: Start) -> None:
    port = claim_port("127.0.0.1")
    told = await failure_of(start("ollama", request(f"http://127.0.0.1:{port.number}")))
    assert f"no Ollama daemon answers at http://127.0.0.1:{port.number}" in told
    assert told.endswith("start it with `ollama serve`, or leave out `daemon`")
    port.release()


async def test_something_else_there(start: Start) -> None:
    other = start("simulated", EngineRequest("a", "a#1", simulate={"load": 0}))
    await other.wait_ready(BOUND_S)
    told = await failure_of(start("ollama", request(other.endpoint)))
    assert told.endswith(f"what answers at {other.endpoint} is no Ollama daemon; give the address of one")


async def test_a_daemon_that_ends_takes_its_replicas_with_it(
    start: Start, operator: Operator, close_watch: None
) -> None:
    engine = start("ollama", request(operator))
    await engine.wait_ready(BOUND_S)
    operator.die()
    assert f"no Ollama daemon answers at {operator.url}" in await end_of(engine)


async def test_a_request_finds_out_at_once_that_the_daemon_is_gone(start: Start, operator: Operator) -> None:
    """And is cut off without an answer, so that the gateway tries it elsewhere."""
    engine = start("ollama", request(operator))
    await engine.wait_ready(BOUND_S)
    operator.die()
    async with client_of(engine) as client:
        with pytest.raises(httpx.TransportError):
            await client.post("/v1/chat/completions", json=CHAT)
    assert "no Ollama daemon answers" in await end_of(engine)


async def test_a_model_that_was_unloaded_ends_its_replica(start: Start, operator: Operator, close_watch: None) -> None:
    engine = start("ollama", request(operator))
    await engine.wait_ready(BOUND_S)
    operator.ask("tiny", 0)
    told = await end_of(engine)
    assert f"the daemon at {operator.url} has it loaded no longer" in told
