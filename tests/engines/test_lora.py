"""What an engine is told of LoRA adapters when it starts, how it is given one later, and what room they take."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rayscheduler.engines import EngineRequest, by_name
from rayscheduler.engines.lora import highest_rank, target_modules
from rayscheduler.engines.protocol import Call
from rayscheduler.engines.sglang import SGLang
from rayscheduler.engines.vllm import Vllm
from rayscheduler.errors import EngineError
from rayscheduler.memory.estimate import Ask, estimate
from rayscheduler.memory.lora import ADAPTERS
from tests.engines.golden import MODELS, request_of


def adapter(folder: Path, name: str, **config: object) -> str:
    (folder / name).mkdir()
    (folder / name / "adapter_config.json").write_text(json.dumps(config))
    return str(folder / name)


def request(*adapters: str, **more: Any) -> EngineRequest:
    fields = {"model": "m", "replica": "m#1", "source": "org/m", "max_loras": 2, "adapters": adapters}
    return EngineRequest(**{**fields, **more})


def test_the_highest_rank_of_any_module_counts(tmp_path: Path) -> None:
    small, mixed = adapter(tmp_path, "a", r=8), adapter(tmp_path, "b", r=16, rank_pattern={"q_proj": 48})
    assert highest_rank(request(small)) == 8
    assert highest_rank(request(small, mixed, "org/elsewhere")) == 48
    assert highest_rank(request("org/elsewhere", "/nowhere")) == 16, "nobody knows"
    assert highest_rank(request(small, max_lora_rank=64)) == 64
    with pytest.raises(EngineError, match=r"max_lora_rank 32, but its adapter .*/b has rank 48; raise it"):
        highest_rank(request(small, mixed, max_lora_rank=32))


def test_an_adapter_of_the_hub_is_read_where_it_is_cached(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--org--x" / "snapshots"
    snapshot.mkdir(parents=True)
    adapter(snapshot, "abc", r=128)
    assert highest_rank(request("org/x", env={"HF_HUB_CACHE": str(tmp_path)})) == 128


def test_modules_are_named_only_when_all_say_them(tmp_path: Path) -> None:
    some = adapter(tmp_path, "a", r=8, target_modules=["q_proj", "model.layers.0.mlp.up_proj"])
    assert target_modules(request(some)) == ("q_proj", "up_proj")
    assert target_modules(request(some, adapter(tmp_path, "b", r=8, target_modules="all-linear"))) == ()
    assert target_modules(request(some, "org/elsewhere")) == ()


def test_sglang_is_given_no_module_that_it_does_not_know(tmp_path: Path) -> None:
    on_one_device = request_of(json.loads((MODELS.parent / "sglang-one-device.json").read_text()))
    odd = adapter(tmp_path, "a", r=8, target_modules=["q_proj", "in_proj_z"])
    argv = SGLang().command(replace(on_one_device, adapters=(odd,), max_loras=1), 1, "k", "h").argv
    assert argv[argv.index("--lora-target-modules") + 1] == "all"


def test_a_broken_adapter_is_no_reason_not_to_serve_its_base(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{")
    assert highest_rank(request(str(tmp_path))) == 16


def test_vllm_takes_certain_ranks_only(tmp_path: Path) -> None:
    situation = json.loads((MODELS.parent / "vllm-one-device.json").read_text())
    on_one_device = request_of(situation)
    with pytest.raises(EngineError, match="vllm takes adapters up to rank 512, not 1024"):
        Vllm().command(replace(on_one_device, adapters=(adapter(tmp_path, "a", r=1024),), max_loras=1), 1, "k", "h")


@pytest.mark.parametrize(
    ("engine", "flag"), [("vllm", "--enable-lora"), ("vllm", "--lora-modules=a=b"), ("sglang", "--lora-paths")]
)
def test_adapters_are_not_said_in_args(engine: str, flag: str) -> None:
    with pytest.raises(EngineError, match="give each adapter as a model of its own, with `base`"):
        by_name(engine).validate(EngineRequest("m", "m#1", source="org/m", args=(flag,)))


def test_how_one_is_loaded_later() -> None:
    vllm, sglang = (by_name(name).adapter_calls(request(model="qwen:7b")) for name in ("vllm", "sglang"))
    assert vllm is not None
    assert vllm.load("bot", "/x") == Call("POST", "/v1/load_lora_adapter", '{"lora_name": "bot", "lora_path": "/x"}')
    assert vllm.unload("bot") == Call("POST", "/v1/unload_lora_adapter", '{"lora_name": "bot"}')
    assert sglang is not None
    assert (sglang.load_path, sglang.prefix) == ("/load_lora_adapter", "qwen:"), "it reads on from the first colon"
    for name in ("vllm", "sglang", "simulated", "llama-cpp", "command"):
        assert by_name(name).adapter_calls(EngineRequest("m", "m#1")) is None, "it was started for none"


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_their_room_is_part_of_what_the_base_takes(engine: str) -> None:
    """Written without the code under test, from llama-8b's matrices: 32 layers of hidden 4096, 14336 in between, 32
    heads and 8 of keys and values of 128; a vocabulary of 128256; two bytes each."""
    layer = [(4096, 4096), (4096, 1024), (4096, 1024), (4096, 4096), (4096, 14336), (4096, 14336), (14336, 4096)]
    widths = 32 * sum(inputs + outputs for inputs, outputs in layer) + 2 * (4096 + 128256)
    plain = Ask(engine=engine, context_length=8192)
    without = estimate(MODELS / "llama-8b", plain)
    with_four = estimate(MODELS / "llama-8b", Ask(engine=engine, context_length=8192, max_loras=4, max_lora_rank=32))
    assert ADAPTERS not in without.parts[0]
    places = 5 if engine == "sglang" else 4  # requests for the base take one, too
    assert with_four.parts[0][ADAPTERS] == places * 32 * widths * 2
    graphs = without.parts[0]["graphs"] if engine == "vllm" else 0  # captured with adapters and without
    assert with_four.per_device_bytes - without.per_device_bytes == places * 32 * widths * 2 + graphs
    halves = estimate(
        MODELS / "llama-8b", Ask(engine=engine, context_length=8192, gpus=2, max_loras=4, max_lora_rank=32)
    )
    assert with_four.parts[0][ADAPTERS] / 2 < halves.parts[0][ADAPTERS] < with_four.parts[0][ADAPTERS]
