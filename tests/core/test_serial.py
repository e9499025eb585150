"""Policy `serial`: strict arrival order, one request in the system at a time, one model at a time."""

from __future__ import annotations

from rayscheduler.core.types import PolicyName
from tests.core.story import Story


def serial(**settings: object) -> Story:
    return Story(policy=PolicyName.SERIAL, **settings)


def test_one_model_at_a_time_in_arrival_order() -> None:
    """"every other model evicted before the next loads, whatever would fit"."""
    serial().tell(
        """
        node  n1  80GiB
        model a   20GiB
        model b   20GiB
        > request a r1  -> start a#1 n1/0
        > request b r2  ->
        > request a r3  ->
        > started a#1   -> grant r1 a#1
        > ended r1      -> stop a#1 evicted for b#1
        > stopped a#1   -> start b#1 n1/0
        > started b#1   -> grant r2 b#1
        > ended r2      -> stop b#1 evicted for a#2
        > stopped b#1   -> start a#2 n1/0
        > started a#2   -> grant r3 a#2
        """
    )


def test_one_request_in_the_system_at_a_time() -> None:
    """Whatever the concurrency."""
    serial().tell(
        """
        node  n1  80GiB
        model a   20GiB  concurrency=4
        > request a r1  -> start a#1 n1/0
        > request a r2  ->
        > started a#1   -> grant r1 a#1
        > ended r1      -> grant r2 a#1
        """
    )


def test_an_older_request_for_another_model_comes_first() -> None:
    serial().tell(
        """
        node  n1  80GiB
        model a   20GiB
        model b   20GiB
        > request a r1  -> start a#1 n1/0
        > started a#1   -> grant r1 a#1
        > request b r2  ->
        > request a r3  ->
        > ended r1      -> stop a#1 evicted for b#1
        """
    )


def test_it_ignores_priority_staleness_and_patience() -> None:
    """"`serial` ignores priority, tiers, `stale_after` and `patience`"."""
    serial(stale_after_ms=60_000, patience_ms=1000).tell(
        """
        node  n1  80GiB
        model a   20GiB
        model b   20GiB
        model c   20GiB
        > request a r1  -> start a#1 n1/0
        > started a#1   -> grant r1 a#1
        > request b r2  ->
        > request c r3 priority=9  ->
        +5000
        > wake          ->
        > ended r1      -> stop a#1 evicted for b#1
        """
    )


def test_pinned_models_stay() -> None:
    """"it evicts every other unpinned model; what cannot load beside a pinned one is `never`"."""
    serial().tell(
        """
        node  n1  80GiB
        model p   30GiB  pinned=yes
        model a   50GiB
        model b   20GiB
        model c   51GiB
        > load p        -> start p#1 n1/0
        > started p#1   ->
        > request a r1  -> start a#1 n1/0
        > started a#1   -> grant r1 a#1
        > ended r1      ->
        > request b r2  -> stop a#1 evicted for b#1
        > request c r3  -> reject r3 never_fits
        """
    )


def test_every_other_model_leaves_on_every_node() -> None:
    serial().tell(
        """
        node  n1  80GiB
        node  n2  80GiB
        model a   20GiB
        model b   20GiB
        model c   20GiB
        > found a#1 n1/0 20GiB  ->
        > found b#1 n2/0 20GiB  ->
        > request c r1  -> stop a#1 evicted for c#1; stop b#1 evicted for c#1
        > stopped a#1   ->
        > stopped b#1   -> start c#1 n1/0
        """
    )


def test_it_waits_for_those_that_are_leaving_already() -> None:
    serial().tell(
        """
        node  n1  80GiB
        node  n2  80GiB
        model a   20GiB
        model c   20GiB
        > found a#1 n1/0 20GiB  ->
        > unload a      -> stop a#1 unloaded
        > request c r1  ->
        > stopped a#1   -> start c#1 n2/0
        """
    )


def test_a_wanted_load_runs_when_no_request_waits() -> None:
    """"In `serial` a wanted load runs when no request waits"."""
    serial().tell(
        """
        node  n1  80GiB
        model a   20GiB
        model b   20GiB
        model c   20GiB
        > request a r1  -> start a#1 n1/0
        > load b        ->
        > request c r2  ->
        > started a#1   -> grant r1 a#1
        > ended r1      -> stop a#1 evicted for c#1
        > stopped a#1   -> start c#1 n1/0
        > started c#1   -> grant r2 c#1
        > ended r2      -> stop c#1 evicted for b#1
        > stopped c#1   -> start b#1 n1/0
        """
    )


def test_a_cancelled_head_makes_way() -> None:
    serial().tell(
        """
        node  n1  80GiB
        model a   20GiB
        model b   20GiB
        > request a r1  -> start a#1 n1/0
        > request b r2  ->
        > ended r1      -> reject r1 cancelled; stop a#1 abandoned for b#1
        > stopped a#1   -> start b#1 n1/0
        """
    )


def test_a_head_that_backs_off_keeps_its_place() -> None:
    serial().tell(
        """
        node  n1  80GiB
        model a   20GiB
        model b   20GiB
        > request a r1  -> start a#1 n1/0
        > request b r2  ->
        > crashed a#1   -> stop a#1 crashed
        +1000
        > wake          -> start a#2 n1/0
        """
    )


def test_a_model_of_the_same_name_is_not_reloaded() -> None:
    serial().tell(
        """
        node  n1  80GiB
        model a   20GiB
        > request a r1  -> start a#1 n1/0
        > started a#1   -> grant r1 a#1
        > request a r2  ->
        > ended r1      -> grant r2 a#1
        > ended r2      ->
        > request a r3  -> grant r3 a#1
        """
    )


def test_a_warm_model_is_granted_at_once_and_does_not_count_as_waiting() -> None:
    serial(queue_limit=0).tell(
        """
        node  n1  80GiB
        model a   20GiB  concurrency=2
        > load a        -> start a#1 n1/0
        > started a#1   ->
        > request a r1  -> grant r1 a#1
        > request a r2  -> reject r2 queue_full
        """
    )
