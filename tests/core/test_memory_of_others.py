"""Memory that programs which are not ours hold on a device."""

from __future__ import annotations

import pytest

from tests.core.story import Story


def test_what_others_use_is_not_free() -> None:
    """"free = capacity - used by others - reserved"."""
    Story().tell(
        """
        node  n1  2x80GiB
        model a   60GiB  gpus=1
        > observed n1/0 30GiB  ->
        > request a r1  -> start a#1 n1/1
        """
    )


def test_a_request_waits_until_others_let_go() -> None:
    """`never_fits` is judged "without the memory of other programs"."""
    Story().tell(
        """
        node  n1  80GiB
        model a   60GiB
        > observed n1/0 30GiB  ->
        > request a r1         ->
        > observed n1/0 25GiB  ->
        > observed n1/0 20GiB  -> start a#1 n1/0
        """
    )


def test_nobody_is_evicted_when_others_hold_too_much() -> None:
    Story().tell(
        """
        node  n1  80GiB
        model a   20GiB
        model b   60GiB
        > found a#1 n1/0 20GiB  ->
        > observed n1/0 30GiB   ->
        > request b r1          ->
        """
    )


def test_idle_replicas_leave_under_pressure_least_valuable_first() -> None:
    """"idle unpinned replicas on it are stopped (`memory_pressure`), least valuable first, until it fits"."""
    Story().tell(
        """
        node  n1  80GiB
        model a   20GiB  load_ms=9000
        model b   20GiB
        model c   20GiB
        > found a#1 n1/0 20GiB idle_ms=9000  ->
        > found b#1 n1/0 20GiB idle_ms=5000  ->
        > found c#1 n1/0 20GiB idle_ms=7000  ->
        > request a r1          -> grant r1 a#1
        > ended r1              ->
        > observed n1/0 20GiB   ->
        > observed n1/0 21GiB   -> stop c#1 memory_pressure
        > observed n1/0 22GiB   ->
        > observed n1/0 45GiB   -> stop b#1 memory_pressure
        > observed n1/0 65GiB   -> stop a#1 memory_pressure
        > stopped a#1           ->
        """
    )


def test_pressure_spares_what_is_serving_pinned_or_starting() -> None:
    """"serving ones stay, also where that does not cure it"."""
    Story().tell(
        """
        node  n1  80GiB
        model a   20GiB
        model b   20GiB  pinned=yes
        model c   20GiB
        > found a#1 n1/0 20GiB leases=q1  ->
        > found b#1 n1/0 20GiB  ->
        > request c r1          -> start c#1 n1/0
        > observed n1/0 75GiB   ->
        """
    )


def test_pressure_lasts_until_it_is_cured() -> None:
    """What was serving leaves once it is idle, if the device is still short then."""
    Story().tell(
        """
        node  n1  80GiB
        model a   60GiB
        > found a#1 n1/0 60GiB leases=q1  ->
        > observed n1/0 30GiB   ->
        > ended q1              -> stop a#1 memory_pressure
        """
    )


def test_pressure_that_has_passed_stops_nobody() -> None:
    Story().tell(
        """
        node  n1  80GiB
        model a   60GiB
        > found a#1 n1/0 60GiB leases=q1  ->
        > observed n1/0 30GiB   ->
        > observed n1/0 10GiB   ->
        > ended q1              ->
        """
    )


def test_pressure_counts_what_is_leaving_already() -> None:
    Story().tell(
        """
        node  n1  80GiB
        model a   40GiB
        model b   30GiB
        > found a#1 n1/0 40GiB  ->
        > found b#1 n1/0 30GiB  ->
        > unload a              -> stop a#1 unloaded
        > observed n1/0 45GiB   ->
        > stopped a#1           ->
        """
    )


@pytest.mark.parametrize("wish", ["replicas_min=1", "preload=yes"])
def test_standing_wishes_are_no_pins(wish: str) -> None:
    """"they are no pins (…), and memory pressure may stop them"; they return when there is room."""
    Story().tell(
        f"""
        node  n1  80GiB
        > deploy a 60GiB {wish}  -> start a#1 n1/0
        > started a#1            ->
        > observed n1/0 30GiB    -> stop a#1 memory_pressure
        > stopped a#1            ->
        > observed n1/0 20GiB    -> start a#2 n1/0
        """
    )


def test_a_wide_replica_relieves_each_device_by_its_share() -> None:
    Story().tell(
        """
        node  n1  2x80GiB
        model w   80GiB  gpus=2
        model a   30GiB
        > found w#1 n1/0,n1/1 40GiB idle_ms=9000  ->
        > found a#1 n1/0 30GiB  ->
        > observed n1/0 45GiB   -> stop w#1 memory_pressure
        """
    )


def test_ready_after_others_came_is_pressure_as_well() -> None:
    """A replica that was loading cannot be stopped then; when it is idle it can."""
    Story().tell(
        """
        node  n1  80GiB
        model a   60GiB
        > load a                -> start a#1 n1/0
        > observed n1/0 30GiB   ->
        > started a#1           -> stop a#1 memory_pressure
        """
    )


def test_the_lent_memory_of_a_cpu_node_feels_pressure_from_host_only_replicas() -> None:
    """"models with `gpus: [0]` are charged there too"."""
    Story().tell(
        """
        node  c1  64GiB  backend=cpu ram=yes
        model h   40GiB  gpus=0
        model d   10GiB
        > load h                -> start h#1 c1
        > started h#1           ->
        > observed c1/0 30GiB   -> stop h#1 memory_pressure
        """
    )


def test_readings_below_what_is_there_free_memory_for_standing_wishes() -> None:
    Story().tell(
        """
        node  n1  80GiB
        > observed n1/0 30GiB          ->
        > deploy a 60GiB preload=yes   ->
        > observed n1/0 0GiB           -> start a#1 n1/0
        """
    )
