"""What a cancelled request leaves behind: loads that are given up, abandoned, or wanted by somebody else."""

from __future__ import annotations

from tests.core.story import Story


def test_cancel_of_a_waiting_request_rejects_it() -> None:
    """"`end` of a waiting one is a cancel": 499."""
    story = Story().tell(
        """
        node  n1  80GiB
        model a   60GiB
        > request a r1  -> start a#1 n1/0
        > ended r1      -> reject r1 cancelled
        """
    )
    assert story.decided[0].status == 499  # type: ignore[union-attr]


def test_cancel_of_a_granted_request_ends_its_lease_and_prints_nothing() -> None:
    """"`cancel` of a granted request ends its lease and prints nothing"."""
    Story().tell(
        """
        node  n1  80GiB
        model a   60GiB
        > request a r1  -> start a#1 n1/0
        > started a#1   -> grant r1 a#1
        > request a r2  ->
        > ended r1      -> grant r2 a#1
        """
    )


def test_a_pending_load_is_given_up_with_its_only_request() -> None:
    """"a PENDING load is given up (no line)"; its victim leaves all the same and may load anew."""
    Story().tell(
        """
        node  n1  80GiB
        model a   60GiB
        model b   60GiB
        > found a#1 n1/0 60GiB  ->
        > request b r1  -> stop a#1 evicted for b#1
        > ended r1      -> reject r1 cancelled
        > stopped a#1   ->
        > request a r2  -> start a#2 n1/0
        """
    )


def test_serials_of_given_up_loads_are_not_used_again() -> None:
    Story().tell(
        """
        node  n1  80GiB
        model a   60GiB
        model b   60GiB
        > found a#1 n1/0 60GiB  ->
        > request b r1  -> stop a#1 evicted for b#1
        > ended r1      -> reject r1 cancelled
        > request b r2  ->
        > stopped a#1   -> start b#2 n1/0
        """
    )


def test_a_pending_load_with_another_request_stays() -> None:
    Story().tell(
        """
        node  n1  80GiB
        model a   60GiB
        model b   60GiB
        > found a#1 n1/0 60GiB  ->
        > request b r1  -> stop a#1 evicted for b#1
        > request b r2  ->
        > ended r1      -> reject r1 cancelled
        > stopped a#1   -> start b#1 n1/0
        > started b#1   -> grant r2 b#1
        """
    )


def test_a_starting_load_runs_on_and_stays_warm() -> None:
    """"a STARTING one runs on and stays warm"."""
    Story().tell(
        """
        node  n1  80GiB
        model a   60GiB
        > request a r1  -> start a#1 n1/0
        > ended r1      -> reject r1 cancelled
        > started a#1   ->
        > request a r2  -> grant r2 a#1
        """
    )


def test_an_abandoned_load_is_stopped_when_its_room_is_wanted() -> None:
    """"is stopped as `abandoned` only if its room is wanted before it is ready"."""
    Story(stale_after_ms=60_000).tell(
        """
        node  n1  80GiB
        model a   60GiB
        model b   60GiB
        > request a r1  -> start a#1 n1/0
        > ended r1      -> reject r1 cancelled
        > request b r2  -> stop a#1 abandoned for b#1
        > started a#1   ->
        > stopped a#1   -> start b#1 n1/0
        """
    )


def test_once_ready_it_is_an_idle_replica_like_any_other() -> None:
    Story().tell(
        """
        node  n1  80GiB
        model a   60GiB
        model b   60GiB
        > request a r1  -> start a#1 n1/0
        > ended r1      -> reject r1 cancelled
        > started a#1   ->
        > request b r2  -> stop a#1 evicted for b#1
        """
    )


def test_a_new_request_takes_an_abandoned_load_up_again() -> None:
    Story().tell(
        """
        node  n1  80GiB
        model a   60GiB
        model b   60GiB
        > request a r1  -> start a#1 n1/0
        > ended r1      -> reject r1 cancelled
        > request a r2  ->
        > request b r3  ->
        > started a#1   -> grant r2 a#1
        """
    )


def test_an_abandoned_load_ranks_as_idle_without_demand() -> None:
    """"An abandoned load ranks as an idle replica without demand": c, with demand, stays; so does it not
    matter that a was in demand before."""
    Story().tell(
        """
        node  n1  60GiB
        node  n2  60GiB
        model a   60GiB
        model b   60GiB
        model c   60GiB
        > found c#1 n1/0 60GiB  ->
        > request c r0  -> grant r0 c#1
        > ended r0      ->
        > request a r1  -> start a#1 n2/0
        > ended r1      -> reject r1 cancelled
        +5000
        > request b r2  -> stop a#1 abandoned for b#1
        """
    )


def test_a_missed_deadline_counts_as_a_cancel() -> None:
    """"a missed one counts as a cancel"."""
    Story().tell(
        """
        node  n1  80GiB
        model a   60GiB
        model b   60GiB
        > request a r1 deadline=1000  -> start a#1 n1/0
        > request b r2                ->
        +1000
        > wake          -> reject r1 deadline_exceeded; stop a#1 abandoned for b#1
        """
    )


def test_a_load_is_not_abandoned_while_a_second_request_waits() -> None:
    Story().tell(
        """
        node  n1  80GiB
        model a   60GiB
        model b   60GiB
        > request a r1  -> start a#1 n1/0
        > request a r2  ->
        > request b r3  ->
        > ended r1      -> reject r1 cancelled
        > started a#1   -> grant r2 a#1
        """
    )


def test_of_two_loads_only_the_superfluous_one_is_abandoned() -> None:
    Story().tell(
        """
        node  n1  2x60GiB
        model a   60GiB  gpus=1 replicas_max=2
        model b   60GiB
        > request a r1  -> start a#1 n1/0
        > request a r2  -> start a#2 n1/1
        > ended r1      -> reject r1 cancelled
        > request b r3  -> stop a#2 abandoned for b#1
        > started a#1   -> grant r2 a#1
        """
    )


def test_a_load_that_an_operator_wants_is_not_given_up_with_a_request() -> None:
    """"stays wanted until it runs or is unloaded": r1 joined it, and is not its reason."""
    Story().tell(
        """
        node  n1  80GiB
        model a   60GiB
        model b   60GiB
        > found b#1 n1/0 60GiB leases=q1  ->
        > load a        ->
        > request a r1  ->
        > ended q1      -> stop b#1 evicted for a#1
        > ended r1      -> reject r1 cancelled
        > stopped b#1   -> start a#1 n1/0
        > request b r2  ->                     #  and it is not abandoned either
        > started a#1   -> stop a#1 evicted for b#2
        """
    )


def test_preload_and_minimum_are_not_abandoned() -> None:
    Story().tell(
        """
        node  n1  80GiB
        model b   60GiB
        > deploy a 60GiB preload=yes  -> start a#1 n1/0
        > request a r1  ->
        > ended r1      -> reject r1 cancelled
        > request b r2  ->
        > started a#1   -> stop a#1 evicted for b#1
        """
    )
