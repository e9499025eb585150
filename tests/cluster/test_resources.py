"""What a node lends, from the command line to the node in the core; and how a placement becomes bundles."""

from __future__ import annotations

from dataclasses import replace

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayscheduler.cluster import measuring, resources
from rayscheduler.cluster.gpu import Gpu
from rayscheduler.cluster.gpu_faults import GpuFaults
from rayscheduler.cluster.measuring import Measuring
from rayscheduler.cluster.membership import Membership
from rayscheduler.cluster.names import (
    app_name,
    device_of_resource,
    placement_group_prefix,
    replica_of_app,
    replica_of_placement_group,
)
from rayscheduler.cluster.placement_groups import UNITS_PER_ONE, RayNode, bundles_of, mib_of, serve_options
from rayscheduler.cluster.reports import AgentReport, DeviceReading
from rayscheduler.cluster.resources import ResourceError, detect_devices, device_type, read_inventory, resources_json
from rayscheduler.core.events import DeviceLost, DeviceReturned, MemoryObserved, NodeJoined, NodeLost
from rayscheduler.core.types import Backend, DeviceId, NodeName, Placement, ReplicaId

MIB = 2**20
GIB = 2**30


@pytest.fixture
def no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "gpus", lambda: ())


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> list[Gpu]:
    found = [Gpu(i, f"GPU-{i}", "NVIDIA H100 80GB HBM3", 80 * GIB, 0) for i in range(2)]
    monkeypatch.setattr(GpuFaults, "watch", lambda self: None)
    monkeypatch.setattr(resources, "gpus", lambda: tuple(found))
    monkeypatch.setattr(measuring, "gpus", lambda: tuple(found))
    return found


# -- what is lent ---------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_gpus")
def test_a_machine_without_gpus_lends_half_of_its_ram_unless_told() -> None:
    half = psutil.virtual_memory().total // 2 // MIB
    assert resources_json(detect_devices()) == {"cpu-0-mib": half}
    assert resources_json(detect_devices(400 * MIB)) == {"cpu-0-mib": 400}


@pytest.mark.usefixtures("two_gpus")
def test_gpus_lend_all_they_have_unless_told() -> None:
    assert resources_json(detect_devices()) == {"gpu-0-mib": 81920, "gpu-1-mib": 81920}
    assert resources_json(detect_devices(40 * GIB)) == {"gpu-0-mib": 40960, "gpu-1-mib": 40960}


def test_simulated_devices_are_marked() -> None:
    said = resources_json(detect_devices(simulate="2x80GiB"))
    assert said == {"gpu-0-mib": 81920, "gpu-1-mib": 81920, "simulated-devices": 1}


@pytest.mark.usefixtures("no_gpus")
@pytest.mark.parametrize("text", ["", "80GiB", "0x80GiB", "2x", "2x80", "2x-1GiB", "x80GiB", "9999x1GiB", "2x80GB"])
def test_a_wrong_description_of_devices_is_one_line_that_shows_a_right_one(text: str) -> None:
    with pytest.raises(ResourceError, match="4x80GiB") as wrong:
        detect_devices(simulate=text)
    assert "\n" not in str(wrong.value)


@pytest.mark.usefixtures("no_gpus")
def test_nobody_lends_more_than_there_is() -> None:
    with pytest.raises(ResourceError, match="lend less"):
        detect_devices(2**50)
    with pytest.raises(ResourceError, match="at least 1MiB"):
        detect_devices(1)


def test_the_inventory_is_what_ray_says_and_what_the_hardware_is_called(two_gpus: list[Gpu]) -> None:
    inventory = read_inventory({"gpu-0-mib": 40960.0, "gpu-5-mib": 40960.0, "CPU": 8.0}, two_gpus)
    (device,) = inventory.devices
    assert (device.lent_mib, device.uuid, device.type) == (40960, "GPU-0", "H100")
    assert inventory.missing == {5: "its driver does not show it"}
    assert inventory.backend is Backend.NVIDIA
    pretended = read_inventory({"gpu-0-mib": 100.0, "simulated-devices": 1.0}, ())
    assert (pretended.simulated, pretended.devices[0].type) == (True, "simulated")
    assert read_inventory({"cpu-0-mib": 100.0}, two_gpus).memory_bytes == 100 * MIB
    assert read_inventory({"CPU": 2.0}, ()).devices == ()


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("Tesla V100-SXM2-16GB", "V100"),
        ("NVIDIA GeForce RTX 4090", "RTX-4090"),
        ("NVIDIA RTX A6000", "RTX-A6000"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "H100-MIG-1g.10gb"),
        ("NVIDIA A100-SXM4-40GB MIG 3g.20gb", "A100-MIG-3g.20gb"),
        ("AMD Instinct MI300X", "MI300X"),
        ("AMD Radeon RX 7900 XTX", "RX-7900"),
        ("AMD Radeon PRO W7900", "PRO-W7900"),
        ("", ""),
    ],
)
def test_types_are_called_as_catalogs_call_them(name: str, short: str) -> None:
    assert device_type(name) == short


# -- names ----------------------------------------------------------------------------------------


@given(st.text(st.characters(codec="ascii", categories=["L", "N", "P"]), min_size=1), st.integers(1, 10**6))
def test_a_replica_is_found_by_its_application_and_its_placement_group(model: str, serial: int) -> None:
    replica = ReplicaId(f"{model}#{serial}")
    app = app_name(replica)
    assert replica_of_app(app) == replica
    assert replica_of_placement_group(placement_group_prefix(app) + "8f3k2j") == replica
    assert "#" not in app or "#" in model


def test_what_is_not_ours_is_nobodys() -> None:
    assert replica_of_app("rayscheduler") is None
    assert replica_of_app("rs-replica:x") is None
    assert replica_of_placement_group("SERVE_REPLICA::rayscheduler#Gateway#abc") is None
    assert replica_of_placement_group("") is None
    assert device_of_resource("gpu-12-mib") == ("gpu", 12)
    assert device_of_resource("gpu-01-mib") is None
    assert device_of_resource("CPU") is None


# -- bundles --------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 10**12), min_size=1, max_size=50), st.integers(0, 10**6))
def test_bundles_never_exceed_what_the_ledger_allows(sizes: list[int], spare: int) -> None:
    """Whole MiB of capacity; any vectors that fit it in bytes; Ray counts in ten-thousandths of a MiB."""
    capacity_mib = -(-(sum(sizes) + spare) // MIB)
    units = [round(mib_of(size) * UNITS_PER_ONE) for size in sizes]
    assert sum(units) <= capacity_mib * UNITS_PER_ONE
    for size, unit in zip(sizes, units, strict=True):
        assert 0 <= size * UNITS_PER_ONE - unit * MIB < MIB, "and at most one unit is lost"


NODES = {
    NodeName("g"): RayNode("aa", "10.0.0.1", Backend.NVIDIA, False),
    NodeName("h"): RayNode("bb", "10.0.0.2", Backend.NVIDIA, False),
    NodeName("c"): RayNode("cc", "10.0.0.3", Backend.CPU, True),
}


def placement(*devices: str, nodes: tuple[str, ...] = (), host: int = 0, millicpus: int = 0) -> Placement:
    taken = tuple(map(DeviceId, devices))
    owners = tuple(dict.fromkeys(device.rpartition("/")[0] for device in devices)) or nodes
    return Placement(tuple(map(NodeName, owners)), taken, (3 * MIB // 2,) * len(taken), host, millicpus)


def test_one_bundle_for_each_node_with_exactly_the_vector() -> None:
    two = bundles_of(placement("g/0", "g/1", "h/0", "h/1", millicpus=1500), NODES)
    assert [bundle.node_id for bundle in two] == ["aa", "bb"]
    assert [dict(bundle.resources) for bundle in two] == [{"gpu-0-mib": 1.5, "gpu-1-mib": 1.5, "CPU": 1.5}] * 2
    options = serve_options(two)
    assert options["placement_group_strategy"] == "STRICT_SPREAD"
    assert options["placement_group_bundle_label_selector"] == [{"ray.io/node-id": "aa"}, {"ray.io/node-id": "bb"}]
    assert serve_options(two[:1])["placement_group_strategy"] == "STRICT_PACK"


def test_host_memory_is_charged_where_the_ledger_charges_it() -> None:
    (lent,) = bundles_of(placement("c/0", host=MIB // 2), NODES)
    assert lent.resources == {"cpu-0-mib": 2.0}
    (host_only,) = bundles_of(placement(nodes=("c",), host=MIB), NODES)
    assert host_only.resources == {"cpu-0-mib": 1.0}
    (on_gpu_node,) = bundles_of(placement(nodes=("g",), host=MIB), NODES)
    assert on_gpu_node.resources == {"node:10.0.0.1": 0.0001}, "Ray takes no empty bundle"


# -- the nodes of the cluster ---------------------------------------------------------------------


def listed(node_id: str, host: str = "one", alive: bool = True, **more: float) -> dict[str, object]:
    return {
        "NodeID": node_id, "Alive": alive, "NodeManagerAddress": "10.0.0.1", "NodeManagerPort": 1,
        "NodeManagerHostname": host, "Resources": {"CPU": 4.0, **more}, "Labels": {"zone": "a"},
    }  # fmt: skip


def report(**lent: float) -> AgentReport:
    return AgentReport(read_inventory(lent, ()), (DeviceReading(0, 0, 0),))


LENT = {"cpu-0-mib": 1000.0}


def test_a_node_joins_when_it_lends_and_its_agent_has_reported_and_is_lost_once() -> None:
    nodes = Membership()
    assert nodes.observe([listed("n1", **LENT), listed("n2", host="idle")], 0) == []
    assert [node.node_id for node in nodes.without_agent([])] == ["n1"]
    (joined,) = nodes.reported("n1", report(**LENT), 0)
    assert isinstance(joined, NodeJoined)
    node = joined.node
    assert (node.name, node.millicpus, node.device_is_host_memory) == ("one", 4000, True)
    assert node.devices[0].capacity_bytes == 1000 * MIB
    assert node.labels["zone"] == "a"
    assert node.labels["rayscheduler.io/devices"] == "real"
    assert nodes.reported("n1", report(**LENT), 1) == []
    assert nodes.observe([listed("n1", alive=False, **LENT)], 0) == [NodeLost(NodeName("one"))]
    assert nodes.observe([listed("n1", alive=False, **LENT)], 0) == []
    assert nodes.reported("n1", report(**LENT), 2) == [], "its last words"
    assert nodes.nodes["n1"].alive is False
    nodes.observe([listed("n1", alive=False, **LENT), listed("n2", host="idle", alive=False)], 601)
    assert nodes.nodes == {}, "after a while nobody wants to know"


def test_names_are_unique_and_a_node_that_comes_back_takes_its_own() -> None:
    nodes = Membership()
    nodes.observe([listed("abcdefgh"), listed("bcdefghi")], 0)
    assert [node.name for node in nodes.nodes.values()] == ["one", "one-bcdefg"]
    nodes.observe([listed("abcdefgh", alive=False), listed("cdefghij")], 0)
    assert {node.name: node.node_id for node in nodes.nodes.values()} == {"one-bcdefg": "bcdefghi", "one": "cdefghij"}


def test_memory_of_others_is_news_when_it_changes_much() -> None:
    nodes = Membership()
    nodes.observe([listed("n1", **LENT)], 0)
    nodes.reported("n1", report(**LENT), 0)

    def seen(others: int) -> list[object]:
        reading = AgentReport(read_inventory(LENT, ()), (DeviceReading(0, others, 0),))
        return list(nodes.reported("n1", reading, 1))

    assert seen(10 * MIB) == []
    assert seen(130 * MIB) == [MemoryObserved(DeviceId("one/0"), 128 * MIB)]
    assert seen(140 * MIB) == []
    assert seen(0) == [MemoryObserved(DeviceId("one/0"), 0)]


def test_a_gpu_that_disappears_is_lost_once(two_gpus: list[Gpu]) -> None:
    lent = {"gpu-0-mib": 81920.0, "gpu-1-mib": 81920.0}
    nodes, measures = Membership(), Measuring(lent, unread_s=0)
    nodes.observe([listed("n1", **lent)], 0)
    (joined,) = nodes.reported("n1", measures.take([]), 0)
    assert isinstance(joined, NodeJoined)
    gone = two_gpus.pop(0)
    two_gpus[0] = replace(two_gpus[0], index=gone.index)  # the driver counts from 0 again
    assert nodes.reported("n1", measures.take([]), 1) == [DeviceLost(DeviceId("one/0"))]
    assert list(nodes.nodes["n1"].readings) == [1]
    assert nodes.reported("n1", measures.take([]), 2) == []
    two_gpus[:] = [gone, replace(two_gpus[0], index=1)]
    assert nodes.reported("n1", measures.take([]), 3) == [DeviceReturned(DeviceId("one/0"))]
    assert nodes.reported("n1", measures.take([]), 4) == []


def test_a_new_agent_counts_as_the_one_before_it_did(two_gpus: list[Gpu]) -> None:
    lent = {"gpu-0-mib": 81920.0, "gpu-1-mib": 81920.0}
    before = Measuring(lent).take([]).inventory
    two_gpus[:] = [replace(two_gpus[1], index=0)]
    measures = Measuring(lent, before, unread_s=0)
    report = measures.take([])
    assert [reading.index for reading in report.readings] == [1]
    assert report.inventory.devices == before.devices
    assert list(report.inventory.missing) == [0]
    two_gpus[:] = [Gpu(0, "GPU-0", "NVIDIA H100 80GB HBM3", 80 * GIB, 0), replace(two_gpus[0], index=1)]
    assert measures.take([]).inventory.missing == {}


def test_a_gpu_that_its_driver_never_showed_is_not_offered_and_said_to_be_lost(two_gpus: list[Gpu]) -> None:
    lent = {"gpu-0-mib": 81920.0, "gpu-5-mib": 81920.0}
    nodes = Membership()
    nodes.observe([listed("n1", **lent)], 0)
    joined, lost = nodes.reported("n1", Measuring(lent).take([]), 0)
    assert isinstance(joined, NodeJoined)
    assert [device.id for device in joined.node.devices] == ["one/0"]
    assert lost == DeviceLost(DeviceId("one/5")), "which the core does not know, and ignores"
