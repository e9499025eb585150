"""What the packaged llama.cpp prints of its buffers, for many models and settings in one process.

Rules of this file: the log is read until every load has printed its last buffer, within a bound; then the process
is ended. Sizes are printed in MiB with two decimals, so what is smaller than a tenth of a MiB is not exact.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rayscheduler.memory.estimate import Ask

PROGRAM = Path(__file__).with_name("llama_cpp_loads.py")
LINE = re.compile(r"(\S+)\s+(model|output|KV|RS|compute) buffer size =\s+([0-9.]+) MiB")
PART = {"model": "weights", "KV": "kv_cache", "RS": "kv_cache", "compute": "compute", "output": "output"}
LOAD_S_MAX = 60.0  # of all loads together


@dataclass(frozen=True)
class Load:
    """A model and how it is run."""

    path: Path
    context: int = 2048
    concurrency: int = 1
    kv_type: str = "f16"
    unified: bool = False
    flash_attention: bool = True

    @property
    def ask(self) -> Ask:
        return Ask(
            gpus=0,
            context_length=self.context,
            concurrency=self.concurrency,
            kv_type=self.kv_type,
            kv_unified=self.unified,
            flash_attention=self.flash_attention,
        )

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "path": str(self.path),
            "n_ctx": self.context * self.concurrency,
            "n_parallel": self.concurrency,
            "kv_unified": self.unified,
            "cache_type_k": self.kv_type,
            "cache_type_v": self.kv_type,
            "flash_attn_type": "AUTO" if self.flash_attention else "DISABLED",
        }


def printed_buffers(loads: Sequence[Load]) -> list[dict[str, float]]:
    """For each load, MiB by part as `Estimate.parts` names them; matrices repacked for the processor left out."""
    argv = [sys.executable, str(PROGRAM), json.dumps([load.settings for load in loads])]
    program = subprocess.Popen(argv, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True)
    limit = threading.Timer(LOAD_S_MAX, os.killpg, (program.pid, signal.SIGKILL))
    limit.start()
    found: list[dict[str, float]] = []
    tail: list[str] = []
    try:
        assert program.stderr is not None
        for raw in program.stderr:
            line = raw.decode("utf-8", "replace")
            tail = [*tail[-20:], line]
            if (buffer := LINE.search(line)) is None or "REPACK" in buffer[1]:
                continue
            if buffer[2] == "model":
                found.append({})
            part = PART[buffer[2]]
            found[-1][part] = found[-1].get(part, 0.0) + float(buffer[3])
            if buffer[2] == "compute" and len(found) == len(loads):
                return found
    finally:
        limit.cancel()
        if program.poll() is None:
            os.killpg(program.pid, signal.SIGKILL)
        program.wait()
        if program.stderr is not None:
            program.stderr.close()
    raise AssertionError(f"llama.cpp ended after {len(found)} of {len(loads)} loads: {''.join(tail)}")
