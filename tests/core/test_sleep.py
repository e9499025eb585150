"""Going to sleep: a place between loaded and gone. Weights rest in host memory, and the device is lent to others."""

from __future__ import annotations

from rayscheduler.core.decisions import SleepReplica, StartReplica, WakeReplica
from rayscheduler.core.lifecycle import State
from rayscheduler.core.sleeping import asleep
from rayscheduler.core.types import Placement, SleepTraits
from tests.core.sleepers import ONE_DEVICE, held, states, story_with_a_asleep
from tests.core.story import GIB, Story

# -- going to sleep -------------------------------------------------------------------------------


def test_a_victim_sleeps_where_the_host_has_room() -> None:
    """Issue 4: "eviction tries sleep before stop when host memory has room"."""
    story = story_with_a_asleep()
    assert states(story) == {"a#1": "ASLEEP", "b#1": "RUNNING"}
    assert held(story, "a#1") == (0, 60)


def test_the_device_is_free_only_when_the_sleep_is_confirmed() -> None:
    story = Story().tell(
        ONE_DEVICE
        + """
        > request a r1 -> start a#1 n1/0
        > started a#1  -> grant r1 a#1
        > ended r1     ->
        > request b r2 -> sleep a#1 for b#1
        """
    )
    assert states(story) == {"a#1": "SUSPENDING", "b#1": "PENDING"}
    assert held(story, "a#1") == (60, 60)  # both, until it is known to sleep


def test_a_model_that_cannot_sleep_stops() -> None:
    Story().tell("""
        node  n1 80GiB memory=200GiB
        model a  60GiB
        model b  60GiB
        > request a r1 -> start a#1 n1/0
        > started a#1  -> grant r1 a#1
        > ended r1     ->
        > request b r2 -> stop a#1 evicted for b#1
    """)


def test_without_room_on_the_host_it_stops() -> None:
    Story().tell("""
        node  n1 80GiB memory=59GiB
        model a  60GiB sleep=300
        model b  60GiB
        > request a r1 -> start a#1 n1/0
        > started a#1  -> grant r1 a#1
        > ended r1     ->
        > request b r2 -> stop a#1 evicted for b#1
    """)


def test_host_memory_of_the_newcomer_comes_first() -> None:
    """`b` needs 30 of the node's 80 GiB: 50 are too few for the weights of `a`."""
    Story().tell("""
        node  n1 80GiB memory=80GiB
        model a  60GiB sleep=300
        model b  60GiB host_memory=30GiB
        > request a r1 -> start a#1 n1/0
        > started a#1  -> grant r1 a#1
        > ended r1     ->
        > request b r2 -> stop a#1 evicted for b#1
    """)


def test_it_stops_where_the_residue_would_be_in_the_way() -> None:
    """`b` needs 79 GiB; beside a sleeping `a` there would be 78."""
    Story().tell("""
        node  n1 80GiB memory=200GiB
        model a  60GiB sleep=300 residue=2GiB
        model b  79GiB
        > request a r1 -> start a#1 n1/0
        > started a#1  -> grant r1 a#1
        > ended r1     ->
        > request b r2 -> stop a#1 evicted for b#1
    """)


def test_the_residue_is_charged() -> None:
    story = story_with_a_asleep("""
        node  n1 80GiB memory=200GiB
        model a  60GiB sleep=300 residue=2GiB
        model b  60GiB sleep=300
    """)
    assert held(story, "a#1") == (2, 58)
    story.tell("""
        model c  19GiB
        model d  18GiB
        > request d r3 -> start d#1 n1/0
        > started d#1  -> grant r3 d#1
    """)


def test_of_two_victims_the_one_dearest_to_load_again_sleeps() -> None:
    """The host has room for one; both make way."""
    Story().tell("""
        node  n1 80GiB memory=40GiB
        model a  40GiB sleep=300 load_ms=1000
        model b  40GiB sleep=300 load_ms=9000
        model c  80GiB
        > request a r1 & request b r2 -> start a#1 n1/0; start b#1 n1/0
        > started a#1 & started b#1   -> grant r1 a#1; grant r2 b#1
        > ended r1 & ended r2         ->
        > request c r3 -> stop a#1 evicted for c#1; sleep b#1 for c#1
        > slept b#1    ->
        > stopped a#1  -> start c#1 n1/0
    """)


def test_a_cpu_node_gains_nothing_by_sleep() -> None:
    """Its only device is its host memory."""
    Story().tell("""
        node  n1 80GiB ram=yes backend=cpu
        model a  60GiB sleep=300
        model b  60GiB
        > request a r1 -> start a#1 n1/0
        > started a#1  -> grant r1 a#1
        > ended r1     ->
        > request b r2 -> stop a#1 evicted for b#1
    """)


def test_where_waking_takes_longer_than_loading_it_stops() -> None:
    Story().tell("""
        node  n1 80GiB memory=200GiB
        model a  60GiB sleep=5000 load_ms=1000
        model b  60GiB
        > request a r1 -> start a#1 n1/0
        > started a#1  -> grant r1 a#1
        > ended r1     ->
        > request b r2 -> stop a#1 evicted for b#1
    """)


def test_a_busy_victim_is_drained_and_then_sleeps() -> None:
    story = Story(patience_ms=5000).tell(
        ONE_DEVICE
        + """
        > request a r1 -> start a#1 n1/0
        > started a#1  -> grant r1 a#1
        > request b r2 ->
        +5000
        > wake         ->
        """
    )
    assert states(story) == {"a#1": "DRAINING", "b#1": "PENDING"}
    assert held(story, "a#1") == (60, 60)  # the host memory is charged from the decision on
    story.tell("""
        > ended r1     -> sleep a#1 for b#1
        > slept a#1    -> start b#1 n1/0
    """)


def test_what_is_kept_by_a_minimum_or_a_pin_never_sleeps() -> None:
    story = Story()
    story.tell("node n1 80GiB,80GiB memory=400GiB")
    story.tell("""
        > deploy a 60GiB sleep=300 replicas_min=1 -> start a#1 n1/0
        > started a#1 ->
        > deploy p 60GiB sleep=300 pinned=yes ->
        > load p      -> start p#1 n1/1
        > started p#1 ->
        model b 60GiB
        > request b r2 ->
    """)


def test_an_idle_timeout_stops_as_ever() -> None:
    Story().tell("""
        node  n1 80GiB memory=200GiB
        model a  60GiB sleep=300 idle_timeout_ms=5000
        > request a r1 -> start a#1 n1/0
        > started a#1  -> grant r1 a#1
        > ended r1     ->
        +5000
        > wake         -> stop a#1 idle
    """)


def test_value_is_wake_time_times_demand_for_one_that_would_sleep() -> None:
    """`a` took 9 s to load and 2 s to wake, `b` 3 s to load and cannot sleep: `a` makes way."""
    Story().tell("""
        node  n1 80GiB memory=200GiB
        model a  40GiB sleep=2000 load_ms=9000
        model b  40GiB load_ms=3000
        model c  40GiB
        > request a r1 & request b r2 -> start a#1 n1/0; start b#1 n1/0
        > started a#1 & started b#1   -> grant r1 a#1; grant r2 b#1
        > ended r1 & ended r2         ->
        > request c r3 -> sleep a#1 for c#1
    """)


def test_one_that_would_have_to_stop_is_valued_by_its_load() -> None:
    """As above, but the residue of `a` would be in the way: stopping it costs 9 s, stopping `b` 3 s."""
    Story().tell("""
        node  n1 80GiB memory=200GiB
        model a  40GiB sleep=2000 load_ms=9000 residue=1GiB
        model b  40GiB load_ms=3000
        model c  40GiB
        > request a r1 & request b r2 -> start a#1 n1/0; start b#1 n1/0
        > started a#1 & started b#1   -> grant r1 a#1; grant r2 b#1
        > ended r1 & ended r2         ->
        > request c r3 -> stop b#1 evicted for c#1
    """)


# -- sleepers make way first ----------------------------------------------------------------------


def test_a_sleeper_in_the_way_is_the_first_victim() -> None:
    """`c` needs 20 GiB of the 18 that are free beside the running `b` and the residue of `a`."""
    story_with_a_asleep("""
        node  n1 80GiB memory=200GiB
        model a  60GiB sleep=300 residue=2GiB
        model b  60GiB sleep=300
    """).tell("""
        model c  20GiB
        > request c r3 -> stop a#1 evicted for c#1
        > stopped a#1  -> start c#1 n1/0
    """)


def test_host_memory_of_sleepers_is_lent_again() -> None:
    story_with_a_asleep("""
        node  n1 80GiB memory=70GiB
        model a  60GiB sleep=300
        model b  60GiB
    """).tell("""
        model c  10GiB host_memory=30GiB
        > request c r3 -> stop a#1 evicted for c#1
        > stopped a#1  -> start c#1 n1/0
    """)


def test_a_sleeper_that_is_in_nobodys_way_stays() -> None:
    """Stopping it would make no room on the device: the one that runs makes way."""
    story_with_a_asleep().tell("""
        model c  60GiB
        > request c r3 -> sleep b#1 for c#1
    """)


def test_other_programs_memory_stops_sleepers_first() -> None:
    story_with_a_asleep("""
        node  n1 80GiB memory=200GiB
        model a  60GiB sleep=300 residue=2GiB
        model b  60GiB sleep=300
    """).tell("""
        > observed n1/0 19GiB -> stop a#1 memory_pressure
    """)


# -- policies -------------------------------------------------------------------------------------


def test_serial_swaps_by_sleep() -> None:
    Story(policy="serial").tell(
        ONE_DEVICE
        + """
        > request a r1 -> start a#1 n1/0
        > started a#1  -> grant r1 a#1
        > request b r2 ->
        > ended r1     -> sleep a#1 for b#1
        > slept a#1    -> start b#1 n1/0
        > started b#1  -> grant r2 b#1
        > request a r3 ->
        > ended r2     -> sleep b#1 for a#1
        > slept b#1    -> wake a#1 n1/0
        > woke a#1     -> grant r3 a#1
        """
    )


def test_serial_stops_sleepers_that_are_in_the_way() -> None:
    """`c` needs all of the device, residues included."""
    Story(policy="serial").tell("""
        node  n1 80GiB memory=200GiB
        model a  60GiB sleep=300 residue=2GiB
        model b  60GiB
        model c  80GiB
        > request a r1 -> start a#1 n1/0
        > started a#1  -> grant r1 a#1
        > ended r1     ->
        > request b r2 -> sleep a#1 for b#1
        > slept a#1    -> start b#1 n1/0
        > started b#1  -> grant r2 b#1
        > ended r2     ->
        > request c r3 -> stop a#1 evicted for c#1; stop b#1 evicted for c#1
    """)


# -- in words, and as vectors ---------------------------------------------------------------------


def test_decisions_say_why() -> None:
    story = story_with_a_asleep()
    story.tell("> request a r3 -> sleep b#1 for a#1")
    sleep = story.decided[0]
    assert isinstance(sleep, SleepReplica)
    assert sleep.why == "makes way for a#1: 60.0 GiB go to host memory"
    assert (sleep.keeps.device_bytes, sleep.keeps.host_bytes, sleep.nap) == ((0,), 60 * GIB, 1)
    story.tell("> slept b#1 -> wake a#1 n1/0")
    wake = story.decided[0]
    assert isinstance(wake, WakeReplica)
    assert wake.why == "a wakes on n1/0 (60.0 GiB), evicting b#1 (idle 0 s, put to sleep)"
    assert (wake.evicts, wake.nap) == (("b#1",), 1)


def test_a_sleeping_victim_is_told_with_what_it_holds() -> None:
    story = story_with_a_asleep("""
        node  n1 80GiB memory=70GiB
        model a  60GiB sleep=300
        model b  60GiB
    """)
    story.tell("""
        model c  10GiB host_memory=30GiB
        > request c r3 -> stop a#1 evicted for c#1
        > stopped a#1  -> start c#1 n1/0
    """)
    start = story.decided[0]
    assert isinstance(start, StartReplica)
    assert start.why == "c goes to n1/0 (10.0 GiB), evicting a#1 (asleep: 60.0 GiB in host memory)"


def test_the_vector_asleep() -> None:
    """Each node takes what its own devices give back; cpus and the model's own host memory stay charged."""
    two = Placement(("n1", "n2"), ("n1/0", "n1/1", "n2/0", "n2/1"), (40, 40, 40, 40), host_bytes=7, millicpus=500)
    assert asleep(two, SleepTraits(residue_bytes=3)) == Placement(two.nodes, two.devices, (3, 3, 3, 3), 7 + 74, 500)
    assert asleep(two, SleepTraits(residue_bytes=50)).device_bytes == two.device_bytes
    assert asleep(two, SleepTraits(host_bytes=99)).host_bytes == 7 + 99


def test_every_state_of_sleep_is_reached_here() -> None:
    """So that a state that nothing leads to any more is noticed."""
    story = story_with_a_asleep()
    seen = set(states(story).values())
    for line in ("> request a r3 -> sleep b#1 for a#1", "> slept b#1 -> wake a#1 n1/0"):
        story.tell(line)
        seen |= set(states(story).values())
    assert {State.SUSPENDING, State.ASLEEP, State.ROUSED, State.WAKING} <= seen
