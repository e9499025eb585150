"""What operators ask over HTTP, and the page."""

from __future__ import annotations

import asyncio
import re

import pytest
from yarl import URL

from rayscheduler.serving.gateway import PAGE, Gateway
from tests.serving.conftest import QUICK, World

REPLICA = {"id": "org/m:1b#3", "model": "org/m:1b", "state": "RUNNING", "nodes": ["n1"], "devices": ["n1/0"]}
LOADED = {
    "name": "org/m:1b",
    "aliases": ["small/one"],
    "engine": "simulated",
    "state": "loaded",
    "replicas": ["org/m:1b#3"],
    "pinned": False,
}
COLD = {"name": "cold", "aliases": [], "engine": "command", "state": "unloaded", "pinned": True}

ADAPTER = {"name": "bot", "aliases": ["support"], "base": "org/m:1b", "replicas": ["org/m:1b#3"]}


@pytest.fixture
def loaded(world: World) -> World:
    world.allocator.state = {
        "serial": 9,
        "nodes": [{"name": "n1"}],
        "replicas": [REPLICA],
        "models": [LOADED, COLD],
        "adapters": [ADAPTER, {**ADAPTER, "name": "late", "aliases": [], "base": "cold", "replicas": []}],
        "queue": [{"request": "r1"}],
    }
    return world


async def test_models_say_whether_they_are_loaded_and_where(loaded: World) -> None:
    answer = await (await loaded.client.get(loaded.url + "/v1/models")).json()
    assert answer["object"] == "list"
    first, second, *_ = answer["data"]
    assert (first["id"], first["object"], first["owned_by"]) == ("org/m:1b", "model", "rayscheduler")
    assert isinstance(first["created"], int)
    assert first["loaded"] is True
    assert first["replicas"] == [{"id": "org/m:1b#3", "state": "RUNNING", "nodes": ["n1"], "devices": ["n1/0"]}]
    assert (second["loaded"], second["replicas"], second["pinned"]) == (False, [], True)


async def test_adapters_are_models_with_a_parent(loaded: World) -> None:
    answer = await (await loaded.client.get(loaded.url + "/v1/models")).json()
    told = {entry["id"]: entry for entry in answer["data"]}
    assert [entry["id"] for entry in answer["data"]] == ["org/m:1b", "cold", "bot", "late"]
    assert (told["bot"]["parent"], told["bot"]["loaded"], told["bot"]["engine"]) == ("org/m:1b", True, "simulated")
    assert [place["id"] for place in told["bot"]["replicas"]] == ["org/m:1b#3"]
    assert (told["late"]["parent"], told["late"]["state"], told["late"]["replicas"]) == ("cold", "unloaded", [])
    by_alias = await (await loaded.client.get(loaded.url + "/v1/models/support")).json()
    assert by_alias == told["bot"]


@pytest.mark.parametrize("name", ["org/m:1b", "org%2Fm%3A1b", "small/one"])
async def test_one_model_by_name_or_alias(loaded: World, name: str) -> None:
    response = await loaded.client.get(URL(f"{loaded.url}/v1/models/{name}", encoded=True))
    assert response.status == 200
    assert (await response.json())["id"] == "org/m:1b"


async def test_unknown_model(loaded: World) -> None:
    response = await loaded.client.get(loaded.url + "/v1/models/nobody")
    error = (await response.json())["error"]
    assert (response.status, error["code"], error["param"]) == (404, "model_not_found", "model")


async def test_parts_of_the_state(loaded: World) -> None:
    status = await (await loaded.client.get(loaded.url + "/api/v1/status")).json()
    assert status == loaded.allocator.state
    for part in ("replicas", "nodes", "queue"):
        response = await loaded.client.get(f"{loaded.url}/api/v1/{part}")
        assert await response.json() == status[part]
        assert response.headers["Cache-Control"] == "no-store"


async def test_decisions(world: World) -> None:
    answer = await world.client.get(world.url + "/api/v1/decisions?limit=5&subject=m%231")
    assert (await answer.json())[0]["why"] == "asked for"
    await world.client.get(world.url + "/api/v1/decisions")
    assert world.allocator.verbs == [("decisions", "5", "m#1"), ("decisions", "100", None)]


async def test_explain(world: World) -> None:
    answer = await world.client.get(world.url + "/api/v1/explain?subject=m%231")
    assert (await answer.json())["kind"] == "model"
    assert world.allocator.verbs == [("explain", "m#1", None)]
    unknown = await world.client.get(world.url + "/api/v1/explain?subject=nobody")
    assert (unknown.status, (await unknown.json())["error"]["code"]) == (404, "model_not_found")
    missing = await world.client.get(world.url + "/api/v1/explain")
    assert (missing.status, (await missing.json())["error"]["param"]) == (400, "subject")


@pytest.mark.parametrize("limit", ["0", "-1", "many", "1001", "9" * 5000, "٣"])
async def test_bad_limit(world: World, limit: str) -> None:
    response = await world.client.get(world.url + "/api/v1/decisions", params={"limit": limit})
    assert response.status == 400
    assert (await response.json())["error"]["param"] == "limit"


@pytest.mark.parametrize(
    ("path", "called"),
    [
        ("org/m:1b/load", ("load", "org/m:1b", False)),
        ("org/m:1b/load?wait=true", ("load", "org/m:1b", True)),
        ("org%2Fm:1b/unload", ("unload", "org/m:1b", None)),
        ("a/load/pin", ("pin", "a/load", True)),
        ("a/load/unpin", ("pin", "a/load", False)),
    ],
)
async def test_verbs(world: World, path: str, called: tuple[object, ...]) -> None:
    world.allocator.replicas.update({"org/m:1b": [], "a/load": []})
    response = await world.client.post(URL(f"{world.url}/api/v1/models/{path}", encoded=True))
    assert (await response.json())["ok"] is True
    assert world.allocator.verbs == [called]


@pytest.mark.parametrize("verb", ["load", "unload", "pin", "unpin"])
async def test_verb_on_an_unknown_model(world: World, verb: str) -> None:
    response = await world.client.post(f"{world.url}/api/v1/models/nobody/{verb}")
    assert response.status == 404
    assert (await response.json())["error"]["code"] == "model_not_found"


async def test_pages_from_elsewhere_may_not_act(world: World) -> None:
    url = world.url + "/api/v1/models/m/unload"
    refused = await world.client.post(url, headers={"Origin": "http://evil.example"})
    assert refused.status == 403
    assert (await world.client.post(url, headers={"Origin": world.url})).status == 200


async def test_admin_while_the_allocator_is_away(world: World) -> None:
    world.allocator.away = True
    for path in ("/api/v1/status", "/v1/models"):
        response = await world.client.get(world.url + path)
        assert response.status == 503
        assert response.headers["Retry-After"] == "1"
    world.allocator.away = False


async def test_health(world: World) -> None:
    healthy = await world.client.get(world.url + "/health")
    assert (healthy.status, await healthy.json()) == (200, {"status": "ok"})
    world.allocator.away = True

    async def until_useless() -> None:
        while (await world.client.get(world.url + "/health")).status == 200:
            pass

    await asyncio.wait_for(until_useless(), 20 * QUICK.leases.away_s_max)
    world.allocator.away = False


async def test_page_and_its_files(world: World) -> None:
    page = await world.client.get(world.url + "/")
    assert page.headers["Content-Type"] == "text/html; charset=utf-8"
    assert "default-src 'self'" in page.headers["Content-Security-Policy"]
    text = await page.text()
    files = re.findall(r'(?:src|href)="([^"]+)"', text)
    assert len(files) >= 2
    for file in files:
        assert file.startswith("/page/"), "nothing from elsewhere"
        assert (await world.client.get(world.url + file)).status == 200
    head = await world.client.head(world.url + "/")
    assert (head.status, await head.read()) == (200, b"")


def test_page_builds_text_only_as_text() -> None:
    for file in PAGE.glob("*.js"):
        script = file.read_text()
        for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
            assert way not in script, f"{file.name} could run what a model's name says"


async def test_websockets_are_declined(world: World) -> None:
    sent: list[dict[str, object]] = []

    async def receive() -> dict[str, object]:
        return {"type": "websocket.connect"}

    async def send(message: object) -> None:
        sent.append(message)  # type: ignore[arg-type]

    await world.gateway({"type": "websocket", "path": "/"}, receive, send)
    assert [message["type"] for message in sent] == ["websocket.close"]


async def test_lifespan_starts_and_stops_the_gateway(world: World) -> None:
    gateway = Gateway(world.allocator, QUICK, holder="other")
    messages = asyncio.Queue[dict[str, object]]()
    sent = asyncio.Queue[object]()
    life = asyncio.create_task(gateway({"type": "lifespan"}, messages.get, sent.put))
    messages.put_nowait({"type": "lifespan.startup"})
    assert await sent.get() == {"type": "lifespan.startup.complete"}
    await world.allocator.until(lambda: ("other", []) in world.allocator.heartbeats)
    messages.put_nowait({"type": "lifespan.shutdown"})
    assert await sent.get() == {"type": "lifespan.shutdown.complete"}
    await life
