"""Estimates beside reservations and measurements: in `status`, in `estimate --compare`, in `config check`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rayscheduler.memory_view import fine, rows
from tests.cli.conftest import Run
from tests.cli.doubles import GIB, FakeService, figure, memory, model, status
from tests.cli.test_status import drawn
from tests.tiny_gguf import write_tiny_gguf

MIB = 2**20
RAN = figure(measured_bytes=8 * GIB, exercised=True, reserved_bytes=8 * GIB + 164 * MIB, source="learned")


@pytest.fixture
def compared(service: FakeService) -> FakeService:
    """`a` has run, `b` has not, `c` has no figures at all."""
    service.now = status(models=[model("a", memory=memory(RAN)), model("b", memory=memory(figure())), model("c")])
    return service


def test_the_four_figures_stand_side_by_side(compared: FakeService) -> None:
    text = drawn(dict(compared.now), width=200)
    assert "Memory of one replica" in text
    (line,) = [line for line in text.splitlines() if "weights 8.00 GiB + kv cache 2.00 GiB" in line and "+25.0" in line]
    assert line.split()[:8] == ["a", "1", "-", "10.00", "GiB", "8.16", "GiB", "8.00"]
    assert "reserved as learned" in line
    assert "Memory of one replica" not in drawn(status()), "nothing is known but what is stated"


def test_a_measurement_of_an_idle_engine_is_marked() -> None:
    idle = status(models=[model(memory=memory(figure(measured_bytes=GIB)))])
    assert "idle only" in drawn(idle, width=200)


def test_compare_is_about_models_that_have_run(run: Run, compared: FakeService) -> None:
    done = run("estimate", "--compare")
    assert done.code == 0
    assert "+25.0 %" in done.out
    assert " b " not in done.out
    assert "kv cache" in done.out
    told = json.loads(run("estimate", "--compare", "a", "--json").out)
    assert told == rows(compared.now, measured_only=True)
    assert (told[0]["model"], told[0]["error_percent"], told[0]["estimated_bytes"]) == ("a", 25.0, 10 * GIB)
    assert json.loads(run("estimate", "--compare", "b", "--json").out) == []
    assert "nothing was measured yet of b" in run("estimate", "--compare", "b").out


def test_compare_says_what_it_cannot_find(run: Run, compared: FakeService) -> None:
    assert "there is no model 'd'" in run("estimate", "--compare", "d").one_line
    assert "a SOURCE is missing" in run("estimate").one_line


@pytest.mark.parametrize(
    ("size", "text"), [(None, "-"), (180 * MIB + MIB // 4, "180.2 MiB"), (GIB * 3 // 2, "1.50 GiB")]
)
def test_sizes_are_fine(size: int | None, text: str) -> None:
    assert fine(size) == text


def catalog(folder: Path, said: str, source: str = "tiny.gguf") -> Path:
    write_tiny_gguf(folder / "tiny.gguf", size_bytes=4 * MIB)
    path = folder / "catalog.yaml"
    entry = f"  - {{name: a, engine: llama-cpp, source: {source}, context_length: 512, gpus: [1]{said}}}\n"
    path.write_text(f"models:\n{entry}")
    return path


def test_config_check_says_what_would_be_estimated(run: Run, tmp_path: Path) -> None:
    path = catalog(tmp_path, "")
    done = run("config", "check", path)
    assert done.code == 0
    assert "a: memory is estimated: " in done.out
    assert "on one device (" in done.out
    told = json.loads(run("config", "check", path, "--json").out)
    (size,) = told["estimated_bytes_by_count"]["a"].values()
    assert size > 4 * MIB


def test_config_check_refuses_what_the_allocator_would(run: Run, tmp_path: Path) -> None:
    done = run("config", "check", catalog(tmp_path, ", memory: 2MiB"))
    assert done.code == 2
    assert done.one_line.startswith(f"{tmp_path}/catalog.yaml:2: a is not loaded: its memory says 2 MiB on one device")
    assert "more than a factor of 2 apart" in done.one_line
    assert run("config", "check", catalog(tmp_path, ", memory: 2MiB, trust: true")).code == 0


def test_config_check_elsewhere_does_not_miss_a_file(run: Run, tmp_path: Path) -> None:
    done = run("config", "check", catalog(tmp_path, "", source="/nowhere/a.gguf"), "--elsewhere")
    assert (done.code, "estimated" in done.out) == (0, False)
