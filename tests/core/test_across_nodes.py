"""One replica over several nodes: whole nodes, equal counts."""

from __future__ import annotations

from rayscheduler.core.decisions import StartReplica
from tests.core.story import GIB, Story


def test_one_node_comes_before_several() -> None:
    Story().tell(
        """
        node  n1  40GiB
        node  n2  40GiB
        node  n3  2x40GiB
        model a   80GiB  gpus=2 across=yes
        > load a   -> start a#1 n3/0,n3/1
        """
    )


def test_whole_nodes_with_equal_counts() -> None:
    """"may one replica take devices of several nodes (whole nodes, equal counts)?" A node of three devices
    cannot give two of them, and a node of one cannot give its half."""
    story = Story().tell(
        """
        node  n1  2x40GiB
        node  n2  3x40GiB
        node  n3  40GiB
        node  n4  2x40GiB
        model a   160GiB  gpus=4 across=yes
        > load a   -> start a#1 n1/0,n1/1,n4/0,n4/1
        """
    )
    (start,) = story.decided
    assert isinstance(start, StartReplica)
    assert start.placement.nodes == ("n1", "n4")
    assert start.placement.device_bytes == (40 * GIB,) * 4


def test_without_across_nodes_it_never_fits() -> None:
    Story().tell(
        """
        node  n1  2x40GiB
        node  n2  2x40GiB
        model a   160GiB  gpus=4
        > request a r1   -> reject r1 never_fits
        """
    )


def test_fewer_devices_across_nodes_come_before_more_on_one() -> None:
    """Ranking: the device count is compared before anything about where they are."""
    Story().tell(
        """
        node  n1  40GiB
        node  n2  40GiB
        node  n3  4x20GiB
        model a   80GiB  gpus=2,4 across=yes
        > load a   -> start a#1 n1/0,n2/0
        """
    )


def test_victims_on_every_node_of_it() -> None:
    Story().tell(
        """
        node  n1  40GiB
        node  n2  40GiB
        model f1  40GiB
        model f2  40GiB
        model a   80GiB  gpus=2 across=yes
        > found f1#1 n1/0 40GiB  ->
        > found f2#1 n2/0 40GiB  ->
        > request a r1  -> stop f1#1 evicted for a#1; stop f2#1 evicted for a#1
        > stopped f1#1  ->
        > stopped f2#1  -> start a#1 n1/0,n2/0
        """
    )


def test_a_victim_across_nodes_frees_all_of_them_once() -> None:
    Story().tell(
        """
        node  n1  40GiB
        node  n2  40GiB
        model w   80GiB  gpus=2 across=yes
        model a   40GiB
        model b   40GiB
        > load w        -> start w#1 n1/0,n2/0
        > started w#1   ->
        > request a r1  -> stop w#1 evicted for a#1
        > request b r2  ->
        > stopped w#1   -> start a#1 n1/0; start b#1 n2/0
        """
    )


def test_a_lost_node_stops_the_rest_of_it() -> None:
    """What ran on the other nodes still holds its bytes until its exit is confirmed."""
    Story().tell(
        """
        node  n1  40GiB
        node  n2  40GiB
        model w   80GiB  gpus=2 across=yes
        model a   40GiB
        > load w        -> start w#1 n1/0,n2/0
        > started w#1   ->
        > lost n1       -> stop w#1 node_lost
        > request a r1  ->
        > stopped w#1   -> start a#1 n2/0
        """
    )


def test_cpus_and_host_memory_are_charged_in_full_on_each_node() -> None:
    """Charges: "`cpus` and `host_memory` are charged in full on each node of a replica"."""
    Story().tell(
        """
        node  n1  40GiB  cpus=8 memory=64GiB
        node  n2  40GiB  cpus=8 memory=64GiB
        model w   20GiB  gpus=2 across=yes cpus=6 host_memory=40GiB
        model a   10GiB  cpus=3
        model b   10GiB  host_memory=30GiB
        model c   10GiB  cpus=2 host_memory=24GiB
        > load w        -> start w#1 n1/0,n2/0
        > started w#1   ->
        > load c        -> start c#1 n1/0
        > request w r0  -> grant r0 w#1
        > request a r1  ->
        > request b r2  ->
        """
    )


def test_total_device_memory_is_summed_over_all_nodes_of_it() -> None:
    """"sum over the devices it takes": 80 + 40, not 60 on each."""
    Story().tell(
        """
        node  n1  80GiB
        node  n2  40GiB
        model w   20GiB  gpus=2 across=yes total_device_memory=120GiB
        model x   20GiB  gpus=2 across=yes total_device_memory=121GiB
        > request x r1  -> reject r1 never_fits
        > request w r2  -> start w#1 n1/0,n2/0
        """
    )


def test_least_loaded_nodes_are_taken() -> None:
    Story().tell(
        """
        node  n1  40GiB
        node  n2  40GiB
        node  n3  40GiB
        model f   10GiB
        model w   40GiB  gpus=2 across=yes
        > found f#1 n1/0 10GiB  ->
        > load w   -> start w#1 n2/0,n3/0
        """
    )


def test_a_node_that_came_back_holds_nothing_of_what_it_lost() -> None:
    """The rest of a replica is on the other node; when that is lost too, nothing of it is left anywhere."""
    Story().tell(
        """
        node  n1  40GiB
        node  n2  40GiB
        model a   80GiB  gpus=2 across=yes
        > load a           -> start a#1 n1/0,n2/0
        > lost n2          -> stop a#1 node_lost
        > joined n2 40GiB  ->
        > lost n1          ->
        > joined n1 40GiB  -> start a#2 n1/0,n2/0
        """
    )
