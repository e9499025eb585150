"""Models whose memory nobody states: estimated by a node that has the file, measured, learned; and statements
that their files contradict."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.world import Json, World
from tests.tiny_gguf import write_tiny_gguf

MIB = 2**20
# A micro-batch of which an engine that says little touches little: it takes far less than its buffers would hold.
CATALOG = """
models:
- {name: sized, engine: llama-cpp, source: "%(file)s", context_length: 512, concurrency: 2,
   args: [--threads, "1", --ubatch-size, "4096", --batch-size, "4096"]}
- {name: wrong, engine: llama-cpp, source: "%(file)s", context_length: 512, memory: 8MiB}
- {name: missing, engine: llama-cpp, source: /nowhere/none.gguf}
- {name: other, engine: simulated, memory: 100MiB, simulate: {load: 0s}}
"""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("xllamacpp")
    return write_tiny_gguf(tmp_path_factory.mktemp("models") / "tiny.gguf", size_bytes=4 * MIB)


@pytest.fixture
def sized(world: World, tiny: Path) -> World:
    world.deploy(CATALOG % {"file": tiny})
    return world


def figure(world: World, name: str) -> Json:
    """What is believed of a model on one device."""
    return dict(world.model(name)["memory"]["by_count"][0])


def known(name: str, holds: Callable[[Json], bool]) -> Callable[[Json], bool]:
    """For `until`: the figure of a model is there and it holds."""

    def look(now: Json) -> bool:
        model = next(model for model in now["models"] if model["name"] == name)
        return any(holds(figure) for figure in model["memory"]["by_count"])

    return look


def test_estimated_then_measured_then_learned(sized: World) -> None:
    asks = [sized.ask("sized") for _ in range(2)]
    first = asks[0].granted()["replica"]
    asks[1].granted()
    told = figure(sized, "sized")
    assert (told["count"], told["source"], told["stated_bytes"]) == (1, "estimated", None)
    assert sum(told["parts_bytes"].values()) == told["estimated_bytes"]
    assert sized.replica(first)["device_bytes"] == [told["estimated_bytes"]]

    sized.until(known("sized", lambda figure: figure["exercised"] and figure["source"] == "learned"))
    learned = figure(sized, "sized")
    assert learned["estimated_bytes"] == told["estimated_bytes"], "side by side"
    assert 4 * MIB < learned["measured_bytes"] <= learned["reserved_bytes"] < told["estimated_bytes"]
    assert sized.replica(first)["device_bytes"] == [told["estimated_bytes"]], "this one has what it was promised"
    for ask in asks:
        ask.release()

    sized.until_quiet()
    sized.another_allocator()
    assert [replica["id"] for replica in sized.until_quiet()["replicas"]] == [first], "it was adopted"
    sized.until(known("sized", lambda figure: figure["source"] == "learned"))  # once its node is heard of
    assert figure(sized, "sized")["reserved_bytes"] == learned["reserved_bytes"]

    sized.call("unload", "sized")
    sized.until(lambda now: not now["replicas"])
    second = sized.ask("sized").granted()["replica"]
    assert second != first
    assert sized.replica(second)["device_bytes"] == [learned["reserved_bytes"]]
    sized.until_quiet()


def test_a_refused_statement_and_a_missing_file_concern_nobody_else(sized: World) -> None:
    refused = sized.ask("wrong").rejected()
    assert (refused["status"], refused["code"]) == (422, "memory_contradicted")
    assert "its memory says 8 MiB on one device, but its files say" in refused["message"]
    assert "The files are believed" in refused["message"]
    missing = sized.ask("missing").rejected()
    assert (missing["status"], missing["code"]) == (503, "load_failed")
    assert "/nowhere/none.gguf does not exist" in missing["message"]
    assert sized.ask("other").granted()

    states = {model["name"]: model["state"] for model in sized.status()["models"]}
    assert (states["wrong"], states["missing"], states["other"]) == ("refused", "unsized", "loaded")
    assert sized.model("wrong")["last_error"] == refused["message"]
    assert sized.call("load", "wrong", True)["error"]["message"] == refused["message"]
    assert refused["message"] in sized.call("explain", "wrong")["state"]
    sized.until_quiet()


def test_an_operator_who_insists_is_trusted(sized: World, tiny: Path) -> None:
    assert sized.ask("wrong").rejected()
    sized.deploy((CATALOG % {"file": tiny}).replace("memory: 8MiB", "memory: 8MiB, trust: true"))
    replica = sized.ask("wrong").granted()["replica"]
    assert sized.replica(replica)["device_bytes"] == [8 * MIB]
    sized.until_quiet()
