"""One replica over two nodes of a cluster of three: it comes, serves, ends, dies, is adopted and is lost as one."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import psutil
import pytest

from rayscheduler.cluster.agreement import held_groups
from rayscheduler.cluster.resources import detect_devices, resources_json
from rayscheduler.core.types import ReplicaId
from tests.integration.nodes import a_node, kill_raylet
from tests.integration.world import Json, World, is_gone, kill

MIB = 2**20
MODELS = """
models:
- {name: wide, engine: simulated, memory: 1600MiB, gpus: [2], across_nodes: true, simulate: {load: 0s}}
- {name: half, engine: simulated, memory: 900MiB, gpus: [1], simulate: {load: 0s}, requires: {labels: {zone: there}}}
"""


class Pair:
    """Two nodes of one pretended GPU each, beside the head, which lends RAM only. Lost ones are replaced."""

    def __init__(self, world: World, folder: Path) -> None:
        self._world = world
        self._folder = folder
        self._lent = resources_json(detect_devices(simulate="1x1GiB"))
        self._raylets: dict[str, subprocess.Popen[bytes]] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Pair:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def complete(self) -> None:
        """Both are there, and the core knows it. One after the other: Ray's nodes take ports in a race."""
        for name in ("left", "right"):
            # Ray gives up on a node that is not up within half a minute, which a busy machine may need.
            while name not in self._raylets:
                self._start(name)

    def lose(self, name: str) -> None:
        kill_raylet(self._raylets.pop(name))

    def _start(self, name: str) -> None:
        raylet = self._stack.enter_context(a_node(self._world, name, self._lent, self._folder / f"{name}.log"))

        def joined(now: Json) -> bool:
            return any(node["name"] == name and node["devices"] for node in now["nodes"])

        if joined(self._world.until(lambda now: joined(now) or raylet.poll() is not None, within_s=90)):
            self._raylets[name] = raylet


@pytest.fixture(scope="module")
def started_pair(service_world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with Pair(service_world, tmp_path_factory.mktemp("nodes")) as pair:
        yield pair


@pytest.fixture
def pair(started_pair: Pair, world: World) -> Pair:
    world.deploy(MODELS)
    started_pair.complete()
    return started_pair


def loaded(world: World) -> Json:
    """The replica of `wide`, as the status has it, when it runs on both nodes."""
    name = world.ask("wide").granted()["replica"]
    world.until_quiet()
    return world.replica(name)


def pids_of(replica: Json) -> list[int]:
    return [part[pid] for part in replica["parts"] for pid in ("runner_pid", "engine_pid")]


def gone(world: World, replica: Json) -> str:
    """Waits until the core takes it for gone, which is when nothing of it runs any more; why it left."""
    world.until(lambda now: not any(each["id"] == replica["id"] for each in now["replicas"]))
    engines = [part["engine_pid"] for part in replica["parts"]]
    assert [is_gone(pid) for pid in engines] == [True, True], "its memory counts as free, so it has to be"
    world.until_quiet()
    assert held_groups().get(ReplicaId(replica["id"])) is None
    world.until(lambda _: all(map(is_gone, pids_of(replica))))
    (stop,) = world.decisions(decision="stop", replica=replica["id"])
    return str(stop["reason"])


def test_it_is_loaded_on_both_nodes_serves_and_is_stopped_whole(world: World, pair: Pair) -> None:
    replica = loaded(world)
    assert replica["nodes"] == ["left", "right"]
    assert replica["devices"] == ["left/0", "right/0"]
    assert replica["device_bytes"] == [800 * MIB, 800 * MIB]
    (group,) = held_groups()[ReplicaId(replica["id"])]
    assert [bundle["gpu-0-mib"] for bundle in group.bundles] == [800, 800]
    assert len(set(pids_of(replica))) == 4
    assert not any(map(is_gone, pids_of(replica)))

    question = {"model": "wide", "messages": [{"role": "user", "content": "where are you?"}]}
    answer = httpx.post(f"{world.url}/v1/chat/completions", json=question, timeout=60)
    assert "This is wide" in answer.text

    status = world.until(lambda now: all(part["measured_bytes"] for part in now["replicas"][0]["parts"]))
    measured = status["replicas"][0]
    assert measured["measured_bytes"] == sum(part["measured_bytes"] for part in measured["parts"])

    world.call("unload", "wide")
    assert gone(world, replica) == "unloaded"


def test_the_death_of_a_follower_is_a_crash_of_all_and_a_request_loads_it_again(world: World, pair: Pair) -> None:
    replica = loaded(world)
    for node, process in ((1, "engine_pid"), (1, "runner_pid")):
        kill(replica["parts"][node][process])
        assert gone(world, replica) == "crashed"
        before, replica = replica, loaded(world)
        assert replica["id"] != before["id"]
        assert replica["nodes"] == ["left", "right"]


def test_a_new_allocator_adopts_it_with_its_followers(world: World, pair: Pair) -> None:
    before = loaded(world)
    world.another_allocator()
    after = world.until_quiet()["replicas"]
    assert [(each["id"], pids_of(each)) for each in after] == [(before["id"], pids_of(before))]

    runner = before["parts"][0]["runner_pid"]
    psutil.Process(runner).suspend()  # it cannot end anything itself, nor say so
    kill(before["parts"][0]["engine_pid"])
    # Until the kernel has closed its socket, an engine that was killed still seems to answer.
    world.until(lambda _: world.call("replica_unreachable", before["id"], "r") == {"gone": True})
    assert gone(world, before) == "crashed"


def test_a_lost_node_loses_it_and_the_other_nodes_memory_comes_back(world: World, pair: Pair) -> None:
    replica = loaded(world)
    pair.lose("right")
    assert gone(world, replica) == "node_lost"
    assert world.model("wide")["failures"] == 0, "nobody but the node is to blame"
    lease = world.ask("half").granted()
    assert world.replica(lease["replica"])["devices"] == ["left/0"]
