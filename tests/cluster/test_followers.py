"""The followers of a runner against a Ray of a few lines: started as one, watched as one, ended for certain."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RayActorError, RayTaskError

from rayscheduler.cluster import followers as module
from rayscheduler.cluster.followers import Followers
from rayscheduler.cluster.reports import Launch, Part
from rayscheduler.core.types import DeviceId, ModelName, NodeName, Placement, ReplicaId
from rayscheduler.engines import EngineRequest
from rayscheduler.errors import EngineError

W = ReplicaId("w#1")
NODES = (NodeName("n0"), NodeName("n1"), NodeName("n2"))
REQUEST = EngineRequest("w", W, node_count=3)
LAUNCH = Launch(
    W,
    ModelName("w"),
    Placement(NODES, tuple(map(DeviceId, ("n1/0", "n1/1", "n2/0"))), (1, 2, 3)),
    "simulated",
    REQUEST,
    10.0,
    tuple(replace(REQUEST, node_rank=rank) for rank in (1, 2)),
)
BOUND_S = 10.0


class Actor:
    """Of Ray's: each method is called with `.remote` and gives something to be awaited."""

    def __getattribute__(self, name: str) -> Any:
        found = object.__getattribute__(self, name)
        return SimpleNamespace(remote=found) if not name.startswith("_") and callable(found) else found


class FakeFollower(Actor):
    def __init__(self, ray: FakeRay, rank: int, replica: str, engine: str, needed: dict[int, int]) -> None:
        ray.needed.append((replica, engine, needed))
        self._ray, self._part, self._end = ray, Part(f"id-n{rank}", rank, 10 * rank), asyncio.Event()

    async def part(self) -> Part:
        return self._part

    async def wait_for_devices(self) -> None:
        if refusal := self._ray.no_room.get(self._part.node_id):
            raise refusal
        self._ray.said.append(f"room on {self._part.node_id}")

    async def end_turn(self) -> None:
        self._ray.said.append(f"turn over on {self._part.node_id}")

    async def start(self, request: EngineRequest) -> Part:
        self._ray.requests.append(request)
        if refusal := self._ray.refusals.get(request.node_rank):
            raise refusal
        self._part = replace(self._part, engine_pid=100 + request.node_rank)
        return self._part

    async def ended(self) -> str:
        await self._end.wait()
        if self._part.node_id in self._ray.lost:
            raise RayActorError
        return "exited with status 1"

    async def stop(self, grace_s: float) -> None:
        if self._part.node_id in self._ray.lost:
            raise RayActorError
        self._ray.said.append(f"stopped {self._part.node_id}")


class FakeAgent(Actor):
    def __init__(self, ray: FakeRay, node_id: str) -> None:
        self._ray, self._node_id = ray, node_id

    async def kill(self, pid: int, started: int) -> None:
        self._ray.said.append(f"kill {pid} {started} on {self._node_id}")

    async def confirm_gone(self, replica: str, pid: int, started: int) -> bool:
        self._ray.said.append(f"gone? {replica} {pid} {started}")
        return self._ray.confirms.pop(0)


@dataclass
class FakeRay:
    """`lost`: the followers on these nodes answer nothing; `dead`: nor does anything else there."""

    lost: set[str] = field(default_factory=set)
    dead: set[str] = field(default_factory=set)
    confirms: list[bool] = field(default_factory=list)
    refusals: dict[int, Exception] = field(default_factory=dict)
    no_room: dict[str, Exception] = field(default_factory=dict)
    needed: list[tuple[str, str, dict[int, int]]] = field(default_factory=list)
    requests: list[EngineRequest] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    actors: list[FakeFollower] = field(default_factory=list)
    killed: int = 0

    def __post_init__(self) -> None:
        self.util = SimpleNamespace(get_current_placement_group=object, get_node_ip_address=lambda: "127.0.0.1")

    def remote(self, kind: type) -> Any:
        return SimpleNamespace(options=self._options)

    def _options(self, num_cpus: int, scheduling_strategy: Any, **more: Any) -> Any:
        rank = scheduling_strategy.placement_group_bundle_index
        return SimpleNamespace(remote=lambda *told: self._made(rank, *told))

    def _made(self, rank: int, *told: Any) -> FakeFollower:
        self.actors.append(FakeFollower(self, rank, *told))
        return self.actors[-1]

    def get_actor(self, name: str, namespace: str) -> FakeAgent:
        node_id = name.removeprefix("node-agent-")
        if node_id in self.dead:
            raise ValueError
        return FakeAgent(self, node_id)

    def nodes(self) -> list[dict[str, Any]]:
        return [{"NodeID": f"id-{name}", "Alive": f"id-{name}" not in self.dead} for name in NODES]

    def kill(self, actor: FakeFollower) -> None:
        self.killed += 1


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    fake = FakeRay()
    monkeypatch.setattr(module, "ray", fake)
    monkeypatch.setattr(module, "LOOK_PAUSE_S", 0.0)
    return fake


async def started(launch: Launch = LAUNCH) -> Followers:
    followers = Followers(launch)
    await followers.gather()
    await followers.start()
    return followers


async def bounded(work: Awaitable[Any]) -> Any:
    return await asyncio.wait_for(work, BOUND_S)


async def test_all_are_told_where_to_meet(fake: FakeRay) -> None:
    followers = await started()
    leading = followers.meeting(REQUEST)
    assert leading.leader_host == "127.0.0.1"
    assert leading.leader_port > 0
    assert fake.requests == [followers.meeting(request) for request in LAUNCH.follower_requests]
    assert followers.parts == (Part("id-n1", 1, 10, 101), Part("id-n2", 2, 20, 102))
    await bounded(followers.stop(1.0))
    assert fake.said == ["stopped id-n1", "stopped id-n2"]
    assert fake.killed == 2


async def test_each_waits_for_what_it_needs_of_its_own_node(fake: FakeRay) -> None:
    followers = await started()
    assert fake.needed == [("w#1", "simulated", {0: 1, 1: 2}), ("w#1", "simulated", {0: 3})]
    await bounded(followers.wait_for_devices())
    await bounded(followers.end_turns())
    assert sorted(fake.said) == sorted(f"{what} on id-n{n}" for what in ("room", "turn over") for n in (1, 2))
    fake.no_room["id-n2"] = RayTaskError("wait", "trace", EngineError("3 bytes of n2/0 are not free"))
    with pytest.raises(EngineError, match="3 bytes of n2/0 are not free"):
        await bounded(followers.wait_for_devices())
    await bounded(followers.stop(1.0))


async def test_on_a_single_node_there_are_none(fake: FakeRay) -> None:
    alone = replace(LAUNCH, placement=Placement(NODES[:1], (), ()), follower_requests=())
    followers = await started(alone)
    assert followers.meeting(REQUEST) == REQUEST
    assert await bounded(followers.beside(asyncio.sleep(0, "ready"))) == "ready"
    await bounded(followers.stop(1.0))
    assert (fake.actors, followers.parts) == ([], ())


@pytest.mark.parametrize("lost", [False, True])
async def test_the_end_of_one_ends_whatever_the_runner_waits_for(fake: FakeRay, lost: bool) -> None:
    followers = await started()
    assert await bounded(followers.beside(asyncio.sleep(0, "ready"))) == "ready"
    fake.lost |= {"id-n2"} if lost else set()
    fake.confirms = [True]
    fake.actors[1]._end.set()
    told = "was lost" if lost else "exited with status 1"
    for _ in range(2):
        with pytest.raises(EngineError, match=f"the engine of its follower on n2 {told}"):
            await bounded(followers.beside(asyncio.Event().wait()))
    await bounded(followers.stop(1.0))


@pytest.mark.parametrize(
    ("problem", "told"),
    [
        (RayTaskError("start", "trace", EngineError("it is not installed")), "it is not installed"),
        (RayActorError(), "its follower on n2 was lost"),
    ],
)
async def test_one_that_does_not_start_says_why(fake: FakeRay, problem: Exception, told: str) -> None:
    fake.refusals[2] = problem
    followers = Followers(LAUNCH)
    await followers.gather()
    with pytest.raises(EngineError, match=told):
        await bounded(followers.start())
    await bounded(followers.stop(1.0))
    assert fake.said == ["stopped id-n1", "stopped id-n2"], "the other one is there, and has to end"


async def test_one_that_does_not_answer_is_ended_by_the_agent_of_its_node(fake: FakeRay) -> None:
    """Only when that says that it is gone, its memory is back."""
    followers = await started()
    fake.lost = {"id-n2"}
    fake.confirms = [False, True]
    await bounded(followers.stop(1.0))
    assert fake.said == ["stopped id-n1", *["kill 2 20 on id-n2", "gone? w#1 2 20"] * 2]
    assert not followers.node_lost


async def test_a_dead_node_has_nothing_left_to_end(fake: FakeRay) -> None:
    followers = await started()
    fake.lost = fake.dead = {"id-n2"}
    await bounded(asyncio.gather(followers.stop(1.0), followers.stop(1.0)))
    assert fake.said == ["stopped id-n1"]
    assert followers.node_lost


async def test_a_node_that_dies_while_it_is_asked(fake: FakeRay) -> None:
    followers = await started()
    fake.lost = {"id-n2"}
    fake.confirms = _Endless(lambda: fake.dead.add("id-n2"))
    await bounded(followers.stop(1.0))
    assert followers.node_lost


class _Endless(list[bool]):
    """Never confirmed; something happens when it is asked."""

    def __init__(self, happens: Callable[[], None]) -> None:
        super().__init__()
        self._happens = happens

    def pop(self, index: Any = -1) -> bool:
        self._happens()
        return False
