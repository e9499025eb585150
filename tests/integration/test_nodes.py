"""Nodes that come, lend nothing, pretend to have devices, and die."""

from __future__ import annotations

from pathlib import Path

from rayscheduler.cluster.resources import detect_devices, resources_json
from tests.integration.nodes import a_node, kill_raylet
from tests.integration.world import World, is_gone

MODELS = """
models:
- {name: wide, engine: simulated, memory: 1600MiB, gpus: [2], simulate: {load: 0s}}
- {name: real, engine: command, memory: 1100MiB, args: ["true"]}
- {name: small, engine: simulated, memory: 100MiB, simulate: {load: 0s}, requires: {labels: {zone: there}}}
- {name: host, engine: simulated, memory: 50MiB, gpus: [0], simulate: {load: 0s}, requires: {labels: {zone: there}}}
"""


def test_pretended_devices_take_simulated_models_only_and_die_with_their_node(world: World, tmp_path: Path) -> None:
    world.deploy(MODELS)
    lent = resources_json(detect_devices(simulate="2x1GiB"))
    with a_node(world, "there", lent, tmp_path / "there.log") as raylet:
        status = world.until(lambda now: [n for n in now["nodes"] if n["name"] == "there" and n["devices"]])
        (node,) = [node for node in status["nodes"] if node["name"] == "there"]
        assert (node["backend"], node["simulated"], node["lends"]) == ("nvidia", True, True)
        assert [(device["id"], device["type"]) for device in node["devices"]] == [
            ("there/0", "simulated"),
            ("there/1", "simulated"),
        ]
        assert world.ask("real").rejected()["code"] == "never_fits", "a real engine has no use for pretended devices"

        names = [world.ask(model).granted()["replica"] for model in ("wide", "small", "host")]
        assert world.replica(names[0])["devices"] == ["there/0", "there/1"]
        assert world.replica(names[0])["device_bytes"] == [800 * 2**20] * 2
        assert world.replica(names[2])["devices"] == []
        world.until_quiet()
        engines = [world.pids_of(name)[1] for name in names]

        kill_raylet(raylet)
        world.until(lambda now: not now["replicas"])
        assert [world.decisions(decision="stop", replica=name)[0]["reason"] for name in names] == ["node_lost"] * 3
        status = world.until_quiet()
        assert [node["alive"] for node in status["nodes"] if node["name"] == "there"] == [False]
        world.until(lambda _: all(map(is_gone, engines)))


def test_a_node_that_lends_nothing_says_how_to_mend_that(world: World, tmp_path: Path) -> None:
    with a_node(world, "idle", {}, tmp_path / "idle.log"):
        status = world.until(lambda now: [n for n in now["nodes"] if n["name"] == "idle"])
        (node,) = [node for node in status["nodes"] if node["name"] == "idle"]
        assert (node["alive"], node["lends"], node["devices"]) == (True, False, [])
        assert f"ray start --address={world.service.address} " in node["mend"]
        assert "rayscheduler resources" in node["mend"]
