"""The status dictionary as people see it."""

from __future__ import annotations

from typing import Any

import pytest
from rich.console import Console

from rayscheduler.status import DeviceBar, changes, duration, memory, render
from tests.cli.doubles import GIB, MIB, device, model, node, replica, status


def drawn(now: dict[str, Any], width: int = 160) -> str:
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    try:
        console.print(render(now))
    finally:
        console.file.close()
    return console.export_text()


@pytest.mark.parametrize(
    ("reserved", "measured", "others", "cells"),
    [
        (0, 0, 0, "·" * 8),
        (40, 0, 0, "▒▒▒▒····"),
        (40, 20, 0, "██▒▒····"),
        (40, 40, 20, "████╳╳··"),
        (40, 60, 0, "██████··"),  # more than was reserved
        (80, 80, 80, "████████"),  # others on top of what is full: never longer than the device
        (1, 0, 0, "▒·······"),  # what is there shows
        (0, None, 80, "╳╳╳╳╳╳╳╳"),
    ],
)
def test_bars(reserved: int, measured: int | None, others: int, cells: str) -> None:
    shown = device(
        reserved_bytes=reserved * GIB,
        measured_bytes=None if measured is None else measured * GIB,
        used_by_others_bytes=others * GIB,
    )
    assert DeviceBar(shown).text(8).plain == cells


def test_a_bar_is_as_long_as_it_is_told() -> None:
    assert len(DeviceBar(device(capacity_bytes=0)).text(20).plain) == 20


def test_a_narrow_terminal_has_short_bars() -> None:
    assert "·" * 20 in drawn(status(), width=160)
    narrow = drawn(status(), width=80)
    assert "·" * 8 in narrow
    assert "80.0 GiB" in narrow
    assert "…" not in narrow


@pytest.mark.parametrize(
    ("size", "text"), [(None, "-"), (0, "0 MiB"), (180 * MIB, "180 MiB"), (GIB, "1.0 GiB"), (80 * GIB, "80.0 GiB")]
)
def test_memory(size: int | None, text: str) -> None:
    assert memory(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, "-"), (0.44, "0.4 s"), (59.9, "59 s"), (185, "3 m 05 s"), (7800, "2 h 10 m")]
)
def test_durations(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def test_a_node_that_lends_nothing_is_told_how_to_mend_it() -> None:
    bare = node("n2", lends=False, devices=[], mend="it lends nothing; restart it")
    assert "n2: it lends nothing; restart it" in drawn(status(nodes=[node(), bare]))


def test_a_cluster_without_devices_says_so() -> None:
    assert "No device is lent" in drawn(status(nodes=[]))


def test_a_lost_device_is_marked() -> None:
    assert "n1/0 (lost)" in drawn(status(nodes=[node(devices=[device(offered=False)])]))


def test_programs_that_are_not_ours_are_named_those_that_hold_most_first() -> None:
    few = {"pid": 41, "name": "sleep", "user": "bob", "held_bytes": GIB, "left_by": None}
    much = {"pid": 42, "name": "[red]python[/red]", "user": None, "held_bytes": 20 * GIB, "left_by": "a#1"}
    unknown = {"pid": 43, "name": None, "user": None, "held_bytes": None, "left_by": None}
    shown = device("n1/0", foreign=[few, unknown]), device("n1/1", foreign=[much])
    lines = drawn(status(nodes=[node(devices=list(shown))])).partition("Other programs")[2].splitlines()
    assert lines[2].split() == ["n1/1", "42", "[red]python[/red]", "?", "20.0", "GiB", "left", "by", "a#1"]
    assert lines[3].split() == ["n1/0", "41", "sleep", "bob", "1.0", "GiB"]
    assert lines[4].split() == ["n1/0", "43", "?", "?", "-"]
    assert "Other programs" not in drawn(status())


def test_who_waits_is_shown_in_order() -> None:
    waiting = {"request": "r1", "model": "a", "priority": 5, "waited_s": 2.0, "position": 1}
    text = drawn(status(queue=[waiting]))
    assert "Queue" in text
    assert "r1" in text
    assert "Queue" not in drawn(status())


def test_a_model_that_failed_says_why_and_when_it_is_tried_again() -> None:
    failed = model(state="backing_off", backoff_s=4.0, last_error="\nout of memory\nmore of the log")
    text = drawn(status(models=[failed]))
    assert "tried again in 4.0 s; out of memory" in text
    assert "more of the log" not in text


def test_text_from_elsewhere_is_not_markup() -> None:
    text = drawn(status(models=[model("[red]a[/red]", last_error="[bold]boom[/nope]")]))
    assert "[red]a[/red]" in text
    assert "[bold]boom[/nope]" in text


def test_a_replica_on_several_devices_or_none() -> None:
    two = replica("a#1", devices=["n1/0", "n1/1"], device_bytes=[GIB, GIB])
    none = replica("b#1", devices=[], device_bytes=[], host_bytes=2 * GIB, makes_way_for="a#2", pinned=True)
    holding = replica("c#1", adapters=["bot", "sql"], device_bytes=[GIB])
    text = drawn(status(replicas=[two, none, holding]))
    assert "with bot, sql" in text
    assert "n1/0 n1/1" in text
    assert "pinned, makes way for a#2" in text
    assert text.count("2.0 GiB") == 2


def test_changes_are_told_once() -> None:
    before = status(replicas=[replica("a#1", "RUNNING"), replica("b#1", "STARTING")])
    after = status(replicas=[replica("a#1", "RUNNING"), replica("b#1", "RUNNING"), replica("c#1", "PENDING")])
    assert changes(before, after) == [
        "b#1 RUNNING on n1/0 (60.0 GiB reserved)",
        "c#1 PENDING on n1/0 (60.0 GiB reserved)",
    ]
    assert changes(after, after) == []
    assert changes(before, status()) == ["a#1 is gone", "b#1 is gone"]


def test_nodes_and_failures_are_changes_too() -> None:
    assert changes(None, status()) == ["node n1 lends 80.0 GiB on 1 device(s)"]
    gone = status(nodes=[node(alive=False)], models=[model(last_error="boom\nlog")])
    assert changes(status(), gone) == ["a failed: boom", "node n1 is lost"]
    assert changes(status(), status(nodes=[])) == ["node n1 left"]
