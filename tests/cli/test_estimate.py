"""`rayscheduler estimate`: a table for people, JSON for programs, one line for what makes no sense."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from rayscheduler.cli import main
from tests.memory.checkpoints import PUBLIC, write_checkpoint
from tests.tiny_gguf import write_tiny_gguf


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout, stderr."""
    with pytest.raises(SystemExit) as ended:
        main(["estimate", *arguments])
    told = capsys.readouterr()
    return int(ended.value.code or 0), told.out, told.err


@pytest.fixture
def llama(tmp_path: Path) -> str:
    return str(write_checkpoint(tmp_path / "llama", PUBLIC["Llama-3.1-8B"].config))


def test_json_sums_up(llama: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--context", "8192", "--concurrency", "4", "--gpus", "4", "--pipeline", "2", "--json")
    code, out, err = run(capsys, llama, *options)
    answer = json.loads(out)
    assert (code, err) == (0, "")
    assert answer["engine"] == "vllm"
    assert answer["per_device_bytes"] == sum(answer["parts_bytes"].values())
    assert answer["per_device_bytes"] == max(device["bytes"] for device in answer["devices"])
    assert len(answer["devices"]) == 4
    assert answer["kv_bytes_per_token"] == 131_072 // 4
    assert answer["parts_bytes"]["kv_cache"] == 4 * 8192 * 131_072 // 4
    for device in answer["devices"]:
        assert device["fixed_bytes"] == device["bytes"] - device["parts_bytes"]["kv_cache"]


def test_a_gguf_file_is_for_llama_cpp(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf", size_bytes=2_000_000)
    code, out, _ = run(capsys, str(path), "--gpus", "0", "--context", "1000", "--json")
    answer = json.loads(out)
    assert (code, answer["engine"]) == (0, "llama-cpp")
    assert set(answer["parts_bytes"]) == {"weights", "kv_cache", "compute", "output", "overhead"}
    assert answer["kv_tokens"] == 1024  # in steps of 256
    assert run(capsys, str(tmp_path), "--json")[0] == 0  # the directory's only model


def test_people_get_a_table(llama: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, llama, "--context", "8192")
    assert code == 0
    for word in ("weights", "14.96 GiB", "kv cache", "1.00 GiB", "total", "131,072 bytes per token", "note:"):
        assert word in out
    _, out, _ = run(capsys, llama, "--gpus", "2", "--pipeline", "2", "--concurrency", "1024")
    assert "device 0" in out  # the stages differ: the last one has logits
    assert "device 1" in out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nowhere"], "nowhere does not exist; give a .gguf file or a directory"),
        (["{llama}", "--gpus", "3", "--pipeline", "2"], "3 devices cannot form 2 equal stages"),
        (["{llama}", "--kv-type", "tiny"], "there is no KV cache type 'tiny'"),
        (["{llama}", "--engine", "llama-cpp"], "the engine llama-cpp reads a .gguf file"),
        (["{bad}"], "it begins with b'GGML'"),
        (["{empty}"], "config.json"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(
    arguments: list[str], told: str, llama: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad, empty = tmp_path / "bad.gguf", tmp_path / "empty"
    bad.write_bytes(b"GGML" + struct.pack("<I", 3))
    empty.mkdir()
    filled = [argument.format(llama=llama, bad=bad, empty=empty) for argument in arguments]
    code, out, err = run(capsys, *filled)
    assert (code, out) == (2, "")
    assert told in err
    assert err.count("\n") == 1
