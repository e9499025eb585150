"""Two real models in a space that holds one, as `make demo` serves them: real Ray, real weights, the openai client.

Rules of this file: the service is started and ended by the command line, as a user does it, with a state
folder and a port of its own; what it leaves behind is a failure. Time limits are for a busy machine.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from openai import OpenAI

from deployments import demo, demo_models

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = Path(sys.executable).parent / "rayscheduler"
UP_S_MAX = 240.0
DOWN_S_MAX = 120.0
DEMO_S_MAX = 500.0
LOOK_EVERY_S = 0.1

pytestmark = pytest.mark.skipif(
    not all(model.path.exists() for model in demo_models.MODELS), reason="the models are fetched by `make models`"
)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environment(state: Path) -> dict[str, str]:
    """By RAYSCHEDULER_STATE_DIR in their environment the processes of one test are told from all others."""
    return {**os.environ, "RAYSCHEDULER_STATE_DIR": str(state)}


def processes_of(state: Path) -> list[str]:
    """Command lines of all processes that descend from `environment(state)`, by inheritance of the variable."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("RAYSCHEDULER_STATE_DIR") == str(state):
                found.append(f"{process.pid}: {' '.join(process.cmdline())[:150]}")
        except psutil.Error:
            continue
    return found


def assert_nothing_is_left(state: Path) -> None:
    deadline_s = time.monotonic() + 20
    while (left := processes_of(state)) and time.monotonic() < deadline_s:
        time.sleep(LOOK_EVERY_S)
    assert left == []


@dataclass(frozen=True)
class Service:
    port: int

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=20) as answer:
            return json.load(answer)

    def decisions(self) -> list[dict[str, Any]]:
        """Oldest first."""
        return list(reversed(self.get("/api/v1/decisions")))

    def measured_replica(self, model: str) -> dict[str, Any]:
        """The running replica, once its memory has been measured (that is done each second)."""
        deadline_s = time.monotonic() + 20
        while time.monotonic() < deadline_s:
            for replica in self.get("/api/v1/replicas"):
                if (replica["model"], replica["state"]) == (model, "RUNNING") and replica["measured_bytes"]:
                    return dict(replica)
            time.sleep(LOOK_EVERY_S)
        raise AssertionError(f"no replica of {model} has been measured")

    @property
    def client(self) -> OpenAI:
        return OpenAI(base_url=f"http://127.0.0.1:{self.port}/v1", api_key="none", max_retries=0, timeout=180)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    state, port = tmp_path_factory.mktemp("state"), free_port()
    log_path = state / "up.log"
    command = [PROGRAM, "up", "--config", demo.CATALOG, "--lend", demo.LENT, "--port", str(port)]
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            [str(part) for part in command],
            env=environment(state),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        deadline_s = time.monotonic() + UP_S_MAX
        while not demo.says_up(log_path):
            assert process.poll() is None, log_path.read_text()
            assert time.monotonic() < deadline_s, log_path.read_text()
            time.sleep(LOOK_EVERY_S)
        yield Service(port)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(DOWN_S_MAX)
    assert_nothing_is_left(state)


def loads_and_exits(decisions: list[dict[str, Any]]) -> list[str]:
    return [f"{d['decision']} {d['replica']}" for d in decisions if d["decision"] in ("start", "stop")]


def test_one_makes_way_for_the_other_and_comes_back(service: Service) -> None:
    client = service.client
    messages: Any = [{"role": "user", "content": "What is the capital of France? Answer with one sentence."}]

    chat = client.chat.completions.create(model="smollm2", messages=messages, max_tokens=24, temperature=0)
    assert "Paris" in (chat.choices[0].message.content or "")

    completion = client.completions.create(model="gemma", prompt="Water boils at", max_tokens=8, temperature=0)
    assert "100 degrees" in completion.choices[0].text

    pieces = [
        chunk.choices[0].delta.content or ""
        for chunk in client.chat.completions.create(
            model="SmolLM2-135M-Instruct", messages=messages, max_tokens=24, temperature=0, stream=True
        )
        if chunk.choices
    ]
    assert "Paris" in "".join(pieces)
    assert len([piece for piece in pieces if piece]) > 3, "tokens arrive one by one"

    assert loads_and_exits(service.decisions()) == [
        "start smollm2#1",
        "stop smollm2#1",
        "start gemma#1",
        "stop gemma#1",
        "start smollm2#2",
    ]
    assert all(decision["why"] for decision in service.decisions())
    models = {model["id"]: model["loaded"] for model in service.get("/v1/models")["data"]}
    assert models == {"smollm2": True, "gemma": False}


def test_the_catalog_says_enough_memory_for_what_is_measured(service: Service) -> None:
    """Both contexts of each model are filled; the reserved bytes must cover what its processes then hold."""
    for model in ("smollm2", "gemma"):
        prompt = "The history of the city of Paris. " * 110  # most of the 1,024 tokens of a context
        for _ in range(2):
            service.client.completions.create(model=model, prompt=prompt, max_tokens=8, temperature=0)
        replica = service.measured_replica(model)
        assert 100 << 20 < replica["measured_bytes"] <= sum(replica["device_bytes"])


@pytest.fixture(scope="module")
def demo_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, str]:
    """Status and output of the demo as `make demo` runs it, ended after the answers."""
    state = tmp_path_factory.mktemp("demo")
    done = subprocess.run(
        [sys.executable, "-m", "deployments.demo", "--port", str(free_port())],
        cwd=ROOT,
        env={**environment(state), "DEMO_ONCE": "1", "COLUMNS": "120"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=DEMO_S_MAX,
    )
    assert_nothing_is_left(state)
    return done.returncode, done.stdout


def test_the_demo_shows_answers_evictions_and_times(demo_run: tuple[int, str]) -> None:
    status, output = demo_run
    assert status == 0, output
    assert "The capital of France is Paris." in output
    assert re.search(r"gemma → +100 degrees", output), output
    assert re.search(r"evicted smollm2#1, .*gemma#1; its memory was back \d+\.\d\d s later", output), output
    assert re.search(r"started gemma#1, 440 MiB on \S+/0, loaded in \d+\.\d\d s", output), output
    assert len(re.findall(r"first word after \d+\.\d\d s", output)) == len(demo.QUESTIONS)
    assert "taken down" in output


def test_the_demo_says_who_has_its_port(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = subprocess.run(
            [sys.executable, "-m", "deployments.demo", "--port", str(port)],
            cwd=ROOT,
            env={**environment(tmp_path), "DEMO_ONCE": "1"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=UP_S_MAX,
        )
    assert done.returncode == 1
    assert f"port {port} is in use" in done.stdout
    assert "make demo PORT=" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_a_model_that_was_cut_short_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_models, "CACHE", tmp_path)
    model = demo_models.SMOLLM2
    assert not demo_models.is_complete(model)
    model.path.write_bytes(b"GGUF")
    assert not demo_models.is_complete(model)
