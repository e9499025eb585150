"""LoRA adapters in the catalog: entries with `base`, what is wrong with one, and what a rehearsal makes of them."""

from __future__ import annotations

import pytest

from rayscheduler.config.scenario import scenario_from_text
from rayscheduler.config.service import config_from_json, config_from_text
from rayscheduler.errors import ConfigError
from rayscheduler.simulation.scenario import Request

MODELS = """\
models:
- {name: llama, aliases: [l], engine: vllm, source: org/llama, memory: 40GiB, max_loras: 2, max_lora_rank: 64}
- {name: gguf, engine: llama-cpp, source: a.gguf, memory: 4GiB}
- {name: bot, base: llama, source: ./adapters/bot, aliases: [support]}
- {name: sql, base: llama, source: org/sql}
- {name: late, engine: simulated, memory: 1GiB}
- {name: imagined, base: late}
"""


def test_adapters_are_entries_of_their_own() -> None:
    config = config_from_text(MODELS, folder="/srv")
    assert [model.name for model in config.models] == ["llama", "gguf", "late"]
    assert [(a.name, a.base, a.source) for a in config.adapters] == [
        ("bot", "llama", "/srv/adapters/bot"),
        ("sql", "llama", "org/sql"),
        ("imagined", "late", None),
    ]
    assert config.aliases == {"l": "llama", "support": "bot"}
    assert [model.name for model in config.core_models()] == ["llama", "gguf", "late"], "the core knows models only"
    assert [config.line_of(index) for index in range(3)] == [2, 3, 6]
    llama, _, late = config.models
    told = llama.engine_fields()
    assert (told["adapters"], told["max_loras"], told["max_lora_rank"]) == (("/srv/adapters/bot", "org/sql"), 2, 64)
    assert late.engine_fields()["max_loras"] == 1, "as many as there are"


def test_a_stored_config_keeps_its_adapters() -> None:
    config = config_from_text(MODELS, folder="/srv")
    stored = config_from_json(config.to_json())
    assert (stored.models, stored.adapters) == (config.models, config.adapters)


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        (
            "{name: x, base: llama, source: a/b, memory: 3GiB}",
            "models[5].memory: an adapter is loaded into the replicas of its base, which has its own memory; "
            "remove it, or write it at 'llama'",
        ),
        (
            "{name: x, base: llama, source: a/b, engine: vllm}",
            "models[5].engine: an adapter is loaded into the replicas of its base, which has its own engine; "
            "remove it, or write it at 'llama'",
        ),
        ("{name: x, base: lama, source: a/b}", "models[5].base: there is no model 'lama'; did you mean llama?"),
        ("{name: x, base: l, source: a/b}", "models[5].base: 'l' is an alias; write the name, base: llama"),
        (
            "{name: x, base: bot, source: a/b}",
            "models[5].base: 'bot' is an adapter itself; name the model, for example base: llama",
        ),
        (
            "{name: x, base: gguf, source: a/b}",
            "models[5].base: the base 'gguf' cannot have adapters: llama-cpp takes adapters only when it starts, and "
            "by a field of each request; merge it into the GGUF file with llama-export-lora, or use engine: vllm or "
            "sglang",
        ),
        (
            "{name: x, base: llama}",
            "models[5]: 'x' has no source; add the adapter's folder, source: ./adapter, or its id on the hub, "
            "source: org/adapter",
        ),
        ("{name: x, base: llama, sorce: a}", "models[5].sorce: the key 'sorce' is unknown; did you mean source?"),
        ("{name: x, base: llama, source: }", "models[5].source: is empty; give it a value or remove the key"),
        ("{base: llama, source: a/b}", "models[5]: the key 'name' is missing; add for example name: support-bot"),
        (
            "{name: bot, base: llama, source: a/b}",
            "models[5].name: the model 'bot' stands twice, first in line 4; give each a name of its own",
        ),
        (
            "{name: x, base: llama, source: a/b, aliases: [sql]}",
            "models[5].aliases[0]: the alias 'sql' shadows the model of that name; choose another alias or remove it",
        ),
        (
            "{name: x, engine: llama-cpp, source: a.gguf, memory: 1GiB, max_loras: 2}",
            "models[5].max_loras: is for vllm, sglang, simulated, and the engine llama-cpp would not heed it; "
            "remove it",
        ),
    ],
)
def test_what_can_be_wrong(entry: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config_from_text(MODELS.replace("- {name: imagined, base: late}", f"- {entry}"), "f.yaml")
    assert str(caught.value) == f"f.yaml:7: {told}"


def test_a_group_holds_models() -> None:
    groups = "scheduler: {policy: groups, groups: {one: {members: [bot]}}}\n"
    with pytest.raises(ConfigError, match="'bot' is an adapter, which is where its base is; write its base, llama"):
        config_from_text(groups + MODELS)


def test_a_catalog_with_adapters_is_rehearsed() -> None:
    """A request for an adapter is one for its base, and so is a start state."""
    day = "nodes: [{name: n1, backend: nvidia, devices: 1x80GiB}]\nreplicas: [{model: bot, devices: [n1/0]}]\n"
    asks = "events:\n- {at: 1s, request: r1, model: support, duration: 1s}\n"
    asks += "- {at: 2s, request: r2, model: sql, duration: 1s}\n"
    scenario = scenario_from_text(day + MODELS + asks)
    assert [model.name for model in scenario.models] == ["llama", "gguf", "late"]
    assert scenario.replicas[0].id == "llama#1"
    asked = [at.what for at in scenario.events]
    assert [each.model for each in asked if isinstance(each, Request)] == ["llama", "llama"]
