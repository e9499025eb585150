"""From reserved bytes to the KV cache: the least device decides, and what does not fit is said with its numbers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rayscheduler.engines import EngineRequest
from rayscheduler.engines.kv_cache import Needs, kv_budget
from rayscheduler.engines.model_needs import model_needs
from rayscheduler.errors import EngineError, SourceError
from tests.engines.golden import MODELS

GIB = 1 << 30
REQUEST = EngineRequest(
    "m",
    "m#1",
    source="org/m",
    context_length=1000,
    concurrency=4,
    device_bytes=(20 * GIB, 16 * GIB),
    device_capacity_bytes=(80 * GIB, 24 * GIB),
)
PARTS = {"context": GIB, "weights": 6 * GIB, "activation": GIB, "graphs": GIB, "kv_cache": 4 * GIB}
NEEDS = Needs((PARTS, PARTS), kv_bytes_per_token=GIB // 1000)


def test_the_least_of_what_is_left_is_the_cache_on_all() -> None:
    budget = kv_budget(REQUEST, NEEDS)
    assert budget.kv_cache_bytes == 16 * GIB - 9 * GIB
    assert budget.counted_bytes == (14 * GIB, 14 * GIB)  # without context and graphs
    assert budget.fraction == 0.175  # of the device of 80 GiB; 0.58 of the other
    assert budget.tokens == 7 * GIB // (GIB // 1000)


def test_a_stage_that_needs_more_leaves_less() -> None:
    heavier = Needs((PARTS, {**PARTS, "weights": 3 * GIB}), NEEDS.kv_bytes_per_token)
    assert kv_budget(replace(REQUEST, device_bytes=(16 * GIB, 16 * GIB)), heavier).kv_cache_bytes == 7 * GIB


def test_the_operator_may_want_less_than_is_left_but_not_more() -> None:
    assert kv_budget(replace(REQUEST, kv_cache_bytes=3 * GIB), NEEDS).kv_cache_bytes == 3 * GIB
    with pytest.raises(EngineError, match=r"and the KV cache 8\.00 GiB .* raise its memory to 17\.00 GiB or more"):
        kv_budget(replace(REQUEST, kv_cache_bytes=8 * GIB), NEEDS)


def test_one_request_has_to_fit() -> None:
    told = (
        r"model m has 9\.50 GiB of a device, of which all but the KV cache takes 9\.00 GiB, and the KV cache 1\.00 GiB "
        r"for one request; raise its memory to 10\.00 GiB or more on each device, or lower context_length"
    )
    with pytest.raises(EngineError, match=told):
        kv_budget(replace(REQUEST, device_bytes=(20 * GIB, 19 * GIB // 2)), NEEDS)


def test_a_model_that_does_not_fit_at_all() -> None:
    with pytest.raises(EngineError, match=r"has 8\.00 GiB of a device, of which all but the KV cache takes 9\.00 GiB"):
        kv_budget(replace(REQUEST, device_bytes=(8 * GIB, 8 * GIB), context_length=None), NEEDS)


def test_what_nobody_can_look_into_needs_a_word_of_the_operator() -> None:
    with pytest.raises(EngineError, match=r"org/m is not on this machine.* say how much with `kv_cache`"):
        kv_budget(REQUEST, None)
    with pytest.raises(EngineError, match=r"gives 16\.00 GiB of each device to its KV cache, but reserves 16\.00 GiB"):
        kv_budget(replace(REQUEST, kv_cache_bytes=16 * GIB), None)
    budget = kv_budget(replace(REQUEST, kv_cache_bytes=2 * GIB), None)
    assert (budget.kv_cache_bytes, budget.tokens, budget.fraction) == (2 * GIB, None, 0.2)


def test_devices_of_unknown_size() -> None:
    with pytest.raises(EngineError, match="takes no device whose size is known"):
        kv_budget(replace(REQUEST, device_capacity_bytes=()), NEEDS)
    with pytest.raises(EngineError, match="takes no device whose size is known"):
        kv_budget(replace(REQUEST, device_bytes=(), device_capacity_bytes=()), NEEDS)


def test_each_node_has_the_parts_of_its_own_ranks() -> None:
    request = replace(
        REQUEST,
        source=str(MODELS / "llama-8b"),
        device_bytes=(40 * GIB,) * 2,
        device_capacity_bytes=(80 * GIB,) * 2,
        pipeline=4,
        node_count=2,
    )
    first, last = (model_needs(replace(request, node_rank=rank), "vllm") for rank in (0, 1))
    assert first is not None
    assert last is not None
    assert [len(first.parts), len(last.parts)] == [2, 2]
    assert last.parts[1]["weights"] != first.parts[1]["weights"], "the last stage has the head"


def test_a_source_that_is_no_model_is_named(tmp_path: object) -> None:
    with pytest.raises(SourceError, match=r"model m: .* holds no config\.json"):
        model_needs(replace(REQUEST, source=str(tmp_path)), "vllm")
