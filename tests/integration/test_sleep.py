"""Two models that exclude each other on one (pretended) GPU: the first sleeps instead of stopping, and wakes again."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from rayscheduler.cluster.agreement import held_groups
from rayscheduler.cluster.resources import resources_json
from tests.fake_nvml.driver import COMPILER, GIB, NO_COMPILER, Card, FakeDriver
from tests.fake_nvml.observer import Observer
from tests.integration.nodes import a_node
from tests.integration.test_loading import ask_engine
from tests.integration.world import Json, World, is_gone, kill

MIB = 2**20
WHOLE, LEFT = 600, 150  # MiB of each model: awake, and asleep
GPU = {"gpu-0-mib": 1000, "simulated-devices": 1}


def entry(name: str, load: str, extra: str = "") -> str:
    return (
        f"- {{name: {name}, engine: simulated, memory: {WHOLE}MiB, sleep: {{residue: {LEFT}MiB}}, cpus: 0.1,"
        f" requires: {{labels: {{zone: there}}}}, simulate: {{load: {load}, sleep: 50ms, wake: 100ms{extra}}}}}"
    )


TWO = f"models:\n{entry('big', '1500ms', ', allocate: 100MiB')}\n{entry('other', '1500ms')}"


@pytest.fixture(scope="module")
def gpu_node(service_world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with a_node(service_world, "gpus", GPU, tmp_path_factory.mktemp("gpus") / "ray.log"):
        service_world.until(lambda now: any(node["name"] == "gpus" and node["devices"] for node in now["nodes"]))
        yield
    service_world.until(lambda now: not any(node["name"] == "gpus" and node["alive"] for node in now["nodes"]))


@pytest.fixture
def two(gpu_node: None, world: World) -> World:
    world.deploy(TWO)
    return world


def states(status: Json) -> dict[str, str]:
    return {replica["id"]: replica["state"] for replica in status["replicas"]}


def agreed(world: World) -> Json:
    """The status, when nobody is on the way any more; then Ray holds what the ledger says."""
    at_rest = ("RUNNING", "ASLEEP")
    status = world.until(lambda now: not now["leaving"] and all(state in at_rest for state in states(now).values()))
    assert world.call("differences") == []
    return status


def held_mib(replica: str) -> float:
    """What Ray holds of the GPU for a replica, by all of its groups."""
    groups = held_groups().get(replica, [])  # type: ignore[call-overload]
    return sum(bundle.get("gpu-0-mib", 0) for group in groups for bundle in group.bundles)


def loaded(world: World, model: str) -> str:
    """Ask for it, and let it go again."""
    ask = world.ask(model)
    replica = str(ask.granted()["replica"])
    ask.release()
    return replica


def test_it_sleeps_and_wakes_faster_than_it_loads(two: World) -> None:
    lease = two.ask("big")
    granted = lease.granted()
    big = granted["replica"]
    lease.release()
    pids = two.pids_of(big)
    agreed(two)
    assert held_mib(big) == WHOLE
    awake_bytes = two.until(lambda now: (now["replicas"][0]["measured_bytes"] or 0) > 100 * MIB)["replicas"][0]

    other = loaded(two, "other")
    status = agreed(two)
    assert states(status) == {big: "ASLEEP", other: "RUNNING"}
    assert (held_mib(big), held_mib(other)) == (LEFT, WHOLE)
    asleep = two.replica(big)
    assert (asleep["device_bytes"], asleep["host_bytes"], asleep["naps"]) == ([LEFT * MIB], (WHOLE - LEFT) * MIB, 1)
    (node,) = (node for node in status["nodes"] if node["name"] == "gpus")
    assert node["host_memory"]["reserved_bytes"] == (WHOLE - LEFT) * MIB
    assert node["devices"][0]["reserved_bytes"] == (WHOLE + LEFT) * MIB
    assert two.model("big")["state"] == "asleep"
    assert f"{WHOLE - LEFT} MiB in host memory" in two.call("explain", big)["state"]
    two.until(lambda _: two.replica(big)["measured_bytes"] < awake_bytes["measured_bytes"] - 90 * MIB)
    with pytest.raises(urllib.error.HTTPError, match="503"):
        ask_engine(granted["endpoint"], granted["api_key"], "big")

    again = two.ask("big")
    assert again.granted() == granted, "the same engine"
    assert two.pids_of(big) == pids
    assert ask_engine(granted["endpoint"], granted["api_key"], "big")["choices"]
    again.release()
    assert states(agreed(two)) == {big: "RUNNING", other: "ASLEEP"}
    assert (held_mib(big), held_mib(other)) == (WHOLE, LEFT)
    woken = two.replica(big)
    assert 100 <= woken["turn_ms"] < woken["load_ms"] / 2
    assert two.model("big")["wake_ms"] == woken["turn_ms"]
    assert loaded(two, "other") == other
    counters = two.status()["counters"]
    assert counters["sleeps"] >= 3
    assert counters["wakes"] >= 2

    two.call("unload", "big")
    assert states(two.until_quiet()) == {other: "RUNNING"}
    assert is_gone(pids[1])


@pytest.mark.skipif(COMPILER is None, reason=NO_COMPILER)
def test_on_gpus_it_sleeps_once_the_driver_says_that_its_memory_is_back(world: World, tmp_path: Path) -> None:
    driver = FakeDriver(tmp_path, Card("GPU-a", total=5 * GIB))
    with Observer(driver) as observer:
        lent = resources_json(observer.inventory())
    with a_node(world, "cards", lent, tmp_path / "log", driver.environment()):
        world.until(lambda now: any(node["name"] == "cards" and node["devices"] for node in now["nodes"]))
        keys = "engine: simulated, memory: 4GiB, sleep: {residue: 512MiB}, simulate: {load: 1s, wake: 100ms}"
        world.deploy(f"models:\n- {{name: first, {keys}}}\n- {{name: second, {keys}}}")
        ask = world.ask("first")
        lease = ask.granted()
        first, (_, engine_pid) = lease["replica"], world.pids_of(lease["replica"])
        card = driver.cards[0]
        card.hold(engine_pid, 4 * GIB)
        driver.write()
        world.until(lambda now: now["replicas"][0]["measured_bytes"] == 4 * GIB)
        ask.release()

        second = world.ask("second")
        world.until(lambda _: says_that_it_sleeps(lease["endpoint"], lease["api_key"]))
        assert states(world.status())[first] == "SUSPENDING", "its driver says something else"
        card.processes[engine_pid] = card.used = 400 * MIB
        driver.write()
        assert states(agreed(world)) == {first: "ASLEEP", second.granted()["replica"]: "RUNNING"}
        world.until(lambda _: world.replica(first)["measured_bytes"] == 400 * MIB)
        world.deploy("models: []")
        world.until_quiet()


def says_that_it_sleeps(endpoint: str, api_key: str) -> bool:
    request = urllib.request.Request(f"{endpoint}/is_sleeping", headers={"authorization": f"Bearer {api_key}"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return bool(json.load(answer)["is_sleeping"])


def test_a_sleeping_engine_that_is_killed_is_seen(two: World) -> None:
    big, other = loaded(two, "big"), loaded(two, "other")
    agreed(two)
    kill(two.pids_of(big)[1])
    assert states(two.until_quiet()) == {other: "RUNNING"}
    assert [stop["reason"] for stop in two.decisions(decision="stop", replica=big)] == ["crashed"]


def test_what_cannot_sleep_or_wake_is_ended_and_loaded_anew(two: World) -> None:
    two.deploy(f"models:\n{entry('big', '500ms', ', fail: sleep')}\n{entry('other', '500ms', ', fail: wake')}")
    big, other = loaded(two, "big"), loaded(two, "other")
    assert "simulated failure to sleep" in two.model("big")["last_error"]
    assert loaded(two, "big") != big, "while the other one sleeps"
    assert loaded(two, "other") != other
    agreed(two)
    for replica in (big, other):
        (stop,) = two.decisions(decision="stop", replica=replica)
        assert stop["reason"] == "crashed"


def test_a_new_allocator_adopts_who_sleeps_and_who_is_on_the_way(two: World) -> None:
    slow = [entry(name, "2s").replace(": 50ms", ": 1s").replace(": 100ms", ": 1s") for name in ("big", "other")]
    two.deploy("models:\n" + "\n".join(slow))
    big, other = loaded(two, "big"), loaded(two, "other")
    agreed(two)
    engines = [two.pids_of(name) for name in (big, other)]

    two.another_allocator()
    assert states(agreed(two)) == {big: "ASLEEP", other: "RUNNING"}
    assert (held_mib(big), held_mib(other)) == (LEFT, WHOLE)

    for on_the_way in ("SUSPENDING", "WAKING"):
        lost = two.ask("big" if two.replica(big)["state"] == "ASLEEP" else "other")
        two.until(lambda now, state=on_the_way: state in states(now).values())  # type: ignore[misc]
        two.another_allocator()
        with pytest.raises(ray.exceptions.RayActorError):
            lost.answer()
        asleep = {name for name, state in states(agreed(two)).items() if state == "ASLEEP"}
        assert [held_mib(name) for name in (big, other)] == [LEFT if name in asleep else WHOLE for name in (big, other)]

    assert loaded(two, "big") == big
    assert loaded(two, "other") == other
    assert states(agreed(two)) == {big: "ASLEEP", other: "RUNNING"}
    assert [two.pids_of(name) for name in (big, other)] == engines, "nothing was loaded again"
