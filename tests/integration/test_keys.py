"""API keys on the running service: known to the gateway at once, kept over a restart of the allocator, revoked."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import ray

from rayscheduler.client import AllocatorClient
from rayscheduler.cluster.keys import digest_of, new_token
from tests.integration.world import QUICK, WITHIN_S, World

KNOWN_WITHIN_S = 2.0
LOOK_EVERY_S = 0.02


@pytest.fixture
def client(quick: World) -> Iterator[AllocatorClient]:
    with AllocatorClient.connect(quick.service.address) as client:
        yield client
        for key in client.api_keys():
            client.revoke_key(key["name"])
    until_answered(quick, None, 200)  # others need none


def until_answered(world: World, token: str | None, status: int) -> float:
    """Seconds until a look at the catalog is answered so."""
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    begun_s = time.monotonic()
    while httpx.get(f"{world.url}/v1/models", headers=headers, timeout=WITHIN_S).status_code != status:
        assert time.monotonic() - begun_s < WITHIN_S
        time.sleep(LOOK_EVERY_S)
    return time.monotonic() - begun_s


def post(world: World, path: str, token: str, body: object = None) -> httpx.Response:
    return httpx.post(world.url + path, headers={"Authorization": f"Bearer {token}"}, json=body, timeout=WITHIN_S)


def test_a_key_lets_in_and_lets_in_no_more(quick: World, client: AllocatorClient, tmp_path: Path) -> None:
    audit = tmp_path / "audit.jsonl"
    quick.deploy(f"audit_log: {{path: {audit}}}\n{QUICK}")
    admin, team = new_token(), new_token()
    client.create_key({"name": "ops", "digest": digest_of(admin), "scopes": ["inference", "admin"]})
    client.create_key({"name": "team", "digest": digest_of(team), "models": ["alpha"]})
    assert until_answered(quick, team, 200) < WITHIN_S
    assert until_answered(quick, None, 401) < KNOWN_WITHIN_S

    question = {"messages": [{"role": "user", "content": "hello"}]}
    chat = "/v1/chat/completions"
    assert post(quick, chat, team, {**question, "model": "a"}).status_code == 200
    assert post(quick, chat, team, {**question, "model": "b"}).status_code == 403
    assert post(quick, "/api/v1/models/a/unload", team).status_code == 403
    assert post(quick, "/api/v1/models/a/unload", admin).status_code == 200

    ray.kill(quick.allocator, no_restart=False)
    assert [key["name"] for key in client.api_keys()] == ["ops", "team"]
    assert httpx.get(f"{quick.url}/v1/models", timeout=WITHIN_S).status_code == 401
    client.revoke_key("team")
    assert until_answered(quick, team, 401) < KNOWN_WITHIN_S
    assert post(quick, chat, admin, {**question, "model": "b"}).status_code == 200

    told = [(line["by"], line["verb"], line["subject"]) for line in map(json.loads, audit.read_text().splitlines())]
    made = [("local operator", "create_key", name) for name in ("ops", "team")]
    assert told == [*made, ("key ops", "unload", "a"), ("local operator", "revoke_key", "team")]
