"""Who asks: the API keys as a gateway knows them, and what each of them may do.

    headers ─► caller ─► require (scope) ─► request (per minute, at a time) ─► require_model ─► how urgent

Rules of this file: the allocator is asked for the keys once a second, never for a request; while it is away what
it said last holds. Before it has said anything nobody is let in. Each gateway counts the requests of a key by
itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from rayscheduler.cluster.allocator_port import AllocatorPort, Answer
from rayscheduler.cluster.bounded import within
from rayscheduler.cluster.holder import Ask
from rayscheduler.cluster.keys import Key, KeyTable, Scope, key_of
from rayscheduler.errors import AllocatorUnavailable
from rayscheduler.serving.asgi import Headers, header
from rayscheduler.serving.openai import ApiError

logger = logging.getLogger(__name__)

ANSWERS_WITHIN_S = 3.0
MINUTE_S = 60.0
NOBODY = "HTTP without a key"  # as the audit log calls whoever asks where no key is needed


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sent a request. `key` None: nobody has to say, and may do all."""

    key: Key | None = None

    @property
    def name(self) -> str:
        return NOBODY if self.key is None else f"key {self.key.name}"

    def require(self, scope: Scope) -> None:
        """ApiError 403 unless this caller has the scope."""
        if self.key is not None and scope.value not in self.key.scopes:
            message = f"The key {self.key.name} has no scope `{scope.value}`."
            raise ApiError(403, "insufficient_scope", message)

    def may_ask(self, model: str) -> bool:
        return self.key is None or not self.key.models or model in self.key.models

    def require_model(self, model: str) -> None:
        """ApiError 403 unless this caller may ask the model, by the name that it uses."""
        if not self.may_ask(model):
            assert self.key is not None
            message = f"The key {self.key.name} may not ask the model `{model}`."
            raise ApiError(403, "model_not_allowed", message, param="model")


@dataclass(slots=True)
class Use:
    """What a key has used. `begun_s`: its last requests, as many as it may begin in a minute."""

    begun_s: deque[float] = field(default_factory=deque)
    ongoing: int = 0


class Keyring:
    """The gateway's copy of the keys. `needed`: also where there are none nobody gets in without one."""

    def __init__(self, allocator: AllocatorPort, needed: bool, every_s: float) -> None:
        self._allocator = allocator
        self._needed = needed
        self._every_s = every_s
        self._version = ""
        self._table: KeyTable | None = None
        self._tiers: dict[str, int] = {}
        self._uses: dict[str, Use] = {}  # by the digest of the key
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._clock = asyncio.get_running_loop().time
        await self._look()
        self._task = asyncio.create_task(self._keep_looking(), name="keys")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def caller(self, headers: Headers) -> Caller:
        """ApiError 401 for a key that is missing or wrong; AllocatorUnavailable while no keys are known."""
        if self._table is None:
            raise AllocatorUnavailable("The allocator has not told yet which API keys there are. Try again later.")
        if not self._needed and not len(self._table):
            return Caller()
        token = shown_token(headers)
        if not token:
            message = "This service needs an API key; send it as `Authorization: Bearer KEY`."
            raise ApiError(401, "missing_api_key", message)
        key = self._table.find(token)
        if key is None:
            raise ApiError(401, "invalid_api_key", "This API key is wrong, or was revoked.")
        return Caller(key)

    @contextlib.contextmanager
    def request(self, caller: Caller) -> Iterator[None]:
        """One request to a model, from its first byte to its last; ApiError 429 if that is one too many."""
        if caller.key is None:
            yield
            return
        use = self._uses.setdefault(caller.key.digest, Use())
        self._count(caller.key, use)
        use.ongoing += 1
        try:
            yield
        finally:
            use.ongoing -= 1

    def as_urgent_as_allowed(self, caller: Caller, ask: Ask) -> Ask:
        """A key with a priority gives it to its requests, and they may say less but not more."""
        most = None if caller.key is None else caller.key.priority
        if most is None:
            return ask
        said = ask.priority
        if said is None and ask.tier is not None:
            if ask.tier not in self._tiers:
                known = ", ".join(sorted(self._tiers)) or "none"
                raise ApiError(400, "unknown_tier", f"There is no tier `{ask.tier}`; known are: {known}.")
            said = self._tiers[ask.tier]
        return replace(ask, priority=most if said is None else min(said, most), tier=None)

    def _count(self, key: Key, use: Use) -> None:
        if key.concurrency is not None and use.ongoing >= key.concurrency:
            message = f"The key {key.name} has {use.ongoing} requests under way, and may have {key.concurrency}."
            raise ApiError(429, "concurrency_exceeded", message)
        most = key.requests_per_minute
        if most is None:
            return
        now_s = self._clock()
        while use.begun_s and use.begun_s[0] <= now_s - MINUTE_S:
            use.begun_s.popleft()
        if len(use.begun_s) >= most:
            # Room for one more is there when so many that the rest is below the limit are a minute old.
            free_s = use.begun_s[len(use.begun_s) - most] + MINUTE_S - now_s
            message = f"The key {key.name} may begin {most} requests a minute."
            raise ApiError(429, "rate_limit_exceeded", message, retry_after_s=max(1, math.ceil(free_s)))
        use.begun_s.append(now_s)

    async def _keep_looking(self) -> None:
        while True:
            await asyncio.sleep(self._every_s)
            await self._look()

    async def _look(self) -> None:
        try:
            self._learn(await within(ANSWERS_WITHIN_S, self._allocator.keys(self._version)))
        except (AllocatorUnavailable, asyncio.TimeoutError):
            pass  # what it said last holds
        except Exception:
            logger.exception("the allocator failed on the API keys")

    def _learn(self, told: Answer) -> None:
        if "keys" not in told:
            return
        self._table = KeyTable(key_of(key) for key in told["keys"])
        self._tiers, self._version = dict(told["tiers"]), told["version"]
        known = self._table.digests()
        for digest in [digest for digest, use in self._uses.items() if digest not in known and not use.ongoing]:
            del self._uses[digest]


def shown_token(headers: Headers) -> str:
    """The key that a client shows as OpenAI's clients do, or in a header that others use."""
    kind, _, token = header(headers, b"authorization").decode("latin-1").strip().partition(" ")
    if kind.lower() == "bearer":
        return token.strip()
    return (header(headers, b"x-api-key") or header(headers, b"api-key")).decode("latin-1").strip()
