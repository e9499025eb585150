"""What serves a model: one file per engine, one protocol (protocol.py), one process with its supervisor.

Rules of this package: an engine is always a process of its own that cannot outlive its runner. Nothing
here knows Ray or the scheduler; the runner starts an `EngineProcess` and reports what becomes of it.
"""

from __future__ import annotations

from collections.abc import Mapping

from rayscheduler.engines.command import CommandLine
from rayscheduler.engines.llama_cpp import LlamaCpp
from rayscheduler.engines.ollama import Ollama
from rayscheduler.engines.protocol import Command, Engine, EngineRequest
from rayscheduler.engines.sglang import SGLang
from rayscheduler.engines.simulated import Simulated
from rayscheduler.engines.transformers import Transformers
from rayscheduler.engines.vllm import Vllm
from rayscheduler.errors import EngineError

__all__ = ["NAMES", "Command", "Engine", "EngineRequest", "by_name"]

_ENGINES: Mapping[str, Engine] = {
    engine.name: engine
    for engine in (Vllm(), SGLang(), LlamaCpp(), Ollama(), Transformers(), CommandLine(), Simulated())
}
NAMES: tuple[str, ...] = tuple(_ENGINES)


def by_name(name: str) -> Engine:
    """The engine of that name. EngineError: there is none."""
    if name not in _ENGINES:
        raise EngineError(f"there is no engine {name!r}; known are {', '.join(NAMES)}")
    return _ENGINES[name]
