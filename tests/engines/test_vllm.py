"""The engine `vllm`, with a stand-in for its program: processes, paths, what it may be told and what is missing."""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from rayscheduler.engines import EngineRequest, by_name
from rayscheduler.engines.process import EngineProcess
from rayscheduler.errors import EngineError, EngineFailed, EngineMissing, SourceError
from tests.engines import vllm_stand_in
from tests.engines.conftest import Start
from tests.engines.golden import MODELS
from tests.engines.pids import BOUND_S, Watched, argv_of, environment_of

GIB = 1 << 30
ENGINE = by_name("vllm")


@pytest.fixture
def asked(tmp_path: Path) -> EngineRequest:
    """A model on two devices, in an environment where the stand-in is vLLM."""
    return EngineRequest(
        "org/m",
        "org/m#1",
        source=str(MODELS / "llama-8b"),
        python=vllm_stand_in.install(tmp_path / "venv"),
        context_length=4096,
        concurrency=8,
        device_bytes=(40 * GIB,) * 2,
        device_capacity_bytes=(80 * GIB,) * 2,
        visible_devices=("GPU-a", "GPU-b"),
        backend="nvidia",
    )


async def started(start: Start, request: EngineRequest) -> tuple[EngineProcess, list[Watched]]:
    """It is ready; all its processes: the API process, EngineCore and a worker per device."""
    ENGINE.check(request)
    engine = start("vllm", request)
    await engine.wait_ready(BOUND_S)
    family = [Watched(pid) for pid in engine.pids()]
    assert len(family) == 1 + 1 + len(request.device_bytes)
    return engine, family


async def until_in_flight(engine: EngineProcess, count: int) -> None:
    while await engine.in_flight() != count:
        pass


async def test_it_becomes_ready_and_tells_what_it_has(start: Start, asked: EngineRequest) -> None:
    engine, _ = await started(start, asked)
    assert engine.measured_bytes() > 3 * vllm_stand_in.HELD_BYTES, "EngineCore and the workers hold it"
    environment = environment_of(engine.pid)
    assert environment["CUDA_VISIBLE_DEVICES"] == "GPU-a,GPU-b"
    assert environment["VLLM_API_KEY"] == engine.api_key
    assert engine.api_key not in " ".join(argv_of(engine.pid))
    assert await engine.in_flight() == 2, "two that wait"
    key = {"Authorization": f"Bearer {engine.api_key}"}
    async with httpx.AsyncClient(base_url=engine.endpoint, headers=key, timeout=BOUND_S) as client:
        assert (await client.get("/v1/models")).json() == {"data": [{"id": "org/m"}]}
        endless = asyncio.create_task(client.post("/v1/completions", json={}))
        await asyncio.wait_for(until_in_flight(engine, 3), BOUND_S)
        endless.cancel()


async def test_a_stop_leaves_no_engine_core_and_no_worker(start: Start, asked: EngineRequest) -> None:
    engine, family = await started(start, asked)
    await engine.stop(grace_s=5)
    assert all(process.gone for process in family)
    assert engine.exit is not None


async def test_a_killed_api_process_leaves_nothing_either(start: Start, asked: EngineRequest) -> None:
    """As vLLM itself would: its EngineCore and workers would go on and hold their devices' memory."""
    engine, family = await started(start, asked)
    os.kill(engine.pid, signal.SIGKILL)
    ended = await asyncio.wait_for(engine.wait_exit(), BOUND_S)
    assert ended.signal_name == "SIGKILL"
    assert all(process.gone for process in family)


async def test_a_follower_is_there_without_answering(start: Start, asked: EngineRequest) -> None:
    places = {"node_count": 2, "leader_host": "127.0.0.1", "leader_port": 29500}
    engine = start("vllm", replace(asked, node_rank=1, **places))  # type: ignore[arg-type]
    await engine.wait_ready(BOUND_S)
    assert await engine.in_flight() is None
    family = [Watched(pid) for pid in engine.pids()]
    await engine.stop(grace_s=5)
    assert all(process.gone for process in family)


async def test_it_sleeps_and_wakes_by_its_calls(start: Start, asked: EngineRequest) -> None:
    asked = replace(asked, sleep=True)
    engine, _ = await started(start, asked)
    calls = ENGINE.sleep_calls(asked)
    assert calls is not None
    assert (await engine.call(calls.sleep)).ok
    async with httpx.AsyncClient(base_url=engine.endpoint) as client:
        assert (await client.get("/is_sleeping")).json() == {"is_sleeping": True}
        assert (await engine.call(calls.wake)).ok
        assert (await client.get("/is_sleeping")).json() == {"is_sleeping": False}


async def test_sleep_is_not_there_unless_it_is_wanted(start: Start, asked: EngineRequest) -> None:
    engine, _ = await started(start, asked)
    calls = ENGINE.sleep_calls(replace(asked, sleep=True))
    assert calls is not None
    assert not (await engine.call(calls.sleep)).ok


async def test_a_refusal_of_vllm_is_told_in_its_words(start: Start, asked: EngineRequest) -> None:
    engine = start("vllm", replace(asked, env={"VLLM_STAND_IN": "refuse"}))
    with pytest.raises(EngineFailed, match="exited with status 1 before it was ready") as failed:
        await engine.wait_ready(BOUND_S)
    assert "Free memory on device cuda:0 on startup is less than desired" in failed.value.log_tail


def test_one_that_is_not_installed(asked: EngineRequest, tmp_path: Path) -> None:
    with pytest.raises(
        EngineMissing, match=r'needs vllm, which is not installed; run: pip install "rayscheduler\[vllm'
    ):
        ENGINE.check(replace(asked, python=None))
    with pytest.raises(EngineMissing, match=r"/nowhere is no Python environment on this machine: .* -m venv /nowhere"):
        ENGINE.check(replace(asked, python="/nowhere"))
    old = vllm_stand_in.install(tmp_path / "old", version="0.23.1")
    with pytest.raises(EngineMissing, match=rf"needs vllm 0\.24 or newer, but 0\.23\.1 is installed in {old}"):
        ENGINE.check(replace(asked, python=old))


def test_a_model_that_is_not_there(asked: EngineRequest) -> None:
    with pytest.raises(SourceError, match="has no source"):
        ENGINE.check(replace(asked, source=None))
    with pytest.raises(SourceError, match="/nowhere does not exist; give the path of a folder"):
        ENGINE.check(replace(asked, source="/nowhere"))
    with pytest.raises(SourceError, match="neither a path nor an id on the hub"):
        ENGINE.check(replace(asked, source="a/b/c"))
    away = replace(asked, source="org/away", env={"HF_HOME": "/nowhere"})
    with pytest.raises(EngineError, match=r"org/away is not on this machine.* say how much with `kv_cache`"):
        ENGINE.check(away)
    ENGINE.check(replace(away, kv_cache_bytes=8 * GIB))


def test_a_model_of_the_hubs_cache_is_looked_into(asked: EngineRequest, tmp_path: Path) -> None:
    """The cache's newest whole revision, or `main` where it is said."""
    snapshots = tmp_path / "hub" / "models--org--here" / "snapshots"
    for revision in ("aaa", "bbb"):
        (snapshots / revision).mkdir(parents=True)
    config = (MODELS / "llama-8b" / "config.json").read_text()
    (snapshots / "bbb" / "config.json").write_text(config)
    here = replace(asked, source="org/here", env={"HF_HOME": str(tmp_path)})
    assert ENGINE.command(here, 1, "", "").argv[2] == "org/here"
    inside = replace(here, python=None, container_image="vllm/vllm-openai:v0.33.0")
    command = ENGINE.command(inside, 1, "", "")
    assert command.argv[:3] == ("vllm", "serve", str(snapshots / "bbb")), "a container has no cache of the hub"
    assert str(snapshots.parent) in command.mounts


@pytest.mark.parametrize("key", ["VLLM_API_KEY", "VLLM_SERVER_DEV_MODE"])
def test_its_environment_has_words_of_ours(asked: EngineRequest, key: str) -> None:
    with pytest.raises(EngineError, match=f"sets {key} in its env"):
        ENGINE.validate(replace(asked, env={key: "1"}))


def test_stages_and_types_that_cannot_be(asked: EngineRequest) -> None:
    with pytest.raises(EngineError, match="takes 2 devices, which cannot form 3 equal stages"):
        ENGINE.validate(replace(asked, pipeline=3))
    with pytest.raises(EngineError, match="vllm has no kv_type 'q8_0'; it is one of auto, bf16"):
        ENGINE.validate(replace(asked, kv_type="q8_0"))
