"""Nodes and devices that go and come back."""

from __future__ import annotations

from tests.core.story import Story


def test_a_lost_node_takes_its_replicas_along() -> None:
    """Requests: "if its replica is lost its lease just ends"; who waits is served elsewhere."""
    Story().tell(
        """
        node  n1  80GiB
        node  n2  80GiB
        model a   60GiB
        > request a r1  -> start a#1 n1/0
        > started a#1   -> grant r1 a#1
        > request a r2  ->
        > lost n1       -> stop a#1 node_lost; start a#2 n2/0
        > ended r1      ->
        > started a#2   -> grant r2 a#2
        """
    )


def test_its_memory_does_not_count_any_more() -> None:
    Story().tell(
        """
        node  n1  80GiB
        node  n2  40GiB
        model a   60GiB
        > lost n1       ->
        > request a r1  -> reject r1 never_fits
        """
    )


def test_waiting_requests_wait_for_it_to_come_back() -> None:
    Story().tell(
        """
        node  n1  80GiB
        model a   60GiB
        > request a r1     -> start a#1 n1/0
        > lost n1          -> stop a#1 node_lost
        > joined n1 80GiB  -> start a#2 n1/0
        > started a#1      ->
        > started a#2      -> grant r1 a#2
        """
    )


def test_a_node_that_is_there_already_changes_nothing() -> None:
    """"(… `node_up` of a node that is there …) changes nothing"."""
    Story().tell(
        """
        node  n1  80GiB
        model a   60GiB
        model b   60GiB
        > found a#1 n1/0 60GiB leases=q1  ->
        > joined n1 2x80GiB  ->
        > request b r1       ->
        """
    )


def test_a_lost_node_confirms_the_exits_that_were_awaited_there() -> None:
    Story().tell(
        """
        node  n1  80GiB
        node  n2  80GiB
        model a   60GiB
        model b   80GiB
        > found a#1 n1/0 60GiB  ->
        > found b#1 n2/0 80GiB leases=q1  ->
        > unload a      -> stop a#1 unloaded
        > lost n1       ->
        > stopped a#1   ->
        """
    )


def test_a_pending_load_on_a_lost_node_is_planned_elsewhere() -> None:
    Story().tell(
        """
        node  n1  80GiB
        node  n2  80GiB
        model a   60GiB
        model b   60GiB
        model c   60GiB
        > found a#1 n1/0 60GiB idle_ms=5000  ->
        > found c#1 n2/0 60GiB  ->
        > request b r1  -> stop a#1 evicted for b#1
        > lost n1       -> stop c#1 evicted for b#2
        > stopped c#1   -> start b#2 n2/0
        """
    )


def test_a_lost_device_stops_its_replicas_and_waits_for_their_exit() -> None:
    story = Story().tell(
        """
        node  n1  2x80GiB
        model a   60GiB
        model w   100GiB  gpus=2
        > request a r1  -> start a#1 n1/0
        > started a#1   -> grant r1 a#1
        > lost n1/0     -> stop a#1 device_lost
        > ended r1      ->
        > request a r2  -> start a#2 n1/1
        > request w r3  -> reject r3 never_fits
        """
    )
    (device, _) = story.scheduler.snapshot(0).nodes[0].devices
    assert not device.offered


def test_a_lost_device_of_several_stops_the_whole_replica() -> None:
    Story().tell(
        """
        node  n1  2x80GiB
        model w   100GiB  gpus=2
        model a   60GiB
        > load w        -> start w#1 n1/0,n1/1
        > started w#1   ->
        > lost n1/0     -> stop w#1 device_lost
        > request a r1  ->                       #  w#1 may still be on n1/1
        > stopped w#1   -> start a#1 n1/1
        """
    )


def test_a_lost_device_comes_back_with_its_node() -> None:
    Story().tell(
        """
        node  n1  80GiB
        model a   60GiB
        > lost n1/0        ->
        > request a r1     -> reject r1 never_fits
        > lost n1          ->
        > joined n1 80GiB  ->
        > request a r2     -> start a#1 n1/0
        """
    )


def test_losing_a_device_twice_is_losing_it_once() -> None:
    Story().tell(
        """
        node  n1  80GiB
        model a   60GiB
        > load a       -> start a#1 n1/0
        > lost n1/0    -> stop a#1 device_lost
        > lost n1/0    ->
        > stopped a#1  ->
        """
    )


def test_a_draining_replica_on_a_lost_device_is_stopped() -> None:
    Story(patience_ms=1000).tell(
        """
        node  n1  80GiB
        model a   60GiB
        model b   60GiB
        > found a#1 n1/0 60GiB leases=q1  ->
        > request b r1  ->
        +1000
        > wake          ->
        > lost n1/0     -> stop a#1 device_lost
        > stopped a#1   ->
        """
    )


def test_a_lost_device_that_returns_is_offered_again() -> None:
    Story().tell(
        """
        node  n1  2x80GiB
        model a   60GiB
        model w   80GiB  gpus=2
        > found a#1 n1/0 60GiB leases=q1  ->
        > lost n1/0         -> stop a#1 device_lost
        > request w r1      -> reject r1 never_fits
        > returned n1/0     ->
        > request w r2      ->                       #  a#1 may still be there
        > stopped a#1       -> start w#1 n1/0,n1/1
        > returned n1/0     ->
        > returned n9/0     ->
        """
    )


def test_who_waits_for_a_lost_device_is_served_when_it_returns() -> None:
    Story().tell(
        """
        node  n1  80GiB
        model a   60GiB
        > request a r1   -> start a#1 n1/0
        > lost n1/0      -> stop a#1 device_lost
        > stopped a#1    ->
        > returned n1/0  -> start a#2 n1/0
        > started a#2    -> grant r1 a#2
        """
    )
