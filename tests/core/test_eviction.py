"""Eviction: who may leave, which set of them costs least, and that nobody leaves for nothing.

Ranking of sets (SCENARIOS, "Ranking"): fewest to drain; least sum of load time x requests granted in the last
10 minutes; the set whose most recently used member is oldest; ids.
"""

from __future__ import annotations

from rayscheduler.core.decisions import StartReplica
from tests.core.story import Story


def test_an_idle_replica_makes_way() -> None:
    Story().tell(
        """
        node  n1  80GiB
        model a   60GiB
        model b   60GiB
        > found a#1 n1/0 60GiB  ->
        > request b r1  -> stop a#1 evicted for b#1
        > stopped a#1   -> start b#1 n1/0
        > started b#1   -> grant r1 b#1
        """
    )


def test_no_eviction_comes_before_eviction() -> None:
    """Ranking: "no eviction" first, even when it takes more devices."""
    Story().tell(
        """
        node  n1  3x40GiB
        model a   30GiB  gpus=1
        model b   40GiB  gpus=1,2
        model f1  20GiB  gpus=1
        model f2  20GiB  gpus=1
        > found a#1 n1/0 30GiB idle_ms=900000  ->
        > found f1#1 n1/1 20GiB  ->
        > found f2#1 n1/2 20GiB  ->
        > request b r1  -> start b#1 n1/1,n1/2
        """
    )


def test_nobody_leaves_when_no_eviction_could_help() -> None:
    """DESIGN 3: "No eviction when no eviction could help"."""
    Story().tell(
        """
        node  n1  80GiB
        model a   20GiB
        model b   30GiB
        model c   70GiB
        > found a#1 n1/0 20GiB  ->
        > found b#1 n1/0 30GiB leases=r0  ->
        > request c r1  ->
        > ended r0      -> stop a#1 evicted for c#1; stop b#1 evicted for c#1
        """
    )


def test_a_busy_replica_stays_until_its_request_has_ended() -> None:
    """Promise 2."""
    Story().tell(
        """
        node  n1  80GiB
        model a   60GiB
        model b   60GiB
        > request a r1  -> start a#1 n1/0
        > started a#1   -> grant r1 a#1
        > request b r2  ->
        > ended r1      -> stop a#1 evicted for b#1
        > stopped a#1   -> start b#1 n1/0
        """
    )


def test_a_starting_replica_is_no_victim() -> None:
    Story(patience_ms=1000).tell(
        """
        node  n1  80GiB
        model a   60GiB
        model b   60GiB
        > request a r1  -> start a#1 n1/0
        > request b r2  ->
        +5000
        > wake          ->
        > started a#1   -> grant r1 a#1
        """
    )


def test_stale_after_protects_what_was_used_a_moment_ago() -> None:
    """`stale_after`: "an unleased replica idle for at least this long may be evicted"."""
    story = Story(stale_after_ms=10_000)
    story.tell(
        """
        node  n1  80GiB
        model a   60GiB
        model b   60GiB
        > request a r1  -> start a#1 n1/0
        > started a#1   -> grant r1 a#1
        +1000
        > ended r1      ->
        > request b r2  ->
        +9999
        > wake          ->
        """
    )
    assert story.scheduler.wakeup() == 11_000
    story.tell(
        """
        +1
        > wake          -> stop a#1 evicted for b#1
        """
    )


def test_staleness_is_counted_from_the_last_use() -> None:
    Story(stale_after_ms=10_000).tell(
        """
        node  n1  80GiB
        model a   60GiB
        model b   60GiB
        > found a#1 n1/0 60GiB  ->
        > request b r1  ->
        +6000
        > request a r2  -> grant r2 a#1
        +1000
        > ended r2      ->
        +9000
        > wake          ->
        +1000
        > wake          -> stop a#1 evicted for b#1
        """
    )


def test_the_victim_set_is_minimal() -> None:
    """"The set is minimal (drop any victim and it no longer fits)": c alone is enough, though older ones exist."""
    Story().tell(
        """
        node  n1  80GiB
        model a   5GiB
        model b   5GiB
        model c   65GiB
        model new 60GiB
        > found a#1 n1/0 5GiB idle_ms=300000   ->
        > found b#1 n1/0 5GiB idle_ms=200000   ->
        > found c#1 n1/0 65GiB idle_ms=100000  ->
        > request new r1  -> stop c#1 evicted for new#1
        """
    )


def test_value_is_load_time_times_recent_demand() -> None:
    """a was granted three times and loads in 1 s (3 s), b once and loads in 2 s (2 s): b is worth less."""
    Story().tell(
        """
        node  n1  2x60GiB
        model a   60GiB  gpus=1
        model b   60GiB  gpus=1 load_ms=2000
        model c   60GiB  gpus=1
        > found a#1 n1/0 60GiB  ->
        > found b#1 n1/1 60GiB  ->
        > request a r1  -> grant r1 a#1
        > ended r1      ->
        > request a r2  -> grant r2 a#1
        > ended r2      ->
        > request a r3  -> grant r3 a#1
        > ended r3      ->
        +5000
        > request b r4  -> grant r4 b#1
        > ended r4      ->
        > request c r5  -> stop b#1 evicted for c#1
        """
    )


def test_a_measured_load_time_counts_from_then_on() -> None:
    """"load time is `simulate.load`, on a cluster the last one measured"."""
    Story().tell(
        """
        node  n1  2x60GiB
        model a   60GiB  gpus=1
        model b   60GiB  gpus=1
        model c   60GiB  gpus=1
        > request a r1  -> start a#1 n1/0
        > started a#1 load_ms=90000  -> grant r1 a#1
        > ended r1      ->
        +5000
        > request b r2  -> start b#1 n1/1
        > started b#1   -> grant r2 b#1
        > ended r2      ->
        > request c r3  -> stop b#1 evicted for c#1
        """
    )


def test_demand_is_forgotten_after_ten_minutes() -> None:
    """"Demand counts grants to the model in the last 600 s": a's ten grants are too old to count."""
    story = Story().tell(
        """
        node  n1  2x60GiB
        model a   60GiB  gpus=1
        model b   60GiB  gpus=1
        model c   60GiB  gpus=1
        > found a#1 n1/0 60GiB  ->
        > found b#1 n1/1 60GiB  ->
        """
    )
    for number in range(10):
        story.tell(f"> request a q{number} -> grant q{number} a#1\n> ended q{number} ->")
    story.tell(
        """
        +300000
        > request b r1  -> grant r1 b#1
        > ended r1      ->
        +300001
        > request c r2  -> stop a#1 evicted for c#1
        """
    )


def test_many_cheap_victims_go_before_a_dear_one() -> None:
    """The sum of values counts, not the number of victims."""
    story = Story().tell(
        """
        node  n1  2x60GiB
        model a   60GiB  gpus=1
        model b1  30GiB  gpus=1
        model b2  30GiB  gpus=1
        model c   60GiB  gpus=1
        > found a#1 n1/0 60GiB   ->
        > found b1#1 n1/1 30GiB  ->
        > found b2#1 n1/1 30GiB  ->
        > request a r1  -> grant r1 a#1
        > ended r1      ->
        > request c r2  -> stop b1#1 evicted for c#1; stop b2#1 evicted for c#1
        > stopped b1#1  ->
        > stopped b2#1  -> start c#1 n1/1
        """
    )
    (start,) = story.decided
    assert isinstance(start, StartReplica)
    assert start.evicts == ("b1#1", "b2#1")


def test_of_equal_values_the_least_recently_used_leaves() -> None:
    Story().tell(
        """
        node  n1  2x60GiB
        model a   60GiB  gpus=1
        model b   60GiB  gpus=1
        model c   60GiB  gpus=1
        > found a#1 n1/0 60GiB idle_ms=1000  ->
        > found b#1 n1/1 60GiB idle_ms=2000  ->
        > request c r1  -> stop b#1 evicted for c#1
        """
    )


def test_of_sets_the_one_whose_most_recently_used_member_is_oldest_leaves() -> None:
    """{a, b} has the oldest member of all (a), but b is younger than both c and d."""
    Story().tell(
        """
        node  n1  2x60GiB
        model a   30GiB  gpus=1
        model b   30GiB  gpus=1
        model c   30GiB  gpus=1
        model d   30GiB  gpus=1
        model x   60GiB  gpus=1
        > found a#1 n1/0 30GiB idle_ms=9000  ->
        > found b#1 n1/0 30GiB idle_ms=1000  ->
        > found c#1 n1/1 30GiB idle_ms=2000  ->
        > found d#1 n1/1 30GiB idle_ms=3000  ->
        > request x r1  -> stop c#1 evicted for x#1; stop d#1 evicted for x#1
        """
    )


def test_ties_break_on_ids_and_serials_are_numbers() -> None:
    """"in the order of their ids (name first, then the number as a number)": a#9 before a#10."""
    Story().tell(
        """
        node  n1  2x60GiB
        model a   60GiB  gpus=1 replicas_max=2
        model c   60GiB  gpus=1
        > found a#10 n1/0 60GiB  ->
        > found a#9 n1/1 60GiB   ->
        > request c r1  -> stop a#9 evicted for c#1
        """
    )


def test_victims_leave_in_the_order_of_their_ids() -> None:
    story = Story().tell(
        """
        node  n1  60GiB
        model a   20GiB  replicas_max=2
        model B   20GiB
        model c   60GiB
        > found a#10 n1/0 20GiB  ->
        > found a#9 n1/0 20GiB   ->
        > found B#1 n1/0 20GiB   ->
        > request c r1  -> stop B#1 evicted for c#1; stop a#9 evicted for c#1; stop a#10 evicted for c#1
        > stopped a#9   ->
        > stopped B#1   ->
        > stopped a#10  -> start c#1 n1/0
        """
    )
    (start,) = story.decided
    assert isinstance(start, StartReplica)
    assert start.evicts == ("B#1", "a#9", "a#10")


def test_replicas_of_the_same_model_are_immovable() -> None:
    """DESIGN 3: a second replica of a never pushes the first one out."""
    Story(patience_ms=1000).tell(
        """
        node  n1  60GiB
        model a   60GiB  replicas_max=2
        > request a r1  -> start a#1 n1/0
        > started a#1   -> grant r1 a#1
        > request a r2  ->
        +2000
        > wake          ->
        > ended r1      -> grant r2 a#1
        """
    )


def test_the_best_set_of_the_whole_cluster_wins_over_the_first_node() -> None:
    Story().tell(
        """
        node  n1  60GiB
        node  n2  60GiB
        node  n3  60GiB
        model a   60GiB
        model b   60GiB
        model c   60GiB
        model x   60GiB
        > found a#1 n1/0 60GiB idle_ms=1000  ->
        > found b#1 n2/0 60GiB idle_ms=3000  ->
        > found c#1 n3/0 60GiB idle_ms=2000  ->
        > request x r1  -> stop b#1 evicted for x#1
        > stopped b#1   -> start x#1 n2/0
        """
    )


def test_two_requests_do_not_evict_for_the_same_room_twice() -> None:
    """One victim makes room for both: the second joins the room that is left only once the exit is confirmed."""
    Story().tell(
        """
        node  n1  80GiB
        model a   80GiB
        model b   40GiB
        model c   40GiB
        > found a#1 n1/0 80GiB  ->
        > request b r1  -> stop a#1 evicted for b#1
        > request c r2  ->
        > stopped a#1   -> start b#1 n1/0; start c#1 n1/0
        """
    )
