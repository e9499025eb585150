"""Shutdown: everything stops at once, and nothing is granted any more."""

from __future__ import annotations

from tests.core.story import Story


def test_all_replicas_stop_at_once_and_everything_waiting_is_rejected() -> None:
    """"`shutdown` stops all replicas at once"; "everything waiting is rejected"."""
    Story().tell(
        """
        node  n1  3x80GiB
        model a   60GiB  gpus=1
        model b   60GiB  gpus=1
        model c   60GiB  gpus=1 pinned=yes
        > request a r1  -> start a#1 n1/0
        > started a#1   -> grant r1 a#1
        > request b r2  -> start b#1 n1/1
        > load c        -> start c#1 n1/2
        > request a r3 priority=1 ->
        > shutdown      -> stop a#1 shutdown; stop b#1 shutdown; stop c#1 shutdown; """
        """reject r3 shutting_down; reject r2 shutting_down
        > ended r1      ->
        > stopped a#1   ->
        """
    )


def test_after_shutdown_nothing_is_granted_or_loaded() -> None:
    """"After `shutdown` nothing is granted"."""
    Story().tell(
        """
        node  n1  80GiB
        > deploy a 60GiB preload=yes  -> start a#1 n1/0
        > shutdown         -> stop a#1 shutdown
        > started a#1      ->
        > request a r1     -> reject r1 shutting_down
        > load a           ->
        > stopped a#1      ->
        > joined n2 80GiB  ->
        > deploy b 10GiB preload=yes  ->
        > request b r2     -> reject r2 shutting_down
        > shutdown         ->
        """
    )


def test_pending_loads_are_given_up() -> None:
    Story().tell(
        """
        node  n1  80GiB
        model a   60GiB
        model b   60GiB
        > found a#1 n1/0 60GiB  ->
        > request b r1  -> stop a#1 evicted for b#1
        > shutdown      -> reject r1 shutting_down
        > stopped a#1   ->
        """
    )


def test_draining_replicas_are_stopped_under_their_requests() -> None:
    Story(patience_ms=1000).tell(
        """
        node  n1  80GiB
        model a   60GiB
        model b   60GiB
        > found a#1 n1/0 60GiB leases=q1  ->
        > request b r1  ->
        +1000
        > wake          ->
        > shutdown      -> stop a#1 shutdown; reject r1 shutting_down
        """
    )


def test_a_replica_that_is_found_afterwards_serves_nobody() -> None:
    Story().tell(
        """
        node  n1  80GiB
        model a   60GiB
        > shutdown      ->
        > found a#1 n1/0 60GiB  -> stop a#1 shutdown
        > stopped a#1   ->
        """
    )
