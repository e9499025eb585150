"""Host memory and cpus, models without a GPU, and nodes that lend their RAM."""

from __future__ import annotations

from rayscheduler.core.decisions import StartReplica
from tests.core.story import GIB, Story


def test_host_memory_is_charged_to_the_node() -> None:
    Story().tell(
        """
        node  n1  2x80GiB  memory=100GiB
        model a   10GiB  host_memory=60GiB
        model b   10GiB  host_memory=41GiB
        model c   10GiB  host_memory=40GiB
        > request a r1  -> start a#1 n1/0
        > started a#1   -> grant r1 a#1
        > request b r2  ->
        > request c r3  -> start c#1 n1/1
        """
    )


def test_cpus_are_charged_to_the_node() -> None:
    Story().tell(
        """
        node  n1  2x80GiB  cpus=8
        model a   10GiB  cpus=5
        model b   10GiB  cpus=4
        model c   10GiB  cpus=3
        model d   10GiB  cpus=9
        > request a r1  -> start a#1 n1/0
        > started a#1   -> grant r1 a#1
        > request b r2  ->
        > request c r3  -> start c#1 n1/1
        > request d r4  -> reject r4 never_fits
        """
    )


def test_a_victim_gives_its_cpus_back_when_it_is_gone() -> None:
    Story().tell(
        """
        node  n1  2x80GiB  cpus=8
        model a   10GiB  cpus=6
        model b   10GiB  cpus=6
        model c   10GiB  cpus=3
        > load a        -> start a#1 n1/0
        > started a#1   ->
        > request b r2  -> stop a#1 evicted for b#1
        > request c r3  ->
        > stopped a#1   -> start b#1 n1/1
        """
    )


def test_a_victim_gives_its_host_memory_back_when_it_is_gone() -> None:
    Story().tell(
        """
        node  n1  2x80GiB  memory=100GiB
        model a   10GiB  host_memory=60GiB
        model b   10GiB  host_memory=60GiB
        model f   70GiB
        > load a        -> start a#1 n1/0
        > started a#1   ->
        > found f#1 n1/0 70GiB leases=q1  ->
        > request b r2  -> stop a#1 evicted for b#1
        > stopped a#1   -> start b#1 n1/1
        """
    )


def test_a_node_without_limits_has_enough() -> None:
    Story().tell(
        """
        node  n1  80GiB
        model a   10GiB  host_memory=6000GiB cpus=999
        > load a  -> start a#1 n1/0
        """
    )


def test_a_host_only_model_takes_no_device() -> None:
    """`gpus: [0]`: "`memory` is then charged to the host, and devices and bytes are empty lists"."""
    story = Story().tell(
        """
        node  n1  80GiB  memory=100GiB
        model f   80GiB
        model h   60GiB  gpus=0
        model i   50GiB  gpus=0
        > load f        -> start f#1 n1/0
        > request h r1  -> start h#1 n1
        """
    )
    (start,) = story.decided
    assert isinstance(start, StartReplica)
    assert start.placement.devices == ()
    assert start.placement.device_bytes == ()
    assert start.placement.host_bytes == 60 * GIB
    story.tell(
        """
        > started h#1   -> grant r1 h#1
        > request i r2  ->
        > ended r1      -> stop h#1 evicted for i#1
        > stopped h#1   -> start i#1 n1
        """
    )


def test_host_only_models_may_be_kept_off_nodes_with_gpus() -> None:
    """`cpu_models_on_gpu_nodes: false`."""
    Story(cpu_models_on_gpu_nodes=False).tell(
        """
        node  n1  80GiB  memory=100GiB
        model h   60GiB  gpus=0
        > request h r1  -> reject r1 never_fits
        > joined c1 100GiB backend=cpu ram=yes  ->
        > request h r2  -> start h#1 c1
        """
    )


def test_a_cpu_node_lends_its_memory_as_one_device() -> None:
    """Charges: "A `cpu` node without `devices` has one device of its `memory`"."""
    Story().tell(
        """
        node  c1  64GiB  backend=cpu ram=yes
        model a   40GiB
        model b   30GiB
        > request a r1  -> start a#1 c1/0
        > started a#1   -> grant r1 a#1
        > request b r2  ->
        """
    )


def test_host_only_models_are_charged_to_that_device_too() -> None:
    """"models with `gpus: [0]` are charged there too"."""
    story = Story().tell(
        """
        node  c1  64GiB  backend=cpu ram=yes
        model h   40GiB  gpus=0
        model a   30GiB
        model b   24GiB
        > request h r1  -> start h#1 c1
        > started h#1   -> grant r1 h#1
        > request a r2  ->
        > request b r3  -> start b#1 c1/0
        """
    )
    (device,) = story.scheduler.snapshot(0).nodes[0].devices
    assert (device.reserved_bytes, device.free_bytes) == (64 * GIB, 0)


def test_device_and_host_memory_come_out_of_one_pot_there() -> None:
    Story().tell(
        """
        node  c1  64GiB  backend=cpu ram=yes
        model a   40GiB  host_memory=30GiB
        model b   40GiB  host_memory=20GiB
        > request a r1  -> reject r1 never_fits
        > request b r2  -> start b#1 c1/0
        """
    )


def test_a_host_only_load_over_a_device_victim() -> None:
    """The overlap is of the one pot, whichever door the bytes came through; never over-committed."""
    story = Story().tell(
        """
        node  c1  64GiB  backend=cpu ram=yes
        model v   40GiB
        model h   40GiB  gpus=0
        model s   24GiB
        > load v        -> start v#1 c1/0
        > started v#1   ->
        > request h r1  -> stop v#1 evicted for h#1
        > request s r2  -> start s#1 c1/0
        > stopped v#1   -> start h#1 c1
        """
    )
    (device,) = story.scheduler.snapshot(0).nodes[0].devices
    assert device.reserved_bytes == 64 * GIB


def test_a_device_load_over_a_host_only_victim() -> None:
    Story().tell(
        """
        node  c1  64GiB  backend=cpu ram=yes
        model h   40GiB  gpus=0
        model v   50GiB
        > load h        -> start h#1 c1
        > started h#1   ->
        > request v r1  -> stop h#1 evicted for v#1
        > stopped h#1   -> start v#1 c1/0
        """
    )


def test_what_others_use_of_a_lent_ram_is_not_the_hosts_either() -> None:
    Story().tell(
        """
        node  c1  64GiB  backend=cpu ram=yes
        model h   40GiB  gpus=0
        > observed c1/0 30GiB  ->
        > request h r1         ->
        > observed c1/0 24GiB  -> start h#1 c1
        """
    )
