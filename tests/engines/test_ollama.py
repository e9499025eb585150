"""The engine `ollama` with a daemon of its own: argv and environment, what it serves, and what it says and leaves
when something is wrong. (With the operator's daemon: test_ollama_daemon.py.)"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI

from rayscheduler.engines import EngineRequest, ollama
from rayscheduler.engines.environment import engine_environment
from rayscheduler.engines.ollama_daemon import Loaded
from rayscheduler.engines.process import EngineProcess
from rayscheduler.errors import EngineError, EngineFailed, EngineMissing, SourceError
from tests.engines.conftest import Start, refusal_of
from tests.engines.ollama_site import OllamaStore
from tests.engines.pids import BOUND_S, Watched, argv_of, environment_of

ENGINE = ollama.Ollama()
MIB, GIB = 1 << 20, 1 << 30
CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi ü"}]}


def request(source: str | None = "tiny", **more: Any) -> EngineRequest:
    return EngineRequest("m", "m#1", source=source, **more)


def client_of(engine: EngineProcess) -> httpx.AsyncClient:
    headers = {"Authorization": f"Bearer {engine.api_key}"}
    return httpx.AsyncClient(base_url=engine.endpoint, headers=headers, timeout=BOUND_S)


async def failure_of(engine: EngineProcess) -> str:
    """What the engine said last, when it has given up its load."""
    with pytest.raises(EngineFailed, match="exited with status 1 before it was ready"):
        await engine.wait_ready(BOUND_S)
    return engine.log_tail(1)


def daemon_pid(engine: EngineProcess) -> int:
    return next(pid for pid in engine.pids() if "serve" in argv_of(pid))


async def stand_in(engine: EngineProcess) -> dict[str, Any]:
    """What the stand-in tells of itself, asked at its own address."""
    async with httpx.AsyncClient(timeout=BOUND_S) as client:
        host = environment_of(daemon_pid(engine))["OLLAMA_HOST"]
        told: dict[str, Any] = (await client.get(f"http://{host}/stand-in")).json()
        return told


# argv and environment


def test_the_command_of_a_replica_with_its_own_daemon() -> None:
    asked = request(
        "llama3.2:3b",
        concurrency=3,
        context_length=8192,
        device_bytes=(3 * GIB, 2 * GIB),
        visible_devices=("GPU-a", "GPU-b"),
        backend="nvidia",
        env={"OLLAMA_KV_CACHE_TYPE": "q8_0", "OLLAMA_FLASH_ATTENTION": "1"},
        load_timeout_ms=90_000,
    )
    command = ENGINE.command(asked, 20_001, "secret", "10.0.0.1")
    assert command.argv[:3] == (sys.executable, "-m", "rayscheduler.engines.ollama_server")
    assert json.loads(command.argv[3]) == {
        "model": "m",
        "tag": "llama3.2:3b",
        "host": "10.0.0.1",
        "port": 20_001,
        "daemon": None,
        "embedding": False,
        "on_gpus": True,
        "reserved_bytes": 5 * GIB,
        "context_length": 8192,
        "keep_alive_s": 120,
        "renew_s": 20,
        "watch_s": 5,
    }
    assert command.env == {
        "OLLAMA_CONTEXT_LENGTH": "8192",
        "OLLAMA_FLASH_ATTENTION": "1",
        "OLLAMA_KEEP_ALIVE": "-1",
        "OLLAMA_KV_CACHE_TYPE": "q8_0",
        "OLLAMA_LOAD_TIMEOUT": "90000ms",
        "OLLAMA_MAX_LOADED_MODELS": "1",
        "OLLAMA_NOPRUNE": "1",
        "OLLAMA_NO_CLOUD": "1",
        "OLLAMA_NUM_PARALLEL": "3",
        "OLLAMA_SCHED_SPREAD": "1",
    }
    assert (command.ready_path, command.held_elsewhere_path) == ("/health", "")


def test_one_device_needs_no_spreading_and_a_context_is_always_said() -> None:
    env = ENGINE.command(request(visible_devices=("GPU-a",)), 1, "", "").env
    assert "OLLAMA_SCHED_SPREAD" not in env
    assert env["OLLAMA_CONTEXT_LENGTH"] == "4096"


def test_where_a_node_keeps_its_models_is_passed_on_and_no_secret() -> None:
    node = {"OLLAMA_MODELS": "/srv/models", "OLLAMA_API_KEY": "secret", "OLLAMA_HOST": "0.0.0.0"}
    command = ENGINE.command(request(), 1, "", "")
    passed = engine_environment(node, request(), command.env)
    assert passed["OLLAMA_MODELS"] == "/srv/models"
    assert "OLLAMA_API_KEY" not in passed
    own = engine_environment(node, request(env={"OLLAMA_MODELS": "/mine"}), command.env)
    assert own["OLLAMA_MODELS"] == "/mine"


@pytest.mark.parametrize(
    ("source", "told"),
    [
        (None, "has no source, which is no name of Ollama's; give one that `ollama list` shows"),
        ("/srv/model", "'/srv/model' is no name of Ollama's"),
        ("a b", "'a b' is no name of Ollama's"),
        ("a.gguf", "'a.gguf' is a file; give it to the engine llama-cpp, or make a model of it"),
    ],
)
def test_a_source_that_is_no_name(source: str | None, told: str) -> None:
    with pytest.raises(SourceError, match=told):
        ENGINE.validate(request(source))


@pytest.mark.parametrize("source", ["llama3.2", "llama3.2:3b", "user/model:q4_K_M", "hf.co/org/Model-GGUF:Q4_0"])
def test_names_as_ollama_has_them(source: str) -> None:
    ENGINE.validate(request(source))


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"args": ("--verbose",)}, "ollama takes no args; set `env`, such as OLLAMA_KV_CACHE_TYPE: q8_0"),
        ({"env": {"OLLAMA_NUM_PARALLEL": "2"}}, "sets OLLAMA_NUM_PARALLEL in its env; give it as `concurrency`"),
        ({"env": {"OLLAMA_HOST": "0.0.0.0"}}, "sets OLLAMA_HOST in its env; it is chosen by rayscheduler"),
    ],
)
def test_what_the_catalog_says_elsewhere(more: dict[str, Any], told: str) -> None:
    with pytest.raises(EngineError, match=told):
        ENGINE.validate(request(**more))


def test_a_machine_without_ollama(tmp_path: Path) -> None:
    with pytest.raises(EngineMissing, match=r"needs the engine ollama, which is not installed; run: curl -fsSL"):
        ENGINE.check(request(env={"PATH": str(tmp_path)}))


# what a load came to


@pytest.mark.parametrize(
    ("loaded", "on_gpus", "told"),
    [
        (Loaded(4 * GIB, 4 * GIB, 4096), True, ""),
        (Loaded(9 * GIB, 4 * GIB, 4096), True, ""),
        (Loaded(5 * GIB, 5 * GIB, 4096), True, r"it takes 5.0 GiB, and 4.0 GiB are reserved .* `memory` of 5120MiB"),
        (Loaded(4 * GIB, 0, 4096), False, ""),
        (Loaded(5 * GIB, 0, 4096), False, r"it takes 5.0 GiB, and 4.0 GiB are reserved"),
        (Loaded(3 * GIB, 1 * GIB, 4096), False, r"it takes 1.0 GiB on GPUs, and none is reserved for it"),
        (Loaded(1 * GIB, 1 * GIB, 2048), True, r"its context is 2,048 tokens, and the catalog's .* is 4,096; lower"),
        (Loaded(1 * GIB, 1 * GIB, 0), True, ""),  # a version that does not say it
    ],
)
def test_a_load_is_held_against_what_was_promised(loaded: Loaded, on_gpus: bool, told: str) -> None:
    devices = ("GPU-a",) if on_gpus else ()
    command = ENGINE.command(
        request(device_bytes=(4 * GIB,), visible_devices=devices, context_length=4096), 1, "", "127.0.0.1"
    )
    problem = loaded.misfit(ollama.Plan(**json.loads(command.argv[3])))
    assert re.match(told, problem) if told else problem == ""


# serving


async def test_it_answers_the_openai_client(start: Start, ollama_store: OllamaStore) -> None:
    ollama_store.add("tiny:latest", size=60 * MIB)
    asked = request(env=ollama_store.env, device_bytes=(64 * MIB,), concurrency=2)
    ENGINE.check(asked)
    engine = start("ollama", asked)
    await engine.wait_ready(BOUND_S)
    daemon = environment_of(daemon_pid(engine))
    assert daemon["OLLAMA_HOST"].startswith("127.0.0.1:")
    assert daemon["OLLAMA_NUM_PARALLEL"] == "2"
    assert daemon["CUDA_VISIBLE_DEVICES"] == "", "on a cpu node: no GPU, not all"
    assert "RAYSCHEDULER_API_KEY" not in daemon
    async with AsyncOpenAI(base_url=engine.endpoint + "/v1", api_key=engine.api_key, max_retries=0) as openai:
        whole = await openai.chat.completions.create(**CHAT)
        assert whole.choices[0].message.content == "I am tiny:latest"
        stream = await openai.chat.completions.create(**CHAT, stream=True)
        assert [chunk.choices[0].delta.content async for chunk in stream] == ["I", "am", "tiny:latest"]
        assert [model.id async for model in openai.models.list()] == ["m"]
    assert (await stand_in(engine))["loads"] == 1, "a request must not load it anew"
    async with client_of(engine) as client:
        told = (await client.post("/v1/chat/completions", json=CHAT)).json()
        assert told["authorized"] is False, "the key is not the daemon's business"
        assert (await client.get("/stats")).json() == {
            "in_flight": 0,
            "size_bytes": 60 * MIB,
            "vram_bytes": 0,
            "context_length": 4096,
            "held_elsewhere_bytes": 0,
        }
    assert await engine.held_elsewhere_bytes() == 0
    assert "tiny takes 60 MiB of 64 MiB reserved, context 4,096 tokens" in engine.log_tail()


async def test_only_those_who_know_the_key_and_only_openais_paths(start: Start, ollama_store: OllamaStore) -> None:
    ollama_store.add("tiny:latest")
    engine = start("ollama", request(env=ollama_store.env))
    await engine.wait_ready(BOUND_S)
    async with client_of(engine) as client:
        wrong = {"Authorization": "Bearer wrong"}
        for path in ("/v1/chat/completions", "/v1/embeddings"):
            assert (await client.post(path, json=CHAT, headers=wrong)).status_code == 401
        assert (await client.get("/stats", headers=wrong)).status_code == 401
        assert (await client.request("DELETE", "/api/delete", json={"model": "tiny"})).status_code == 404
        assert (await client.post("/api/generate", json={"model": "tiny", "keep_alive": 0})).status_code == 404
        assert (await client.post("/v1/chat/completions", content=b"[1]")).status_code == 400


async def test_embeddings(start: Start, ollama_store: OllamaStore) -> None:
    ollama_store.add("minilm:latest", embedding=True)
    engine = start("ollama", request("minilm", embedding=True, env=ollama_store.env))
    await engine.wait_ready(BOUND_S)
    async with client_of(engine) as client:
        answer = await client.post("/v1/embeddings", json={"model": "m", "input": "hi"})
        assert answer.json()["data"][0]["embedding"] == [0.5, 0.5]


async def test_it_is_ready_when_the_model_is_and_not_before(start: Start, ollama_store: OllamaStore) -> None:
    gate = ollama_store.folder / "gate"
    ollama_store.add("slow:latest", gate=str(gate))
    engine = start("ollama", request("slow", env=ollama_store.env))
    assert "HTTP 503 from /health" in await refusal_of(engine)
    async with client_of(engine) as client:
        early = await client.post("/v1/chat/completions", json=CHAT)
        assert (early.status_code, early.json()["error"]["message"]) == (503, "m is loading")
    gate.touch()
    await engine.wait_ready(BOUND_S)


async def test_a_client_that_leaves_a_stream_ends_the_generation(start: Start, ollama_store: OllamaStore) -> None:
    ollama_store.add("endless:latest", endless=True)
    engine = start("ollama", request("endless", env=ollama_store.env))
    await engine.wait_ready(BOUND_S)
    async with client_of(engine) as client:
        async with client.stream("POST", "/v1/chat/completions", json={**CHAT, "stream": True}) as answer:
            pieces = answer.aiter_bytes()
            await anext(pieces)
            assert (await stand_in(engine))["in_flight"] == 1
            assert (await client.get("/stats")).json()["in_flight"] == 1
        await until_in_flight(engine, 0)


async def test_a_client_that_does_not_wait_ends_the_generation(start: Start, ollama_store: OllamaStore) -> None:
    ollama_store.add("endless:latest", endless=True)
    engine = start("ollama", request("endless", env=ollama_store.env))
    await engine.wait_ready(BOUND_S)
    async with client_of(engine) as client:
        asked = asyncio.create_task(client.post("/v1/chat/completions", json=CHAT))
        await until_in_flight(engine, 1)
        asked.cancel()
        await until_in_flight(engine, 0)


async def until_in_flight(engine: EngineProcess, requests: int) -> None:
    async def asked() -> None:
        while (await stand_in(engine))["in_flight"] != requests:
            pass

    await asyncio.wait_for(asked(), BOUND_S)


async def test_what_spills_into_host_memory_is_said(start: Start, ollama_store: OllamaStore) -> None:
    ollama_store.add("big:latest", size=100 * MIB, host=30 * MIB)
    on_gpu = {"visible_devices": ("GPU-a",), "backend": "nvidia", "device_bytes": (80 * MIB,)}
    engine = start("ollama", request("big", env=ollama_store.env, **on_gpu))
    await engine.wait_ready(BOUND_S)
    assert "big takes 70 MiB of 80 MiB reserved" in engine.log_tail()
    assert "warning: 30 MiB of big are in host memory" in engine.log_tail()
    assert environment_of(daemon_pid(engine))["CUDA_VISIBLE_DEVICES"] == "GPU-a"


# ends


async def test_a_stop_ends_the_daemon_and_its_model_process(start: Start, ollama_store: OllamaStore) -> None:
    ollama_store.add("endless:latest", endless=True)
    engine = start("ollama", request("endless", env=ollama_store.env))
    await engine.wait_ready(BOUND_S)
    family = [Watched(pid) for pid in engine.pids()]
    assert len(family) == 3, "adapter, daemon, model"
    async with (
        client_of(engine) as client,
        client.stream("POST", "/v1/chat/completions", json={**CHAT, "stream": True}) as answer,
    ):
        pieces = answer.aiter_bytes()
        await anext(pieces)
        assert (await engine.stop(grace_s=BOUND_S)).words == "exited with status 0"
    assert all(process.gone for process in family)


async def test_it_can_be_stopped_in_the_middle_of_a_load(start: Start, ollama_store: OllamaStore) -> None:
    ollama_store.add("slow:latest", gate="/no/such/gate")
    engine = start("ollama", request("slow", env=ollama_store.env))
    await refusal_of(engine)
    assert (await engine.stop(grace_s=BOUND_S)).words == "exited with status 0"


@pytest.mark.parametrize("victim", ["adapter", "daemon"])
async def test_nothing_outlives_what_is_killed(start: Start, ollama_store: OllamaStore, victim: str) -> None:
    ollama_store.add("tiny:latest")
    engine = start("ollama", request(env=ollama_store.env))
    await engine.wait_ready(BOUND_S)
    family = [Watched(pid) for pid in engine.pids()]
    os.kill(engine.pid if victim == "adapter" else daemon_pid(engine), signal.SIGKILL)
    ended = await asyncio.wait_for(engine.wait_exit(), BOUND_S)
    assert all(process.gone for process in family)
    if victim == "adapter":
        assert ended.signal_name == "SIGKILL"
    else:
        assert ended.words == "exited with status 1"
        told = "ollama cannot serve tiny: the daemon of this replica, `ollama serve`, was killed by signal 9"
        assert engine.log_tail(1) == told


async def test_a_daemon_that_dies_while_it_answers_cuts_the_answer_off(start: Start, ollama_store: OllamaStore) -> None:
    """An answer that looked whole would be taken for one; the gateway sees a broken connection instead."""
    ollama_store.add("endless:latest", endless=True)
    engine = start("ollama", request("endless", env=ollama_store.env))
    await engine.wait_ready(BOUND_S)
    async with (
        client_of(engine) as client,
        client.stream("POST", "/v1/chat/completions", json={**CHAT, "stream": True}) as answer,
    ):
        pieces = answer.aiter_bytes()
        await anext(pieces)
        os.kill(daemon_pid(engine), signal.SIGKILL)
        with pytest.raises(httpx.TransportError):
            async for _ in pieces:
                pass
    assert (await asyncio.wait_for(engine.wait_exit(), BOUND_S)).words == "exited with status 1"


async def test_a_model_process_that_dies_is_started_anew_by_ollama(start: Start, ollama_store: OllamaStore) -> None:
    ollama_store.add("tiny:latest")
    engine = start("ollama", request(env=ollama_store.env))
    await engine.wait_ready(BOUND_S)
    model = (await stand_in(engine))["pids"]["tiny:latest"]
    os.kill(model, signal.SIGKILL)
    async with client_of(engine) as client:
        assert (await client.post("/v1/chat/completions", json=CHAT)).status_code == 200
    assert (await stand_in(engine))["loads"] == 2


# what goes wrong with a load


async def test_a_model_that_is_not_there(start: Start, ollama_store: OllamaStore) -> None:
    ollama_store.add("tiny:1b")
    told = await failure_of(start("ollama", request("tyny:1b", env=ollama_store.env)))
    assert told.startswith("ollama cannot serve tyny:1b: it is not in the daemon's store (there is tiny:1b); ")
    assert "run `ollama pull tyny:1b` on this machine" in told


async def test_a_model_that_runs_elsewhere(start: Start, ollama_store: OllamaStore) -> None:
    ollama_store.add("huge:cloud", remote_host="https://ollama.com:443")
    told = await failure_of(start("ollama", request("huge:cloud", env=ollama_store.env)))
    assert "it runs at https://ollama.com:443, not here" in told


async def test_a_load_that_takes_more_than_is_reserved(start: Start, ollama_store: OllamaStore) -> None:
    ollama_store.add("tiny:latest", size=60 * MIB, per_token=4096)
    asked = {"device_bytes": (100 * MIB,), "context_length": 8192, "env": ollama_store.env}
    told = await failure_of(start("ollama", request(**asked, concurrency=2)))
    assert told == (
        "ollama cannot serve tiny: it takes 124 MiB, and 100 MiB are reserved for it; "
        "give it a `memory` of 124MiB or more, or lower its context_length or concurrency"
    )
    fits = start("ollama", request(**asked, concurrency=1))
    await fits.wait_ready(BOUND_S)


async def test_a_model_trained_for_less_than_its_context(start: Start, ollama_store: OllamaStore) -> None:
    ollama_store.add("tiny:latest", trained=2048)
    told = await failure_of(start("ollama", request(context_length=8192, env=ollama_store.env)))
    assert "its context is 2,048 tokens, and the catalog's context_length is 8,192" in told


async def test_a_failed_load_has_ollamas_words(start: Start, ollama_store: OllamaStore) -> None:
    ollama_store.add("tiny:latest", fail="model requires more system memory (5.5 GiB) than is available")
    told = await failure_of(start("ollama", request(env=ollama_store.env)))
    assert (
        told == "ollama cannot serve tiny: Ollama says: model requires more system memory (5.5 GiB) than is available"
    )


@pytest.mark.parametrize(
    ("env", "told"),
    [
        ({"STAND_IN_VERSION": "0.5.7"}, "Ollama 0.5.7 is too old, 0.5.13 or newer is needed; run: curl"),
        ({"STAND_IN_FAILS": "no home"}, "the daemon of this replica, `ollama serve`, exited with status 1"),
    ],
)
async def test_a_daemon_that_cannot_be_used(
    start: Start, ollama_store: OllamaStore, env: dict[str, str], told: str
) -> None:
    ollama_store.add("tiny:latest")
    assert told in await failure_of(start("ollama", request(env={**ollama_store.env, **env})))


async def test_a_version_built_from_source(start: Start, ollama_store: OllamaStore) -> None:
    ollama_store.add("tiny:latest")
    engine = start("ollama", request(env={**ollama_store.env, "STAND_IN_VERSION": "0.0.0"}))
    await engine.wait_ready(BOUND_S)
