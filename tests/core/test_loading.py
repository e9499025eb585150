"""Loading on demand: the first request loads, those that follow join."""

from __future__ import annotations

from tests.core.story import Story


def test_a_request_loads_its_model_and_is_granted_when_it_runs() -> None:
    Story().tell(
        """
        node  n1  80GiB
        model a   60GiB
        > request a r1  -> start a#1 n1/0
        +1000
        > started a#1   -> grant r1 a#1
        > ended r1      ->                   #  it stays warm
        """
    )


def test_a_warm_model_grants_at_once() -> None:
    Story().tell(
        """
        node  n1  80GiB
        model a   60GiB
        > load a        -> start a#1 n1/0
        > started a#1   ->
        > request a r1  -> grant r1 a#1
        """
    )


def test_requests_for_one_model_join_one_load() -> None:
    """DESIGN 3, fifo: requests for one model join one load and are granted together up to its concurrency."""
    Story().tell(
        """
        node  n1  80GiB
        model a   10GiB  concurrency=3 replicas_max=4
        > request a r1  -> start a#1 n1/0
        > request a r2  ->
        > request a r3  ->
        > started a#1   -> grant r1 a#1; grant r2 a#1; grant r3 a#1
        """
    )


def test_who_joins_beyond_the_concurrency_waits_for_a_lease() -> None:
    Story().tell(
        """
        node  n1  80GiB
        model a   60GiB  concurrency=2
        > request a r1  -> start a#1 n1/0
        > request a r2  ->
        > request a r3  ->
        > started a#1   -> grant r1 a#1; grant r2 a#1
        > ended r2      -> grant r3 a#1
        """
    )


def test_a_request_cancelled_while_it_loads_leaves_the_others_joined() -> None:
    Story().tell(
        """
        node  n1  80GiB
        model a   60GiB  concurrency=2
        > request a r1  -> start a#1 n1/0
        > request a r2  ->
        > ended r1      -> reject r1 cancelled
        > started a#1   -> grant r2 a#1
        """
    )


def test_before_the_first_node_has_joined_everything_waits() -> None:
    """Requests: "before the first node has joined everything waits"."""
    Story().tell(
        """
        model a     60GiB
        model huge  900GiB
        > request a r1     ->
        > request huge r2  ->
        > joined n1 80GiB  -> start a#1 n1/0
        > started a#1      -> grant r1 a#1
        > request huge r3  -> reject r3 never_fits
        """
    )


def test_two_models_load_at_the_same_time_where_both_fit() -> None:
    Story().tell(
        """
        node  n1  80GiB
        model a   40GiB
        model b   40GiB
        > request a r1  -> start a#1 n1/0
        > request b r2  -> start b#1 n1/0
        > started b#1   -> grant r2 b#1
        > started a#1   -> grant r1 a#1
        """
    )


def test_a_blocked_head_does_not_block_others() -> None:
    """DESIGN 3, fifo: "a blocked head does not block others"."""
    Story().tell(
        """
        node  n1  80GiB
        model a   50GiB
        model b   50GiB
        model c   20GiB
        > request a r1  -> start a#1 n1/0
        > started a#1   -> grant r1 a#1
        > request b r2  ->                  #  a is busy and there is no room beside it
        > request c r3  -> start c#1 n1/0
        > started c#1   -> grant r3 c#1
        """
    )


def test_grants_of_one_pass_come_by_priority_then_arrival() -> None:
    """Order: "Running replicas are granted first (by priority, then arrival), then plans are made"."""
    Story().tell(
        """
        node  n1  80GiB
        model a   20GiB
        model b   20GiB
        model c   50GiB
        > request a h1  -> start a#1 n1/0
        > started a#1   -> grant h1 a#1
        > request b h2  -> start b#1 n1/0
        > started b#1   -> grant h2 b#1
        > request c r1  ->
        > request a r2  ->
        > request b r3  ->
        > request b r4 priority=1 ->
        > ended h1 & ended h2  -> grant r4 b#1; grant r2 a#1
        """
    )


def test_the_fewest_leases_serve_next() -> None:
    """Where several replicas run, the one with the fewest leases takes the next request, lowest serial first."""
    Story().tell(
        """
        node  n1  2x80GiB
        model a   60GiB  gpus=1 concurrency=2 replicas_max=2
        > request a r1  -> start a#1 n1/0
        > request a r2  ->
        > request a r3  -> start a#2 n1/1
        > started a#1   -> grant r1 a#1; grant r2 a#1
        > started a#2   -> grant r3 a#2
        > ended r1      ->
        > ended r2      ->
        > request a r4  -> grant r4 a#1
        > request a r5  -> grant r5 a#1
        > request a r6  -> grant r6 a#2
        """
    )
