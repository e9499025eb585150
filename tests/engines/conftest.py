"""What the engine tests share: starting an engine so that it is surely gone afterwards, and a tiny model."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path

import pytest

from rayscheduler.engines import EngineRequest, by_name
from rayscheduler.engines.orphans import marked_processes
from rayscheduler.engines.process import EngineProcess, log_file_name
from rayscheduler.errors import EngineFailed
from tests.engines.ollama_site import OllamaStore
from tests.engines.pids import NamedPipe
from tests.tiny_gguf import write_tiny_gguf

Start = Callable[..., EngineProcess]


def simulated(model: str = "a", simulate: Mapping[str, object] | None = None, **more: object) -> EngineRequest:
    """A request for a simulated engine that loads at once."""
    return EngineRequest(model, f"{model}#1", simulate={"load": 0, **(simulate or {})}, **more)  # type: ignore[arg-type]


def command(*args: str, **more: object) -> EngineRequest:
    """A request for the engine `command` with that argv."""
    return EngineRequest("c", "c#1", args=args, **more)  # type: ignore[arg-type]


async def refusal_of(engine: EngineProcess) -> str:
    """What is said of an engine that answers but never becomes ready, once it has answered at all."""
    for limit_s in (0.25, 0.5, 1, 2, 4, 8, 16):
        with pytest.raises(EngineFailed) as failed:
            await engine.wait_ready(limit_s)
        if "HTTP" in failed.value.message:
            break
    return failed.value.message


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Start]:
    """Starts an engine of that name; at the end all are stopped, and nothing of them may be left."""
    started: list[EngineProcess] = []

    def start_engine(name: str, request: EngineRequest, port: int | None = None) -> EngineProcess:
        log_path = tmp_path / "logs" / log_file_name(request.replica, request.node_rank)
        process = EngineProcess.start(by_name(name), request, "127.0.0.1", log_path, port)
        started.append(process)
        return process

    yield start_engine
    for process in started:
        await process.stop(grace_s=0)
    pids = {process.pid for process in started}
    assert [left for left in marked_processes() if left.pid in pids] == []


@pytest.fixture
def ollama_store(tmp_path: Path) -> OllamaStore:
    return OllamaStore(tmp_path / "ollama")


@pytest.fixture
def pipe(tmp_path: Path) -> Iterator[NamedPipe]:
    """Where processes under test say something."""
    named = NamedPipe(tmp_path / "pipe")
    yield named
    named.close()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that says "I am tiny" and stops."""
    return write_tiny_gguf(tmp_path_factory.mktemp("models") / "tiny.gguf", "I am tiny")


@pytest.fixture(scope="session")
def endless_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model without a chat template that says "on and" until it is stopped."""
    path = tmp_path_factory.mktemp("models") / "endless.gguf"
    return write_tiny_gguf(path, "on and", stops=False, chat_template=None)
