"""`keys create`, `list`, `revoke`: what the service is told, and what is shown."""

from __future__ import annotations

import json

from rayscheduler.cluster.keys import digest_of, key_of
from rayscheduler.errors import RequestRejected
from tests.cli.conftest import Run
from tests.cli.doubles import FakeService


def test_a_key_is_shown_once_and_stays_here(service: FakeService, run: Run) -> None:
    ran = run("keys", "create", "team-a")
    token = ran.out.strip()
    assert ran.err.startswith("key team-a is there; this is the only time that it is shown")
    settings = service.asked[-1][1]
    assert isinstance(settings, dict)
    assert settings["digest"] == digest_of(token)
    assert token not in str(service.asked)
    assert key_of(settings).scopes == ("inference",)


def test_all_that_a_key_may_do(service: FakeService, run: Run) -> None:
    ran = run("keys", "create", "ops", "--scope", "inference", "--scope", "admin", "--models", "a, b",
              "--requests-per-minute", 60, "--concurrency", 4, "--priority", -5, "--json")  # fmt: skip
    told = json.loads(ran.out)
    settings = service.asked[-1][1]
    assert isinstance(settings, dict)
    key = key_of(settings)
    assert (key.scopes, key.models) == (("inference", "admin"), ("a", "b"))
    assert (key.requests_per_minute, key.concurrency, key.priority) == (60, 4, -5)
    assert digest_of(told["api_key"]) == key.digest
    assert told["name"] == "ops"


def test_a_key_that_is_refused_is_not_shown(service: FakeService, run: Run) -> None:
    service.key_error = RequestRejected("key_exists", 409, "there is a key a already")
    ran = run("keys", "create", "a")
    assert (ran.code, ran.out, ran.one_line) == (1, "", "rayscheduler: there is a key a already")


def test_keys_are_listed_and_revoked(service: FakeService, run: Run) -> None:
    assert run("keys", "list").out == "there are no keys: the service answers its own machine only\n"
    service.known_keys = [
        {"name": "ops", "scopes": ["admin"], "models": [], "created_s": 0, "priority": 7}
        | {"requests_per_minute": None, "concurrency": 2}
    ]
    row = run("keys", "list").out.splitlines()[1].split()
    assert row[:6] == ["ops", "admin", "all", "–", "2", "7"]
    assert json.loads(run("keys", "list", "--json").out) == service.known_keys
    assert run("keys", "revoke", "ops").out == "key ops is revoked\n"
    assert service.asked[-1] == ("revoke_key", "ops")
