"""The engine `llama-cpp` really serves GGUF models, and says what is wrong with one that it cannot serve."""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import xllamacpp
from openai import AsyncOpenAI

from rayscheduler.engines import EngineRequest, by_name, llama_cpp
from rayscheduler.engines.inside.rayscheduler_llama_cpp import assign
from rayscheduler.engines.llama_cpp_args import DECIDED_ELSEWHERE, FLAGS, read_args
from rayscheduler.engines.process import EngineProcess
from rayscheduler.errors import EngineError, EngineMissing, SourceError
from tests.engines.conftest import Start
from tests.engines.pids import BOUND_S, argv_of

ENGINE = llama_cpp.LlamaCpp()
ONE_THREAD = ("--threads", "1")  # several would only wait for each other on a busy machine


def request(source: Path | str | None, **more: Any) -> EngineRequest:
    return EngineRequest("m", "m#1", source=None if source is None else str(source), **more)


def client_of(engine: EngineProcess) -> httpx.AsyncClient:
    headers = {"Authorization": f"Bearer {engine.api_key}"}
    return httpx.AsyncClient(base_url=engine.endpoint, headers=headers, timeout=BOUND_S)


async def busy_slots(client: httpx.AsyncClient) -> int:
    return sum(slot["is_processing"] for slot in (await client.get("/slots")).json())


async def until_busy(client: httpx.AsyncClient, slots: int) -> None:
    async def asked() -> None:
        while await busy_slots(client) != slots:
            pass

    await asyncio.wait_for(asked(), BOUND_S)


# serving


async def test_it_answers_the_openai_client(start: Start, tiny_model: Path) -> None:
    engine = start("llama-cpp", request(tiny_model, concurrency=2, context_length=512, args=ONE_THREAD))
    await engine.wait_ready(BOUND_S)
    assert not any(engine.api_key in arg for arg in argv_of(engine.pid))
    async with AsyncOpenAI(base_url=engine.endpoint + "/v1", api_key=engine.api_key, max_retries=0) as openai:
        ask: Any = {"model": "m", "messages": [{"role": "user", "content": "hi ü"}]}
        whole = await openai.chat.completions.create(**ask)
        assert whole.choices[0].message.content == " I am tiny"
        assert whole.choices[0].finish_reason == "stop"
        assert whole.model == "m"
        stream = await openai.chat.completions.create(**ask, stream=True)
        pieces = [chunk.choices[0].delta.content async for chunk in stream if chunk.choices]
        assert [piece for piece in pieces if piece] == [" I", " am", " tiny"]
    async with client_of(engine) as client:
        assert [slot["n_ctx"] for slot in (await client.get("/slots")).json()] == [512, 512]
        wrong = await client.get("/v1/models", headers={"Authorization": "Bearer wrong"})
        assert wrong.status_code == 401


async def test_a_model_without_a_chat_template_still_chats(start: Start, endless_model: Path) -> None:
    engine = start("llama-cpp", request(endless_model, context_length=256, args=ONE_THREAD))
    await engine.wait_ready(BOUND_S)
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "one?"},
        {"role": "assistant", "content": "1"},
        {"role": "user", "content": "two?"},
    ]
    async with client_of(engine) as client:
        answer = await client.post("/v1/chat/completions", json={"messages": messages, "max_tokens": 3})
        assert answer.json()["choices"][0]["message"]["content"] == " on and on"
        prompt = (await client.post("/apply-template", json={"messages": messages})).json()["prompt"]
        assert prompt == "Be brief.\n\nQuestion: one?\nAnswer: 1\nQuestion: two?\nAnswer:"


async def test_embeddings_of_a_model_that_names_no_pooling(start: Start, tiny_model: Path) -> None:
    engine = start("llama-cpp", request(tiny_model, embedding=True, context_length=1024, args=ONE_THREAD))
    await engine.wait_ready(BOUND_S)
    async with client_of(engine) as client:
        long = "x" * 900  # more tokens than llama.cpp's default batch holds
        answer = await client.post("/v1/embeddings", json={"input": ["hi", long]})
        assert [len(entry["embedding"]) for entry in answer.json()["data"]] == [128, 128]


async def test_a_client_that_leaves_frees_its_slot(start: Start, endless_model: Path) -> None:
    engine = start("llama-cpp", request(endless_model, context_length=32_768, args=ONE_THREAD))
    await engine.wait_ready(BOUND_S)
    async with client_of(engine) as client:
        body = {"prompt": "go", "max_tokens": 30_000, "stream": True}
        async with client.stream("POST", "/v1/completions", json=body) as answer:
            await anext(answer.aiter_bytes())
            await until_busy(client, 1)
            await asyncio.wait_for(until_counted(engine, 1), BOUND_S)
        await until_busy(client, 0)


async def until_counted(engine: EngineProcess, count: int) -> None:
    while await engine.in_flight() != count:
        pass  # its metrics are a moment behind its slots


async def test_it_stops_at_once_in_the_middle_of_a_generation(start: Start, endless_model: Path) -> None:
    engine = start("llama-cpp", request(endless_model, context_length=32_768, args=ONE_THREAD))
    await engine.wait_ready(BOUND_S)
    async with client_of(engine) as client:
        body = {"prompt": "go", "max_tokens": 30_000}
        asked = asyncio.create_task(client.post("/v1/completions", json=body))
        await until_busy(client, 1)
        began_s = time.monotonic()
        assert (await engine.stop(grace_s=BOUND_S)).signal_name == "SIGTERM"
        assert time.monotonic() - began_s < 5
        with pytest.raises(httpx.TransportError):
            await asked


async def test_it_can_be_stopped_before_it_is_ready(start: Start, tiny_model: Path) -> None:
    for _ in range(5):
        engine = start("llama-cpp", request(tiny_model, args=ONE_THREAD))
        assert (await asyncio.wait_for(engine.stop(grace_s=BOUND_S), BOUND_S)).signal_name == "SIGTERM"


@pytest.fixture
def odd_model(tmp_path: Path, tiny_model: Path) -> Path:
    """A sound file of an architecture that does not exist."""
    model = tmp_path / "odd.gguf"
    length = b"\5\0\0\0\0\0\0\0"
    model.write_bytes(tiny_model.read_bytes().replace(length + b"llama", length + b"lambo", 1))
    return model


async def test_what_llama_cpp_cannot_load_fails_with_its_words(start: Start, odd_model: Path) -> None:
    engine = start("llama-cpp", request(odd_model))
    ended = await asyncio.wait_for(engine.wait_exit(), BOUND_S)
    assert ended.words == "exited with status 1"
    said = engine.log_tail()  # llama.cpp's own words come from a thread of its own, before or after ours
    assert "lambo" in said
    assert f"llama.cpp cannot serve {odd_model}" in said


# what becomes of a request


def test_memory_is_said_and_nothing_adapts_by_itself(tiny_model: Path) -> None:
    settings = ENGINE.settings(request(tiny_model, concurrency=4, context_length=1000))
    assert settings["n_ctx"] == 4000
    assert settings["n_parallel"] == 4
    assert settings["fit_params"] is False
    assert settings["cache_ram_mib"] == 0
    assert settings["n_gpu_layers"] == 0
    assert "chat_template" not in settings
    on_gpus = ENGINE.settings(request(tiny_model, visible_devices=("GPU-1", "GPU-2"), backend="nvidia"))
    assert (on_gpus["n_gpu_layers"], on_gpus["tensor_split"]) == (999, [1.0, 1.0])
    assert on_gpus["n_ctx"] == 4096, "the default, as the model was trained for more"


def test_threads_that_wait_do_not_spin_unless_told_to(tiny_model: Path) -> None:
    assert ENGINE.command(request(tiny_model), 1, "", "").env["OMP_WAIT_POLICY"] == "passive"
    told = request(tiny_model, env={"OMP_WAIT_POLICY": "active"})
    assert ENGINE.command(told, 1, "", "").env["OMP_WAIT_POLICY"] == "active"


def test_a_context_beyond_what_the_model_was_trained_for(tiny_model: Path) -> None:
    with pytest.raises(EngineError, match="context_length of 65,536, but was trained for 32,768 tokens; lower it"):
        ENGINE.check(request(tiny_model, context_length=65_536))
    ENGINE.check(request(tiny_model, context_length=65_536, args=("--rope-scaling", "yarn")))


def test_args_are_llama_servers_flags() -> None:
    given = ("--threads", "3", "-fa=on", "--no-mmap", "-ctk", "q8_0", "--tensor-split", "3,1", "-kvu")
    assert read_args(given) == {
        "cpuparams.n_threads": 3,
        "flash_attn_type": "LLAMA_FLASH_ATTN_TYPE_ENABLED",
        "load_mode": "LLAMA_LOAD_MODE_NONE",
        "cache_type_k": "GGML_TYPE_Q8_0",
        "tensor_split": [3.0, 1.0],
        "kv_unified": True,
    }


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (("--thread", "3"), "unknown argument '--thread'; did you mean --threads"),
        (("%",), "unknown argument '%'; known are --threads"),
        (("--ctx-size", "4096"), "--ctx-size is not taken in args; give the tokens of one request as `context_length`"),
        (("--api-key", "x"), "--api-key is not taken in args; it is chosen by rayscheduler"),
        (("--threads", "many"), "--threads is 'many'; it takes a whole number from 1 to 512"),
        (("--threads", "-1"), "--threads is '-1'"),
        (("--threads",), "--threads is followed by nothing"),
        (("--mlock=1",), "--mlock takes no value"),
        (("-fa", "yes"), "-fa is 'yes'; it takes one of on, off, auto"),
        (("--rope-freq-base", "x"), "it takes a number"),
        (("--tensor-split", "a,b"), "it takes numbers separated by commas"),
    ],
)
def test_wrong_args_are_named(args: tuple[str, ...], told: str, tiny_model: Path) -> None:
    with pytest.raises(EngineError, match=f"llama-cpp: .*{told}"):
        ENGINE.validate(request(tiny_model, args=args))


@pytest.mark.parametrize("flag", FLAGS, ids=lambda flag: flag.names[0])
def test_every_flag_is_a_setting_of_llama_cpp(flag: Any, tmp_path: Path) -> None:
    """Each of the table's values is taken by the real parameters, under the name that the table says."""
    template = tmp_path / "template"
    template.write_text("x")
    texts = ("1", "0.5", "on", "f16", "none", "distribute", "row", "linear", str(template))
    assert not set(flag.names) & DECIDED_ELSEWHERE.keys()
    for text in texts if flag.read else (None,):
        try:
            value = flag.read(text) if flag.read else flag.value
        except (ValueError, SourceError):
            continue
        parameters = xllamacpp.CommonParams()
        assign(parameters, flag.field, value)
        return
    pytest.fail("none of the texts is a value of this flag")


def test_every_word_of_an_enumeration_exists() -> None:
    for flag, words in {
        "--cache-type-k": ["f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1"],
        "--pooling": ["none", "mean", "cls", "last", "rank"],
        "--rope-scaling": ["none", "linear", "yarn"],
        "--split-mode": ["none", "layer", "row"],
        "--numa": ["distribute", "isolate", "numactl"],
        "--reasoning-format": ["none", "auto", "deepseek"],
        "--flash-attn": ["on", "off", "auto"],
    }.items():
        for word in words:
            for field, value in read_args([flag, word]).items():
                assign(xllamacpp.CommonParams(), field, value)


async def test_args_reach_the_server(start: Start, endless_model: Path) -> None:
    template = "{% for message in messages %}{{ message.content }}!{% endfor %}"
    args = (*ONE_THREAD, "--predict", "2", "--chat-template", template, "--tensor-split", "1", "-b", "64")
    engine = start("llama-cpp", request(endless_model, args=args))
    await engine.wait_ready(BOUND_S)
    async with client_of(engine) as client:
        messages = [{"role": "user", "content": "hi"}]
        assert (await client.post("/apply-template", json={"messages": messages})).json()["prompt"] == "hi!"
        answer = await client.post("/v1/chat/completions", json={"messages": messages})
        assert answer.json()["choices"][0]["message"]["content"] == " on and"


# what is wrong with a source


def test_a_source_that_cannot_be_served_is_named_with_what_to_do(tmp_path: Path, tiny_model: Path) -> None:
    whole = tiny_model.read_bytes()
    files: dict[str, bytes] = {"cut.gguf": whole[:500_000], "page.gguf": b"<!doctype html>" * 9, "empty.gguf": b""}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    os.mkfifo(tmp_path / "pipe.gguf")
    for source, told in {
        None: "model m has no source",
        "": "model m has no source",
        tmp_path / "none.gguf": r"none\.gguf does not exist; give the path of a \.gguf file on this machine",
        tmp_path: r"is a directory; give the path of a \.gguf file, such as .*cut\.gguf",
        tmp_path.parent / "..": r"is a directory; give the path of a \.gguf file, there is none in it",
        tmp_path / "pipe.gguf": "is not a regular file",
        tmp_path
        / "cut.gguf": r"is cut short: tensor '.*' ends at byte [\d,]+, the file has 500,000; download it again",
        tmp_path / "page.gguf": r"is not a GGUF file: it begins with b'<!do'",
        tmp_path / "empty.gguf": "is not a GGUF file: it has 0 bytes",
        "/proc/self/mem": "cannot be",
    }.items():
        with pytest.raises(SourceError, match=told):
            ENGINE.check(request(source))


def test_a_source_in_the_home_directory(monkeypatch: pytest.MonkeyPatch, tiny_model: Path) -> None:
    monkeypatch.setenv("HOME", str(tiny_model.parent))
    ENGINE.check(request(f"~/{tiny_model.name}"))


def test_without_the_package_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch, tiny_model: Path) -> None:
    monkeypatch.setattr(llama_cpp, "PACKAGE", replace(llama_cpp.PACKAGE, name="xllamacpp-that-is-not-there"))
    with pytest.raises(EngineMissing, match=r'pip install "rayscheduler\[llama-cpp\]"'):
        by_name("llama-cpp").check(request(tiny_model))


def test_embeddings_without_pooling_are_refused(tiny_model: Path) -> None:
    with pytest.raises(EngineError, match="for embeddings, which need a pooling"):
        ENGINE.validate(request(tiny_model, embedding=True, args=("--pooling", "none")))


def test_the_catalogs_words_for_memory_are_llama_cpps(tiny_model: Path) -> None:
    settings = ENGINE.settings(request(tiny_model, kv_type="q8_0", max_batched_tokens=256))
    assert (settings["cache_type_k"], settings["cache_type_v"]) == ("GGML_TYPE_Q8_0", "GGML_TYPE_Q8_0")
    assert (settings["n_batch"], settings["n_ubatch"]) == (256, 256)
    with pytest.raises(EngineError, match="--cache-type-k is 'fp8'; it takes one of f32, f16"):
        ENGINE.settings(request(tiny_model, kv_type="fp8"))


def test_it_runs_in_the_python_environment_that_has_it(tiny_model: Path) -> None:
    """The server's file is run as it is: rayscheduler need not be installed there."""
    command = ENGINE.command(request(tiny_model, python="/opt/llama"), 1, "key", "127.0.0.1")
    assert command.argv[0] == "/opt/llama/bin/python"
    assert command.argv[1].endswith("rayscheduler_llama_cpp.py")
    assert "key" not in command.argv
