"""Waking, and the other ways in which a sleep ends: crashes, stops, late news, restarts."""

from __future__ import annotations

from tests.core.sleepers import ONE_DEVICE, held, states, story_with_a_asleep
from tests.core.story import Story

# -- waking ---------------------------------------------------------------------------------------


def test_it_wakes_where_it_sleeps_once_its_victims_sleep() -> None:
    story = story_with_a_asleep()
    story.tell("> request a r3 -> sleep b#1 for a#1")
    assert states(story) == {"a#1": "ROUSED", "b#1": "SUSPENDING"}
    story.tell("> slept b#1 -> wake a#1 n1/0")
    assert held(story, "a#1") == (60, 60)  # the host memory is free when it woke
    story.tell("> woke a#1 -> grant r3 a#1")
    assert held(story, "a#1") == (60, 0)
    assert held(story, "b#1") == (0, 60)


def test_waking_into_free_memory_needs_nobody() -> None:
    story_with_a_asleep().tell("""
        > unload b     -> stop b#1 unloaded
        > stopped b#1  ->
        > request a r3 -> wake a#1 n1/0
        > woke a#1     -> grant r3 a#1
    """)


def test_waking_comes_before_a_load_into_free_memory() -> None:
    """Both fit without an eviction: `a` wakes on n1/0, though n1/1 is as free."""
    Story().tell("""
        node  n1 80GiB,80GiB memory=200GiB
        model a  60GiB sleep=300
        > found a#1 n1/0 60GiB rest=asleep nap=1 ->
        > request a r1 -> wake a#1 n1/0
    """)


def test_a_load_into_free_memory_comes_before_a_wake_that_evicts() -> None:
    Story().tell("""
        node  n1 80GiB,80GiB memory=200GiB
        model a  60GiB sleep=300
        model b  60GiB
        > found a#1 n1/0 60GiB rest=asleep nap=1 ->
        > found b#1 n1/0 60GiB idle_ms=60000 ->
        > request a r1 -> start a#2 n1/1
    """)


def test_of_two_ways_that_evict_the_cheaper_is_taken() -> None:
    """`a` could wake in place of `b` (asked for once), or load in place of `c` (never asked for)."""
    Story().tell("""
        node  n1 80GiB,80GiB memory=200GiB
        model a  60GiB sleep=300
        model b  60GiB
        model c  60GiB
        > request b r1 -> start b#1 n1/0
        > started b#1  -> grant r1 b#1
        > ended r1     ->
        > found a#1 n1/0 60GiB rest=asleep nap=1 ->
        > found c#1 n1/1 60GiB idle_ms=1000 ->
        > request a r2 -> stop c#1 evicted for a#2
    """)


def test_where_both_ways_cost_the_same_it_wakes() -> None:
    """The only victim is the same."""
    Story().tell("""
        node  n1 80GiB memory=200GiB
        model a  60GiB sleep=300
        model b  60GiB
        > found a#1 n1/0 60GiB rest=asleep nap=1 ->
        > found b#1 n1/0 60GiB idle_ms=60000 ->
        > request a r1 -> stop b#1 evicted for a#1
        > stopped b#1  -> wake a#1 n1/0
    """)


def test_an_operators_load_wakes() -> None:
    story_with_a_asleep().tell("""
        > load a    -> sleep b#1 for a#1
        > slept b#1 -> wake a#1 n1/0
        > woke a#1  ->
        > request a r3 -> grant r3 a#1
    """)


def test_requests_join_one_that_wakes() -> None:
    story_with_a_asleep().tell("""
        > request a r3 -> sleep b#1 for a#1
        > request a r4 ->
        > slept b#1    -> wake a#1 n1/0
        > request a r5 ->
        > woke a#1     -> grant r3 a#1
        > ended r3     -> grant r4 a#1
    """)


def test_a_wake_that_nobody_waits_for_any_more_is_given_up() -> None:
    """Nothing was told to it yet, so nothing is said; it sleeps on."""
    story = story_with_a_asleep()
    story.tell("""
        > request a r3 -> sleep b#1 for a#1
        > ended r3     -> reject r3 cancelled
    """)
    assert states(story) == {"a#1": "ASLEEP", "b#1": "SUSPENDING"}
    story.tell("""
        > slept b#1    ->
        > request b r4 -> wake b#1 n1/0
    """)


def test_an_abandoned_wake_runs_on_or_makes_way() -> None:
    story_with_a_asleep().tell("""
        > request a r3 -> sleep b#1 for a#1
        > slept b#1    -> wake a#1 n1/0
        > ended r3     -> reject r3 cancelled
        > request b r4 -> stop a#1 abandoned for b#1
        > stopped a#1  -> wake b#1 n1/0
    """)


def test_the_measured_wake_time_is_used_from_then_on() -> None:
    story = story_with_a_asleep()
    story.tell("""
        > request a r3 -> sleep b#1 for a#1
        > slept b#1    -> wake a#1 n1/0
        > woke a#1 wake_ms=750 -> grant r3 a#1
    """)
    model = story.scheduler.snapshot(story.now_ms).models[0].model
    assert model.sleep is not None
    assert model.sleep.wake_ms == 750


# -- the ways in which it ends --------------------------------------------------------------------


def test_unload_removal_and_shutdown_stop_a_sleeper() -> None:
    story_with_a_asleep().tell("> unload a -> stop a#1 unloaded")
    story_with_a_asleep().tell("> remove a -> stop a#1 model_removed")
    story_with_a_asleep().tell("> shutdown -> stop a#1 shutdown; stop b#1 shutdown")


def test_a_lost_node_or_device_takes_its_sleepers_along() -> None:
    story_with_a_asleep().tell("> lost n1 -> stop a#1 node_lost; stop b#1 node_lost")
    story_with_a_asleep().tell("> lost n1/0 -> stop a#1 device_lost; stop b#1 device_lost")


def test_a_crash_while_it_should_fall_asleep_frees_its_room() -> None:
    Story().tell(
        ONE_DEVICE
        + """
        > request a r1 -> start a#1 n1/0
        > started a#1  -> grant r1 a#1
        > ended r1     ->
        > request b r2 -> sleep a#1 for b#1
        > crashed a#1  -> stop a#1 crashed; start b#1 n1/0
        > slept a#1    ->
        """
    )


def test_a_wake_that_fails_is_a_crash_and_its_requests_wait() -> None:
    """The model backs off, and then loads anew."""
    story_with_a_asleep().tell("""
        > request a r3 -> sleep b#1 for a#1
        > slept b#1    -> wake a#1 n1/0
        > failed a#1   -> stop a#1 crashed
        +1000
        > wake         -> start a#2 n1/0
        > started a#2  -> grant r3 a#2
    """)


def test_a_crash_while_it_waits_to_wake() -> None:
    """Its victims leave all the same, and its request is planned for again."""
    story_with_a_asleep().tell("""
        > request a r3 -> sleep b#1 for a#1
        > crashed a#1  -> stop a#1 crashed
        > slept b#1    ->
        +1000
        > wake         -> start a#2 n1/0
    """)


def test_a_stop_that_overtakes_a_sleep_or_a_wake() -> None:
    story = story_with_a_asleep().tell("""
        > request a r3 -> sleep b#1 for a#1
        > unload b     -> stop b#1 unloaded
        > slept b#1    ->
        > stopped b#1  -> wake a#1 n1/0
        > unload a     -> stop a#1 unloaded; reject r3 unloaded
        > woke a#1     ->
    """)
    assert held(story, "a#1") == (60, 60)
    story.tell("> stopped a#1 ->")


# -- late news ------------------------------------------------------------------------------------


def test_news_of_an_earlier_nap_are_late() -> None:
    """Told twice, the first "slept" must not free the device in the second nap."""
    story = story_with_a_asleep().tell("""
        > request a r3 -> sleep b#1 for a#1
        > slept b#1    -> wake a#1 n1/0
        > slept a#1    ->
        > woke a#1     -> grant r3 a#1
        > ended r3     ->
        > request b r4 -> sleep a#1 for b#1
        > slept a#1    ->
        > woke a#1     ->
    """)
    assert states(story) == {"a#1": "SUSPENDING", "b#1": "ROUSED"}
    story.tell("> slept a#1 nap=2 -> wake b#1 n1/0")


# -- after a restart ------------------------------------------------------------------------------


def test_what_is_found_on_the_way_goes_on() -> None:
    story = Story().tell("""
        node  n1 80GiB memory=200GiB
        model a  60GiB sleep=300
        model b  60GiB sleep=300
        > found a#1 n1/0 60GiB rest=waking nap=3 ->
        > found b#1 n1/0 10GiB rest=suspending nap=1 ->
    """)
    assert states(story) == {"a#1": "WAKING", "b#1": "SUSPENDING"}
    story.tell("""
        > slept b#1      ->
        > woke a#1 nap=2 ->
        > request a r1   ->
        > woke a#1 nap=3 -> grant r1 a#1
    """)
    assert states(story) == {"a#1": "RUNNING", "b#1": "ASLEEP"}


def test_a_sleeper_of_an_unknown_model_is_stopped() -> None:
    Story().tell("""
        node  n1 80GiB memory=200GiB
        > found a#1 n1/0 60GiB rest=asleep nap=1 -> stop a#1 model_removed
    """)
