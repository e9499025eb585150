"""One replica over several nodes: what each node is told, who has to be gone, and what the core hears of it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest

from rayscheduler.cluster.agreement import HeldGroup, differences
from rayscheduler.cluster.catalog import Catalog, core_model
from rayscheduler.cluster.inventory import LentDevice, NodeInventory
from rayscheduler.cluster.mailbox import Mailbox
from rayscheduler.cluster.membership import KnownNode, Membership
from rayscheduler.cluster.placement_groups import RayNode, bundles_of, serve_options
from rayscheduler.cluster.recovery import Recovery
from rayscheduler.cluster.reports import Launch, Measured, Part, RunnerReport, RunnerState, Verdict
from rayscheduler.cluster.roster import Roster
from rayscheduler.config.service import config_from_text
from rayscheduler.core.events import (
    Event,
    FailureKind,
    ModelDeployed,
    NodeJoined,
    NodeLost,
    ReplicaFailed,
    ReplicaFound,
    ReplicaStarted,
    ReplicaStopped,
)
from rayscheduler.core.scheduler import Scheduler
from rayscheduler.core.types import Backend, Device, DeviceId, ModelName, Node, NodeName, Placement, ReplicaId, Settings
from rayscheduler.engines import EngineRequest

W = ReplicaId("w#1")
MIB = 2**20
N1, N2, N3 = NodeName("n1"), NodeName("n2"), NodeName("n3")
PLACE = Placement(
    (N1, N2),
    (DeviceId("n1/0"), DeviceId("n1/1"), DeviceId("n2/1"), DeviceId("n2/3")),
    (10 * MIB, 11 * MIB, 12 * MIB, 13 * MIB),
    millicpus=2000,
)
NODES = {name: RayNode(f"id-{name}", f"10.0.0.{name[1]}", Backend.NVIDIA, False) for name in (N1, N2, N3)}
CONFIG = """
models: [{name: w, engine: command, args: [serve, "${NODE_RANK}"], memory: 46MiB, gpus: [4], across_nodes: true}]
"""
LAUNCH = Launch(W, ModelName("w"), PLACE, "simulated", EngineRequest("w", W), 10.0, (EngineRequest("w", W),))
FOLLOWER = Part("id-n2", 70, 7000, 80)


def inventory(name: str) -> NodeInventory:
    gpus = tuple(LentDevice(index, 100, f"GPU-{name}-{index}") for index in range(4))
    return NodeInventory(name, Backend.NVIDIA, gpus)


# what each node is told


def test_each_node_is_told_its_own_devices_and_bytes() -> None:
    catalog = Catalog(config_from_text(CONFIG))
    launch = catalog.launch(W, ModelName("w"), PLACE, [inventory("n1"), inventory("n2")])
    (follower,) = launch.follower_requests
    assert launch.request.visible_devices == ("GPU-n1-0", "GPU-n1-1")
    assert launch.request.device_bytes == (10 * MIB, 11 * MIB)
    assert follower.visible_devices == ("GPU-n2-1", "GPU-n2-3")
    assert follower.device_bytes == (12 * MIB, 13 * MIB)
    assert [(part.node_rank, part.node_count) for part in (launch.request, follower)] == [(0, 2), (1, 2)]


def test_what_an_engine_must_not_plan_with_is_kept_from_each_part_of_it() -> None:
    catalog = Catalog(config_from_text(CONFIG))
    nodes = [inventory("n1"), inventory("n2")]
    launch = catalog.launch(W, ModelName("w"), PLACE, nodes, memory_key="key", spare_bytes=2 * MIB)
    parts = (launch.request, *launch.follower_requests)
    assert [size // MIB for part in parts for size in part.device_bytes] == [8, 9, 10, 11]
    assert launch.placement == PLACE, "it is reserved all the same"
    assert launch.memory_key == "key"


def test_ray_holds_one_bundle_on_each_node() -> None:
    bundles = bundles_of(PLACE, NODES)
    assert [dict(bundle.resources) for bundle in bundles] == [
        {"gpu-0-mib": 10.0, "gpu-1-mib": 11.0, "CPU": 2.0},
        {"gpu-1-mib": 12.0, "gpu-3-mib": 13.0, "CPU": 2.0},
    ]
    options = serve_options(bundles)
    assert options["placement_group_strategy"] == "STRICT_SPREAD"
    assert options["placement_group_bundle_label_selector"] == [{"ray.io/node-id": f"id-n{i}"} for i in (1, 2)]


def test_ray_and_the_ledger_are_compared_bundle_by_bundle() -> None:
    scheduler = Scheduler(Settings())
    for name in (N1, N2):
        devices = tuple(Device(DeviceId(f"{name}/{index}"), 100 * MIB) for index in range(4))
        scheduler.handle(NodeJoined(Node(name, Backend.NVIDIA, devices)), 0)
    (entry,) = Catalog(config_from_text(CONFIG))
    model = core_model(entry, entry.bytes_by_count())
    scheduler.handle(ModelDeployed(model), 0)
    scheduler.handle(ReplicaFound(W, ModelName("w"), PLACE, True, {}), 0)
    first, second = bundles_of(PLACE, NODES)

    def compared(*held: tuple[object, str]) -> list[str]:
        group = HeldGroup("g", "CREATED", tuple(r for r, _ in held), tuple(n for _, n in held))  # type: ignore[misc]
        return differences(scheduler.snapshot(0), {W: [group]}, nodes)

    nodes = dict(NODES)
    right = [(first.resources, "id-n1"), (second.resources, "id-n2")]
    assert compared(*right) == []
    assert len(compared((first.resources, "id-n1"), (second.resources, "id-n3"))) == 1, "on another node"
    assert len(compared(right[0])) == 1, "a bundle is missing"
    assert len(compared(*reversed(right))) == 1, "each on the other's node"
    scheduler.handle(NodeLost(N2), 0)
    del nodes[N2]
    assert compared(right[0], (second.resources, "")) == [], "it leaves"


# who has to be gone


@dataclass
class Story:
    """The replica `w#1` on n1, where it leads, and n2; `news` is what the core has heard since it was asked last."""

    suspected: list[str] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.mailbox = Mailbox()
        self.roster = Roster(self.mailbox, self.suspected.append, self.ended.append, lambda report: None)
        self.roster.start(LAUNCH)
        self.says(RunnerState.ANNOUNCED, followers=())
        self.says(RunnerState.ANNOUNCED)
        self.says(RunnerState.RUNNING, load_ms=5)
        assert self.news() == [ReplicaStarted(W, 5)]

    def says(self, state: RunnerState, **more: object) -> Verdict:
        report = RunnerReport(LAUNCH, "one", state, "id-n1", 7, 8, followers=(FOLLOWER,))
        return self.roster.reported(replace(report, **more))  # type: ignore[arg-type]

    def news(self) -> list[Event]:
        return self.mailbox.now_there()


@pytest.fixture
def story() -> Story:
    return Story()


def test_each_agent_watches_what_is_on_its_node(story: Story) -> None:
    (first,), (second,) = story.roster.watched("id-n1"), story.roster.watched("id-n2")
    assert (first.runner_pid, first.engine_pid, first.device_bytes) == (7, 8, {0: 10 * MIB, 1: 11 * MIB})
    assert (second.runner_pid, second.engine_pid, second.device_bytes) == (70, 80, {1: 12 * MIB, 3: 13 * MIB})
    assert story.roster.watched("id-n3") == []
    story.roster.died(W, "one", "id-n2")
    assert story.roster.watched("id-n2") == [], "there is nothing left to watch"
    assert story.roster.watched("id-n1") == [first]


def test_what_it_holds_is_the_sum_over_its_nodes(story: Story) -> None:
    record = story.roster.records[W]
    assert record.measured_bytes is None
    story.roster.measured(N1, {W: Measured({0: 100})})
    story.roster.measured(N2, {W: Measured({0: 20})})
    story.roster.measured(N1, {W: Measured({0: 3})})
    assert record.measured_bytes == 23


def test_a_dead_follower_is_the_runners_affair_until_it_says_that_all_is_gone(story: Story) -> None:
    story.roster.died(W, "one", "id-n2")
    assert (story.news(), story.ended, story.suspected) == ([], [], [])
    story.says(RunnerState.CRASHED, detail="why")
    assert story.news() == [ReplicaFailed(W, FailureKind.CRASH, "why")]
    story.roster.group_gone(W)
    assert (story.news(), story.ended) == ([], [W])


def test_a_dead_runner_is_a_crash_when_its_followers_are_gone_too(story: Story) -> None:
    story.roster.died(W, "one", "id-n1")
    assert (story.news(), story.ended) == ([], []), "the other node's memory is not back"
    assert story.suspected == [W], "somebody has to end the rest"
    story.roster.died(W, "one", "id-n2")
    (failed,) = story.news()
    assert isinstance(failed, ReplicaFailed)
    assert (failed.kind, story.ended) == (FailureKind.CRASH, [W])


def test_the_node_of_a_follower_is_lost(story: Story) -> None:
    """The runner ends what is left; until it says so, the first node's memory is not back."""
    story.roster.only_alive({"id-n1", "id-n3"})
    assert story.says(RunnerState.RUNNING) is Verdict.STAND_DOWN
    story.roster.stop(W)
    story.roster.group_gone(W)
    assert (story.news(), story.ended) == ([], [])
    story.says(RunnerState.STOPPED)
    assert (story.news(), story.ended) == ([ReplicaStopped(W)], [W])


def test_the_node_of_the_runner_is_lost(story: Story) -> None:
    """Nobody there says anything any more; the agent of the other node does."""
    story.roster.only_alive({"id-n2"})
    story.roster.only_alive({"id-n2"})
    assert (story.suspected, story.ended) == ([W], [])
    story.roster.stop(W)
    story.roster.died(W, "one", "id-n2")
    story.roster.group_gone(W)
    assert (story.news(), story.ended) == ([ReplicaStopped(W)], [W]), "no crash: its model does not back off"


def test_all_its_nodes_are_lost_one_after_the_other(story: Story) -> None:
    story.roster.only_alive({"id-n1"})
    story.roster.stop(W)
    story.roster.only_alive(set())
    assert story.ended == [W]
    story.roster.group_gone(W)
    assert W not in story.roster.records


def test_a_runner_that_dies_before_it_had_followers_leaves_nothing_elsewhere() -> None:
    story = Story()
    story.roster.start(LAUNCH)
    story.says(RunnerState.ANNOUNCED, followers=())
    story.roster.died(W, "one", "id-n1")
    assert [type(event) for event in story.news()] == [ReplicaFailed]


# what a new allocator adopts


@pytest.mark.parametrize(
    ("alive", "followers", "adopted"),
    [
        ("n1 n2", (FOLLOWER,), True),
        ("n1 n2", (), True),  # they are coming
        ("n1", (FOLLOWER,), False),
        ("n2", (FOLLOWER,), False),
        ("n1", (), False),  # they will never come
        ("n1 n2", (replace(FOLLOWER, node_id="id-n2-before"),), False),
    ],
)
def test_a_replica_is_adopted_with_all_its_nodes_or_not_at_all(
    alive: str, followers: tuple[Part, ...], adopted: bool
) -> None:
    membership = Membership()
    for name in alive.split():
        node = KnownNode(NodeName(name), f"id-{name}", "", 0, {}, {}, inventory=inventory(name))
        membership.nodes[node.node_id] = node
    report = RunnerReport(LAUNCH, "one", RunnerState.RUNNING, "id-n1", 7, 8, followers=followers)
    assert Recovery()._lives(report, membership) is adopted
