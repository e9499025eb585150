"""From the ledger's bytes on each device to what an engine's flags say: bytes of KV cache, shares of a device.

    on each device:  reserved = what the model needs there anyway + KV cache
    on all devices:  the same KV cache, so the device with the least left decides
    of the reserved, some lies outside of what an engine counts as its own: the context, CUDA graphs

Rules of this file: pure arithmetic on integers, rounded down. What a model needs is an estimate's parts
(rayscheduler.memory), or what the operator leaves to it by saying how much the KV cache gets (`kv_cache`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rayscheduler.engines.protocol import EngineRequest
from rayscheduler.errors import EngineError
from rayscheduler.memory.values import GIB, KV_CACHE

# The parts of an estimate that lie outside of what vLLM and SGLang count as their share of a device.
NOT_COUNTED = frozenset({"context", "graphs"})
# The same for a model that nobody can look into, per GPU, at the most that was measured: context and graphs
# 0.51 + 1.5 GiB alone, 2.1 + 1.5 GiB with NCCL.
NOT_COUNTED_ALONE_BYTES = 2 * GIB
NOT_COUNTED_IN_COMPANY_BYTES = 4 * GIB
FRACTION_STEPS = 10_000  # of a device's memory: what is said has four decimals


@dataclass(frozen=True, slots=True)
class Needs:
    """What a model needs on each device of this node. `parts`: bytes by what for, those of the KV cache for
    `concurrency` requests included. `kv_bytes_per_token`: in all layers of a device."""

    parts: tuple[Mapping[str, int], ...]
    kv_bytes_per_token: int


@dataclass(frozen=True, slots=True)
class KvBudget:
    """What an engine may allocate. `kv_cache_bytes` is of one device, and the same on all.

    `counted_bytes`: per device, the KV cache and what else the engine counts as its share. `fraction`: of
    a device, the least that this is of any, rounded down. `tokens`: what the KV cache has room for, if known.
    """

    kv_cache_bytes: int
    counted_bytes: tuple[int, ...]
    fraction: float
    tokens: int | None


def kv_budget(request: EngineRequest, needs: Needs | None) -> KvBudget:
    """What the request's engine may allocate. EngineError: what is reserved does not suffice, or nobody can tell."""
    reserved, capacity = request.device_bytes, request.device_capacity_bytes
    if not reserved or len(capacity) != len(reserved):
        raise EngineError(f"model {request.model} takes no device whose size is known, which its engine needs")
    if needs is None:
        kv_cache, counted = _by_operator(request)
    else:
        kv_cache, counted = _by_estimate(request, needs)
    steps = min(size * FRACTION_STEPS // whole for size, whole in zip(counted, capacity, strict=True))
    if steps < 1:
        raise EngineError(f"model {request.model} reserves next to nothing of its devices; raise its memory")
    tokens = None if needs is None or not needs.kv_bytes_per_token else kv_cache // needs.kv_bytes_per_token
    return KvBudget(kv_cache, counted, min(steps, FRACTION_STEPS) / FRACTION_STEPS, tokens)


def _by_operator(request: EngineRequest) -> tuple[int, tuple[int, ...]]:
    kv_cache = request.kv_cache_bytes
    if kv_cache is None:
        raise EngineError(
            f"model {request.model}: {request.source} is not on this machine, so nobody can tell how much of its "
            "memory is left for the KV cache; say how much with `kv_cache`, or give the path of its folder"
        )
    least = min(request.device_bytes)
    if kv_cache >= least:
        raise EngineError(
            f"model {request.model} gives {_gib(kv_cache)} of each device to its KV cache, but reserves "
            f"{_gib(least)}, which its weights are in, too; lower kv_cache or raise its memory"
        )
    outside = NOT_COUNTED_ALONE_BYTES if request.devices_total == 1 else NOT_COUNTED_IN_COMPANY_BYTES
    return kv_cache, tuple(max(kv_cache, each - outside) for each in request.device_bytes)


def _by_estimate(request: EngineRequest, needs: Needs) -> tuple[int, tuple[int, ...]]:
    if len(needs.parts) != len(request.device_bytes):
        raise EngineError(f"model {request.model} was estimated for {len(needs.parts)} devices, not for its own")
    anyway = [_sum_without(parts, frozenset({KV_CACHE})) for parts in needs.parts]
    left = [size - fixed for size, fixed in zip(request.device_bytes, anyway, strict=True)]
    least = min(left)
    place = left.index(least)
    kv_cache = least if request.kv_cache_bytes is None else request.kv_cache_bytes
    per_request = max(parts.get(KV_CACHE, 0) for parts in needs.parts) // request.concurrency
    if kv_cache > least or least <= 0 or (request.context_length is not None and kv_cache < per_request):
        wanted = max(per_request, request.kv_cache_bytes or 0)
        raise EngineError(
            f"model {request.model} has {_gib(request.device_bytes[place])} of a device, of which all but the KV "
            f"cache takes {_gib(anyway[place])}, and the KV cache {_gib(wanted)} for one request; raise its memory "
            f"to {_gib(anyway[place] + wanted)} or more on each device, or lower context_length"
        )
    return kv_cache, tuple(kv_cache + _sum_without(parts, NOT_COUNTED | {KV_CACHE}) for parts in needs.parts)


def _sum_without(parts: Mapping[str, int], left_out: frozenset[str]) -> int:
    return sum(size for part, size in parts.items() if part not in left_out)


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / GIB:.2f} GiB"
