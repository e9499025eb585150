"""Estimates against what was measured: `python tests/benchmarks/bench_memory.py [--json]`.

- vllm: every measured row, everything but the KV cache, and KV bytes per token.
- llama.cpp: every architecture and the demo's models, loaded here, against the buffers that are printed.
- header: time to read the header of a 250 MB file.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the tests' own models and rows

from deployments.demo_models import GEMMA
from rayscheduler.memory.estimate import estimate
from rayscheduler.memory.gguf import read_header
from tests.memory.llama_cpp_buffers import printed_buffers
from tests.memory.measured import GIB, WHOLE, checkpoint, question, row_name
from tests.memory.test_llama_cpp_buffers import MIB, loads

BUFFERS = ("weights", "kv_cache", "compute", "output")


def vllm(folder: Path) -> list[dict[str, object]]:
    found = []
    for row in WHOLE:
        answer = estimate(checkpoint(row, folder / str(row["id"])), question(row))
        fullest = max(answer.fixed_bytes) / GIB
        found.append(
            {
                "name": row_name(row),
                "estimate": round(fullest, 2),
                "measured": row["measured_gib"],
                "error": round(fullest - row["measured_gib"], 2),
                "reported_device_error": round(answer.fixed_bytes[0] / GIB - row["measured_gib"], 2),
                "kv_error_percent": round(
                    100 * (answer.kv_bytes_per_token / row["kv_bytes_per_token_per_gpu_formula"] - 1), 3
                ),
            }
        )
    return found


def llama_cpp(folder: Path) -> list[dict[str, object]]:
    every = loads(folder)
    found = []
    for ((model, setting), load), real in zip(every.items(), printed_buffers(list(every.values())), strict=True):
        parts = estimate(load.path, load.ask).parts[0]
        total, guessed = sum(real.values()), sum(parts[name] for name in BUFFERS) / MIB
        found.append(
            {
                "name": f"{model}, {setting}",
                "estimate": round(guessed, 2),
                "measured": round(total, 2),
                "error": round(100 * (guessed / total - 1), 2),
            }
        )
    return found


def header_ms() -> float:
    def once() -> float:
        start = time.perf_counter()
        read_header(GEMMA.path)
        return (time.perf_counter() - start) * 1e3

    return round(min(once() for _ in range(20)), 1)


def summary(rows: list[dict[str, object]], key: str = "error") -> dict[str, float]:
    errors = [abs(float(str(row[key]))) for row in rows]
    return {"rows": len(rows), "mean": round(statistics.mean(errors), 3), "max": round(max(errors), 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    as_json = parser.parse_args().json
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows, buffers = vllm(folder), llama_cpp(folder)
    figures = {
        "vllm_error_gib": summary(rows),
        "vllm_reported_device_error_gib": summary(rows, "reported_device_error"),
        "vllm_kv_error_percent": summary(rows, "kv_error_percent"),
        "llama_cpp_error_percent": summary(buffers),
        "header_of_253_megabytes_ms": header_ms(),
    }
    if as_json:
        print(json.dumps({**figures, "vllm": rows, "llama_cpp": buffers}, indent=2))
        return
    for title, unit, table in (("vLLM", "GiB", rows), ("llama.cpp", "MiB, error in %", buffers)):
        print(f"{title} ({unit}): estimate, measured, error")
        for row in table:
            print(f"  {row['name']:60} {row['estimate']:>9} {row['measured']:>9} {row['error']:>+7}")
    for name, value in figures.items():
        print(f"{name}: {value}")


if __name__ == "__main__":
    main()
