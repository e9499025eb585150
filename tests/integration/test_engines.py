"""Engines of other Python environments in the running service: vLLM by a stand-in, transformers where it is there."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from rayscheduler.engines.supervisor import descendants, parent_of
from tests.engines import tiny_llama, vllm_stand_in
from tests.integration.front_door import FrontDoor
from tests.integration.world import World, is_gone

TRANSFORMERS = os.environ.get("RAYSCHEDULER_TRANSFORMERS")
LOAD_WITHIN_S = 240.0


def test_a_vllm_is_started_watched_and_ended_whole(world: World, tmp_path: Path) -> None:
    """Its worker and EngineCore are counted while it runs, and gone when another model takes their room."""
    python = vllm_stand_in.install(tmp_path / "venv")
    world.deploy(f"""
    models:
    - {{name: v, engine: vllm, source: org/not-here, python: {python}, memory: 600MiB, kv_cache: 100MiB, gpus: [1],
       context_length: 512, env: {{HF_HUB_CACHE: /nowhere}}}}
    - {{name: other, engine: simulated, memory: 600MiB, simulate: {{load: 0}}, runtime_env: {{config: {{}}}}}}
    """)
    lease = world.ask("v")
    replica = lease.granted()["replica"]
    _, engine_pid = world.pids_of(replica)
    family = descendants(parent_of(engine_pid))
    assert len(family) == 3, "API process, EngineCore, one worker"
    measured = world.until(lambda now: now["replicas"][0]["measured_bytes"])["replicas"][0]["measured_bytes"]
    assert measured > 2 * vllm_stand_in.HELD_BYTES
    lease.release()
    world.ask("other").granted()
    assert all(is_gone(pid) for pid in family)


def test_what_is_not_installed_is_told_to_who_asks(world: World) -> None:
    world.deploy("""
    models:
    - {name: v, engine: vllm, source: org/v, python: /nowhere, memory: 600MiB, kv_cache: 1MiB, gpus: [1]}
    """)
    rejected = world.ask("v").rejected()
    assert "model v: /nowhere is no Python environment on this machine" in rejected["message"]


@pytest.mark.skipif(not TRANSFORMERS, reason="$RAYSCHEDULER_TRANSFORMERS names no environment with transformers")
def test_transformers_answers_through_the_front_door(world: World, tmp_path: Path) -> None:
    subprocess.run([f"{TRANSFORMERS}/bin/python", tiny_llama.__file__, str(tmp_path / "tiny")], check=True)
    world.deploy(f"""
    models:
    - {{name: org/tiny, aliases: [tiny], engine: transformers, source: {tmp_path}/tiny, python: {TRANSFORMERS},
       memory: 900MiB, gpus: [1]}}
    """)
    world.ask("tiny").granted(LOAD_WITHIN_S)
    with FrontDoor(world.url) as front:
        whole = front.openai.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "hello"}], max_tokens=4
        )
        assert whole.model == "org/tiny"
        assert whole.usage is not None
        assert whole.usage.completion_tokens == 4
        pieces = list(front.chat_stream("org/tiny", "hello", max_tokens=4))
        assert pieces
