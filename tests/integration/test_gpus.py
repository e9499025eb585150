"""A node with (pretended) NVIDIA GPUs: what its driver says reaches the scheduler, and what it decides the engines."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rayscheduler.cluster.resources import resources_json
from rayscheduler.engines import EngineRequest
from rayscheduler.engines.simulated import Simulated
from tests.fake_nvml.driver import COMPILER, GIB, NO_COMPILER, Card, FakeDriver
from tests.fake_nvml.observer import Observer
from tests.integration.nodes import a_node
from tests.integration.world import World

pytestmark = pytest.mark.skipif(COMPILER is None, reason=NO_COMPILER)

Json = dict[str, Any]


def model(name: str, memory: str, load_ms: int) -> str:
    """One whose engine may profile free memory, for all that we know."""
    command = Simulated().command(EngineRequest(name, name, simulate={"load": load_ms}), 0, "", "")
    plan = json.loads(command.argv[-1]) | {"host": "${HOST}", "port": "PORT"}
    text = json.dumps(plan).replace('"PORT"', "${PORT}")
    entry = {
        "name": name, "engine": "command", "memory": memory, "placement": {"node": "gpus", "devices": ["gpus/0"]},
        "pinned": True, "args": [*command.argv[:-1], text],
    }  # fmt: skip
    return json.dumps(entry)


MODELS = f"""
models:
- {model("first", "4GiB", 1500)}
- {model("second", "4GiB", 1500)}
"""


@pytest.fixture
def stranger() -> Iterator[int]:
    with subprocess.Popen(["sleep", "600"]) as process:
        yield process.pid
        process.kill()


def device_of(status: Json, name: str) -> Json:
    (found,) = [each for node in status["nodes"] for each in node["devices"] if each["id"] == name]
    return dict(found)


def runners(status: Json) -> list[str]:
    return sorted(replica["runner"] or "" for replica in status["replicas"])


def test_gpus_from_driver_to_engine_and_back(world: World, tmp_path: Path, stranger: int) -> None:
    driver = FakeDriver(tmp_path, *(Card(f"GPU-{name}", total=10 * GIB) for name in "ab"))
    with Observer(driver) as observer:
        lent = resources_json(observer.inventory())
    with a_node(world, "gpus", lent, tmp_path / "log", driver.environment()):
        status = world.until(lambda now: [n for n in now["nodes"] if n["name"] == "gpus" and n["devices"]])
        (node,) = [node for node in status["nodes"] if node["name"] == "gpus"]
        assert node["driver"] == "NVIDIA 580.65.06"
        device = device_of(status, "gpus/0")
        assert (device["uuid"], device["type"], device["compute_capability"]) == ("GPU-a", "H100", "9.0")

        # Two that profile memory start one after the other.
        world.deploy(MODELS)
        asks = [world.ask("first"), world.ask("second")]
        world.until(lambda now: runners(now) == ["loading", "queued"])
        replicas = [ask.granted()["replica"] for ask in asks]
        _, engine_pid = world.pids_of(replicas[0])
        assert b"CUDA_VISIBLE_DEVICES=GPU-a" in Path(f"/proc/{engine_pid}/environ").read_bytes().split(b"\0")

        # What they and others hold is measured.
        driver.cards[0].hold(engine_pid, 3 * GIB)
        driver.cards[1].hold(stranger, 2 * GIB)
        driver.write()
        status = world.until(
            lambda now: device_of(now, "gpus/1")["used_by_others_bytes"] and device_of(now, "gpus/0")["measured_bytes"]
        )
        assert world.replica(replicas[0])["measured_device_bytes"] == [3 * GIB]
        assert [(each["pid"], each["name"], each["held_bytes"]) for each in device_of(status, "gpus/1")["foreign"]] == [
            (stranger, "sleep", 2 * GIB)
        ]

        # A device that fails loses what is on it, and is offered again when it was reset.
        driver.cards[0].report(79)
        driver.write()
        world.until(lambda now: not device_of(now, "gpus/0")["offered"] and not now["replicas"])
        assert [world.decisions(decision="stop", replica=name)[0]["reason"] for name in replicas] == ["device_lost"] * 2
        (node,) = [node for node in world.status()["nodes"] if node["name"] == "gpus"]
        assert "device 0 is lost: Xid 79, the GPU has fallen off the bus" in node["mend"]
        cards = list(driver.cards)
        driver.cards.clear()
        driver.write()
        world.until(lambda now: not device_of(now, "gpus/1")["offered"])  # so the agent has looked meanwhile
        cards[0].processes.clear()
        cards[0].used = 0
        driver.cards[:] = cards
        driver.write()
        world.until(lambda now: device_of(now, "gpus/0")["offered"] and device_of(now, "gpus/1")["offered"])
        assert world.ask("first").granted()["replica"] not in replicas
        world.deploy("models: []")
        world.until_quiet()
