"""`ReplicaFound`: what runs already is taken over, after a restart or as a start state."""

from __future__ import annotations

from rayscheduler.core import events as ev
from rayscheduler.core.types import Model, Requirement
from tests.core.story import GIB, Story, found, node


def test_a_running_replica_is_taken_over_with_its_leases() -> None:
    """DESIGN 4: "finds live runners (`ReplicaFound`) and adopts them: no model is reloaded"."""
    Story().tell(
        """
        node  n1  80GiB
        model a   60GiB  concurrency=2
        > found a#7 n1/0 60GiB leases=q1  ->
        > request a r1  -> grant r1 a#7
        > request a r2  ->
        > ended q1      -> grant r2 a#7
        > ended r1      ->
        > ended r2      ->
        > unload a      -> stop a#7 unloaded
        > request a r3  ->
        > stopped a#7   -> start a#8 n1/0
        """
    )


def test_one_that_is_starting_is_waited_for() -> None:
    Story().tell(
        """
        node  n1  80GiB
        model a   60GiB
        > found a#1 n1/0 60GiB running=no  ->
        > request a r1  ->
        > started a#1   -> grant r1 a#1
        """
    )


def test_what_was_leaving_before_is_leaving_after() -> None:
    """Its stop was sent by the predecessor: it serves nobody and holds its bytes until its exit is confirmed."""
    Story().tell(
        """
        node  n1  80GiB
        model a   60GiB
        model b   60GiB
        > found a#1 n1/0 60GiB leaving=yes  ->
        > request a r1  ->
        > stopped a#1   -> start a#2 n1/0
        """
    )


def test_who_waits_is_granted() -> None:
    Story().tell(
        """
        model a   60GiB
        > request a r1  ->
        > joined n1 80GiB & found a#3 n1/0 60GiB -> grant r1 a#3
        """
    )


def test_its_own_figure_is_held_not_its_models() -> None:
    """`memory` of a start state's replica: "this replica holds this much instead of its model's figure"."""
    Story().tell(
        """
        node  n1  80GiB
        model a   60GiB
        model b   60GiB
        > found a#1 n1/0 5GiB  ->
        > request b r1  -> start b#1 n1/0
        """
    )


def test_one_whose_model_is_gone_is_stopped_and_holds_its_bytes_until_then() -> None:
    Story().tell(
        """
        node  n1  80GiB
        model a   60GiB
        > found x#1 n1/0 60GiB leases=q1  -> stop x#1 model_removed
        > request a r1  ->
        > stopped x#1   -> start a#1 n1/0
        """
    )


def test_serials_go_on_after_the_highest_that_was_found() -> None:
    Story().tell(
        """
        node  n1  2x80GiB
        model a   60GiB  gpus=1 replicas_max=3
        > found a#5 n1/0 60GiB leases=q1  ->
        > found a#2 n1/1 60GiB leases=q2  ->
        > lost n1/1     -> stop a#2 device_lost
        > lost n1       -> stop a#5 node_lost
        > joined n1 80GiB  ->
        > request a r1  -> start a#6 n1/0
        """
    )


def test_serials_go_on_after_an_orphan_of_that_name() -> None:
    Story().tell(
        """
        node  n1  2x80GiB
        > found x#5 n1/0 60GiB  -> stop x#5 model_removed
        > deploy x 60GiB        ->
        > load x                -> start x#6 n1/1
        """
    )


def test_a_restarted_owner_may_say_which_serials_were_used() -> None:
    story = Story().tell(
        """
        node  n1  80GiB
        model a   60GiB
        """
    )
    story.scheduler.seed_serial("a", 41)
    story.tell("> load a -> start a#42 n1/0")


def test_found_twice_is_found_once() -> None:
    Story().tell(
        """
        node  n1  80GiB
        model a   40GiB
        > found a#1 n1/0 40GiB  ->
        > found a#1 n1/0 40GiB  ->
        > unload a      -> stop a#1 unloaded
        > found a#1 n1/0 40GiB  ->
        > stopped a#1   ->
        """
    )


def test_found_on_a_node_that_is_not_there_changes_nothing() -> None:
    Story().tell(
        """
        node  n1  80GiB
        model a   40GiB
        > found a#1 n9/0 40GiB  ->
        > request a r1          -> start a#2 n1/0
        """
    )


def test_a_wanted_load_is_fulfilled_by_what_is_found() -> None:
    """"stays wanted until it runs"."""
    story = Story().tell(
        """
        model a   60GiB
        model b   60GiB
        > load a  ->
        > joined n1 80GiB & found a#1 n1/0 60GiB ->
        """
    )
    assert not story.scheduler.snapshot(0).models[0].wanted
    story.tell(
        """
        > request b r1  -> stop a#1 evicted for b#1
        > stopped a#1   -> start b#1 n1/0
        > started b#1   -> grant r1 b#1
        > ended r1      ->
        """
    )


def test_more_than_there_is_room_for_is_taken_over_and_relieved() -> None:
    """The catalog changed while nobody watched: what runs is a fact. It is believed, and cured by pressure."""
    Story().tell(
        """
        node  n1  80GiB
        model a   60GiB
        model b   60GiB
        > found a#1 n1/0 60GiB idle_ms=5000 & found b#1 n1/0 60GiB  -> stop a#1 memory_pressure
        > stopped a#1  ->
        """
    )


def test_restoring_decides_in_the_next_pass() -> None:
    """`restore` learns without deciding; what follows from it is decided with the next event, not lost."""
    story = Story()
    story.scheduler.restore(
        [
            ev.NodeJoined(node("n1", "80GiB")),
            ev.ModelDeployed(Model("a", Requirement({1: 60 * GIB}))),
            found("a#1", "n1/0", "60GiB"),
            found("x#1", "n1/0", "10GiB"),
        ],
        0,
    )
    story.tell(
        """
        > wake          -> stop x#1 model_removed
        > request a r1  -> grant r1 a#1
        """
    )
