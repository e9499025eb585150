"""On whose word a figure stands: the operator's, the file's, or that of the runs before."""

from __future__ import annotations

from typing import Any

import pytest

from rayscheduler.cluster.figures import Figure, Source, contradiction, figures_of, parts_words
from rayscheduler.cluster.learned import MARGIN_BYTES_MIN, Learned, margin_bytes
from rayscheduler.cluster.reports import DeviceEstimate, SizeAnswer
from rayscheduler.config.service import ModelEntry

MIB, GIB = 2**20, 2**30
H100 = frozenset({"H100"})
PARTS = {"weights": 8 * GIB, "kv_cache": 2 * GIB}


def entry(**keys: Any) -> ModelEntry:
    return ModelEntry.model_validate({"name": "a", "engine": "llama-cpp", "source": "a.gguf", **keys})


def says(*sizes: int, certain: int = 0) -> SizeAnswer:
    """Files that say so much on one device, on each of two, …"""
    found = {count: DeviceEstimate(size, PARTS, certain) for count, size in enumerate(sizes, start=1)}
    return SizeAnswer("digest", "1.0", found)


def ran(peak: int, exercised: bool = True, excess: int = -1, kind: str = "H100") -> dict[int, dict[str, Learned]]:
    """A run on one device of a type, which took so much at most."""
    return {1: {kind: Learned((peak,), excess, exercised)}}


def figure(
    made: ModelEntry, answer: SizeAnswer | None, learned: dict[int, dict[str, Learned]] | None = None,
    types: frozenset[str] = H100,
) -> Figure:  # fmt: skip
    return figures_of(made, [] if answer is None else [answer], learned, types).by_count[1]


def test_what_is_stated_is_reserved_as_it_stands() -> None:
    found = figures_of(entry(memory="10GiB", gpus=[1, 4]), [])
    assert (found.bytes_by_count(), found.refusal) == ({1: 10 * GIB, 4: 5 * GIB // 2}, "")
    assert figures_of(entry(memory="10GiB"), [says(9 * GIB)]).by_count[1].source is Source.STATED


def test_what_is_not_stated_is_what_the_files_say_for_each_count_that_they_speak_of() -> None:
    found = figures_of(entry(gpus=[1, 2, 8]), [says(10 * GIB, 6 * GIB)])
    assert found.bytes_by_count() == {1: 10 * GIB, 2: 6 * GIB}
    assert found.by_count[2].source is Source.ESTIMATED
    assert figures_of(entry(), []).by_count == {}, "nobody has said anything"


def test_of_two_kinds_of_node_the_larger_answer_counts() -> None:
    assert figures_of(entry(), [says(10 * GIB), says(11 * GIB, 2 * GIB)]).bytes_by_count() == {1: 11 * GIB, 2: 2 * GIB}


@pytest.mark.parametrize("stated", ["4GiB", "21GiB"])
def test_a_contradiction_is_refused_with_both_figures_and_the_parts(stated: str) -> None:
    refusal = figures_of(entry(memory=stated), [says(10 * GIB)]).refusal
    assert f"its memory says {stated[:-3]}.0 GiB on one device, but its files say 10.0 GiB" in refusal
    assert "(weights 8.0 GiB, kv cache 2.0 GiB), more than a factor of 2 apart" in refusal
    assert "The files are believed" in refusal
    assert "trust: true" in refusal


@pytest.mark.parametrize(
    "keys",
    [
        {"memory": "5GiB"},  # exactly a factor of two
        {"memory": "20GiB"},
        {"memory": "4GiB", "trust": True},
        {"memory": "12GiB", "gpus": [1, 8]},  # an eighth of it is an even share and no statement
    ],
)
def test_what_is_no_contradiction(keys: dict[str, Any]) -> None:
    every = {count: DeviceEstimate(10 * GIB) for count in (1, 2, 4, 8)}
    assert contradiction(entry(**keys), every) == "" or keys.get("trust")
    assert figures_of(entry(**keys), [SizeAnswer(estimates=every)]).refusal == ""


def test_each_count_of_a_table_is_a_statement() -> None:
    made = entry(memory_per_device={1: "10GiB", 2: "2GiB"})
    assert "memory_per_device says 2.0 GiB on each of 2 devices" in figures_of(made, [says(10 * GIB, 6 * GIB)]).refusal


def test_some_hundred_mib_too_much_are_a_round_number_and_too_little_are_not() -> None:
    assert figures_of(entry(memory="600MiB"), [says(100 * MIB)]).refusal == ""
    assert figures_of(entry(memory="700MiB"), [says(100 * MIB)]).refusal
    assert figures_of(entry(memory="40MiB"), [says(100 * MIB)]).refusal


def test_a_run_that_took_more_is_believed_at_once_with_a_margin() -> None:
    for made in (entry(), entry(memory="10GiB")):
        found = figure(made, says(10 * GIB), ran(11 * GIB, exercised=False))
        assert (found.reserved_bytes, found.source) == (11 * GIB + margin_bytes(11 * GIB), Source.LEARNED)
    trusted = figure(entry(memory="10GiB", trust=True), says(10 * GIB), ran(11 * GIB))
    assert trusted.reserved_bytes == 10 * GIB
    assert trusted.learned is not None, "it is shown all the same"


def test_a_run_that_took_less_is_believed_once_it_was_exercised() -> None:
    idle = figure(entry(), says(10 * GIB), ran(6 * GIB, exercised=False))
    assert (idle.reserved_bytes, idle.source) == (10 * GIB, Source.ESTIMATED)
    busy = figure(entry(), says(10 * GIB), ran(6 * GIB))
    assert (busy.reserved_bytes, busy.source) == (6 * GIB + margin_bytes(6 * GIB), Source.LEARNED)
    assert figure(entry(memory="10GiB"), says(10 * GIB), ran(6 * GIB)).reserved_bytes == 10 * GIB, "it is stated"


def test_less_on_one_type_of_device_says_nothing_of_another() -> None:
    both = frozenset({"H100", "A100"})
    assert figure(entry(), says(10 * GIB), ran(6 * GIB), both).reserved_bytes == 10 * GIB
    runs = {1: {"H100": Learned((6 * GIB,), -1, True), "A100": Learned((7 * GIB,), -1, True)}}
    assert figure(entry(), says(10 * GIB), runs, both).reserved_bytes == 7 * GIB + margin_bytes(7 * GIB)


def test_what_will_be_touched_is_not_learned_away() -> None:
    found = figure(entry(), says(10 * GIB, certain=8 * GIB), ran(6 * GIB))
    assert found.reserved_bytes == 8 * GIB


def test_never_below_what_was_measured() -> None:
    for peak in (1, 9 * GIB, 10 * GIB - 1, 10 * GIB, 10 * GIB + 1, 30 * GIB):
        assert figure(entry(), says(10 * GIB), ran(peak)).reserved_bytes >= peak


def test_an_engine_that_fills_what_it_is_given_teaches_its_excess_only() -> None:
    made = entry(engine="vllm", source="./model")
    assert figure(made, says(10 * GIB), ran(10 * GIB, excess=0)).reserved_bytes == 10 * GIB
    found = figure(made, says(10 * GIB), ran(11 * GIB, excess=GIB))
    assert found.spare_bytes == GIB + margin_bytes(GIB)
    assert found.reserved_bytes == 10 * GIB + found.spare_bytes
    again = figure(made, says(10 * GIB), ran(found.reserved_bytes + GIB, excess=GIB))
    assert again.reserved_bytes == found.reserved_bytes, "it does not grow with each load"


@pytest.mark.parametrize(
    ("least", "most", "refused"),
    [("6GiB", "30GiB", ""), ("1GiB", "4GiB", "4.0 GiB"), ("21GiB", "90GiB", "21.0 GiB"), ("1GiB", "5GiB", "")],
)
def test_an_elastic_entry_is_refused_where_all_of_its_range_is_wrong(least: str, most: str, refused: str) -> None:
    refusal = figures_of(entry(memory={"min": least, "max": most}), [says(10 * GIB)]).refusal
    assert (f"its memory says {refused}" in refusal) if refused else (refusal == "")


def test_an_elastic_model_is_not_believed_to_need_what_it_was_given() -> None:
    made = entry(memory={"min": "6GiB", "max": "30GiB"})
    assert figure(made, says(10 * GIB), ran(29 * GIB, excess=-GIB)).reserved_bytes == 6 * GIB
    more = figure(made, says(10 * GIB), ran(29 * GIB, excess=GIB))
    assert more.reserved_bytes == 6 * GIB + more.spare_bytes


def test_the_margin() -> None:
    assert margin_bytes(100 * GIB) == 2 * GIB
    assert margin_bytes(1) == MARGIN_BYTES_MIN


def test_parts_are_told_largest_first() -> None:
    assert parts_words({"output": 1, "kv_cache": GIB, "weights": 3 * GIB}) == "weights 3.0 GiB, kv cache 1.0 GiB"
