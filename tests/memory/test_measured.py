"""The estimate of every measured run of vLLM against what it really took."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from rayscheduler.memory.estimate import estimate
from tests.memory.measured import GIB, PARTS, ROWS, WHOLE, checkpoint, question, row_name

MEAN_ERROR_GIB = 0.10  # the goal is 0.3
ERROR_GIB = 0.20  # of one row
KV_ERROR = 0.01
KEYS = ("kv_bytes_per_token_per_gpu_formula", "kv_bytes_per_token_per_gpu_measured")
KNOWN = [row for row in ROWS if any(key in row for key in KEYS)]


def fixed_gib(row: Mapping[str, Any], folder: Path) -> tuple[float, float]:
    """Everything but the cache: on the fullest device, and on the one that the row reports.

    With pipeline stages vLLM's log tells of the first, and the last takes more: it has the logits.
    """
    answer = estimate(checkpoint(row, folder), question(row))
    return max(answer.fixed_bytes) / GIB, answer.fixed_bytes[0] / GIB


@pytest.mark.parametrize("row", WHOLE, ids=row_name)
def test_everything_but_the_cache(row: Mapping[str, Any], tmp_path: Path) -> None:
    fullest, first = fixed_gib(row, tmp_path)
    assert first == pytest.approx(row["measured_gib"], abs=ERROR_GIB)
    assert fullest >= first


def test_the_mean_error_is_small(tmp_path: Path) -> None:
    """The same for the fullest device, which is what a device must have."""
    errors = [fixed_gib(row, tmp_path / str(row["id"]))[0] - row["measured_gib"] for row in WHOLE]
    assert statistics.mean(map(abs, errors)) < MEAN_ERROR_GIB


@pytest.mark.parametrize("row", WHOLE, ids=row_name)
def test_each_part(row: Mapping[str, Any], tmp_path: Path) -> None:
    """No part is right by another's mistake."""
    parts = estimate(checkpoint(row, tmp_path), question(row)).parts[0]
    measured = row["per_gpu_gib"]
    wrong = {
        part: (round(parts[part] / GIB, 2), measured[name])
        for part, name in PARTS.items()
        if abs(parts[part] / GIB - measured[name]) > 0.16
    }
    assert wrong == {}


@pytest.mark.parametrize("row", KNOWN, ids=row_name)
def test_keys_and_values_per_token(row: Mapping[str, Any], tmp_path: Path) -> None:
    """To the arithmetic exactly; to what was measured within its rounding (with stages: the fullest's cache)."""
    answer = estimate(checkpoint(row, tmp_path), question(row))
    if KEYS[0] in row:
        assert answer.kv_bytes_per_token == row[KEYS[0]]
    rounding = 0.015 if row["pp"] > 1 else KV_ERROR
    assert answer.kv_bytes_per_token == pytest.approx(row[KEYS[1]], rel=rounding)


def left_out(row: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The rows of other models, devices and types: what a constant could be learned from without this one."""
    return [other for other in WHOLE if (other["model"], other["tp"]) != (row["model"], row["tp"])]


def test_no_row_decides_a_constant_alone(tmp_path: Path) -> None:
    """Corrected by the mean error of all rows but its own kind, each row stays as good: nothing is fitted to one."""
    errors = {row["id"]: fixed_gib(row, tmp_path / str(row["id"]))[1] - row["measured_gib"] for row in WHOLE}
    for row in WHOLE:
        bias = statistics.mean(errors[other["id"]] for other in left_out(row))
        assert abs(errors[row["id"]] - bias) < ERROR_GIB + 0.05, row_name(row)
