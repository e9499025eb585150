"""The operator's verbs: load, unload, remove."""

from __future__ import annotations

from tests.core.story import Story


def test_load_starts_a_replica_that_stays_warm() -> None:
    Story().tell(
        """
        node  n1  80GiB
        model a   60GiB
        > load a       -> start a#1 n1/0
        > started a#1  ->
        > load a       ->
        """
    )


def test_load_does_nothing_where_one_is_pending_or_starting() -> None:
    """"`load` does nothing where a replica is pending, starting or running"."""
    Story().tell(
        """
        node  n1  80GiB
        node  n2  80GiB
        model a   60GiB
        model b   70GiB  replicas_max=2
        > found a#1 n1/0 60GiB  ->
        > found a#2 n2/0 60GiB leases=q1  ->
        > load b       -> stop a#1 evicted for b#1
        > load b       ->
        > stopped a#1  -> start b#1 n1/0
        > load b       ->
        """
    )


def test_load_while_only_a_draining_replica_is_there() -> None:
    """Draining replicas do not count."""
    Story(patience_ms=1000).tell(
        """
        node  n1  80GiB
        node  n2  40GiB
        model a   40GiB
        model b   80GiB
        > found a#1 n1/0 40GiB leases=q1  ->
        > request b r1  ->
        +1000
        > wake          ->
        > load a        -> start a#2 n2/0
        """
    )


def test_load_plans_like_a_request_and_stays_wanted() -> None:
    """"otherwise it plans like a request and stays wanted until it runs or is unloaded"."""
    Story().tell(
        """
        node  n1  80GiB
        model a   60GiB
        model b   60GiB
        > found a#1 n1/0 60GiB leases=q1  ->
        > load b        ->
        > ended q1      -> stop a#1 evicted for b#1
        > stopped a#1   -> start b#1 n1/0
        > started b#1   ->
        > request a r1  -> stop b#1 evicted for a#2
        > stopped b#1   -> start a#2 n1/0          #  b ran: it is not wanted any more
        > started a#2   -> grant r1 a#2
        > ended r1      ->
        """
    )


def test_load_takes_its_place_in_the_queue() -> None:
    """By priority, then arrival: the load was asked for first."""
    Story().tell(
        """
        node  n1  80GiB
        model a   60GiB
        model b   60GiB
        model c   60GiB
        > found a#1 n1/0 60GiB leases=q1  ->
        > load b        ->
        > request c r1  ->
        > ended q1      -> stop a#1 evicted for b#1
        """
    )


def test_unload_of_what_is_wanted_ends_the_wish() -> None:
    Story().tell(
        """
        node  n1  80GiB
        model a   60GiB
        model b   60GiB
        > found a#1 n1/0 60GiB leases=q1  ->
        > load b        ->
        > unload b      ->
        > ended q1      ->
        """
    )


def test_unload_stops_at_once_serving_or_not() -> None:
    """"`unload` stops at once, serving or not, and rejects every waiting request of the model"."""
    Story().tell(
        """
        node  n1  80GiB
        model a   60GiB
        > request a r1  -> start a#1 n1/0
        > started a#1   -> grant r1 a#1
        > request a r2  ->
        > request a r3 priority=1  ->
        > unload a      -> stop a#1 unloaded; reject r3 unloaded; reject r2 unloaded
        > ended r1      ->
        > stopped a#1   ->
        """
    )


def test_unload_stops_what_is_starting_and_gives_up_what_is_pending() -> None:
    Story().tell(
        """
        node  n1  80GiB
        node  n2  60GiB
        model a   60GiB  replicas_max=2
        model b   60GiB
        > found b#1 n1/0 60GiB  ->
        > request a r1  -> start a#1 n2/0
        > request a r2  -> stop b#1 evicted for a#2
        > unload a      -> stop a#1 unloaded; reject r1 unloaded; reject r2 unloaded
        > started a#1   ->
        > stopped b#1   ->
        """
    )


def test_unload_stops_a_draining_replica() -> None:
    Story(patience_ms=1000).tell(
        """
        node  n1  80GiB
        model a   60GiB
        model b   60GiB
        > found a#1 n1/0 60GiB leases=q1  ->
        > request b r1  ->
        +1000
        > wake          ->
        > unload a      -> stop a#1 unloaded
        > ended q1      ->
        > stopped a#1   -> start b#1 n1/0
        """
    )


def test_unload_stops_a_pinned_model_as_well() -> None:
    """The operator's word is stronger than the operator's pin."""
    Story().tell(
        """
        node  n1  80GiB
        model a   60GiB  pinned=yes
        > load a       -> start a#1 n1/0
        > started a#1  ->
        > unload a     -> stop a#1 unloaded
        """
    )


def test_a_request_after_unload_loads_again() -> None:
    Story().tell(
        """
        node  n1  80GiB
        model a   30GiB
        > load a        -> start a#1 n1/0
        > started a#1   ->
        > unload a      -> stop a#1 unloaded
        > request a r1  -> start a#2 n1/0
        """
    )


def test_unload_ends_the_wait_through_a_back_off() -> None:
    Story().tell(
        """
        node  n1  80GiB
        model a   30GiB
        > load a        -> start a#1 n1/0
        > crashed a#1   -> stop a#1 crashed
        > request a r1  ->
        > unload a      -> reject r1 unloaded
        +1000
        > wake          ->
        """
    )


def test_remove_works_like_unload_with_its_own_reason() -> None:
    """"`remove` works like `unload` with reason `model_removed` and 404"."""
    story = Story().tell(
        """
        node  n1  80GiB
        model a   60GiB
        > request a r1  -> start a#1 n1/0
        > started a#1   -> grant r1 a#1
        > request a r2  ->
        > remove a      -> stop a#1 model_removed; reject r2 model_not_found
        """
    )
    assert story.decided[1].status == 404  # type: ignore[union-attr]
    story.tell(
        """
        > ended r1      ->
        > request a r3  -> reject r3 model_not_found
        > load a        ->
        > stopped a#1   ->
        """
    )


def test_a_removed_model_holds_its_bytes_until_it_is_gone() -> None:
    Story().tell(
        """
        node  n1  80GiB
        model a   60GiB
        model b   60GiB
        > load a        -> start a#1 n1/0
        > remove a      -> stop a#1 model_removed
        > request b r1  ->
        > stopped a#1   -> start b#1 n1/0
        """
    )


def test_a_serial_is_never_used_again_after_remove() -> None:
    """DESIGN 3: "Every load has its own replica id (`model#serial`, never reused)"."""
    Story().tell(
        """
        node  n1  2x80GiB
        model a   60GiB
        > load a       -> start a#1 n1/0
        > started a#1  ->
        > remove a     -> stop a#1 model_removed
        > deploy a 60GiB ->
        > load a       -> start a#2 n1/1
        > stopped a#1  ->
        > remove a     -> stop a#2 model_removed
        > stopped a#2  ->
        > deploy a 60GiB ->
        > load a       -> start a#3 n1/0
        """
    )


def test_verbs_about_something_unknown_change_nothing() -> None:
    """Charges: "`load`, `pin`, `unpin`, `remove` … of something unknown change nothing"."""
    Story().tell(
        """
        node  n1  80GiB
        > load x    ->
        > unload x  ->
        > pin x     ->
        > unpin x   ->
        > remove x  ->
        > observed n9/0 5GiB  ->
        > crashed x#1  ->
        """
    )
