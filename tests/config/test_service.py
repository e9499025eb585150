"""The service's file: the real catalog, its engines, and what can be wrong with them."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from rayscheduler.config.service import ModelEntry, ServiceConfig, config_from_json, config_from_text, load_config
from rayscheduler.core.types import PolicyName
from rayscheduler.errors import ConfigError

GIB = 2**30
FILE = """\
scheduler: {policy: serial, patience: never, stale_after: 1500ms, tiers: {1: 5}}
models:
  - name: smollm2
    aliases: [small, gpt-3.5-turbo]
    engine: llama-cpp
    source: models/smollm2.gguf
    memory: 400MiB
    context_length: 4096
    idle_timeout: never
  - name: "1.5"
    engine: command
    source: org/model
    args: [vllm, serve, "${MODEL}", --port, "${PORT}", --seed, 7]
    env: {HF_HUB_OFFLINE: 1, DEBUG: on}
    ready_path: /ready
    load_timeout: 10m
    concurrency: 16
    cpus: 0.5
    memory_per_device: {1: 60GiB, 2: 33GiB}
  - name: pretend
    engine: simulated
    memory: 1GiB
    embedding: true
    requires: {backend: , types: [H100]}
    simulate: {load: 2s, unload: 100ms, tokens_per_second: 50, reply: "hello\\nthere",
               fail: crash, fail_after: 5s, allocate: 1MiB}
"""


@pytest.fixture
def config(tmp_path: Path) -> ServiceConfig:
    path = tmp_path / "service.yaml"
    path.write_text(FILE)
    return load_config(path)


def test_the_catalog(config: ServiceConfig, tmp_path: Path) -> None:
    small, command, pretend = config.models
    assert (small.engine, small.kind, small.concurrency, small.load_timeout_ms) == ("llama-cpp", "chat", 4, 300_000)
    assert small.source == str(tmp_path / "models" / "smollm2.gguf")
    assert config.aliases == {"small": "smollm2", "gpt-3.5-turbo": "smollm2"}
    assert (command.name, command.source, command.load_timeout_ms) == ("1.5", "org/model", 600_000)
    assert command.args == ["vllm", "serve", "${MODEL}", "--port", "${PORT}", "--seed", "7"]
    assert command.env == {"HF_HUB_OFFLINE": "1", "DEBUG": "on"}
    assert (pretend.kind, pretend.to_model().load_ms) == ("embedding", 2000)
    assert [model.concurrency for model in config.core_models()] == [4, 16, 4]
    assert config.core_models()[1].requirement.bytes_by_count == {1: 60 * GIB, 2: 33 * GIB}
    assert [config.line_of(index) for index in range(4)] == [3, 10, 20, None]


def test_the_settings(config: ServiceConfig) -> None:
    settings = config.settings()
    assert (settings.policy, settings.patience_ms, settings.stale_after_ms) == (PolicyName.SERIAL, None, 1500)
    assert settings.tiers == {"1": 5}


def test_what_engines_are_told(config: ServiceConfig) -> None:
    assert config.models[1].engine_fields() == {
        "model": "1.5",
        "source": "org/model",
        "daemon": None,
        "args": ("vllm", "serve", "${MODEL}", "--port", "${PORT}", "--seed", "7"),
        "env": {"HF_HUB_OFFLINE": "1", "DEBUG": "on"},
        "context_length": None,
        "concurrency": 16,
        "embedding": False,
        "ready_path": "/ready",
        "load_timeout_ms": 600_000,
        "simulate": {},
        "pipeline": 1,
        "max_batched_tokens": None,
        "kv_type": None,
        "kv_cache_bytes": None,
        "python": None,
        "runtime_env": {},
        "adapters": (),
        "max_loras": 0,
        "max_lora_rank": None,
    }
    assert config.models[2].engine_fields()["simulate"] == {
        "load": 2000,
        "unload": 100,
        "tokens_per_second": 50.0,
        "reply": "hello\nthere",
        "fail": "crash",
        "fail_after": 5000,
        "fail_status": 1,
        "allocate": 2**20,
    }


def test_a_stored_config_reads_back_as_itself(config: ServiceConfig) -> None:
    stored = config_from_json(config.to_json())
    assert stored.models == config.models
    assert stored.scheduler == config.scheduler
    assert stored.settings() == config.settings()
    assert stored.to_json() == config.to_json()
    assert pickle.loads(pickle.dumps(config)) == config


@pytest.mark.parametrize(
    ("source", "engine", "absolute"),
    [
        ("a.gguf", "llama-cpp", "/srv/a.gguf"),
        ("../a.gguf", "llama-cpp", "/a.gguf"),
        ("/b/a.gguf", "llama-cpp", "/b/a.gguf"),
        ("~/a.gguf", "llama-cpp", "~/a.gguf"),
        ("https://host/a.gguf", "llama-cpp", "https://host/a.gguf"),
        ("org/model", "command", "org/model"),
        ("./model", "command", "/srv/model"),
        ("llama3.2:3b", "ollama", "llama3.2:3b"),
    ],
)
def test_sources_are_relative_to_the_file(source: str, engine: str, absolute: str) -> None:
    text = f"models: [{{name: a, engine: {engine}, args: [x], memory: 1GiB, source: '{source}'}}]"
    assert config_from_text(text, folder="/srv").models[0].source == absolute


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("{name: a, memory: 1GiB}", ": the key 'engine' is missing; add for example engine: llama-cpp"),
        ("{name: a, memory: 1GiB, engine: vlm}",
         ".engine: 'vlm' is not one of the engines; did you mean vllm?"),
        ("{name: a, memory: 1GiB, engine: lama-cpp}",
         ".engine: 'lama-cpp' is not one of the engines; did you mean llama-cpp?"),
        ("{name: a, memory: 1GiB, engine: llama-cpp}",
         ": 'a' has no source; add the path of its GGUF file, source: model.gguf"),
        ("{name: a, memory: 1GiB, engine: ollama}",
         ": 'a' has no source; add its name in `ollama list`, source: llama3.2:3b"),
        ("{name: a, memory: 1GiB, engine: llama-cpp, source: a.gguf, daemon: 'http://127.0.0.1:11434'}",
         ".daemon: the engine llama-cpp uses no daemon; remove it, or use engine: ollama"),
        ("{name: a, memory: 1GiB, engine: command}",
         ": 'a' has no args, the command that serves it; "
         "add for example args: [vllm, serve, org/model, --port, '${PORT}']"),
        ("{name: a, memory: 1GiB, engine: command, args: vllm serve}",
         ".args: 'vllm serve' is not a list; write for example [vllm serve]"),
        ("{name: a, memory: 1GiB, engine: command, args: [[x]]}",
         ".args[0]: a list is not text; write one piece of text, in quotes where in doubt"),
        ("{name: a, engine: simulated}",
         ": 'a' says no memory; add what one replica takes, for example memory: 60GiB"),
        ("{name: a, engine: simulated, memory: 0}",
         ".memory: '0' is no memory; write a size of more than 0, for example 80GiB"),
        ("{name: a, engine: simulated, memory: 1GiB, ready_path: health}",
         ".ready_path: 'health' does not start with /; write a path of the engine's server, for example /health"),
        ("{name: a, engine: simulated, memory: 1GiB, load_timeout: 0s}",
         ".load_timeout: gives a load no time at all; write for example 5m"),
        ("{name: a, engine: simulated, memory: 1GiB, load_timeout: never}",
         ".load_timeout: 'never' has no meaning here; write a duration, for example 10s"),
        ("{name: a, engine: simulated, memory: 1GiB, context_length: 0}",
         ".context_length: '0' is too small; write 1 or more, for example 1"),
        ("{name: a, engine: simulated, memory: 1GiB, env: [A=1]}",
         ".env: a list is not a mapping; write for example {key: value}"),
        ("{name: a, engine: simulated, memory: 1GiB, env: {A B: 1}}",
         ".env.'A B': 'A B' is not the name of an environment variable; "
         "write letters, digits and _, for example OMP_NUM_THREADS"),
        ("{name: a, engine: simulated, memory: 1GiB, simulate: {tokens_per_second: 0}}",
         ".simulate.tokens_per_second: '0' is out of range; write a number above 0, for example 50"),
        ("{name: a, engine: simulated, memory: 1GiB, simulate: {allocate: lots}}",
         ".simulate.allocate: 'lots' is not a size; write for example 80GiB"),
        ("{name: a, engine: simulated, memory: 1GiB, simulate: {fail: load, fail_status: 256}}",
         ".simulate.fail_status: '256' is not an exit status; write 0 to 255, for example 1"),
        ("{name: a, engine: simulated, memory: 1GiB, sorce: x}",
         ".sorce: the key 'sorce' is unknown; did you mean source?"),
    ],
)  # fmt: skip
def test_bad_entries(entry: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config_from_text(f"scheduler: {{}}\nmodels:\n- {entry}\n", "s.yaml")
    assert str(caught.value) == f"s.yaml:3: models[0]{message}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("scheduler: {}\n", "s.yaml:1: the key 'models' is missing; add for example "
         "models: [{name: a, engine: llama-cpp, source: a.gguf, memory: 2GiB}]"),
        ("models: []\nnodes: []\n", "s.yaml:2: nodes: the key 'nodes' is unknown; did you mean models?"),
        ("models:\n- {name: a, engine: simulated, memory: 1GiB}\n- {name: a, engine: simulated, memory: 1GiB}\n",
         "s.yaml:3: models[1].name: the model 'a' stands twice, first in line 2; give each a name of its own"),
        ("models:\n- {name: a, engine: simulated, memory: 1GiB}\n"
         "- {name: b, engine: simulated, memory: 1GiB,\n   aliases: [a]}\n",
         "s.yaml:4: models[1].aliases[0]: the alias 'a' shadows the model of that name; "
         "choose another alias or remove it"),
        ("models: [\n", "s.yaml:1: broken YAML: "),
    ],
)  # fmt: skip
def test_bad_files(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config_from_text(text, "s.yaml")
    assert str(caught.value).startswith(message)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: there is no such file; check the path$"):
        load_config(tmp_path / "none.yaml")


def one(text: str) -> ModelEntry:
    (entry,) = config_from_text(f"models: [{text}]").models
    return entry


def test_an_engine_that_reads_files_may_leave_its_memory_to_an_estimate() -> None:
    entry = one("{name: a, engine: llama-cpp, source: a.gguf, gpus: [1, 2]}")
    assert (entry.says_memory, entry.can_be_estimated) == (False, True)
    assert (entry.device_counts, entry.bytes_by_count()) == ([1, 2], {})
    again = config_from_json(config_from_text("models: [{name: a, engine: llama-cpp, source: a.gguf}]").to_json())
    assert again.models[0].says_memory is False


def test_an_elastic_memory_is_shared_like_any_other_and_reads_back() -> None:
    text = "{name: a, engine: simulated, memory: {min: 20GiB, max: 60GiB}, gpus: [0, 1, 2]}"
    entry = one(text)
    assert entry.bytes_by_count() == {0: 20 * GIB, 1: 20 * GIB, 2: 10 * GIB}
    want = entry.to_model().requirement
    assert want.bytes_max_by_count == {1: 60 * GIB, 2: 30 * GIB}
    (again,) = config_from_json(config_from_text(f"models: [{text}]").to_json()).models
    assert again == entry


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ("trust: true", ".trust: there is no memory to be trusted; add memory, or remove trust"),
        ("memory: {min: 2GiB}", ".memory: the key 'max' is missing; add for example max: 60GiB"),
        ("memory: {min: 2GiB, max: 1GiB}", ".memory.max: max 1GiB is less than min 2GiB; write max: 2GiB or more"),
        ("memory: {min: 2GiB, max: 3GB}", ".memory.max: '3GB' is not a size; write for example 3GiB"),
        ("memory: {min: 2GiB, most: 3GiB}", ".memory.most: the key 'most' is unknown"),
        ("memory: {min: 2GiB, max: 3GiB}, exclusive: true", ".memory: a model with whole devices has no use for a max"),
    ],
)
def test_what_is_wrong_about_memory(keys: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        one(f"{{name: a, engine: llama-cpp, source: a.gguf, {keys}}}")
    assert f"models[0]{told}" in str(caught.value)
