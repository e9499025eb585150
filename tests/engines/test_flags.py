"""Flags that are passed on: what the catalog decides is refused under every spelling, all else is let through.

golden/flags-*.txt are all flags of the engines' own parsers, printed from the versions in their names.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rayscheduler.engines import EngineRequest, by_name, sglang, transformers, vllm
from rayscheduler.errors import EngineError
from tests.engines.golden import FILES, FOLDER

DECIDED = {
    "vllm": vllm.DECIDED_ELSEWHERE,
    "sglang": sglang.DECIDED_ELSEWHERE,
    "transformers": transformers.DECIDED_ELSEWHERE,
}


def flags_of(engine: str) -> frozenset[str]:
    (file,) = FOLDER.glob(f"flags-{engine}-*.txt")
    return frozenset(file.read_text().split())


def validate(engine: str, *args: str) -> None:
    by_name(engine).validate(EngineRequest("m", "m#1", source="org/m", args=args))


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.stem)
def test_what_is_said_to_an_engine_is_a_flag_of_its(file: Path) -> None:
    situation = json.loads(file.read_text())
    said = {line.split()[0].split("=")[0].split(".")[0] for line in situation["command"]["argv"] if line[0] == "-"}
    assert said - flags_of(situation["engine"]) == set()


@pytest.mark.parametrize("engine", DECIDED)
def test_what_is_refused_exists(engine: str) -> None:
    """A flag that is no more would protect nothing."""
    assert set(DECIDED[engine]) - flags_of(engine) == set()


@pytest.mark.parametrize("engine", DECIDED)
def test_only_what_is_decided_elsewhere_is_refused(engine: str) -> None:
    refused = set()
    for flag in sorted(flags_of(engine)):
        try:
            validate(engine, flag)
        except EngineError:
            refused.add(flag)
    assert refused == set(DECIDED[engine])


@pytest.mark.parametrize(
    ("engine", "arg"),
    [
        ("vllm", "--gpu-memory-utilization=0.9"),
        ("vllm", "--gpu_memory_utilization"),
        ("vllm", "--gpu-memory-util"),
        ("vllm", "--kv-cache-memory-bytes"),
        ("vllm", "-tp=2"),
        ("vllm", "-n2"),
        ("vllm", "--api-key"),
        ("vllm", "--api_k"),
        ("vllm", "--config=all.yaml"),
        ("sglang", "--tp"),
        ("sglang", "--tensor-parallel-size"),
        ("sglang", "--mem-frac=0.9"),
        ("transformers", "--port"),
    ],
)
def test_every_spelling_is_refused(engine: str, arg: str) -> None:
    with pytest.raises(EngineError, match=f"model m: {engine} takes no {arg.split('=')[0]} in args; "):
        validate(engine, "--quiet", arg)


@pytest.mark.parametrize("args", [("--quantization", "-1"), ("-",), ("--seed", "7"), ("-O3",), ("--ab",)])
def test_the_rest_is_let_through(args: tuple[str, ...]) -> None:
    validate("vllm", *args)
