"""News that is late, repeated or about something unknown changes nothing (SCENARIOS, "Requests")."""

from __future__ import annotations

import pytest

from tests.core.story import Story, words

SCENE = """
    node  n1  2x80GiB
    model a   60GiB  gpus=1
    model b   60GiB  gpus=1
    > request a r1  -> start a#1 n1/0
    > started a#1   -> grant r1 a#1
    > request b r2  -> start b#1 n1/1
    > request a r3  ->
    > crashed a#1   -> stop a#1 crashed
"""


@pytest.mark.parametrize(
    "news",
    [
        "started a#1",
        "stopped a#1",
        "failed a#1",
        "crashed a#1",
        "started a#2",
        "stopped a#99",
        "crashed nobody#1",
        "ended r1",
        "ended r99",
        "request b r2",
        "request a r3",
        "lost n9",
        "lost n9/0",
        "lost n1/7",
        "joined n1 8x80GiB",
        "observed n9/0 70GiB",
        "observed n1/0 0GiB",
        "holder-lost g9",
        "wake",
    ],
)
def test_late_repeated_or_unknown_news(news: str) -> None:
    story = Story().tell(SCENE)
    before = story.scheduler.snapshot(0)
    decided = story.send(story.event(news.split()))
    assert [words(d) for d in decided] == []
    assert story.scheduler.snapshot(0) == before


def test_a_late_start_does_not_revive_what_is_stopping() -> None:
    Story().tell(
        """
        node  n1  80GiB
        model a   60GiB
        > load a        -> start a#1 n1/0
        > unload a      -> stop a#1 unloaded
        > started a#1   ->
        > request a r1  ->
        > stopped a#1   -> start a#2 n1/0
        > started a#1   ->
        > failed a#1    ->
        > started a#2   -> grant r1 a#2
        """
    )


def test_a_start_that_is_said_twice_counts_once() -> None:
    Story().tell(
        """
        node  n1  80GiB
        model a   60GiB
        > request a r1  -> start a#1 n1/0
        > started a#1   -> grant r1 a#1
        > started a#1   ->
        > request a r2  ->
        """
    )


def test_news_about_a_load_that_was_only_promised() -> None:
    """Nothing was started, so nothing can have failed or stopped."""
    Story().tell(
        """
        node  n1  80GiB
        model a   60GiB
        model b   60GiB
        > found a#1 n1/0 60GiB  ->
        > request b r1  -> stop a#1 evicted for b#1
        > started b#1   ->
        > failed b#1    ->
        > stopped b#1   ->
        > stopped a#1   -> start b#1 n1/0
        """
    )


def test_an_exit_after_the_node_was_lost() -> None:
    Story().tell(
        """
        node  n1  80GiB
        model a   60GiB
        > load a           -> start a#1 n1/0
        > unload a         -> stop a#1 unloaded
        > lost n1          ->
        > joined n1 80GiB  ->
        > load a           -> start a#2 n1/0
        > stopped a#1      ->
        > started a#2      ->
        """
    )


def test_the_end_of_a_request_whose_replica_is_lost() -> None:
    Story().tell(
        """
        node  n1  80GiB
        model a   60GiB
        > request a r1  -> start a#1 n1/0
        > started a#1   -> grant r1 a#1
        > lost n1       -> stop a#1 node_lost
        > ended r1      ->
        """
    )
