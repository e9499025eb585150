"""What an engine on PyTorch keeps of each device while it sleeps, before anybody has measured it.

Rules of this file: generous figures with their sources; a catalog that knows better says so in `sleep: {residue: …}`.
"""

from __future__ import annotations

from rayscheduler.engines.protocol import EngineRequest

# What is not in the pools that sleep empties, on each device: the CUDA context 0.51 GiB, what lies outside the
# allocator 0.25 and the CUDA graphs of a mixture of experts 1.48; with several devices NCCL makes that 2.05, 2.1, 1.48.
RESIDUE_BYTES, RESIDUE_BYTES_SEVERAL = 2_304 << 20, 5_888 << 20
# Before anything was measured. 17 times quicker than the quickest loads, which take some ten seconds.
SLEEP_MS, WAKE_MS = 1_000, 600


def residue_bytes(request: EngineRequest) -> int:
    """On each of its devices, as measured with vLLM 0.19; SGLang keeps the same kinds of things."""
    return RESIDUE_BYTES if len(request.device_bytes) < 2 else RESIDUE_BYTES_SEVERAL
