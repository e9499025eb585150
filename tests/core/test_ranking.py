"""Where a replica goes when several places are free: types, spread and pack, ids."""

from __future__ import annotations

from rayscheduler.core.types import Strategy
from tests.core.story import Story


def test_equal_models_are_spread_over_the_devices() -> None:
    Story().tell(
        """
        node  n1  2x40GiB
        model m1  10GiB
        model m2  10GiB
        model m3  10GiB
        model m4  10GiB
        > load m1  -> start m1#1 n1/0
        > load m2  -> start m2#1 n1/1
        > load m3  -> start m3#1 n1/0
        > load m4  -> start m4#1 n1/1
        """
    )


def test_spread_takes_the_least_loaded_device_then_the_least_loaded_node() -> None:
    """"then least loaded device and node", load in bytes reserved, not by count or share."""
    Story().tell(
        """
        node  n1  2x80GiB
        node  n2  2x80GiB
        model a   30GiB
        model b   10GiB
        model c   20GiB
        model d   10GiB
        > load a   -> start a#1 n1/0
        > load b   -> start b#1 n2/0
        > load c   -> start c#1 n2/1
        > load d   -> start d#1 n1/1
        """
    )


def test_pack_takes_the_most_loaded_that_fits() -> None:
    Story(strategy=Strategy.PACK).tell(
        """
        node  n1  2x80GiB
        node  n2  80GiB
        model a   30GiB
        model b   50GiB
        model c   10GiB
        model d   60GiB
        > load a   -> start a#1 n1/0
        > load b   -> start b#1 n1/0
        > load c   -> start c#1 n1/1
        > load d   -> start d#1 n1/1
        """
    )


def test_pack_fills_the_fuller_node() -> None:
    Story(strategy=Strategy.PACK).tell(
        """
        node  n1  2x80GiB
        node  n2  2x80GiB
        model f   10GiB
        model a   80GiB
        > found f#1 n2/0 10GiB  ->
        > load a   -> start a#1 n2/1
        """
    )


def test_load_is_what_we_reserved_not_what_others_use() -> None:
    """"load being the bytes reserved by our replicas"."""
    Story().tell(
        """
        node  n1  2x80GiB
        model f   10GiB
        model a   10GiB
        > found f#1 n1/1 10GiB  ->
        > observed n1/0 60GiB   ->
        > load a   -> start a#1 n1/0
        """
    )


def test_the_load_of_several_devices_is_summed() -> None:
    """"summed over the devices taken": 10 + 20 on n1 against 0 + 25 on n2."""
    Story().tell(
        """
        node  n1  2x80GiB
        node  n2  2x80GiB
        model f1  10GiB
        model f2  20GiB
        model f3  25GiB
        model a   60GiB  gpus=2
        > found f1#1 n1/0 10GiB  ->
        > found f2#1 n1/1 20GiB  ->
        > found f3#1 n2/1 25GiB  ->
        > load a   -> start a#1 n2/0,n2/1
        """
    )


def test_equal_places_break_on_ids() -> None:
    Story().tell(
        """
        node  n2  80GiB
        node  n1  2x80GiB
        model a   60GiB
        > load a   -> start a#1 n1/0
        """
    )


def test_the_preferred_type_comes_before_load() -> None:
    """"then the preferred type; then least loaded"."""
    Story().tell(
        """
        node  n1  80GiB  type=A100
        node  n2  80GiB  type=H100
        model f   10GiB
        model a   60GiB  types=H100,A100
        model b   60GiB  types=H100,A100
        > found f#1 n2/0 10GiB  ->
        > load a   -> start a#1 n2/0
        > load b   -> start b#1 n1/0
        """
    )


def test_fewer_devices_come_before_the_preferred_type() -> None:
    Story().tell(
        """
        node  n1  80GiB  type=A100
        node  n2  2x40GiB  type=H100
        model a   60GiB  types=H100,A100
        > load a   -> start a#1 n1/0
        """
    )


def test_a_free_place_of_a_lesser_type_comes_before_eviction() -> None:
    Story().tell(
        """
        node  n1  80GiB  type=A100
        node  n2  80GiB  type=H100
        model f   60GiB
        model a   60GiB  types=H100,A100
        > found f#1 n2/0 60GiB  ->
        > load a   -> start a#1 n1/0
        """
    )


def test_types_are_told_apart_within_a_node() -> None:
    Story().tell(
        """
        node  n1  2x80GiB  type=A100,H100
        model a   60GiB  types=H100
        model b   60GiB  types=H100
        model f   10GiB
        > load a   -> start a#1 n1/1
        > load f   -> start f#1 n1/0
        > request b r1  ->
        """
    )


def test_of_several_types_in_one_replica_the_least_preferred_one_counts() -> None:
    """With an L40 there is an A100 among the two, whichever two: the least loaded ones are taken."""
    Story().tell(
        """
        node  n1  3x80GiB  type=L40,A100,A100
        model a   60GiB  gpus=2 types=L40,A100
        model f   10GiB
        > found f#1 n1/0 10GiB  ->
        > load a   -> start a#1 n1/1,n1/2
        """
    )


def test_a_host_only_model_goes_to_the_least_loaded_node_whatever_its_types() -> None:
    Story().tell(
        """
        node  n1  2x80GiB  type=A100
        node  n2  90GiB  type=A100
        model f   60GiB
        model h   10GiB  gpus=0 types=H100,A100
        > found f#1 n1/0 60GiB  ->
        > load h   -> start h#1 n2
        """
    )


def test_pack_takes_the_fullest_node_for_a_host_only_model() -> None:
    Story(strategy=Strategy.PACK).tell(
        """
        node  n1  2x80GiB
        node  n2  90GiB
        model e   50GiB
        model f   60GiB
        model h   10GiB  gpus=0
        > found e#1 n1/0 50GiB  ->
        > found f#1 n2/0 60GiB  ->
        > load h   -> start h#1 n2
        """
    )
