"""The arithmetic of well-known models: parameters as published, keys and values per token, how both are split."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from rayscheduler.errors import SourceError
from rayscheduler.memory.estimate import Ask, estimate
from rayscheduler.memory.hf_config import config_geometry
from rayscheduler.memory.weights import from_geometry
from tests.memory.checkpoints import PUBLIC, write_checkpoint

GIB = 1 << 30
NONSENSE = (None, -1, 0, 1, "x", [], {}, [1, "a"], 1e300, 2**45, True, [0] * 5, 3.5)
ODD_KEYS = ("quantization_config", "layer_types", "sliding_window", "head_dim", "torch_dtype", "text_config")


@pytest.mark.parametrize("name", PUBLIC)
def test_parameters_and_keys_and_values(name: str, tmp_path: Path) -> None:
    public = PUBLIC[name]
    geometry = config_geometry(public.config)
    assert from_geometry(geometry, 0).total_bytes / geometry.dtype_bytes / 1e9 == pytest.approx(
        public.parameters, rel=0.01
    )
    answer = estimate(write_checkpoint(tmp_path, public.config), Ask(context_length=4096))
    assert answer.kv_bytes_per_token == public.kv_bytes_per_token


def of(name: str, folder: Path, **ask: object) -> tuple[int, int]:
    """Bytes per token, and of the whole cache, on the first device."""
    answer = estimate(write_checkpoint(folder, PUBLIC[name].config), Ask(**ask))  # type: ignore[arg-type]
    return answer.kv_bytes_per_token, answer.parts[0]["kv_cache"]


def test_a_head_is_never_cut(tmp_path: Path) -> None:
    """Qwen3-30B-A3B has 4 heads of keys and values: on 8 devices each holds a whole one, twice in all."""
    assert [of("Qwen3-30B-A3B", tmp_path, gpus=gpus)[0] for gpus in (1, 2, 4, 8)] == [98304, 49152, 24576, 24576]


def test_a_latent_vector_is_never_split_but_layers_are(tmp_path: Path) -> None:
    whole, _ = of("DeepSeek-V3", tmp_path)
    assert of("DeepSeek-V3", tmp_path, gpus=8)[0] == whole
    assert of("DeepSeek-V3", tmp_path, gpus=16, pipeline=2)[0] == 31 * 576 * 2


def test_eight_bits_halve_the_cache(tmp_path: Path) -> None:
    assert of("Llama-3.1-8B", tmp_path, kv_type="fp8")[0] == 65_536
    scheme = {"quantization_config": {"quant_method": "fp8", "kv_cache_scheme": {"num_bits": 8}}}
    stored = write_checkpoint(tmp_path / "q", {**PUBLIC["Llama-3.1-8B"].config, **scheme})
    assert estimate(stored, Ask()).kv_bytes_per_token == 65_536


def test_a_window_bounds_what_a_long_request_takes(tmp_path: Path) -> None:
    """Every layer of Mistral 7B forgets what is 4,096 tokens back; one step may bring 2,048 new ones."""
    ask = {"max_batched_tokens": 2048}
    _, long = of("Mistral-7B-v0.1", tmp_path, context_length=32_768, **ask)
    assert long == 131_072 * (4096 + 2048 + 16)
    _, short = of("Mistral-7B-v0.1", tmp_path, context_length=1024, **ask)
    assert short == 131_072 * 1024


def test_a_state_does_not_grow_with_the_context(tmp_path: Path) -> None:
    """Nemotron-H keeps 24 states per request, and 4 layers' keys and values."""
    _, short = of("Nemotron-H-8B", tmp_path, context_length=1024)
    _, long = of("Nemotron-H-8B", tmp_path, context_length=2048)
    assert long - short == 1024 * 16_384
    assert short > 1024 * 16_384


def test_the_index_says_what_the_geometry_does_not(tmp_path: Path) -> None:
    """8 bits per weight, or a total: embedding and output keep their type, the layers take what is left."""
    config = PUBLIC["Llama-3.1-8B"].config
    fp8 = estimate(write_checkpoint(tmp_path / "a", {**config, "quantization_config": {"quant_method": "fp8"}}), Ask())
    assert fp8.parts[0]["weights"] / GIB == pytest.approx(8.46, abs=0.01)
    stated = estimate(write_checkpoint(tmp_path / "b", config, 9_081_000_000), Ask())
    assert stated.parts[0]["weights"] / 1e9 == pytest.approx(9.081, abs=0.001)
    first, last = estimate(tmp_path / "a", Ask(gpus=2, pipeline=2)).parts
    assert first["weights"] == last["weights"]  # half of the layers, and the embedding or the output
    assert last["activation"] >= first["activation"]  # only the last stage has logits


def test_float32_is_run_in_bfloat16_unless_told(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path, {**PUBLIC["Llama-3.1-8B"].config, "torch_dtype": "float32"}, 32_121_044_992)
    assert estimate(source, Ask()).parts[0]["weights"] / GIB == pytest.approx(14.96, abs=0.01)
    assert estimate(source, Ask(dtype="float32")).parts[0]["weights"] / GIB == pytest.approx(29.92, abs=0.01)
    assert estimate(source, Ask(kv_type="fp32")).kv_bytes_per_token == 262_144


def test_other_engines_answer_too(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path, PUBLIC["Llama-3.1-8B"].config)
    for engine in ("vllm", "sglang", "transformers"):
        answer = estimate(source, Ask(engine=engine, context_length=8192, concurrency=4))
        assert answer.kv_bytes_per_token == 131_072
        assert answer.parts[0]["kv_cache"] == 4 * 8192 * 131_072
        assert sum(answer.parts[0].values()) == answer.per_device_bytes
        assert answer.fixed_bytes == (answer.per_device_bytes - 4 * 8192 * 131_072,)


def test_any_config_is_answered_or_refused(tmp_path: Path) -> None:
    """Real configs with nonsense in one to three places: an estimate without negative parts, or one line."""
    chance, refused = random.Random(1), 0
    for _ in range(300):
        config = json.loads(json.dumps(dict(chance.choice(list(PUBLIC.values())).config)))
        place = config.get("text_config", config)
        for _ in range(chance.choice((1, 2, 3))):
            place[chance.choice([*place, *ODD_KEYS])] = chance.choice(NONSENSE)
        ask = Ask(engine=chance.choice(("vllm", "sglang", "transformers")), gpus=chance.choice((1, 2, 8)))
        try:
            answer = estimate(write_checkpoint(tmp_path, config), ask)
            assert min(min(parts.values()) for parts in answer.parts) >= 0
        except SourceError:
            refused += 1
    assert 30 < refused < 150


@pytest.mark.parametrize(
    ("ask", "told"),
    [
        (Ask(engine="vlm"), "there is no estimate for the engine 'vlm'"),
        (Ask(engine="llama-cpp"), "the engine llama-cpp reads a .gguf file"),
        (Ask(kv_type="f12"), "there is no KV cache type 'f12'"),
        (Ask(gpus=3, pipeline=2), "3 devices cannot form 2 equal stages"),
        (Ask(gpus=64, pipeline=64), "has 32 layers, too few for 64 stages"),
        (Ask(gpus=0), "the estimate of vllm is for GPUs"),
        (Ask(concurrency=0), "--concurrency is 0"),
        (Ask(dtype="int7"), "there is no type 'int7'"),
    ],
)
def test_a_question_without_sense_is_one_line(ask: Ask, told: str, tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path, PUBLIC["Llama-3.1-8B"].config)
    with pytest.raises(SourceError, match=told.replace("(", "\\(")) as problem:
        estimate(source, ask)
    assert "\n" not in str(problem.value)
