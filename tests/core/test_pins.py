"""Pins: immovable replicas, and models with a fixed place."""

from __future__ import annotations

from tests.core.story import Story


def test_a_pinned_replica_is_never_a_victim() -> None:
    Story().tell(
        """
        node  n1  80GiB
        node  n2  60GiB
        model a   60GiB  pinned=yes
        model b   60GiB
        model f   60GiB
        > found a#1 n1/0 60GiB idle_ms=900000  ->
        > found f#1 n2/0 60GiB leases=q1  ->
        > request b r1  ->
        > ended q1      -> stop f#1 evicted for b#1
        """
    )


def test_pin_and_unpin_take_effect_at_once() -> None:
    Story().tell(
        """
        node  n1  60GiB
        node  n2  60GiB
        model a   60GiB
        model b   60GiB
        model c   60GiB
        > found a#1 n1/0 60GiB  ->
        > found c#1 n2/0 60GiB leases=q1  ->
        > pin a         ->
        > request b r1  ->
        > unpin a       -> stop a#1 evicted for b#1
        """
    )


def test_never_fits_is_judged_beside_what_is_pinned() -> None:
    """Requests: "`never_fits` is decided on arrival, against the nodes and pins of that moment"."""
    Story().tell(
        """
        node  n1  80GiB
        model a   60GiB  pinned=yes
        model b   60GiB
        > found a#1 n1/0 60GiB  ->
        > request b r1  -> reject r1 never_fits
        > unpin a       ->
        > request b r2  -> stop a#1 evicted for b#1
        """
    )


def test_a_request_that_waits_already_is_not_rejected_by_a_later_pin() -> None:
    Story().tell(
        """
        node  n1  80GiB
        model a   60GiB
        model b   60GiB
        > found a#1 n1/0 60GiB leases=q1  ->
        > request b r1  ->
        > pin a         ->
        > ended q1      ->
        > unpin a       -> stop a#1 evicted for b#1
        """
    )


def test_a_fixed_placement_is_exactly_there() -> None:
    """`placement` with `pinned`: "exactly there", wherever else there would be room."""
    Story().tell(
        """
        node  n1  2x80GiB
        node  n2  80GiB
        model f   30GiB
        model a   60GiB  pinned=yes pin=n1/1
        > found f#1 n1/1 30GiB  ->
        > request a r1  -> stop f#1 evicted for a#1
        > stopped f#1   -> start a#1 n1/1
        """
    )


def test_a_fixed_placement_of_several_devices() -> None:
    Story().tell(
        """
        node  n1  4x40GiB
        model a   60GiB  pinned=yes pin=n1/1,n1/3
        > request a r1  -> start a#1 n1/1,n1/3
        """
    )


def test_a_fixed_placement_on_a_node_leaves_the_device_open() -> None:
    Story().tell(
        """
        node  n1  80GiB
        node  n2  2x80GiB
        model a   60GiB  pinned=yes pin=n2
        model b   60GiB
        > request a r1  -> start a#1 n2/0
        > request b r2  -> start b#1 n1/0
        """
    )


def test_placement_of_a_model_that_is_not_pinned_is_ignored() -> None:
    """Loads: "`placement` of a model that is not pinned is ignored"."""
    Story().tell(
        """
        node  n1  2x80GiB
        model a   60GiB  pin=n1/1
        > request a r1  -> start a#1 n1/0
        """
    )


def test_a_placement_on_a_node_that_is_not_there_never_fits() -> None:
    Story().tell(
        """
        node  n1  80GiB
        model a   60GiB  pinned=yes pin=n2/0
        > request a r1    -> reject r1 never_fits
        > joined n2 80GiB ->
        > request a r2    -> start a#1 n2/0
        """
    )


def test_a_pinned_model_may_evict_but_not_be_evicted() -> None:
    Story().tell(
        """
        node  n1  80GiB
        model a   60GiB  pinned=yes
        model b   60GiB
        > found b#1 n1/0 60GiB  ->
        > request a r1  -> stop b#1 evicted for a#1
        > stopped b#1   -> start a#1 n1/0
        > started a#1   -> grant r1 a#1
        > ended r1      ->
        > request b r2  -> reject r2 never_fits
        """
    )


def test_pinned_bytes_count_on_each_device_they_take() -> None:
    Story().tell(
        """
        node  n1  2x80GiB
        model w   100GiB  gpus=2 pinned=yes
        model a   40GiB  gpus=1
        model b   60GiB  gpus=2
        > found w#1 n1/0,n1/1 50GiB  ->
        > request a r1  -> reject r1 never_fits
        > request b r2  -> start b#1 n1/0,n1/1
        """
    )
