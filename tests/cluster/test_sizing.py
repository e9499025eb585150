"""What is answered about files: real ones, odd ones, none; in the words in which their engine would read them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from rayscheduler.cluster.reports import SizeAnswer, SizeQuestion
from rayscheduler.cluster.sizing import size_up
from rayscheduler.engines import EngineRequest
from rayscheduler.memory import digest
from rayscheduler.memory.digest import digest_of
from tests.engines import vllm_stand_in
from tests.engines.golden import MODELS
from tests.tiny_gguf import write_tiny_gguf

MIB = 2**20


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("models") / "tiny.gguf", size_bytes=4 * MIB)


def asked(source: Path, counts: tuple[int, ...] = (1,), on_host: bool = True, **keys: Any) -> SizeAnswer:
    request = EngineRequest("a", "a#0", source=str(source), **{"context_length": 512, **keys})
    return size_up(SizeQuestion("llama-cpp", request, counts, on_host))


def test_a_model_by_its_header(tiny: Path) -> None:
    answer = asked(tiny)
    assert answer.problem == ""
    assert len(answer.digest) == 32
    estimate = answer.estimates[1]
    assert sum(estimate.parts_bytes.values()) == estimate.each_bytes
    assert 0.9 < estimate.parts_bytes["weights"] / tiny.stat().st_size < 1.1
    assert estimate.certain_bytes == estimate.parts_bytes["weights"] + estimate.parts_bytes["kv_cache"]


def test_what_the_catalog_says_counts(tiny: Path) -> None:
    def cache(**keys: Any) -> int:
        return asked(tiny, **keys).estimates[1].parts_bytes["kv_cache"]

    assert cache(context_length=1024) == 2 * cache()
    assert cache(concurrency=3) == 3 * cache()
    assert cache(args=("-ctk", "q8_0", "-ctv", "q8_0")) == cache(kv_type="q8_0") < cache()


def test_a_node_that_lends_its_ram_has_one_device_and_a_gpu_commits_at_once(tiny: Path) -> None:
    assert set(asked(tiny, (1, 2, 4)).estimates) == {1}
    assert set(asked(tiny, (0, 1, 2)).estimates) == {0, 1}
    assert set(asked(tiny, (2, 4)).estimates) == {2, 4}, "over several nodes, if at all"
    on_gpus = asked(tiny, (0, 1, 2), on_host=False).estimates
    assert [estimate.certain_bytes > 0 for _, estimate in sorted(on_gpus.items())] == [True, False, False]


def test_a_model_of_the_hub_is_looked_up_in_its_cache(tmp_path: Path) -> None:
    """And the version is that of the environment that its engine runs in."""
    python = vllm_stand_in.install(tmp_path / "venv", "0.33.0")
    request = EngineRequest(
        "a", "a#0", source="org/a", context_length=512, python=python, env={"HF_HOME": str(tmp_path)}
    )
    question = SizeQuestion("vllm", request, (1, 2), False)
    assert size_up(question).problem == "org/a is not in the hub's cache of this machine"
    snapshot = tmp_path / "hub" / "models--org--a" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text((MODELS / "llama-8b" / "config.json").read_text())
    answer = size_up(question)
    assert (answer.problem, answer.version) == ("", "0.33.0")
    assert answer.estimates[1].parts_bytes["weights"] > 1.9 * answer.estimates[2].parts_bytes["weights"]


def test_what_is_wrong_is_one_line(tiny: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(tiny.read_bytes()[:-1000])
    text = tmp_path / "text.gguf"
    text.write_text("not a model")
    for source, told in ((tmp_path / "none.gguf", "does not exist"), (cut, "cut short"), (text, "not a GGUF file")):
        problem = asked(source).problem
        assert told in problem
        assert "\n" not in problem
    assert "unknown argument" in asked(tiny, args=("--nonsense",)).problem


def test_a_digest_is_the_models_and_not_its_names(tiny: Path, tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.mkdir()
    moved = there / tiny.name
    moved.write_bytes(tiny.read_bytes())
    os.utime(moved, (1, 1))
    assert digest_of(moved) == digest_of(tiny)
    assert digest_of(there) == digest_of(tiny), "a directory that holds nothing else"


@pytest.mark.parametrize("position", [100, 2 * MIB, -10])
def test_a_digest_sees_headers_ends_and_samples(tmp_path: Path, position: int) -> None:
    path = tmp_path / "big.bin"
    size = 3 * MIB
    content = bytearray(size)
    path.write_bytes(content)
    before = digest_of(path)
    at = position % size
    content[at : at + 400 * digest.BLOCK_BYTES] = b"x" * len(content[at : at + 400 * digest.BLOCK_BYTES])
    path.write_bytes(content)
    assert digest_of(path) != before


def test_the_parts_of_a_split_model_are_one_model(tmp_path: Path) -> None:
    first, second = (tmp_path / f"m[1]-0000{part}-of-00002.gguf" for part in (1, 2))
    first.write_bytes(b"one")
    second.write_bytes(b"two")
    before = digest_of(first)
    second.write_bytes(b"new")
    assert digest_of(first) != before


def test_what_has_no_files_has_no_digest(tmp_path: Path) -> None:
    for source in (tmp_path, tmp_path / "none.gguf"):
        with pytest.raises(OSError, match=str(source.name)):
            digest_of(source)
