"""The engine `transformers` really serves a model on the CPU, where a Python environment has it.

It is looked for in the tests' own environment and in the folder that $RAYSCHEDULER_TRANSFORMERS names, made by
`python -m venv FOLDER; FOLDER/bin/pip install torch "transformers[serving]"`.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from rayscheduler.engines import EngineRequest, by_name
from rayscheduler.engines.python_package import interpreter
from rayscheduler.engines.transformers import PACKAGE
from rayscheduler.errors import EngineError, EngineMissing
from tests.engines.conftest import Start
from tests.engines.pids import Watched, argv_of

VENV = os.environ.get("RAYSCHEDULER_TRANSFORMERS")
HERE = bool(importlib.util.find_spec("transformers") and importlib.util.find_spec("torch"))
LOAD_BOUND_S = 300.0  # PyTorch's import alone takes half a minute on a busy machine
GIB = 1 << 30
needs_transformers = pytest.mark.skipif(
    not (VENV or HERE), reason="transformers[serving] is installed neither here nor in $RAYSCHEDULER_TRANSFORMERS"
)


def request(source: str | Path, model: str = "org/tiny", **more: object) -> EngineRequest:
    fields = {"python": VENV, "device_bytes": (GIB,), "device_capacity_bytes": (8 * GIB,), **more}
    return EngineRequest(model, f"{model}#1", source=str(source), **fields)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny-llama")
    program = Path(__file__).with_name("tiny_llama.py")
    subprocess.run([interpreter(request(folder)), str(program), str(folder)], check=True, capture_output=True)
    return folder


@needs_transformers
async def test_a_model_answers_under_its_own_name_and_leaves_nothing(
    start: Start, tiny_llama: Path, tmp_path: Path
) -> None:
    asked = request(tiny_llama, env={"TMPDIR": str(tmp_path), "HF_HUB_OFFLINE": "1"})
    by_name("transformers").check(asked)
    engine = start("transformers", asked)
    await engine.wait_ready(LOAD_BOUND_S)
    assert engine.api_key not in " ".join(argv_of(engine.pid))
    assert 64 << 20 < engine.measured_bytes() < 4 * GIB, "PyTorch is in it"
    body = {"model": "org/tiny", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}
    key = {"Authorization": f"Bearer {engine.api_key}"}
    async with httpx.AsyncClient(base_url=engine.endpoint, headers=key, timeout=60) as client:
        answer = (await client.post("/v1/chat/completions", json=body)).json()
        assert (answer["model"], answer["usage"]["completion_tokens"]) == ("org/tiny", 4)
        assert [model["id"] for model in (await client.get("/v1/models")).json()["data"]] == ["org/tiny"]
        for headers in ({"Authorization": "Bearer wrong"}, {"Authorization": ""}):
            for path in ("/v1/models", "/reset", "/rayscheduler/in_flight"):
                assert (await client.post(path, headers=headers)).status_code == 401
        assert await engine.in_flight() == 0
        async with client.stream(
            "POST", "/v1/chat/completions", json={**body, "max_tokens": 400, "stream": True}
        ) as it:
            await anext(it.aiter_lines())
            assert await engine.in_flight() == 1
    family = [Watched(pid) for pid in engine.pids()]
    await engine.stop()
    assert all(process.gone for process in family)
    assert [name for name in os.listdir(tmp_path) if name.startswith("rayscheduler-")] == []


@needs_transformers
def test_a_folder_that_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"model org/tiny: .* holds no config\.json, so it is no model"):
        by_name("transformers").check(request(tmp_path))


def test_an_environment_without_it_says_how_to_install_it(tmp_path: Path) -> None:
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.symlink_to(sys.executable)
    told = rf"which is not installed in {tmp_path}; run: {python} -m pip install torch 'transformers\[serving\]>=5\.6'"
    with pytest.raises(EngineMissing, match=told):
        by_name("transformers").check(request(tmp_path, python=str(tmp_path)))


def test_one_that_is_too_old_is_named(tmp_path: Path) -> None:
    packages = tmp_path / "lib" / "python3.12" / "site-packages"
    (packages / "transformers-4.57.1.dist-info").mkdir(parents=True)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    least = ".".join(map(str, PACKAGE.version_min))
    with pytest.raises(EngineMissing, match=rf"needs transformers {least} or newer, but 4\.57\.1 is installed in "):
        by_name("transformers").check(request(tmp_path, python=str(tmp_path)))


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"embedding": True}, "for embeddings, which transformers does not serve"),
        ({"kv_type": "fp8"}, "has a kv_type, which transformers does not know"),
        ({"node_count": 2}, "placed over 2 nodes, which the engine transformers cannot serve"),
        ({"args": ("--device", "cpu")}, "takes no --device in args; it is chosen by rayscheduler"),
        ({"model": "../up"}, "cannot have this name"),
    ],
)
def test_what_it_cannot(more: dict[str, object], told: str) -> None:
    with pytest.raises(EngineError, match=told):
        by_name("transformers").validate(request("org/tiny", **more))  # type: ignore[arg-type]
