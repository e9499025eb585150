"""Loads that fail, replicas that crash, and the back-off after both."""

from __future__ import annotations

import pytest

from rayscheduler.core.decisions import Reject
from tests.core.story import Story


def test_a_load_that_fails_rejects_who_waits_for_it() -> None:
    """Loads: "A load that fails rejects all requests waiting for the model"."""
    story = Story().tell(
        """
        node  n1  80GiB
        model a   60GiB
        > request a r1  -> start a#1 n1/0
        > request a r2  ->
        > failed a#1    -> stop a#1 load_failed; reject r1 load_failed; reject r2 load_failed
        """
    )
    messages = [d.message for d in story.decided if isinstance(d, Reject)]
    assert all("out of luck" in message for message in messages)


@pytest.mark.parametrize("state", ["running", "starting"])
def test_another_replica_there_or_coming_keeps_the_requests(state: str) -> None:
    """"unless another replica of it runs or starts"."""
    story = Story().tell(
        """
        node  n1  2x60GiB
        model a   60GiB  gpus=1 replicas_max=2
        > request a r1  -> start a#1 n1/0
        """
    )
    if state == "running":
        story.tell("> started a#1 -> grant r1 a#1")
    story.tell(
        """
        > request a r2  -> start a#2 n1/1
        > failed a#2    -> stop a#2 load_failed
        """
    )


def test_back_off_doubles_from_one_second_to_sixty() -> None:
    """"then 1 s of back-off, doubled to at most 60 s"."""
    story = Story(patience_ms=None).tell(
        """
        node  n1  80GiB
        model a   60GiB
        > request a r0  -> start a#1 n1/0
        > failed a#1    -> stop a#1 load_failed; reject r0 load_failed
        """
    )
    for number, pause_ms in enumerate([1000, 2000, 4000, 8000, 16000, 32000, 60000, 60000], start=1):
        request, before, after = f"r{number}", f"a#{number}", f"a#{number + 1}"
        story.tell(f"> request a {request} ->")
        assert story.scheduler.wakeup() == story.now_ms + pause_ms, before
        story.tell(
            f"""
            +{pause_ms - 1}
            > wake ->
            +1
            > wake -> start {after} n1/0
            > failed {after} -> stop {after} load_failed; reject {request} load_failed
            """
        )


def test_a_load_that_works_resets_the_back_off() -> None:
    Story().tell(
        """
        node  n1  80GiB
        model a   60GiB
        > request a r1  -> start a#1 n1/0
        > failed a#1    -> stop a#1 load_failed; reject r1 load_failed
        +1000
        > request a r2  -> start a#2 n1/0
        > failed a#2    -> stop a#2 load_failed; reject r2 load_failed
        +2000
        > request a r3  -> start a#3 n1/0
        > started a#3   -> grant r3 a#3
        > crashed a#3   -> stop a#3 crashed
        > request a r4  ->
        +999
        > wake          ->
        +1
        > wake          -> start a#4 n1/0
        """
    )


def test_requests_that_arrive_meanwhile_wait_through_it() -> None:
    """"requests that arrive meanwhile wait through it"."""
    Story().tell(
        """
        node  n1  80GiB
        model a   60GiB
        > request a r1  -> start a#1 n1/0
        > failed a#1    -> stop a#1 load_failed; reject r1 load_failed
        > request a r2  ->
        +1000
        > wake          -> start a#2 n1/0
        > started a#2   -> grant r2 a#2
        """
    )


def test_after_a_crash_the_waiting_requests_wait() -> None:
    """"A running or starting replica that crashes backs off likewise, its waiting requests wait"."""
    Story().tell(
        """
        node  n1  80GiB
        model a   60GiB
        > request a r1  -> start a#1 n1/0
        > request a r2  ->
        > crashed a#1   -> stop a#1 crashed
        +1000
        > wake          -> start a#2 n1/0
        > started a#2   -> grant r1 a#2
        > crashed a#2   -> stop a#2 crashed      #  r1's lease just ends
        > ended r1      ->
        +1000
        > wake          -> start a#3 n1/0
        > started a#3   -> grant r2 a#3
        """
    )


def test_a_replica_that_stops_unasked_has_crashed() -> None:
    Story().tell(
        """
        node  n1  80GiB
        model a   60GiB
        > request a r1  -> start a#1 n1/0
        > started a#1   -> grant r1 a#1
        > stopped a#1   -> stop a#1 crashed
        > request a r2  ->
        """
    )


def test_a_crash_of_a_replica_on_its_way_out_is_its_exit() -> None:
    Story().tell(
        """
        node  n1  80GiB
        model a   60GiB
        model b   60GiB
        > found a#1 n1/0 60GiB  ->
        > request b r1  -> stop a#1 evicted for b#1
        > crashed a#1   -> start b#1 n1/0
        > request a r2  ->
        > started b#1   -> grant r1 b#1
        > ended r1      -> stop b#1 evicted for a#2        #  a does not back off
        """
    )


def test_a_drained_replica_that_crashes_makes_its_room_at_once() -> None:
    Story(patience_ms=1000).tell(
        """
        node  n1  80GiB
        model a   60GiB
        model b   60GiB
        > found a#1 n1/0 60GiB leases=q1  ->
        > request b r1  ->
        +1000
        > wake          ->
        > crashed a#1   -> stop a#1 crashed; start b#1 n1/0
        """
    )


def test_the_room_of_a_failed_load_goes_to_the_next() -> None:
    Story().tell(
        """
        node  n1  80GiB
        model a   60GiB
        model b   60GiB
        > request a r1  -> start a#1 n1/0
        > request b r2  ->
        > failed a#1    -> stop a#1 load_failed; reject r1 load_failed; start b#1 n1/0
        """
    )


def test_one_model_backs_off_alone() -> None:
    Story().tell(
        """
        node  n1  80GiB
        model a   60GiB
        model b   60GiB
        > request a r1  -> start a#1 n1/0
        > crashed a#1   -> stop a#1 crashed
        > request b r2  -> start b#1 n1/0
        """
    )


def test_a_load_that_an_operator_wants_is_tried_again() -> None:
    """"stays wanted until it runs or is unloaded"."""
    Story().tell(
        """
        node  n1  80GiB
        model a   60GiB
        > load a        -> start a#1 n1/0
        > failed a#1    -> stop a#1 load_failed
        +1000
        > wake          -> start a#2 n1/0
        > failed a#2    -> stop a#2 load_failed
        > unload a      ->
        +2000
        > wake          ->
        """
    )


def test_losing_a_node_does_not_back_off() -> None:
    """"losing a node or device does not back off"."""
    Story().tell(
        """
        node  n1  80GiB
        node  n2  2x80GiB
        model a   60GiB  gpus=1
        > request a r1  -> start a#1 n1/0
        > lost n1       -> stop a#1 node_lost; start a#2 n2/0
        > lost n2/0     -> stop a#2 device_lost; start a#3 n2/1
        > started a#3   -> grant r1 a#3
        """
    )
