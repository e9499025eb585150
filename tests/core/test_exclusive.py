"""`exclusive: true` takes whole devices."""

from __future__ import annotations

from rayscheduler.core.decisions import StartReplica
from tests.core.story import GIB, Story


def test_it_holds_the_whole_capacity_of_each_device() -> None:
    """Ranking: "`exclusive` holds the whole capacity of each device"."""
    story = Story().tell(
        """
        node  n1  80GiB,40GiB
        model a   20GiB  gpus=2 exclusive=yes
        model b   1GiB
        > load a        -> start a#1 n1/0,n1/1
        """
    )
    (start,) = story.decided
    assert isinstance(start, StartReplica)
    assert start.placement.device_bytes == (80 * GIB, 40 * GIB)
    story.tell(
        """
        > request b r1  ->
        > started a#1   -> stop a#1 evicted for b#1
        """
    )


def test_it_shares_with_nobody() -> None:
    Story().tell(
        """
        node  n1  2x80GiB
        model f   1GiB
        model a   20GiB  gpus=1 exclusive=yes
        model b   20GiB  gpus=1 exclusive=yes
        > found f#1 n1/0 1GiB leases=q1  ->
        > request a r1  -> start a#1 n1/1
        > request b r2  ->
        > ended q1      -> stop f#1 evicted for b#1
        """
    )


def test_it_does_not_share_with_other_programs() -> None:
    Story().tell(
        """
        node  n1  80GiB
        model a   20GiB  exclusive=yes
        > observed n1/0 1GiB  ->
        > request a r1        ->
        > observed n1/0 0GiB  -> start a#1 n1/0
        """
    )


def test_it_still_needs_what_it_needs() -> None:
    """A whole device that is too small is too small."""
    Story().tell(
        """
        node  n1  80GiB
        model a   100GiB  gpus=1 exclusive=yes
        > request a r1  -> reject r1 never_fits
        """
    )


def test_a_smaller_share_on_more_devices_may_do() -> None:
    Story().tell(
        """
        node  n1  2x80GiB
        model a   100GiB  gpus=1,2 exclusive=yes
        > request a r1  -> start a#1 n1/0,n1/1
        """
    )


def test_of_devices_only_the_large_enough_ones() -> None:
    Story().tell(
        """
        node  n1  40GiB,80GiB
        model a   60GiB  gpus=1 exclusive=yes
        > request a r1  -> start a#1 n1/1
        """
    )
