"""Patience: how long a stream of requests for a warm model may starve another, and the barrier behind it."""

from __future__ import annotations

from tests.core.story import Story


def test_past_its_patience_a_request_drains_a_busy_replica() -> None:
    """`patience`: "after waiting this long a request may drain unpinned running replicas, busy or fresh"."""
    story = Story(patience_ms=10_000)
    story.tell(
        """
        node  n1  80GiB
        model a   60GiB  concurrency=2
        model b   60GiB
        > request a r1  -> start a#1 n1/0
        > started a#1   -> grant r1 a#1
        > request b r2  ->
        +9999
        > wake          ->
        > request a r3  -> grant r3 a#1
        """
    )
    assert story.scheduler.wakeup() == 10_000
    story.tell(
        """
        +1
        > wake          ->                   #  "draining prints nothing"
        > request a r4  ->                   #  no new leases on a draining replica
        > ended r1      ->
        > ended r3      -> stop a#1 evicted for b#1
        > stopped a#1   -> start b#1 n1/0
        > started b#1   -> grant r2 b#1
        """
    )


def test_a_fresh_idle_replica_is_stopped_at_once_past_patience() -> None:
    Story(patience_ms=1000, stale_after_ms=60_000).tell(
        """
        node  n1  80GiB
        model a   60GiB
        model b   60GiB
        > found a#1 n1/0 60GiB  ->
        > request b r1  ->
        +1000
        > wake          -> stop a#1 evicted for b#1
        """
    )


def test_never_gives_up_on_draining() -> None:
    """`patience: never` "gives up promise 4 for streams that never pause"."""
    Story(patience_ms=None).tell(
        """
        node  n1  80GiB
        model a   60GiB
        model b   60GiB
        > request a r1  -> start a#1 n1/0
        > started a#1   -> grant r1 a#1
        > request b r2  ->
        +3600000
        > wake          ->
        > ended r1      -> stop a#1 evicted for b#1
        """
    )


def test_the_fewest_replicas_are_drained() -> None:
    """Ranking: "fewest replicas to drain" comes before value and age."""
    Story(patience_ms=1000).tell(
        """
        node  n1  60GiB
        node  n2  60GiB
        model a1  30GiB
        model a2  30GiB
        model b1  30GiB  load_ms=99000
        model b2  30GiB
        model c   60GiB
        > found a1#1 n1/0 30GiB leases=q1 idle_ms=9000  ->
        > found a2#1 n1/0 30GiB leases=q2 idle_ms=9000  ->
        > found b1#1 n2/0 30GiB  ->
        > found b2#1 n2/0 30GiB leases=q3  ->
        > request b1 r1  -> grant r1 b1#1
        > ended r1       ->
        > request c r2   ->
        +1000
        > wake           -> stop b1#1 evicted for c#1
        > ended q3       -> stop b2#1 evicted for c#1
        > stopped b1#1   ->
        > stopped b2#1   -> start c#1 n2/0
        """
    )


def test_an_idle_set_is_preferred_to_draining() -> None:
    Story(patience_ms=1000).tell(
        """
        node  n1  60GiB
        node  n2  60GiB
        model a   60GiB
        model b   60GiB
        model c   60GiB
        > found a#1 n1/0 60GiB leases=q1  ->
        > found b#1 n2/0 60GiB leases=q2  ->
        > request c r2  ->
        +999
        > ended q2      -> stop b#1 evicted for c#1
        +1
        > wake          ->
        """
    )


def test_pending_and_starting_replicas_are_not_drained() -> None:
    """"Past its patience a request may drain RUNNING replicas only, not PENDING or STARTING ones"."""
    Story(patience_ms=1000).tell(
        """
        node  n1  60GiB
        model a   60GiB
        model b   60GiB
        model c   60GiB
        > found a#1 n1/0 60GiB leases=q1  ->
        > request b r1  ->
        +500
        > request c r2  ->
        +500
        > wake          ->                  #  b#1 is PENDING behind a#1, which drains
        +500
        > wake          ->                  #  c is past its patience as well
        > ended q1      -> stop a#1 evicted for b#1
        > stopped a#1   -> start b#1 n1/0
        > started b#1   -> grant r1 b#1      #  running now, and drained for c at once
        > request b r3  ->
        > ended r1      -> stop b#1 evicted for c#1
        """
    )


def test_replicas_of_its_own_model_are_not_drained() -> None:
    Story(patience_ms=1000).tell(
        """
        node  n1  60GiB
        model a   60GiB  replicas_max=2
        > found a#1 n1/0 60GiB leases=q1  ->
        > request a r1  ->
        +1000
        > wake          ->
        > ended q1      -> grant r1 a#1
        """
    )


def test_pinned_replicas_are_not_drained() -> None:
    Story(patience_ms=1000).tell(
        """
        node  n1  60GiB
        node  n2  40GiB
        model a   60GiB  pinned=yes
        model b   40GiB
        > found a#1 n1/0 60GiB leases=q1  ->
        > observed n2/0 20GiB  ->
        > request b r1  ->
        +1000
        > wake          ->
        > ended q1      ->
        """
    )


def test_while_it_cannot_be_planned_nothing_behind_it_is_newly_loaded() -> None:
    """The barrier. big waits for both halves; c would take the half that came free, and may not any more."""
    Story(patience_ms=10_000).tell(
        """
        node  n1   80GiB
        model a    40GiB
        model b    40GiB
        model big  80GiB
        model c    40GiB
        > request a r1    -> start a#1 n1/0
        > request b r2    -> start b#1 n1/0
        > started a#1     -> grant r1 a#1
        > request big r3  ->
        +10000
        > ended r1        ->                   #  b#1 is starting: big cannot be planned, a#1 waits idle
        > request c r4    ->
        > load c          ->
        > request a r5    -> grant r5 a#1      #  running replicas go on serving
        > started b#1     -> grant r2 b#1      #  now both are drained
        > request a r6    ->
        > ended r5        -> stop a#1 evicted for big#1
        > ended r2        -> stop b#1 evicted for big#1
        > stopped a#1     ->
        > stopped b#1     -> start big#1 n1/0
        """
    )


def test_the_barrier_holds_standing_wishes_back() -> None:
    Story(patience_ms=10_000).tell(
        """
        node  n1   80GiB
        model a    40GiB
        model b    40GiB
        model big  80GiB
        > request a r1    -> start a#1 n1/0
        > request b r2    -> start b#1 n1/0
        > request big r3  ->
        +10000
        > started b#1     -> grant r2 b#1
        > deploy p 10GiB preload=yes  ->
        > failed a#1      -> stop a#1 load_failed; reject r1 load_failed
        """
    )


def test_those_in_front_of_it_are_not_barred() -> None:
    """Only what is *behind* a request past its patience waits: a higher priority stands in front."""
    Story(patience_ms=10_000).tell(
        """
        node  n1   80GiB
        model a    40GiB
        model big  80GiB
        model c    40GiB
        > request a r1    -> start a#1 n1/0
        > request big r2  ->
        +10000
        > wake            ->
        > request c r3 priority=1  -> start c#1 n1/0
        """
    )


def test_no_barrier_for_what_does_not_fit_the_present_nodes() -> None:
    """"provided that it would fit the present nodes beside what is pinned"."""
    Story(patience_ms=1000).tell(
        """
        node  n1   80GiB
        node  n2   40GiB
        model big  80GiB  gpus=1
        model f    40GiB
        model c    40GiB
        > found f#1 n1/0 40GiB leases=q1  ->
        > found c#9 n2/0 40GiB leases=q2  ->
        > request big r1  ->
        > lost n1         -> stop f#1 node_lost
        +1000
        > wake            ->
        > ended q2        ->
        > request f r2    -> stop c#9 evicted for f#2
        """
    )


def test_no_barrier_while_its_model_backs_off() -> None:
    """"and its model is not backing off"."""
    Story(patience_ms=500).tell(
        """
        node  n1   80GiB
        model big  80GiB
        model c    40GiB
        > request big r1  -> start big#1 n1/0
        > crashed big#1   -> stop big#1 crashed
        +500
        > wake            ->
        > request c r2    -> start c#1 n1/0
        > started c#1     -> grant r2 c#1
        +500
        > wake            ->                #  the back-off is over, c#1 is drained for big
        > ended r2        -> stop c#1 evicted for big#2
        """
    )


def test_patience_of_a_wanted_load() -> None:
    """"`load` … plans like a request"."""
    Story(patience_ms=1000).tell(
        """
        node  n1  60GiB
        model a   60GiB
        model b   60GiB
        > found a#1 n1/0 60GiB leases=q1  ->
        > load b        ->
        +1000
        > wake          ->
        > request a r1  ->
        > ended q1      -> stop a#1 evicted for b#1
        """
    )


def test_a_later_request_of_the_model_may_be_the_impatient_one() -> None:
    """A fresh request of high priority is first in its model's line; an older one behind it has lost patience,
    and that is reason enough to drain."""
    Story(patience_ms=1000).tell(
        """
        node  n1  60GiB
        model a   60GiB
        model b   60GiB  concurrency=2
        > found a#1 n1/0 60GiB leases=q1  ->
        > request b r1  ->
        +900
        > request b r2 priority=5  ->
        +100
        > wake          ->
        > request a r3  ->
        > ended q1      -> stop a#1 evicted for b#1
        """
    )


def test_victims_of_a_given_up_load_drain_on_and_stop_without_for() -> None:
    """"Victims of a PENDING load that is given up drain on and stop as `evicted` without `for`"."""
    Story(patience_ms=1000).tell(
        """
        node  n1  60GiB
        model a   60GiB
        model b   60GiB
        > found a#1 n1/0 60GiB leases=q1  ->
        > request b r1  ->
        +1000
        > wake          ->
        > ended r1      -> reject r1 cancelled
        > request a r2  ->
        > ended q1      -> stop a#1 evicted
        > stopped a#1   -> start a#2 n1/0
        """
    )
