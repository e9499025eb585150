"""Loads GGUF models one after the other in the packaged llama.cpp, which prints its buffers; run as a program.

Rules of this file: one JSON argument, a list of objects with `path` and fields of xllamacpp.CommonParams. It then
waits to be killed: its reader knows by the lines when it has seen everything.
"""

from __future__ import annotations

import json
import signal
import sys
from typing import Any

import xllamacpp


def load(settings: dict[str, Any]) -> xllamacpp.Server:
    parameters = xllamacpp.CommonParams()
    parameters.model.path = settings.pop("path")
    parameters.port = 0
    parameters.n_gpu_layers = 0
    parameters.fit_params = False
    parameters.cache_ram_mib = 0
    parameters.warmup = False
    parameters.verbosity = 4  # where buffer sizes are printed
    parameters.cpuparams.n_threads = 1
    for name, value in settings.items():
        if name.startswith("cache_type"):
            value = getattr(xllamacpp.ggml_type, f"GGML_TYPE_{value.upper()}")
        elif name == "flash_attn_type":
            value = getattr(xllamacpp.llama_flash_attn_type, f"LLAMA_FLASH_ATTN_TYPE_{value}")
        setattr(parameters, name, value)
    return xllamacpp.Server(parameters)


if __name__ == "__main__":
    servers = [load(wanted) for wanted in json.loads(sys.argv[1])]  # kept: one that is let go may wait for itself
    signal.pause()
