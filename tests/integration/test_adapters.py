"""LoRA adapters over HTTP: models to their clients, one replica of their base to the cluster."""

from __future__ import annotations

from typing import Any

from tests.integration.front_door import EngineWindow, FrontDoor
from tests.integration.world import WITHIN_S, World

CHAT = "/v1/chat/completions"
CATALOG = """
models:
- {name: llama, engine: simulated, memory: 600MiB, max_loras: 2, simulate: {load: 0s}}
- {name: bot, base: llama, aliases: [support]}
- {name: sql, base: llama}
- {name: poet, base: llama}
- {name: broken, base: llama, source: ./nowhere}
"""


def counts(world: World) -> tuple[int, int]:
    """Loads and unloads of adapters, as their engine has seen them."""
    with EngineWindow(world, "llama") as engine:
        stats = engine.stats()
    return stats["adapter_loads"], stats["adapter_unloads"]


def held(world: World) -> list[str]:
    (replica,) = world.status()["replicas"]
    return list(replica["adapters"])


def told_of(front: FrontDoor, name: str) -> dict[str, Any]:
    return dict(front.get(f"/v1/models/{name}"))


def test_adapters_share_a_replica_of_their_base(world: World) -> None:
    world.deploy(CATALOG)
    with FrontDoor(world.url) as front:
        asked = [front.meanwhile(front.chat, name) for name in ("bot", "support", "sql", "llama")]
        said = [each.result(WITHIN_S) for each in asked]
        assert said == [f"This is {name}, simulated." for name in ("bot", "bot", "sql", "llama")]
        assert len(world.decisions(decision="start", model="llama")) == 1, "the base is loaded once"
        assert counts(world) == (2, 0), "and each adapter"
        assert sorted(held(world)) == ["bot", "sql"]
        assert (told_of(front, "support")["parent"], told_of(front, "bot")["loaded"]) == ("llama", True)
        assert told_of(front, "poet")["loaded"] is False

        front.chat("bot")
        assert front.chat("poet") == "This is poet, simulated."
        assert held(world) == ["bot", "poet"], "sql was used longest ago"
        assert counts(world) == (3, 1)

        message = front.refused(
            CHAT, {"model": "broken", "messages": [{"role": "user", "content": "?"}]}, 422, "adapter_refused"
        )
        assert "No adapter found for" in message
        assert front.chat("llama") == "This is llama, simulated.", "its base does not suffer"

        first = world.status()["replicas"][0]["id"]
        world.call("unload", "llama")
        assert front.chat("sql") == "This is sql, simulated."
        assert world.status()["replicas"][0]["id"] != first
        assert held(world) == ["sql"], "what the old replica held is gone with it"
        assert counts(world) == (1, 0)


def test_operators_load_and_unload_an_adapter(world: World) -> None:
    world.deploy(CATALOG)
    told = world.call("load", "support", True)
    assert told["ok"], told
    assert told["message"].startswith("bot is loaded in llama#")
    assert held(world) == ["bot"]
    assert world.call("pin", "bot", True)["error"]["message"] == (
        "bot is an adapter, which is where its base is: pin llama"
    )
    assert world.call("unload", "bot")["message"].startswith("bot is unloaded from llama#")
    assert world.until(lambda now: now["replicas"][0]["adapters"] == [])["replicas"], "its base stays"
    assert world.call("load", "broken", True)["error"]["code"] == "adapter_refused"


def test_a_new_allocator_knows_what_is_loaded(world: World) -> None:
    world.deploy(CATALOG)
    world.ask("bot").granted()
    world.another_allocator()
    world.until(lambda now: [replica["adapters"] for replica in now["replicas"]] == [["bot"]])
    lease = world.ask("bot").granted()
    assert lease["model"] == "bot"
    assert counts(world) == (1, 0)
