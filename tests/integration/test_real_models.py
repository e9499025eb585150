"""Two real models through llama.cpp in a space that holds one of them, asked with OpenAI's own client."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from deployments.demo_models import GEMMA, SMOLLM2, ModelUnavailable, check_llama_cpp, ensure
from tests.integration.front_door import FrontDoor
from tests.integration.world import World

QUESTION = "Which city is the capital of France?"
CATALOG = """
models:
- {name: smollm2, aliases: [SmolLM2-135M-Instruct], engine: llama-cpp, source: "%s",
   memory: 550MiB, context_length: 512, args: [--threads, "1"]}
- {name: gemma, engine: llama-cpp, source: "%s", memory: 600MiB, context_length: 512, args: [--threads, "1"]}
"""


@pytest.fixture
def front(world: World) -> Iterator[FrontDoor]:
    try:
        check_llama_cpp()
        sources = ensure(SMOLLM2), ensure(GEMMA)
    except ModelUnavailable as problem:
        pytest.skip(str(problem))
    world.deploy(CATALOG % sources)
    with FrontDoor(world.url) as front:
        yield front


def test_two_real_models_take_turns(world: World, front: FrontDoor) -> None:
    said = front.chat("smollm2", QUESTION, temperature=0, max_tokens=12)
    assert "Paris" in said
    pieces = list(front.chat_stream("smollm2", QUESTION, temperature=0, max_tokens=12))
    assert "".join(pieces) == said
    assert len(pieces) > 3, "a token at a time"
    (first,) = world.until_quiet()["replicas"]

    water = front.openai.completions.create(model="gemma", prompt="Water boils at", temperature=0, max_tokens=8)
    assert "100" in water.choices[0].text
    stream = front.openai.completions.create(
        model="gemma", prompt="Water boils at", temperature=0, max_tokens=8, stream=True
    )
    assert "".join(piece.choices[0].text for piece in stream if piece.choices) == water.choices[0].text
    assert "Paris" in front.chat("gemma", QUESTION, temperature=0, max_tokens=4)
    assert "Paris" in "".join(front.chat_stream("gemma", QUESTION, temperature=0, max_tokens=4))
    (second,) = world.until_quiet()["replicas"]
    (stop,) = world.decisions(decision="stop", replica=first["id"])
    assert (stop["reason"], stop["for"]) == ("evicted", second["id"])

    assert "Paris" in front.chat("SmolLM2-135M-Instruct", QUESTION, temperature=0, max_tokens=12)
    (back,) = world.until_quiet()["replicas"]
    assert back["model"] == "smollm2"
    loaded = world.until(lambda now: now["replicas"][0]["measured_bytes"])["replicas"][0]
    assert loaded["measured_bytes"] < loaded["device_bytes"][0], "what was promised for it is enough"
