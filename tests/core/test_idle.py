"""`idle_timeout`: "stop (`idle`) a replica unleased for this long, never below replicas.min"."""

from __future__ import annotations

from tests.core.story import Story


def test_an_unleased_replica_is_stopped_after_its_timeout() -> None:
    story = Story().tell(
        """
        node  n1  80GiB
        model a   60GiB  idle_timeout_ms=5000
        > request a r1  -> start a#1 n1/0
        +1000
        > started a#1   -> grant r1 a#1
        +9000
        > wake          ->
        > ended r1      ->
        +4999
        > wake          ->
        """
    )
    assert story.scheduler.wakeup() == 15_000
    story.tell(
        """
        +1
        > wake          -> stop a#1 idle
        > stopped a#1   ->
        """
    )


def test_a_request_in_time_starts_the_count_anew() -> None:
    Story().tell(
        """
        node  n1  80GiB
        model a   60GiB  idle_timeout_ms=5000
        > found a#1 n1/0 60GiB  ->
        +4000
        > request a r1  -> grant r1 a#1
        > ended r1      ->
        +1000
        > wake          ->
        +4000
        > wake          -> stop a#1 idle
        """
    )


def test_a_request_at_that_very_instant_is_served() -> None:
    """News of an instant comes before what falls due at it."""
    Story().tell(
        """
        node  n1  80GiB
        model a   60GiB  idle_timeout_ms=5000
        > found a#1 n1/0 60GiB  ->
        +5000
        > request a r1  -> grant r1 a#1
        > wake          ->
        """
    )


def test_never_below_the_minimum() -> None:
    Story().tell(
        """
        model a   60GiB  gpus=1 replicas_min=1 replicas_max=2 idle_timeout_ms=5000
        > joined n1 2x60GiB & found a#1 n1/0 60GiB idle_ms=1000 & found a#2 n1/1 60GiB  ->
        +4000
        > wake          -> stop a#1 idle
        +99000
        > wake          ->
        """
    )


def test_the_longest_idle_goes_first_of_those_due_together() -> None:
    Story().tell(
        """
        model a   60GiB  gpus=1 replicas_min=1 replicas_max=2 idle_timeout_ms=5000
        > joined n1 2x60GiB & found a#1 n1/0 60GiB & found a#2 n1/1 60GiB idle_ms=1000  ->
        +9000
        > wake          -> stop a#2 idle
        """
    )


def test_a_preload_that_went_idle_rests_until_it_is_asked_for() -> None:
    """Otherwise the timeout of a preloaded model would mean nothing."""
    Story().tell(
        """
        node  n1  80GiB
        > deploy a 60GiB preload=yes idle_timeout_ms=5000  -> start a#1 n1/0
        > started a#1   ->
        +5000
        > wake          -> stop a#1 idle
        > stopped a#1   ->
        > request a r1  -> start a#2 n1/0
        """
    )


def test_a_found_replica_has_been_idle_before() -> None:
    Story().tell(
        """
        node  n1  80GiB
        model a   60GiB  idle_timeout_ms=5000
        > found a#1 n1/0 60GiB idle_ms=4000  ->
        +1000
        > wake          -> stop a#1 idle
        """
    )


def test_a_load_nobody_used_is_idle_from_its_start() -> None:
    Story().tell(
        """
        node  n1  80GiB
        model a   60GiB  idle_timeout_ms=5000
        > load a        -> start a#1 n1/0
        +60000
        > started a#1   ->
        +5000
        > wake          -> stop a#1 idle
        """
    )


def test_the_timeout_goes_on_after_a_pin() -> None:
    Story().tell(
        """
        node  n1  80GiB
        model a   60GiB  idle_timeout_ms=5000
        > found a#1 n1/0 60GiB  ->
        > pin a         ->
        +6000
        > wake          ->
        > unpin a       ->
        > wake          -> stop a#1 idle
        """
    )


def test_a_new_timeout_in_the_catalog_counts_for_idle_replicas() -> None:
    Story().tell(
        """
        node  n1  80GiB
        model a   60GiB
        > found a#1 n1/0 60GiB  ->
        > deploy a 60GiB idle_timeout_ms=5000  ->
        +5000
        > wake          -> stop a#1 idle
        """
    )


def test_a_shorter_timeout_in_the_catalog_counts_from_the_last_use() -> None:
    Story().tell(
        """
        node  n1  80GiB
        model a   60GiB idle_timeout_ms=60000
        > found a#1 n1/0 60GiB  ->
        +1000
        > deploy a 60GiB idle_timeout_ms=5000  ->
        +4000
        > wake          -> stop a#1 idle
        """
    )
