"""What HTTP clients see of models that work: answers, streams, the list of models, errors, the operator's API.

One catalog for the whole file, of which only some fits at once; no test minds what the one before has left loaded.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import quote

import openai
import pytest

from tests.integration.front_door import EngineWindow, FrontDoor
from tests.integration.world import World
from tests.tiny_gguf import write_tiny_gguf

MIB = 2**20
CHAT = "/v1/chat/completions"
EMBEDDING = "acme/embeds:tiny"
CATALOG = """
models:
- {name: a, aliases: [alpha], engine: simulated, memory: 600MiB, simulate: {load: 0s}}
- {name: b, engine: simulated, memory: 600MiB, simulate: {load: 0s}}
- {name: "%s", engine: llama-cpp, embedding: true, source: "%s", memory: 300MiB, context_length: 512}
- {name: huge, engine: simulated, memory: 2GiB}
"""


@pytest.fixture(scope="module")
def world(service_world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """The same for all tests of this file, which need no clean slate; loads are the slow part."""
    source = write_tiny_gguf(tmp_path_factory.mktemp("models") / "tiny.gguf")
    service_world.deploy(CATALOG % (EMBEDDING, source))
    yield service_world
    service_world.deploy("models: []")
    assert service_world.until_quiet()["replicas"] == []


@pytest.fixture(scope="module")
def front(world: World) -> Iterator[FrontDoor]:
    with FrontDoor(world.url) as front:
        yield front


def test_chats_and_completions(world: World, front: FrontDoor) -> None:
    chat = front.openai.chat.completions.create(model="a", messages=[{"role": "user", "content": "hello there"}])
    assert chat.choices[0].message.content == "This is a, simulated."
    assert chat.model == "a"
    assert chat.usage
    assert chat.usage.prompt_tokens == 2
    completion = front.openai.completions.create(model="a", prompt="hello", max_tokens=2)
    assert (completion.choices[0].text, completion.choices[0].finish_reason) == ("This is", "length")
    # A lease ends with its answer; its client may hear the answer's end a moment earlier.
    world.until(lambda now: all(replica["leases"] == 0 for replica in now["replicas"]))


def test_an_alias_is_its_model(front: FrontDoor) -> None:
    answer = front.openai.chat.completions.create(model="alpha", messages=[{"role": "user", "content": "who?"}])
    assert (answer.choices[0].message.content, answer.model) == ("This is a, simulated.", "a")
    assert front.get("/v1/models/alpha")["id"] == "a"


def test_one_model_makes_way_for_another_and_the_list_says_so(world: World, front: FrontDoor) -> None:
    for model, other in (("a", "b"), ("b", "a"), ("a", "b")):
        assert front.chat(model) == f"This is {model}, simulated."
        listed = {entry["id"]: entry for entry in front.get("/v1/models")["data"]}
        assert sorted(listed) == ["a", EMBEDDING, "b", "huge"]
        assert (listed[model]["loaded"], listed[model]["state"]) == (True, "loaded")
        (place,) = listed[model]["replicas"]
        node = world.home()
        assert place["nodes"] == [node["name"]]
        assert place["devices"] == [node["devices"][0]["id"]]
        assert (listed[other]["loaded"], listed[other]["replicas"]) == (False, [])
        assert listed[model]["object"] == "model"
    last = front.get("/v1/models/a")["replicas"][0]["id"]
    told = front.get(f"/api/v1/decisions?subject={quote(last)}")
    (start,) = [decision for decision in told if decision["decision"] == "start"]
    (victim,) = start["evicts"]
    assert victim.startswith("b#")
    (stop,) = world.decisions(decision="stop", replica=victim)
    assert (stop["reason"], stop["for"]) == ("evicted", last)
    world.until_quiet()
    assert world.home()["devices"][0]["reserved_bytes"] == 600 * MIB


def test_a_stream_passes_through_as_the_engine_sends_it(world: World, front: FrontDoor) -> None:
    assert list(front.chat_stream("a")) == ["This", " is", " a,", " simulated."]
    question = {"model": "a", "messages": [{"role": "user", "content": "#tokens=30"}]}
    body = {**question, "stream": True, "stream_options": {"include_usage": True}}
    relayed = front.post(CHAT, body)
    with EngineWindow(world, "a") as engine:
        direct = engine.post(CHAT, body)
    assert relayed.status_code == direct.status_code == 200
    assert relayed.headers["content-type"] == direct.headers["content-type"] == "text/event-stream"
    assert without_numbers(relayed.content) == without_numbers(direct.content)
    assert relayed.content.endswith(b"data: [DONE]\n\n")
    pieces = front.openai.completions.create(model="a", prompt="hi", stream=True, max_tokens=3)
    assert "".join(piece.choices[0].text for piece in pieces) == "This is a,"


def test_embeddings(front: FrontDoor) -> None:
    answer = front.openai.embeddings.create(model=EMBEDDING, input=["one", "a longer text"])
    assert [len(entry.embedding) for entry in answer.data] == [128, 128]
    assert front.get(f"/v1/models/{EMBEDDING}")["loaded"], "names may hold what separates paths"


def test_health(front: FrontDoor) -> None:
    assert front.get("/health") == {"status": "ok"}


def test_what_cannot_be_served_is_said(front: FrontDoor) -> None:
    messages = [{"role": "user", "content": "hello"}]
    with pytest.raises(openai.NotFoundError) as unknown:
        front.chat("nobody")
    assert (unknown.value.code, unknown.value.param) == ("model_not_found", "model")
    assert "nobody" in unknown.value.message
    with pytest.raises(openai.UnprocessableEntityError, match=r"2\.0 GiB") as never:
        front.chat("huge")
    assert never.value.code == "never_fits"
    assert "has 1000 MiB" in never.value.message
    assert "no model" in front.refused(CHAT, {"messages": messages}, 400, "missing_model")
    front.refused(CHAT, {"model": 7, "messages": messages}, 400, "invalid_model")
    front.refused(CHAT, [], 400, "invalid_json")
    front.refused(CHAT, {"model": "a"}, 400, "unknown_tier", x_rayscheduler_tier="gold")
    front.refused(CHAT, {"model": "a"}, 400, "invalid_header", x_rayscheduler_deadline_ms="soon")
    front.refused("/v1/nothing", {"model": "a"}, 404, "unknown_path")
    broken = front.http.post(CHAT, content=b'{"model": "a", ')
    assert (broken.status_code, broken.json()["error"]["code"]) == (400, "invalid_json")
    assert front.http.get(CHAT).status_code == 405
    assert front.http.post(CHAT).json()["error"]["code"] == "empty_body"


def test_what_the_engine_refuses_is_passed_on(front: FrontDoor) -> None:
    with pytest.raises(openai.BadRequestError, match="max_tokens takes a whole number"):
        front.openai.completions.create(model="a", prompt="hi", max_tokens=-1)


def test_a_deadline_is_kept(world: World, front: FrontDoor) -> None:
    holding = world.ask("a")
    holding.granted()
    body = {"model": "b", "messages": []}
    message = front.refused(CHAT, body, 504, "deadline_exceeded", x_rayscheduler_deadline_ms="200")
    assert message
    holding.release()
    world.until(lambda now: not now["queue"])
    assert front.chat("b") == "This is b, simulated."


def test_the_operators_api(world: World, front: FrontDoor) -> None:
    loaded = front.post("/api/v1/models/a/load?wait=true")
    assert (loaded.status_code, loaded.json()["ok"]) == (200, True), loaded.text
    (replica,) = [found for found in front.get("/api/v1/replicas") if found["model"] == "a"]
    assert (replica["state"], replica["leases"]) == ("RUNNING", 0)
    assert [
        device["capacity_bytes"] for node in front.get("/api/v1/nodes") if node["alive"] for device in node["devices"]
    ] == [1000 * MIB]
    assert front.get("/api/v1/queue") == []
    assert "api_key" not in front.http.get("/api/v1/status").text

    assert front.post("/api/v1/models/alpha/pin").json()["ok"]
    world.until(lambda now: any(found["pinned"] for found in now["replicas"]))
    message = front.refused(CHAT, {"model": "b", "messages": []}, 422, "never_fits")
    assert "unpin" in message
    assert front.chat("a"), "it is still there"
    assert front.post("/api/v1/models/a/unpin").json()["ok"]
    assert front.chat("b") == "This is b, simulated."

    assert front.post("/api/v1/models/b/unload").json()["ok"]
    world.until(lambda now: not any(found["model"] == "b" for found in now["replicas"]))
    assert not front.get("/v1/models/b")["loaded"]
    front.refused("/api/v1/models/nobody/load", None, 404, "model_not_found")
    front.refused("/api/v1/models/huge/load", None, 422, "never_fits")
    front.refused("/api/v1/models/a/explode", None, 404, "unknown_path")
    front.refused("/api/v1/models/a/unload", None, 403, "other_origin", origin="http://elsewhere.example")
    assert front.http.get("/api/v1/models/a/load").headers["allow"] == "POST"


def without_numbers(stream: bytes) -> bytes:
    """Without what differs from answer to answer."""
    return re.sub(rb'"id": "chatcmpl-\d+"|"created": \d+', b"", stream)
