"""Where an engine runs, in a catalog: what may be said, and what is wrong with the rest, by file and line."""

from __future__ import annotations

from pathlib import Path

import pytest

from rayscheduler.config.service import ModelEntry, ServiceConfig, config_from_json, config_from_text
from rayscheduler.errors import ConfigError


def config(entry: str, folder: str = "/etc/models") -> ServiceConfig:
    return config_from_text(f"models:\n- {entry}\n", "s.yaml", folder)


def entry_of(text: str, folder: str = "/etc/models") -> ModelEntry:
    (entry,) = config(text, folder).models
    return entry


def test_a_python_environment_is_a_folder() -> None:
    for written, meant in (("/opt/vllm", "/opt/vllm"), ("./venv", "/etc/models/venv"), ("~/venv", "~/venv")):
        entry = entry_of(f"{{name: a, memory: 1GiB, engine: vllm, source: org/a, python: {written}}}")
        assert entry.engine_fields()["python"] == meant


def test_a_runtime_env_is_as_ray_wants_it() -> None:
    written = "{pip: {packages: [vllm==0.33.0, '7'], pip_check: false}, config: {setup_timeout_seconds: 600}}"
    text = f"{{name: a, memory: 1GiB, engine: vllm, source: org/a, runtime_env: {written}}}"
    meant = {"pip": {"packages": ["vllm==0.33.0", "7"], "pip_check": False}, "config": {"setup_timeout_seconds": 600}}
    entry = entry_of(text)
    assert entry.runtime_env == meant
    (again,) = config_from_json(config(text).to_json()).models
    assert again.engine_fields() == entry.engine_fields()


def test_a_container_is_an_image_and_how_to_run_it() -> None:
    container = "{image: 'vllm/vllm-openai:v0.33.0', program: podman, run_options: [--shm-size=8g]}"
    fields = entry_of(f"{{name: a, memory: 1GiB, engine: vllm, source: ./a, container: {container}}}").engine_fields()
    assert fields["container_image"] == "vllm/vllm-openai:v0.33.0"
    assert fields["container_program"] == "podman"
    assert fields["container_options"] == ("--shm-size=8g",)
    assert fields["source"] == "/etc/models/a"


def test_a_hub_id_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "org" / "a").mkdir(parents=True)
    for engine in ("vllm", "sglang", "transformers"):
        assert entry_of(f"{{name: a, memory: 1GiB, engine: {engine}, source: org/a}}", str(tmp_path)).source == "org/a"


def test_stages_choose_the_device_counts() -> None:
    counts = {1: [1, 2, 4, 8], 2: [2, 4, 8], 3: [3], 4: [4, 8]}
    for pipeline, expected in counts.items():
        text = f"{{name: a, memory: 24GiB, engine: vllm, source: org/a, pipeline: {pipeline}}}"
        assert list(entry_of(text).bytes_by_count()) == expected


VLLM = "name: a, memory: 1GiB, engine: vllm"
BAD = [
    (f"{{{VLLM}}}",
     ": 'a' has no source; add the folder of the model, source: ./model, or its id on the hub, source: org/model"),
    (f"{{{VLLM}, source: org/a, gpus: [1, 2], pipeline: 2}}",
     ".pipeline: a replica on 1 cannot have 2 equal stages; write multiples of it, for example gpus: [2]"),
    (f"{{{VLLM}, source: org/a, python: vllm-venv}}",
     ".python: 'vllm-venv' is not the path of a Python environment; write for example /opt/vllm or ./venv, the folder "
     "that has bin/python in it"),
    (f"{{{VLLM}, source: org/a, python: /opt/a, container: {{image: b}}}}",
     ".container: python and container contradict each other; keep one of them"),
    (f"{{{VLLM}, source: org/a, runtime_env: {{pip: [a]}}, python: /opt/a}}",
     ".runtime_env: python and runtime_env contradict each other; keep one of them"),
    (f"{{{VLLM}, source: org/a, runtime_env: {{env_vars: {{A: b}}}}}}",
     ".runtime_env.env_vars: the key 'env_vars' of a runtime_env is not taken here; write them into env"),
    (f"{{{VLLM}, source: org/a, runtime_env: {{image_uri: a}}}}",
     ".runtime_env.image_uri: the key 'image_uri' of a runtime_env is not taken here; use the model's own container "
     "key"),
    (f"{{{VLLM}, source: org/a, runtime_env: {{pipp: [a]}}}}",
     ".runtime_env.pipp: the key 'pipp' is unknown; did you mean pip?"),
    (f"{{{VLLM}, source: org/a, runtime_env: {{pip: [a], uv: [b]}}}}",
     ".runtime_env.uv: pip and uv contradict each other; keep one of them"),
    (f"{{{VLLM}, source: org/a, runtime_env: [a]}}",
     ".runtime_env: a list is not a mapping; write for example runtime_env: {pip: [vllm]}"),
    (f"{{{VLLM}, source: org/a, container: {{run_options: []}}}}",
     ".container: the key 'image' is missing; add for example image: vllm/vllm-openai:v0.33.0"),
    (f"{{{VLLM}, source: org/a, container: {{image: --privileged}}}}",
     ".container.image: '--privileged' is not the name of an image; write for example vllm/vllm-openai:v0.33.0"),
    (f"{{{VLLM}, source: org/a, container: {{image: a, program: lxc}}}}",
     ".container.program: 'lxc' is not one of the programs for containers; the programs for containers are: docker, "
     "podman"),
    ("{name: a, memory: 1GiB, engine: llama-cpp, source: a.gguf, kv_cache: 1GiB}",
     ".kv_cache: is for vllm, sglang, and the engine llama-cpp would not heed it; remove it"),
    ("{name: a, memory: 1GiB, engine: transformers, source: org/a, max_batched_tokens: 8}",
     ".max_batched_tokens: is for vllm, sglang, llama-cpp, and the engine transformers would not heed it; remove it"),
]  # fmt: skip


@pytest.mark.parametrize(("entry", "told"), BAD)
def test_what_is_wrong_is_told_where_it_is(entry: str, told: str) -> None:
    with pytest.raises(ConfigError) as wrong:
        config(entry)
    assert str(wrong.value) == f"s.yaml:2: models[0]{told}"
