"""API keys: what one may do, how it is recognised, and how a new one is made.

A key is 256 random bits, so one round of SHA-256 is all that it takes to keep it at rest: a slow hash is for
what people think up, which can be guessed; nobody guesses 256 bits, however fast they try. Looking a digest up
in a dict tells by its time at most something of the digest, which is of no use to whoever does not have the
key; the whole is then compared in constant time.

Rules of this file: no I/O, no clock. The key itself is made where it is shown and goes nowhere else; everybody
else has its digest.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rayscheduler.core.types import Word
from rayscheduler.errors import RequestRejected

PREFIX = "rs-"  # so that scanners for lost secrets, and people, see what it is
GIVEN_CHARACTERS_MIN = 32  # of a key that an operator brings along
COUNT_MAX = 1_000_000
PRIORITY_MAX = 1_000_000
NAMES_MAX = 1000
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_DIGEST = re.compile(r"[0-9a-f]{64}")


class Scope(Word):
    INFERENCE = "inference"  # ask models: /v1
    ADMIN = "admin"  # change what runs: the verbs of /api/v1


@dataclass(frozen=True, slots=True)
class Key:
    """`models`: names that it may ask, none for all. `priority`: what its requests have, and the most that they
    may say. None: no limit. `created_s`: unix time."""

    name: str
    digest: str
    scopes: tuple[str, ...] = (Scope.INFERENCE.value,)
    models: tuple[str, ...] = ()
    requests_per_minute: int | None = None
    concurrency: int | None = None
    priority: int | None = None
    created_s: int = 0

    def told(self) -> dict[str, Any]:
        """JSON-able; `key_of` reads it."""
        return {**asdict(self), "scopes": list(self.scopes), "models": list(self.models)}


def new_token() -> str:
    """A key that nobody has seen yet."""
    return PREFIX + secrets.token_urlsafe(32)


def digest_of(token: str) -> str:
    """What is kept of a key, and what a key that a client shows is looked up by."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


def given_token(text: str, where: str) -> str:
    """A key that an operator has made; RequestRejected 400 for one that could be guessed, or not be sent."""
    token = text.strip()
    if len(token) < GIVEN_CHARACTERS_MIN or not token.isascii() or not token.isprintable() or " " in token:
        what = f"{where} holds no key: {GIVEN_CHARACTERS_MIN} or more visible characters are needed"
        raise RequestRejected("bad_key", 400, f"{what}; make one with: openssl rand -hex 32")
    return token


def key_of(told: Mapping[str, Any]) -> Key:
    """The key of its settings; RequestRejected 400 says which of them is wrong."""
    if unknown := sorted(set(told) - set(Key.__dataclass_fields__)):
        raise _bad(f"a key has no setting {unknown[0]!r}")
    name, digest = told.get("name"), told.get("digest")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise _bad(f"{name!r} is no name for a key: use up to 64 letters, digits, and . _ @ -")
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise _bad(f"the digest of {name} is no SHA-256")
    known = [scope.value for scope in Scope]
    scopes = tuple(dict.fromkeys(_texts(told.get("scopes", known[:1]), "scopes")))
    if not scopes or not set(scopes) <= set(known):
        raise _bad(f"a key's scopes are of: {', '.join(known)}")
    return Key(
        name,
        digest,
        scopes,
        tuple(dict.fromkeys(_texts(told.get("models", ()), "models"))),
        _count(told, "requests_per_minute", 1, COUNT_MAX),
        _count(told, "concurrency", 1, COUNT_MAX),
        _count(told, "priority", -PRIORITY_MAX, PRIORITY_MAX),
        _count(told, "created_s", 0, 1 << 40) or 0,
    )


class KeyTable:
    """Keys, looked up by what a client shows."""

    def __init__(self, keys: Iterable[Key] = ()) -> None:
        self._by_digest = {key.digest: key for key in keys}

    def __len__(self) -> int:
        return len(self._by_digest)

    def digests(self) -> frozenset[str]:
        return frozenset(self._by_digest)

    def find(self, token: str) -> Key | None:
        shown = digest_of(token)
        key = self._by_digest.get(shown)
        return key if key is not None and hmac.compare_digest(key.digest, shown) else None


def version_of(value: object) -> str:
    """Differs when the value does, also from one allocator to the next."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _count(told: Mapping[str, Any], setting: str, least: int, most: int) -> int | None:
    number = told.get(setting)
    if number is not None and (isinstance(number, bool) or not isinstance(number, int) or not least <= number <= most):
        raise _bad(f"{setting} is a whole number from {least} to {most}, not {number!r}")
    return number


def _texts(value: object, setting: str) -> list[str]:
    if not isinstance(value, (list, tuple)) or not all(isinstance(each, str) and each for each in value):
        raise _bad(f"{setting} is a list of names")
    if len(value) > NAMES_MAX:
        raise _bad(f"{setting} holds {len(value)} names; {NAMES_MAX} are the most")
    return list(value)


def _bad(message: str) -> RequestRejected:
    return RequestRejected("bad_key", 400, message)
