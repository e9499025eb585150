"""Sizes, durations and numbers: exact, and refused with the text that was written and what would be right."""

from __future__ import annotations

import pytest

from rayscheduler.config import units
from rayscheduler.config.values import Plain, Wrong, nearest, one_of_these, path_text, shown

GIB = 2**30


@pytest.mark.parametrize(
    ("written", "size"),
    [
        ("80GiB", 80 * GIB),
        ("512MiB", 2**29),
        ("1.5GiB", 3 * 2**29),
        ("1KiB", 1024),
        ("2TiB", 2**41),
        ("74.49GiB", 79983028470),  # 79983028469.76, to the nearest byte
        ("14.685GiB", 15767898685),  # 15767898685.44
        ("0.0000000009313225746154785GiB", 1),
        ("123", 123),
        (Plain("123"), 123),
        (123, 123),
    ],
)
def test_sizes_are_whole_bytes(written: object, size: int) -> None:
    assert units.size_bytes(written) == size


@pytest.mark.parametrize(
    ("written", "what", "fix"),
    [
        ("80GB80", "'80GB80' is not a size", "write for example 80GiB"),
        ("80GB", "'80GB' is not a size", "write for example 80GiB"),
        ("80G", "'80G' is not a size", "write for example 80GiB"),
        ("512M", "'512M' is not a size", "write for example 512MiB"),
        ("80 GiB", "'80 GiB' is not a size", "write for example 80GiB"),
        ("80gib", "'80gib' is not a size", "write for example 80GiB"),
        ("1.5", "'1.5' is not a size", "write for example 1.5GiB"),
        (1.5, "1.5 is not a size", "write for example 80GiB"),
        ("plenty", "'plenty' is not a size", "write for example 80GiB"),
        ("", "'' is not a size", "write for example 80GiB"),
        ("٣GiB", "'٣GiB' is not a size", "write for example 80GiB"),
        ("-1GiB", "'-1GiB' is no memory", "write a size of more than 0, for example 1GiB"),
        ("0GiB", "'0GiB' is no memory", "write a size of more than 0, for example 80GiB"),
        (0, "0 is no memory", "write a size of more than 0, for example 80GiB"),
        ("9999999TiB", "'9999999TiB' is more memory than any machine has", "write for example 80GiB"),
        (True, "true is not a size", "write for example 80GiB"),
        ([1], "a list is not a size", "write for example 80GiB"),
        ({}, "a mapping is not a size", "write for example 80GiB"),
        (None, "nothing is not a size", "write for example 80GiB"),
        ("9" * 5000, f"'{'9' * 60}…' is not a size", "write for example " + "9" * 18 + "GiB"),
    ],
)
def test_what_is_no_size(written: object, what: str, fix: str) -> None:
    with pytest.raises(Wrong) as caught:
        units.size_bytes(written)
    assert (caught.value.what, caught.value.fix) == (what, fix)


def test_nothing_is_a_size_where_zero_makes_sense() -> None:
    assert units.size_bytes("0", zero=True) == units.size_bytes("0GiB", zero=True) == 0
    with pytest.raises(Wrong, match="write a size of 0 or more, for example 5MiB"):
        units.size_bytes("-5MiB", zero=True)


@pytest.mark.parametrize(
    ("written", "ms"),
    [
        ("500ms", 500),
        ("10s", 10_000),
        ("5m", 300_000),
        ("1h", 3_600_000),
        ("1.5h", 5_400_000),
        ("0s", 0),
        ("0.0004s", 0),
        ("0.0005s", 1),
        ("90", 90_000),
        (Plain("0.25"), 250),
        (Plain("1e-2"), 10),
        (Plain("1e3"), 1_000_000),
        (7, 7000),
        (0.1, 100),
    ],
)
def test_durations_are_whole_milliseconds(written: object, ms: int) -> None:
    assert units.duration_ms(written) == ms


@pytest.mark.parametrize(
    ("written", "what", "fix"),
    [
        ("5 min", "'5 min' is not a duration", "write for example 5m"),
        ("10sec", "'10sec' is not a duration", "write for example 10s"),
        ("3msec", "'3msec' is not a duration", "write for example 3ms"),
        ("1h30m", "'1h30m' is not a duration", "write for example 1h"),
        ("10GiB", "'10GiB' is not a duration", "write for example 10s"),
        ("soon", "'soon' is not a duration", "write for example 10s"),
        ("-5s", "'-5s' is a negative duration", "write for example 5s"),
        (-5, "-5 is a negative duration", "write for example 10s"),
        (float("nan"), "nan is not a duration", "write for example 10s"),
        (float("inf"), "inf is not a duration", "write for example 10s"),
        (False, "false is not a duration", "write for example 10s"),
        ([], "a list is not a duration", "write for example 10s"),
        ("never", "'never' has no meaning here", "write a duration, for example 10s"),
        (Plain("1e99"), "'1e99' is longer than a hundred years", "write for example 1h"),
        ("999999999h", "'999999999h' is longer than a hundred years", "write for example 1h"),
    ],
)
def test_what_is_no_duration(written: object, what: str, fix: str) -> None:
    with pytest.raises(Wrong) as caught:
        units.duration_ms(written)
    assert (caught.value.what, caught.value.fix) == (what, fix)


def test_never_where_it_is_allowed() -> None:
    assert units.duration_ms("never", never=True) is None
    with pytest.raises(Wrong, match="write for example 10s or never"):
        units.duration_ms("nevr", never=True)


@pytest.mark.parametrize(("written", "thousandths"), [(8, 8000), (Plain("0.5"), 500), (0, 0), (Plain("0.001"), 1)])
def test_cpus_are_whole_thousandths(written: object, thousandths: int) -> None:
    assert units.millicpus(written) == thousandths


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("8", "'8' is not a number of cpus; write for example 8 or 0.5"),  # in quotes
        (Plain("many"), "'many' is not a number of cpus; write for example 8 or 0.5"),
        (Plain("-1"), "'-1' cpus is out of range; write a number from 0 to 1000000, for example 8"),
        (Plain("0.0001"), "'0.0001' is finer than a thousandth of a cpu; write at most three decimals"),
        (True, "true is not a number of cpus; write for example 8 or 0.5"),
    ],
)
def test_what_is_no_number_of_cpus(written: object, message: str) -> None:
    with pytest.raises(Wrong) as caught:
        units.millicpus(written)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (Plain("1.0"), "'1.0' is not a whole number; write for example 1"),
        (Plain("0"), "'0' is too small; write 1 or more, for example 1"),
        (True, "true is not a whole number; write for example 1"),
        ("3", "'3' is not a whole number; write for example 1"),
        (10**16, "1e+16 is too large; write for example 1"),
    ],
)
def test_what_is_no_count(written: object, message: str) -> None:
    with pytest.raises(Wrong) as caught:
        units.whole_number(written, least=1)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("size", "text"), [(80 * GIB, "80GiB"), (79983028470, "74.49GiB"), (2**20, "1MiB"), (5, "5 bytes"), (0, "0 bytes")]
)
def test_sizes_are_told_as_a_file_would_say_them(size: int, text: str) -> None:
    assert units.size_text(size) == text


def test_the_nearest_word() -> None:
    assert nearest("memroy", ["memory", "models", "name"]) == "memory"
    assert nearest("GPUS", ["gpus", "cpus"]) == "gpus"
    assert nearest("zzz", ["gpus", "cpus"]) is None
    assert one_of_these("zzz", ["gpus", "cpus"], "keys") == "the keys are: cpus, gpus"
    assert one_of_these("zzz", [], "models") == "there are no models"


def test_how_values_and_paths_are_shown() -> None:
    assert shown("it's") == '"it\'s"'
    assert shown("two\nlines") == "'two\\nlines'"
    assert shown("x" * 100) == f"'{'x' * 60}…'"
    assert path_text(("models", 0, "requires", "labels", "a b")) == "models[0].requires.labels.'a b'"
