"""Replicas on several devices: how they are placed, what they hold, and what their exit frees."""

from __future__ import annotations

from rayscheduler.core.decisions import StartReplica
from tests.core.story import GIB, Story


def test_memory_is_shared_equally_and_rounded_up() -> None:
    """Ranking: "`memory` is divided by the device count and rounded up on each device"."""
    story = Story().tell(
        """
        node  n1  2x10GiB
        model a   11GiB  gpus=2
        > request a r1  -> start a#1 n1/0,n1/1
        """
    )
    (start,) = story.decided
    assert isinstance(start, StartReplica)
    assert start.placement.device_bytes == (11 * GIB // 2, 11 * GIB // 2)


def test_bytes_by_count_are_said_by_the_operator() -> None:
    """`memory_per_device: {1: 60GiB, 2: 33GiB}`: bytes on each device, by device count."""
    story = Story().tell(
        """
        node  n1  2x40GiB
        model a   0GiB  each=1:60GiB,2:33GiB
        > request a r1  -> start a#1 n1/0,n1/1
        """
    )
    (start,) = story.decided
    assert isinstance(start, StartReplica)
    assert start.placement.device_bytes == (33 * GIB, 33 * GIB)


def test_fewer_devices_come_first() -> None:
    """Ranking: "then fewer devices", even onto a more loaded one."""
    Story().tell(
        """
        node  n1  80GiB
        node  n2  2x40GiB
        model f   10GiB
        model a   60GiB
        > found f#1 n1/0 10GiB  ->
        > request a r1  -> start a#1 n1/0
        """
    )


def test_only_counts_that_the_model_may_take() -> None:
    Story().tell(
        """
        node  n1  3x30GiB
        model a   80GiB  gpus=1,2,4
        model b   80GiB  gpus=3
        > request a r1  -> reject r1 never_fits
        > request b r2  -> start b#1 n1/0,n1/1,n1/2
        """
    )


def test_a_victim_on_two_devices_counts_its_share_on_each_and_once_in_the_list() -> None:
    """DESIGN 3: "a multi-device victim counts its share on each device and once in the list"."""
    story = Story().tell(
        """
        node  n1  2x80GiB
        model w   120GiB  gpus=2
        model a   100GiB  gpus=2
        > found w#1 n1/0,n1/1 60GiB  ->
        > request a r1  -> stop w#1 evicted for a#1
        > stopped w#1   -> start a#1 n1/0,n1/1
        """
    )
    (start,) = story.decided
    assert isinstance(start, StartReplica)
    assert start.evicts == ("w#1",)


def test_a_share_is_not_the_whole() -> None:
    """w holds 40 GiB on each of two devices: its exit makes no 80 GiB on one of them beside f."""
    Story().tell(
        """
        node  n1  2x80GiB
        model w   80GiB  gpus=2
        model f   20GiB
        model a   80GiB  gpus=1
        > found w#1 n1/0,n1/1 40GiB  ->
        > found f#1 n1/0 20GiB leases=r0  ->
        > request a r1  -> stop w#1 evicted for a#1
        > stopped w#1   -> start a#1 n1/1
        """
    )


def test_one_device_of_a_wide_victim_serves_one_and_the_other_the_next() -> None:
    Story().tell(
        """
        node  n1  2x80GiB
        model w   120GiB  gpus=2
        model a   80GiB  gpus=1
        model b   80GiB  gpus=1
        > found w#1 n1/0,n1/1 60GiB  ->
        > request a r1  -> stop w#1 evicted for a#1
        > request b r2  ->                 #  n1/1 is not free before w#1 is gone
        > stopped w#1   -> start a#1 n1/0; start b#1 n1/1
        """
    )


def test_the_set_stays_minimal_across_devices() -> None:
    """Two devices are needed: the wide victim alone is one set, the two narrow ones another; both are minimal
    and cost nothing, and the wide one was used longest ago."""
    Story().tell(
        """
        node  n1  4x40GiB
        model w   80GiB  gpus=2
        model s1  40GiB  gpus=1
        model s2  40GiB  gpus=1
        model a   80GiB  gpus=2
        > found w#1 n1/0,n1/1 40GiB idle_ms=5000  ->
        > found s1#1 n1/2 40GiB idle_ms=9000  ->
        > found s2#1 n1/3 40GiB idle_ms=1000  ->
        > request a r1  -> stop w#1 evicted for a#1
        > stopped w#1   -> start a#1 n1/0,n1/1
        """
    )


def test_a_wide_replica_busy_on_one_device_is_busy_on_all() -> None:
    Story().tell(
        """
        node  n1  2x80GiB
        model w   160GiB  gpus=2
        model a   10GiB
        > request w r1  -> start w#1 n1/0,n1/1
        > started w#1   -> grant r1 w#1
        > request a r2  ->
        > ended r1      -> stop w#1 evicted for a#1
        """
    )


def test_total_device_memory_is_the_sum_over_the_devices_taken() -> None:
    """`total_device_memory`: "sum over the devices it takes"; two of 24 GiB make 48, three need not be taken."""
    Story().tell(
        """
        node  n1  3x24GiB
        model a   10GiB  total_device_memory=48GiB
        model b   10GiB  gpus=1 total_device_memory=48GiB
        > request a r1  -> start a#1 n1/0,n1/1
        > request b r2  -> reject r2 never_fits
        """
    )


def test_total_device_memory_may_rule_out_the_least_loaded_devices() -> None:
    Story().tell(
        """
        node  n1  10GiB,40GiB,10GiB
        model f   5GiB
        model a   10GiB  gpus=2 total_device_memory=50GiB
        > found f#1 n1/1 5GiB  ->
        > request a r1  -> start a#1 n1/0,n1/1
        """
    )
