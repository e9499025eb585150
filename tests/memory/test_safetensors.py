"""Headers of safetensors files, indexes and configs: exact where they are whole, one line where they lie."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from deployments.demo_models import GEMMA
from rayscheduler.errors import SourceError
from rayscheduler.memory.estimate import Ask, estimate
from rayscheduler.memory.gguf import read_header as read_gguf_header
from rayscheduler.memory.safetensors import SafetensorsError, read_checkpoint, read_header
from tests.memory.checkpoints import PUBLIC, dense, write_checkpoint

SMALL = dense("LlamaForCausalLM", 2, 64, 4, 2, 128, 1000)


def header(entries: dict[str, Any]) -> bytes:
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text


def tensors(entries: dict[str, tuple[str, list[int], int]]) -> dict[str, Any]:
    """Entries of a header, one behind the other. (dtype, shape, bytes of an element)"""
    found, at = {"__metadata__": {"format": "pt"}}, 0
    for name, (dtype, shape, element) in entries.items():
        size = element
        for length in shape:
            size *= length
        found[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    return found


def model_tensors(layers: int = 2) -> dict[str, Any]:
    shapes: dict[str, tuple[str, list[int], int]] = {
        "model.embed_tokens.weight": ("BF16", [1000, 64], 2),
        "lm_head.weight": ("BF16", [1000, 64], 2),
        "model.norm.weight": ("BF16", [64], 2),
    }
    for index in range(layers):
        at = f"model.layers.{index}."
        shapes |= {
            f"{at}self_attn.q_proj.weight": ("F8_E4M3", [64, 64], 1),
            f"{at}self_attn.k_proj.weight": ("F8_E4M3", [32, 64], 1),
            f"{at}self_attn.v_proj.weight": ("F8_E4M3", [32, 64], 1),
            f"{at}self_attn.o_proj.weight": ("F8_E4M3", [64, 64], 1),
            f"{at}mlp.gate_proj.weight": ("F8_E4M3", [128, 64], 1),
            f"{at}mlp.up_proj.weight": ("F8_E4M3", [128, 64], 1),
            f"{at}mlp.down_proj.weight": ("F8_E4M3", [64, 128], 1),
            f"{at}input_layernorm.weight": ("BF16", [64], 2),
        }
    return tensors(shapes)


def test_a_truncated_file_tells_everything(tmp_path: Path) -> None:
    """The header is whole, the weights are not there: exact sizes all the same."""
    write_checkpoint(tmp_path, SMALL)
    (tmp_path / "model.safetensors").write_bytes(header(model_tensors()))
    read = read_checkpoint(tmp_path)
    embedding, layer = 1000 * 64 * 2, (64 * 64 * 2 + 2 * 32 * 64 + 3 * 64 * 128) + 128
    assert read.total_bytes == 2 * embedding + 128 + 2 * layer
    assert read_checkpoint(tmp_path / "model.safetensors").total_bytes == read.total_bytes
    assert read_checkpoint(tmp_path / "config.json").total_bytes == read.total_bytes
    assert estimate(tmp_path, Ask()).parts[0]["weights"] == read.total_bytes
    two = estimate(tmp_path, Ask(gpus=4))  # keys and values have 2 heads: each is on two devices
    split, keys_values = 64 * 64 * 2 + 3 * 64 * 128, 2 * 32 * 64
    each = 2 * embedding / 4 + 128 / 4 + 2 * (split / 4 + keys_values / 2 + 128)
    assert two.parts[0]["weights"] == pytest.approx(each, abs=1)


def test_files_of_an_index(tmp_path: Path) -> None:
    """All of its files: their headers count. One missing: the total that the index states."""
    write_checkpoint(tmp_path, SMALL)
    names = {"a.safetensors": model_tensors(1), "b.safetensors": tensors({"model.layers.1.x.weight": ("BF16", [8], 2)})}
    where = {name: file for file, entries in names.items() for name in entries if name != "__metadata__"}
    index = {"metadata": {"total_size": 12_345_678}, "weight_map": where}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "a.safetensors").write_bytes(header(names["a.safetensors"]))
    assert read_checkpoint(tmp_path).total_bytes == 12_345_678
    (tmp_path / "b.safetensors").write_bytes(header(names["b.safetensors"])[:30])
    assert read_checkpoint(tmp_path).total_bytes == 12_345_678  # cut short within its header
    (tmp_path / "b.safetensors").write_bytes(header(names["b.safetensors"]))
    assert read_checkpoint(tmp_path).total_bytes < 1_000_000


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "has 0 bytes, too few for a header"),
        (struct.pack("<Q", 1 << 60) + b"{}", "announces a header of 1,152,921,504,606,846,976 bytes, but 2 follow"),
        (struct.pack("<Q", 4) + b"[[[[", "is not JSON"),
        (struct.pack("<Q", 2) + b"[]", "holds no JSON object"),
        (header({"a": 3}), "is no object"),
        (header({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0]}}), "has no shape or no place"),
        (header({"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}), "a senseless shape or place"),
        (header({"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}}), "has -8 bytes"),
        (header({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 9]}}), "cannot have 9 bytes"),
        (header({"\x1b[2J" + "x" * 500: 3}), "the entry of '\\x1b"),
    ],
)
def test_a_bad_header_is_one_line(content: bytes, told: str, tmp_path: Path) -> None:
    write_checkpoint(tmp_path, SMALL)
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(SafetensorsError) as problem:
        read_header(tmp_path / "model.safetensors")
    assert told in str(problem.value)
    with pytest.raises(SourceError) as shown:
        estimate(tmp_path, Ask())
    assert str(shown.value).isprintable()


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({}, "it has no hidden_size"),
        ({"hidden_size": 64}, "it has no num_hidden_layers"),
        ({"hidden_size": 1 << 50, "num_hidden_layers": 2}, "its hidden_size is"),
        ({"hidden_size": 64, "num_hidden_layers": 1 << 30}, "it says 1,073,741,824 layers"),
    ],
)
def test_a_bad_config_is_one_line(config: dict[str, Any], told: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=told):
        estimate(write_checkpoint(tmp_path, config), Ask())


def test_an_index_does_not_lead_elsewhere(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, SMALL)
    index = {"weight_map": {"a": "../../secret.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(SourceError, match="points out of its directory"):
        estimate(tmp_path, Ask())


def test_a_small_file_never_takes_much_memory(tmp_path: Path) -> None:
    """A header of a petabyte in a file of 100 bytes, in a process that may have little."""
    liar = tmp_path / "model.safetensors"
    program = (
        "import pathlib, resource, sys\n"
        "from rayscheduler.memory.safetensors import SafetensorsError, read_header\n"
        "resource.setrlimit(resource.RLIMIT_DATA, (64 << 20, 64 << 20))\n"
        "try: read_header(pathlib.Path(sys.argv[1]))\n"
        "except SafetensorsError: print('told')\n"
    )
    for size in (1 << 50, (1 << 63) + 7, 92):
        liar.write_bytes(struct.pack("<Q", size) + b"{" * 92)
        done = subprocess.run([sys.executable, "-c", program, str(liar)], stdout=subprocess.PIPE, text=True, check=True)
        assert done.stdout == "told\n"


def test_a_header_of_a_quarter_gigabyte_is_read_at_once() -> None:
    """Its vocabulary of 262,144 words is walked over, not built: under 50 ms on a machine at rest (bench_memory.py).

    The bound here is for one whose cores others use too; a reader that builds the words takes twelve seconds.
    """
    best_s = min(seconds(lambda: read_gguf_header(GEMMA.path)) for _ in range(5))
    assert best_s < 0.25


def seconds(work: Any) -> float:
    start = time.process_time()  # what this process does, whatever else the machine does
    work()
    return time.process_time() - start


def test_a_config_of_a_public_model_is_enough(tmp_path: Path) -> None:
    """Given as a directory or as the file itself."""
    folder = write_checkpoint(tmp_path, PUBLIC["Qwen3-30B-A3B"].config)
    assert estimate(folder, Ask()) == estimate(folder / "config.json", Ask())
