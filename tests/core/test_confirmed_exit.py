"""Bytes are released when the exit is confirmed, never when the stop is sent (promise 1)."""

from __future__ import annotations

from tests.core.story import Story


def test_a_load_starts_only_when_its_victim_is_gone() -> None:
    """Order: "`start` [is printed] when the exit of every victim is confirmed"."""
    Story().tell(
        """
        node  n1  80GiB
        model a   60GiB
        model b   60GiB
        > found a#1 n1/0 60GiB  ->
        > request b r1  -> stop a#1 evicted for b#1
        +60000
        > wake          ->
        > stopped a#1   -> start b#1 n1/0
        """
    )


def test_every_victim_has_to_be_gone() -> None:
    Story().tell(
        """
        node  n1  80GiB
        model a   40GiB
        model b   40GiB
        model c   80GiB
        > found a#1 n1/0 40GiB  ->
        > found b#1 n1/0 40GiB  ->
        > request c r1  -> stop a#1 evicted for c#1; stop b#1 evicted for c#1
        > stopped b#1   ->
        > stopped a#1   -> start c#1 n1/0
        """
    )


def test_room_that_a_victim_leaves_over_waits_for_its_exit() -> None:
    """Ranking: "Room that a victim leaves over may be promised to others only when its exit is confirmed"."""
    Story().tell(
        """
        node  n1  80GiB
        model a   80GiB
        model b   30GiB
        model c   30GiB
        > found a#1 n1/0 80GiB  ->
        > request b r1  -> stop a#1 evicted for b#1
        > load c        ->
        > stopped a#1   -> start b#1 n1/0; start c#1 n1/0
        """
    )


def test_an_unloaded_replica_holds_its_bytes_until_it_is_gone() -> None:
    Story().tell(
        """
        node  n1  80GiB
        model a   60GiB
        model b   60GiB
        > found a#1 n1/0 60GiB  ->
        > unload a      -> stop a#1 unloaded
        > request b r1  ->
        > stopped a#1   -> start b#1 n1/0
        """
    )


def test_a_device_is_not_promised_again_by_a_second_confirmation() -> None:
    """A double release cannot create memory."""
    Story().tell(
        """
        node  n1  80GiB
        model a   60GiB
        model b   60GiB
        model c   60GiB
        > found a#1 n1/0 60GiB  ->
        > request b r1  -> stop a#1 evicted for b#1
        > stopped a#1   -> start b#1 n1/0
        > stopped a#1   ->
        > request c r2  ->
        > stopped a#1   ->
        """
    )


def test_a_pending_load_may_overlap_only_its_own_victims() -> None:
    """b waits for a's room; c fits neither beside b nor over a's bytes."""
    Story().tell(
        """
        node  n1  80GiB
        model a   60GiB
        model b   70GiB
        model c   15GiB
        > found a#1 n1/0 60GiB  ->
        > request b r1  -> stop a#1 evicted for b#1
        > request c r2  ->
        > stopped a#1   -> start b#1 n1/0
        > started b#1   -> grant r1 b#1
        > ended r1      -> stop b#1 evicted for c#1
        """
    )


def test_what_fits_beside_both_may_start_meanwhile() -> None:
    Story().tell(
        """
        node  n1  80GiB
        model a   60GiB
        model b   60GiB
        model c   20GiB
        > found a#1 n1/0 60GiB  ->
        > request b r1  -> stop a#1 evicted for b#1
        > request c r2  -> start c#1 n1/0
        > stopped a#1   -> start b#1 n1/0
        """
    )


def test_a_promise_whose_room_was_taken_meanwhile_is_planned_anew() -> None:
    """DESIGN 3: "If the best plan cannot be carried out, the next one is tried"."""
    Story().tell(
        """
        node  n1  80GiB
        node  n2  80GiB
        model a   60GiB
        model b   60GiB
        model c   60GiB
        > found a#1 n1/0 60GiB idle_ms=9000  ->
        > found c#1 n2/0 60GiB  ->
        > request b r1  -> stop a#1 evicted for b#1
        > observed n1/0 70GiB  ->
        > stopped a#1   -> stop c#1 evicted for b#2
        > stopped c#1   -> start b#2 n2/0
        > started b#2   -> grant r1 b#2
        """
    )


def test_a_stop_frees_nothing_while_a_failed_load_frees_at_once() -> None:
    """`ReplicaFailed` says that the memory is back; `StopReplica` only asks for it."""
    Story().tell(
        """
        node  n1  80GiB
        model a   60GiB
        model b   60GiB
        > request a r1  -> start a#1 n1/0
        > load b        ->
        > failed a#1    -> stop a#1 load_failed; reject r1 load_failed; start b#1 n1/0
        """
    )
