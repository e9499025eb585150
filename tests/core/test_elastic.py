"""Elastic models: planned by what they need, given what is free beyond it, and nobody leaves for the difference."""

from __future__ import annotations

import pytest

from tests.core.story import Story

GIB = 2**30


def held(story: Story) -> dict[str, list[int]]:
    """GiB on each device, by replica."""
    replicas = story.scheduler.snapshot(story.now_ms).replicas
    return {r.id: [size // GIB for size in r.placement.device_bytes] for r in replicas}


@pytest.mark.parametrize(
    ("device", "gets"),
    [("20GiB", 20), ("50GiB", 50), ("80GiB", 60)],
)
def test_it_gets_what_is_free_between_the_two(device: str, gets: int) -> None:
    story = Story().tell(
        f"""
        node  n1  {device}
        model a   20GiB most=60GiB gpus=1
        > request a r1  -> start a#1 n1/0
        """
    )
    assert held(story) == {"a#1": [gets]}


def test_headroom_and_other_programs_are_not_free() -> None:
    story = Story().tell(
        """
        node  n1  80GiB headroom=10GiB
        model a   20GiB most=80GiB gpus=1
        > observed n1/0 30GiB  ->
        > request a r1         -> start a#1 n1/0
        """
    )
    assert held(story) == {"a#1": [40]}


def test_all_devices_get_what_the_fullest_has_free() -> None:
    story = Story().tell(
        """
        node  n1  2x80GiB
        model f   50GiB gpus=1
        model a   40GiB most=120GiB gpus=2
        > load f        -> start f#1 n1/0
        > request a r1  -> start a#1 n1/0,n1/1
        """
    )
    assert held(story)["a#1"] == [30, 30]


def test_nobody_leaves_for_more_than_it_needs() -> None:
    story = Story().tell(
        """
        node  n1  80GiB
        model f   50GiB
        model a   20GiB most=60GiB gpus=1
        > load f        -> start f#1 n1/0
        > started f#1   ->
        > request a r1  -> start a#1 n1/0
        """
    )
    assert held(story)["a#1"] == [30]


def test_what_a_victim_leaves_over_is_its_own() -> None:
    story = Story().tell(
        """
        node  n1  80GiB
        model f   70GiB
        model a   20GiB most=60GiB gpus=1
        model b   10GiB
        > load f        -> start f#1 n1/0
        > started f#1   ->
        > request a r1  -> stop f#1 evicted for a#1
        > load b        -> start b#1 n1/0
        > stopped f#1   -> start a#1 n1/0
        """
    )
    assert held(story) == {"a#1": [60], "b#1": [10]}


def test_idle_it_makes_way_and_is_loaded_again_with_what_is_left() -> None:
    """It shrinks by a restart, without anybody asking for it."""
    story = Story().tell(
        """
        node  n1  80GiB
        model a   20GiB most=70GiB gpus=1
        model b   40GiB
        > request a r1  -> start a#1 n1/0
        > started a#1   -> grant r1 a#1
        > ended r1      ->
        > request b r2  -> stop a#1 evicted for b#1
        > stopped a#1   -> start b#1 n1/0; start a#2 n1/0
        > started b#1   -> grant r2 b#1
        > started a#2   ->
        > request a r3  -> grant r3 a#2
        """
    )
    assert held(story) == {"a#2": [40], "b#1": [40]}


def test_for_its_return_nobody_leaves() -> None:
    """It comes back when its minimum is free, and has made way for good once that is all that it had."""
    story = Story().tell(
        """
        node  n1  80GiB
        model a   20GiB most=70GiB gpus=1
        model b   70GiB
        model c   75GiB
        > request a r1  -> start a#1 n1/0
        > started a#1   -> grant r1 a#1
        > ended r1      ->
        > request b r2  -> stop a#1 evicted for b#1
        > stopped a#1   -> start b#1 n1/0
        > started b#1   -> grant r2 b#1
        > ended r2      ->
        > unload b      -> stop b#1 unloaded
        > stopped b#1   -> start a#2 n1/0
        > started a#2   ->
        > request c r3  -> stop a#2 evicted for c#1
        > stopped a#2   -> start c#1 n1/0
        > unload a      ->
        > started c#1   -> grant r3 c#1
        > ended r3      ->
        > unload c      -> stop c#1 unloaded
        > stopped c#1   ->
        """
    )
    assert held(story) == {}


def test_where_the_device_is_the_hosts_memory_both_are_charged_to_it() -> None:
    story = Story().tell(
        """
        node  n1  80GiB ram=yes backend=cpu
        model a   20GiB most=80GiB gpus=1 host_memory=10GiB
        > request a r1  -> start a#1 n1/0
        """
    )
    assert held(story) == {"a#1": [70]}


def test_never_is_said_of_what_it_needs() -> None:
    Story().tell(
        """
        node  n1  80GiB
        model a   90GiB most=100GiB gpus=1
        model b   80GiB most=100GiB gpus=1
        > request a r1  -> reject r1 never_fits
        > request b r2  -> start b#1 n1/0
        """
    )
