"""`estimate`: bytes that a model will take on each device, before it has ever run.

Rules of this file: it finds out what the source is and which formulas are its engine's, checks the question, and
does no arithmetic of its own. Every problem is a SourceError of one line.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from rayscheduler.errors import SourceError
from rayscheduler.memory.llama_cpp import estimate_llama_cpp
from rayscheduler.memory.sglang import estimate_sglang
from rayscheduler.memory.transformers import estimate_transformers
from rayscheduler.memory.values import Ask, Estimate
from rayscheduler.memory.vllm import estimate_vllm

GGUF_SUFFIX = ".gguf"
CONTEXT_MAX = 1 << 30
CONCURRENCY_MAX = 1 << 20
DEVICES_MAX = 4096

_ENGINES: Mapping[str, Callable[[Path, Ask], Estimate]] = {
    "llama-cpp": estimate_llama_cpp,
    "ollama": estimate_llama_cpp,
    "vllm": estimate_vllm,
    "sglang": estimate_sglang,
    "transformers": estimate_transformers,
}
_READS_GGUF = frozenset({"llama-cpp", "ollama"})
_NEEDS_GPUS = frozenset({"vllm", "sglang"})


def estimate(source: str | Path, ask: Ask) -> Estimate:
    """What one replica of the model at `source` takes: a GGUF file, a checkpoint's directory or a file in it.

    SourceError, in one line: the source is not there or is no model, or the question makes no sense.
    """
    path = Path(source)
    _check(ask)
    if not path.exists():
        raise SourceError(f"{path} does not exist; give a .gguf file or a directory with config.json")
    path = _gguf_inside(path)
    is_gguf = path.suffix == GGUF_SUFFIX
    engine = ask.engine or ("llama-cpp" if is_gguf else "vllm")
    if engine not in _ENGINES:
        raise SourceError(f"there is no estimate for the engine {engine!r}; give one of {', '.join(_ENGINES)}")
    if (engine in _READS_GGUF) != is_gguf:
        reads = "a .gguf file" if engine in _READS_GGUF else "a directory with config.json and safetensors"
        raise SourceError(f"the engine {engine} reads {reads}, and {path} is none; give one, or another --engine")
    if ask.gpus == 0 and engine in _NEEDS_GPUS:
        raise SourceError(f"the estimate of {engine} is for GPUs; give --gpus 1 or more, or --engine transformers")
    return _ENGINES[engine](path, ask)


def _gguf_inside(path: Path) -> Path:
    """The one GGUF model (or first part) of a directory that holds no checkpoint; else the path itself."""
    if not path.is_dir() or (path / "config.json").exists():
        return path
    found = sorted(path.glob(f"*{GGUF_SUFFIX}"))
    first = [each for each in found if "-of-" not in each.stem or "-00001-of-" in each.stem]
    models = [each for each in first if not each.name.startswith("mmproj")]
    if len(models) > 1:
        raise SourceError(f"{path} holds {len(models)} models; give one of them, such as {models[0].name}")
    return models[0] if models else path


def _check(ask: Ask) -> None:
    for name, value, least, most in (
        ("--context", ask.context_length, 1, CONTEXT_MAX),
        ("--concurrency", ask.concurrency, 1, CONCURRENCY_MAX),
        ("--gpus", ask.gpus, 0, DEVICES_MAX),
        ("--pipeline", ask.pipeline, 1, DEVICES_MAX),
        ("--max-batched-tokens", ask.max_batched_tokens, 1, CONTEXT_MAX),
    ):
        if value is not None and not least <= value <= most:
            raise SourceError(f"{name} is {value}; give {least} to {most:,}")
    if ask.gpus % ask.pipeline:
        raise SourceError(
            f"{ask.gpus} devices cannot form {ask.pipeline} equal stages; give --gpus a multiple of --pipeline"
        )


__all__ = ["Ask", "Estimate", "estimate"]
