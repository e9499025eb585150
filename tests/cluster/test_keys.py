"""API keys as the allocator keeps them: made, told to gateways, revoked, and there again after a restart."""

from __future__ import annotations

import json
from typing import Any, cast

import pytest

from rayscheduler.cluster.catalog import Catalog
from rayscheduler.cluster.key_book import KeyBook
from rayscheduler.cluster.keys import KeyTable, digest_of, given_token, key_of, new_token
from rayscheduler.cluster.start import is_loopback
from rayscheduler.cluster.store import Store
from rayscheduler.config.service import config_from_text
from rayscheduler.errors import RequestRejected

TOKEN = new_token()
CATALOG = """
scheduler: {tiers: {batch: 0}}
models:
  - {name: org/big, aliases: [big, huge], engine: simulated, memory: 1GiB}
  - {name: small, engine: simulated, memory: 1GiB}
  - {name: tuned, aliases: [finer], base: org/big}
"""


class Kept:
    """The store, in memory: text, as the real one."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}

    def write_key(self, name: str, told: dict[str, Any]) -> None:
        self.texts[name] = json.dumps(told)

    def delete_key(self, name: str) -> None:
        del self.texts[name]

    def keys(self) -> list[dict[str, Any]]:
        return [json.loads(text) for text in self.texts.values()]


@pytest.fixture
def kept() -> Kept:
    return Kept()


@pytest.fixture
def book(kept: Kept) -> KeyBook:
    return KeyBook(cast(Store, kept))


def settings(name: str = "team-a", token: str = TOKEN, **more: Any) -> dict[str, Any]:
    return {"name": name, "digest": digest_of(token), **more}


def test_a_key_is_256_bits_that_nobody_has_seen() -> None:
    tokens = {new_token() for _ in range(100)}
    assert len(tokens) == 100
    assert all(token.startswith("rs-") and len(token) >= 3 + 43 for token in tokens)


async def test_the_key_itself_is_kept_nowhere(book: KeyBook, kept: Kept) -> None:
    answer = await book.create(settings(), replace=False)
    assert "digest" not in answer["key"]
    assert TOKEN not in str(answer) + str(kept.texts) + str(book.told("", None))
    assert "digest" not in str(book.listed())


async def test_an_allocator_that_restarts_knows_its_keys(book: KeyBook, kept: Kept) -> None:
    await book.create(settings(scopes=["inference", "admin"], models=["m"], priority=-3), replace=False)
    told = book.told("", None)
    again = KeyBook(cast(Store, kept))
    await again.begin()
    assert again.told("", None) == told
    assert again.told(told["version"], None) == {"version": told["version"]}, "gateways need not learn it anew"
    found = KeyTable(map(key_of, told["keys"])).find(TOKEN)
    assert found is not None
    assert (found.scopes, found.models, found.priority) == (("inference", "admin"), ("m",), -3)


async def test_a_revoked_key_is_told_and_forgotten(book: KeyBook, kept: Kept) -> None:
    await book.create(settings(), replace=False)
    before = book.told("", None)["version"]
    assert (await book.revoke("team-a"))["ok"]
    assert book.told(before, None)["keys"] == []
    assert kept.texts == {}
    assert (await book.revoke("team-a"))["error"]["status"] == 404


async def test_names_are_taken_once(book: KeyBook) -> None:
    await book.create(settings(), replace=False)
    assert (await book.create(settings(), replace=False))["ok"], "asked twice, it is the same key"
    assert (await book.create(settings(token=new_token()), replace=False))["error"]["status"] == 409
    assert (await book.create(settings(name="other"), replace=False))["error"]["code"] == "key_exists"
    assert (await book.create(settings(token=new_token()), replace=True))["ok"]
    assert [key["name"] for key in book.listed()] == ["team-a"]


async def test_models_are_told_by_all_their_names(book: KeyBook) -> None:
    await book.create(settings(models=["big", "elsewhere"]), replace=False)
    told = book.told("", Catalog(config_from_text(CATALOG)))
    assert told["keys"][0]["models"] == ["big", "elsewhere", "huge", "org/big"]
    assert told["tiers"] == {"batch": 0}
    assert told["version"] != book.told("", None)["version"], "another catalog is news for gateways"


@pytest.mark.parametrize(
    ("may_ask", "names"), [("finer", ["finer", "tuned"]), ("org/big", ["big", "huge", "org/big"])]
)
async def test_an_adapter_is_not_its_base(book: KeyBook, may_ask: str, names: list[str]) -> None:
    await book.create(settings(models=[may_ask]), replace=False)
    assert book.told("", Catalog(config_from_text(CATALOG)))["keys"][0]["models"] == names


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"name": ""}, "no name"),
        ({"name": "a b"}, "no name"),
        ({"name": "../x"}, "no name"),
        ({"name": 7}, "no name"),
        ({"digest": "0" * 63}, "SHA-256"),
        ({"digest": None}, "SHA-256"),
        ({"scopes": ["root"]}, "inference, admin"),
        ({"scopes": []}, "inference, admin"),
        ({"scopes": "admin"}, "list"),
        ({"models": [""]}, "list"),
        ({"models": ["m"] * 1001}, "1000"),
        ({"requests_per_minute": 0}, "from 1 to"),
        ({"concurrency": True}, "from 1 to"),
        ({"priority": 1.5}, "whole number"),
        ({"secret": 1}, "no setting 'secret'"),
    ],
)
async def test_what_is_wrong_with_a_key(book: KeyBook, kept: Kept, wrong: dict[str, Any], words: str) -> None:
    error = (await book.create({**settings(), **wrong}, replace=False))["error"]
    assert error["status"] == 400
    assert words in error["message"]
    assert kept.texts == {}


@pytest.mark.parametrize("text", ["", "secret", "x" * 31, "x" * 16 + " " + "x" * 16, "é" * 40, ("x" * 20 + "\n") * 2])
def test_a_key_that_could_be_guessed_is_not_taken(text: str) -> None:
    with pytest.raises(RequestRejected, match="openssl rand -hex 32"):
        given_token(text, "file")


def test_a_key_of_a_file_ends_with_its_line() -> None:
    assert given_token("f" * 64 + "\n", "file") == "f" * 64


def test_who_is_reached_from_this_machine_only() -> None:
    assert all(map(is_loopback, ["127.0.0.1", "127.9.9.9", "::1", "[::1]", "localhost"]))
    assert not any(map(is_loopback, ["0.0.0.0", "::", "10.0.0.1", "example.org", ""]))
