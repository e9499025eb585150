"""`make demo` as it is run, and what its catalog claims: real weights, and for the demo real Ray and the openai client.

Rules of this file: a demo has a state folder and a port of its own, and what it leaves behind is a failure. Time
limits are for a busy machine. (How the two models take turns is in tests/integration/test_real_models.py.)
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from openai import AsyncOpenAI

from deployments import demo, demo_models
from rayscheduler.config.service import ModelEntry, load_config
from rayscheduler.engines import EngineRequest, by_name
from rayscheduler.engines.process import EngineProcess
from tests.e2e import marked
from tests.e2e.loopback_node import free_port

ROOT = Path(__file__).resolve().parents[2]
READY_S_MAX = 120.0
DEMO_S_MAX = 400.0
CATALOG = load_config(demo.CATALOG)

weights_are_here = pytest.mark.skipif(
    not all(model.path.exists() for model in demo_models.MODELS), reason="`make models` fetches the weights"
)


@weights_are_here
@pytest.mark.parametrize("entry", CATALOG.models, ids=lambda entry: str(entry.name))
async def test_the_catalog_reserves_what_is_measured(entry: ModelEntry, tmp_path: Path) -> None:
    """All contexts filled at once: the most that the model can come to hold."""
    request = EngineRequest(replica=f"{entry.name}#1", **entry.engine_fields())
    engine = EngineProcess.start(by_name(entry.engine.value), request, "127.0.0.1", tmp_path / "engine.log")
    try:
        await engine.wait_ready(READY_S_MAX)
        client = AsyncOpenAI(base_url=f"{engine.endpoint}/v1", api_key=engine.api_key, max_retries=0)
        answers = await asyncio.gather(
            *(
                client.completions.create(
                    model=entry.name, prompt=f"{number}. " + "The city of Paris. " * 180, max_tokens=8, temperature=0
                )
                for number in range(entry.concurrency)
            )
        )
        await client.close()
        assert all(answer.usage and answer.usage.prompt_tokens > 800 for answer in answers), "most of 1,024"
        reserved_bytes = entry.memory or 0
        assert 0.7 * reserved_bytes < engine.measured_bytes() <= reserved_bytes
    finally:
        await engine.stop(grace_s=1)


def test_there_is_room_for_either_model_and_not_for_both() -> None:
    lent_bytes = int(demo.LENT.removesuffix("MiB")) << 20
    sizes = [entry.memory or 0 for entry in CATALOG.models]
    assert max(sizes) <= lent_bytes < sum(sizes)


@pytest.fixture
def folder() -> Iterator[Path]:
    """In /tmp itself: Ray's sockets lie below it, and their paths may have 107 characters."""
    with tempfile.TemporaryDirectory(prefix="demo-", dir="/tmp") as name:
        yield Path(name)
        marked.end(name)


def run_demo(folder: Path, port: int) -> tuple[int, str]:
    """Its exit status, and what it printed, when it ends after the answers."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "RAYSCHEDULER_"))}
    own = {"DEMO_ONCE": "1", "COLUMNS": "120", "RAYSCHEDULER_STATE_DIR": str(folder / "state")}
    done = subprocess.run(
        [sys.executable, "-m", "deployments.demo", "--port", str(port)],
        cwd=ROOT,
        env={**clean, **own, marked.MARK: str(folder), "RAY_TMPDIR": str(folder)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=DEMO_S_MAX,
    )
    return done.returncode, done.stdout


@weights_are_here
def test_the_demo_shows_answers_evictions_and_times_and_leaves_nothing(folder: Path) -> None:
    status, output = run_demo(folder, free_port())
    assert status == 0, output
    assert "The capital of France is Paris." in output
    assert re.search(r"gemma → +100 degrees", output), output
    assert re.search(r"evicted smollm2#1, .*gemma#1; its memory was back \d+\.\d\d s later", output), output
    assert re.search(r"started gemma#1, 440 MiB on \S+/0, loaded in \d+\.\d\d s", output), output
    assert len(re.findall(r"first word after \d+\.\d\d s", output)) == len(demo.QUESTIONS)
    assert "taken down in" in output
    deadline_s = time.monotonic() + 20
    while (left := marked.command_lines(str(folder))) and time.monotonic() < deadline_s:
        time.sleep(0.1)
    assert left == []


@weights_are_here
def test_the_demo_says_who_has_its_port(folder: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = taken.getsockname()[1]
        status, output = run_demo(folder, port)
    assert status == 1
    assert f"port {port} is in use" in output
    assert "make demo PORT=" in output
    assert "Traceback" not in output


def test_a_file_that_is_cut_short_is_not_taken_for_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo_models, "CACHE", tmp_path)
    model = replace(demo_models.SMOLLM2, sha256=hashlib.sha256(b"GGUF and all the rest").hexdigest())
    assert not demo_models.is_complete(model)
    model.path.write_bytes(b"GGUF and")
    assert not demo_models.is_complete(model)
    model.path.write_bytes(b"GGUF and all the rest")
    assert demo_models.is_complete(model)
    assert demo_models.ensure(model) == model.path, "nothing is fetched"
