"""The queue: its limit, deadlines, priorities, and that every request ends exactly once."""

from __future__ import annotations

from rayscheduler.core import events as ev
from rayscheduler.core.decisions import Reject
from tests.core.story import Story


def test_the_limit_refuses_when_that_many_wait_already() -> None:
    """"`queue_limit` refuses when that many wait already"."""
    story = Story(queue_limit=2).tell(
        """
        node  n1  80GiB
        model a   60GiB
        > request a r1  -> start a#1 n1/0
        > request a r2  ->
        > request a r3  -> reject r3 queue_full
        """
    )
    assert story.decided[0].status == 429  # type: ignore[union-attr]
    story.tell(
        """
        > ended r1      -> reject r1 cancelled
        > request a r4  ->
        """
    )


def test_a_request_granted_at_once_does_not_count() -> None:
    """"a request granted at once does not count": neither towards the limit nor against it."""
    Story(queue_limit=1).tell(
        """
        node  n1  2x60GiB
        model a   60GiB  gpus=1 concurrency=2
        model b   60GiB  gpus=1
        > load a        -> start a#1 n1/0
        > started a#1   ->
        > request b r1  -> start b#1 n1/1
        > request a r2  -> grant r2 a#1
        > request a r3  -> grant r3 a#1
        > request a r4  -> reject r4 queue_full
        """
    )


def test_a_limit_of_zero_serves_what_is_warm() -> None:
    Story(queue_limit=0).tell(
        """
        node  n1  80GiB
        model a   60GiB
        > request a r1  -> reject r1 queue_full
        > load a        -> start a#1 n1/0
        > started a#1   ->
        > request a r2  -> grant r2 a#1
        """
    )


def test_404_422_and_shutting_down_are_said_first() -> None:
    """"404, 422 and `shutting_down` are said first"."""
    Story(queue_limit=0).tell(
        """
        node  n1  80GiB
        model a     60GiB
        model huge  999GiB
        > request nobody r1  -> reject r1 model_not_found
        > request huge r2    -> reject r2 never_fits
        > shutdown           ->
        > request a r3       -> reject r3 shutting_down
        > request huge r4    -> reject r4 never_fits
        > request nobody r5  -> reject r5 model_not_found
        """
    )


def test_a_deadline_that_passes_rejects() -> None:
    """504, "if not granted 5 s later"."""
    story = Story().tell(
        """
        node  n1  80GiB
        model a   60GiB
        > request a r1 deadline=5000  -> start a#1 n1/0
        """
    )
    assert story.scheduler.wakeup() == 5000
    story.tell(
        """
        +4999
        > wake          ->
        +1
        > wake          -> reject r1 deadline_exceeded
        > started a#1   ->
        """
    )
    assert story.scheduler.snapshot(story.now_ms).waiting == ()


def test_a_deadline_on_the_instant_of_the_grant_is_kept() -> None:
    """"A deadline on the instant of the grant is kept"."""
    Story().tell(
        """
        node  n1  80GiB
        model a   60GiB
        > request a r1 deadline=5000  -> start a#1 n1/0
        +5000
        > started a#1   -> grant r1 a#1
        > wake          ->
        """
    )


def test_a_deadline_that_passed_unseen_is_seen_with_the_next_news() -> None:
    """Nobody woke the scheduler in time: the request is late all the same, and the lease goes to the next."""
    Story().tell(
        """
        node  n1  80GiB
        model a   60GiB
        > request a r1 deadline=5000  -> start a#1 n1/0
        > request a r2  ->
        +5001
        > started a#1   -> reject r1 deadline_exceeded; grant r2 a#1
        """
    )


def test_a_deadline_that_passed_before_the_arrival() -> None:
    """It lay in a mailbox for too long: nobody waits for it any more."""
    Story().tell(
        """
        node  n1  80GiB
        model a   60GiB
        > load a        -> start a#1 n1/0
        > started a#1   ->
        +9000
        > request a r1 deadline=-1  -> reject r1 deadline_exceeded
        > request a r2 deadline=0   -> grant r2 a#1
        > request a r3 deadline=-1  -> reject r3 deadline_exceeded
        """
    )


def test_no_deadline_after_the_grant() -> None:
    Story().tell(
        """
        node  n1  80GiB
        model a   60GiB
        > request a r1 deadline=5000  -> start a#1 n1/0
        > started a#1   -> grant r1 a#1
        +9000
        > wake          ->
        > ended r1      ->
        """
    )


def test_higher_priority_is_granted_first() -> None:
    Story().tell(
        """
        node  n1  80GiB
        model a   60GiB
        > request a r1  -> start a#1 n1/0
        > request a r2  ->
        > request a r3 priority=10 ->
        > request a r4 priority=10 ->
        > started a#1   -> grant r3 a#1
        > ended r3      -> grant r4 a#1
        > ended r4      -> grant r1 a#1
        > ended r1      -> grant r2 a#1
        """
    )


def test_higher_priority_is_planned_first() -> None:
    Story().tell(
        """
        node  n1  80GiB
        model a   60GiB
        model b   60GiB
        model c   60GiB
        > request a r1  -> start a#1 n1/0
        > started a#1   -> grant r1 a#1
        > request b r2  ->
        > request c r3 priority=1  ->
        > ended r1      -> stop a#1 evicted for c#1
        """
    )


def test_the_models_priority_counts_where_the_request_names_none() -> None:
    """"Priority is the request's, else its tier's, else its model's" (a tier reaches the core as a number)."""
    Story().tell(
        """
        node  n1  80GiB
        model a   60GiB
        model b   60GiB
        model c   60GiB  priority=5
        model d   60GiB  priority=5
        > request a r1  -> start a#1 n1/0
        > started a#1   -> grant r1 a#1
        > request b r2  ->
        > request d r3 priority=0  ->
        > request c r4  ->
        > ended r1      -> stop a#1 evicted for c#1
        """
    )


def test_an_arrival_that_is_known_already_changes_nothing() -> None:
    """A gateway may say the same thing twice."""
    Story().tell(
        """
        node  n1  80GiB
        model a   60GiB concurrency=2
        > request a r1  -> start a#1 n1/0
        > request a r1  ->
        > started a#1   -> grant r1 a#1
        > request a r1  ->
        > ended r1      ->
        > ended r1      ->
        """
    )


def test_rejections_say_what_happened() -> None:
    story = Story(queue_limit=1).tell(
        """
        node  n1  80GiB
        model a   60GiB
        > request a r1 deadline=1500  -> start a#1 n1/0
        > request a r2  -> reject r2 queue_full
        """
    )
    (full,) = story.decided
    story.tell(
        """
        +1500
        > wake -> reject r1 deadline_exceeded
        """
    )
    (late,) = story.decided
    assert isinstance(full, Reject)
    assert isinstance(late, Reject)
    assert "limit is 1" in full.message
    assert "1.5 s" in late.message


def test_the_queue_is_seen_in_the_order_in_which_it_will_be_served() -> None:
    story = Story().tell(
        """
        node  n1  80GiB
        model a   60GiB
        model b   60GiB
        > request a r1  -> start a#1 n1/0
        > request b r2  ->
        > request a r3 priority=2  ->
        """
    )
    assert [w.request for w in story.scheduler.snapshot(0).waiting] == ["r3", "r1", "r2"]


def test_a_holder_that_is_lost_ends_all_it_held_or_waited_for() -> None:
    Story().tell(
        """
        node  n1  80GiB
        model a   60GiB  concurrency=2
        > request a r1 holder=g1  -> start a#1 n1/0
        > request a r2 holder=g2  ->
        > request a r3 holder=g1  ->
        > request a r4 holder=g2  ->
        > started a#1     -> grant r1 a#1; grant r2 a#1
        > holder-lost g1  -> reject r3 cancelled; grant r4 a#1
        > holder-lost g1  ->
        > ended r1        ->
        > holder-lost g2  ->
        """
    )


def test_a_lost_holder_frees_its_replicas_for_eviction() -> None:
    Story().tell(
        """
        node  n1  80GiB
        model a   60GiB
        model b   60GiB
        > request a r1 holder=g1  -> start a#1 n1/0
        > started a#1     -> grant r1 a#1
        > request b r2 holder=g2  ->
        > holder-lost g1  -> stop a#1 evicted for b#1
        """
    )


def test_nobodys_requests_outlive_every_holder() -> None:
    """Requests without a holder (`NOBODY`) end only by name."""
    story = Story().tell(
        """
        node  n1  80GiB
        model a   60GiB
        > request a r1  -> start a#1 n1/0
        > started a#1   -> grant r1 a#1
        """
    )
    assert story.send(ev.HolderLost(ev.NOBODY)) == []
    assert story.scheduler.snapshot(0).replicas[0].leases == 1
