"""The gateway: one ASGI application that takes every HTTP request of the service.

    POST /v1/chat/completions, …     relayed to an engine (relay.py; the paths are openai.MODEL_PATHS)
    GET  /v1/models[/NAME]           admin.py
    GET  /api/v1/status, …           admin.py
    POST /api/v1/models/NAME/VERB    admin.py
    GET  /health                     is this gateway of use
    GET  /, /page/FILE               the live page (rayscheduler/page/)

Rules of this file: it knows HTTP and the allocator's port, not Ray. Whatever goes wrong before the first
byte of an answer is one error body in OpenAI's form. Who asks is settled (keyring.py) before anything that is
sent is read; only health and the page's files, in which nothing is told, are for everybody.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rayscheduler.cluster.allocator_port import AllocatorPort
from rayscheduler.cluster.holder import Ask, LeaseLimits, Leases
from rayscheduler.cluster.keys import Scope as KeyScope
from rayscheduler.config.limits import LimitsSection
from rayscheduler.errors import AllocatorUnavailable, RayschedulerError
from rayscheduler.serving.admin import API, MODELS, Admin, allowed, not_found
from rayscheduler.serving.asgi import (
    ClientGone,
    Headers,
    Receive,
    Scope,
    Send,
    header,
    read_body,
    send_json,
    send_whole,
)
from rayscheduler.serving.keyring import Keyring
from rayscheduler.serving.openai import MODEL_PATHS, ApiError, error_body, error_headers, model_call
from rayscheduler.serving.relay import Relay, RelayLimits

logger = logging.getLogger(__name__)

PAGE = Path(__file__).parent.parent / "page"
PAGE_TYPES = {
    ".html": b"text/html; charset=utf-8",
    ".js": b"text/javascript; charset=utf-8",
    ".css": b"text/css; charset=utf-8",
    ".svg": b"image/svg+xml",
}
PAGE_HEADERS = [
    (b"content-security-policy", b"default-src 'self'; base-uri 'none'; frame-ancestors 'none'"),
    (b"x-content-type-options", b"nosniff"),
    (b"cache-control", b"no-cache"),
]


LIMITS = LimitsSection()


@dataclass(frozen=True)
class GatewayLimits:
    """A limit on everything that a client or an engine can make us wait for or hold (config/limits.py says what
    happens beyond it). `needs_key`: also where no key was made yet nobody gets in without one."""

    body_bytes_max: int = LIMITS.body
    body_idle_s_max: float = LIMITS.body_idle / 1000
    body_s_max: float = LIMITS.body_time / 1000
    header_bytes_max: int = LIMITS.headers
    headers_max: int = LIMITS.header_count
    queue_wait_ms_max: int | None = LIMITS.queue_wait
    needs_key: bool = False
    keys_s: float = 1.0  # between two looks at the API keys
    leases: LeaseLimits = field(default_factory=LeaseLimits)
    relay: RelayLimits = field(default_factory=RelayLimits)


class Gateway:
    """An ASGI application. A server that speaks `lifespan` starts and stops it; others use `running`."""

    def __init__(
        self, allocator: AllocatorPort, limits: GatewayLimits | None = None, holder: str | None = None
    ) -> None:
        self.limits = limits or GatewayLimits()
        self.leases = Leases(allocator, holder or f"gateway-{uuid.uuid4().hex[:12]}", self.limits.leases)
        self._relay = Relay(self.leases, self.limits.relay)
        self.keyring = Keyring(allocator, self.limits.needs_key, self.limits.keys_s)
        self._admin = Admin(allocator, int(time.time()))
        self._page = {
            "/" if file.name == "index.html" else f"/page/{file.name}": (
                PAGE_TYPES[file.suffix],
                file.read_bytes(),
            )
            for file in PAGE.iterdir()
            if file.suffix in PAGE_TYPES
        }

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Gateway]:
        await self.leases.start()
        await self._relay.start()
        await self.keyring.start()
        try:
            yield self
        finally:
            await self.keyring.close()
            await self._relay.close()
            await self.leases.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._answer(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._live(receive, send)
        else:  # no path of ours speaks WebSocket
            await receive()
            await send({"type": "websocket.close", "code": 1000})

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        async with self.running():
            await send({"type": "lifespan.startup.complete"})
            await receive()
        await send({"type": "lifespan.shutdown.complete"})

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            self._check_headers(scope)
            path = scope["path"][len(scope.get("root_path", "")) :]
            if path in MODEL_PATHS:
                await self._relay_model(path, scope, receive, send)
            else:
                await self._answer_ourselves(path, scope, receive, send)
        except ClientGone:
            return
        except RayschedulerError as error:
            await _send_error(send, error)
        except Exception:
            logger.exception("%s %s failed", scope["method"], scope["path"])
            await _send_error(send, ApiError(500, "internal", "The gateway failed; its log says more."))

    async def _relay_model(self, path: str, scope: Scope, receive: Receive, send: Send) -> None:
        headers: Headers = scope["headers"]
        caller = self.keyring.caller(headers)
        allowed(scope["method"], "POST")
        caller.require(KeyScope.INFERENCE)
        with self.keyring.request(caller):
            limits = self.limits
            body = await read_body(scope, receive, limits.body_bytes_max, limits.body_idle_s_max, limits.body_s_max)
            call = model_call(body, header(headers, b"content-type").decode("latin-1"))
            caller.require_model(call.model)
            ask = self.keyring.as_urgent_as_allowed(caller, _ask(call.model, headers, limits.queue_wait_ms_max))
            query = scope.get("query_string")
            target = f"{path}?{query.decode('latin-1')}" if query else path
            await self._relay.serve(call, ask, target, headers, receive, send)

    async def _answer_ourselves(self, path: str, scope: Scope, receive: Receive, send: Send) -> None:
        method: str = scope["method"]
        if path == MODELS or path.startswith((MODELS + "/", API)):
            caller = self.keyring.caller(scope["headers"])
            value = await self._admin.answer(caller, method, path, scope.get("query_string", b""), scope["headers"])
            await send_json(send, 200, value, [(b"cache-control", b"no-store")])
        elif path == "/health":
            allowed(method, "GET")
            self._check_health()
            await send_json(send, 200, {"status": "ok"})
        elif path in self._page:
            allowed(method, "GET")
            content_type, content = self._page[path]
            await send_whole(send, 200, content_type, content, PAGE_HEADERS)
        else:
            raise not_found(path)

    def _check_headers(self, scope: Scope) -> None:
        headers = scope["headers"]
        size = len(scope.get("raw_path") or b"") + len(scope.get("query_string", b""))
        size += sum(len(name) + len(value) for name, value in headers)
        if size > self.limits.header_bytes_max or len(headers) > self.limits.headers_max:
            most = f"{self.limits.header_bytes_max} bytes and {self.limits.headers_max} headers"
            raise ApiError(431, "headers_too_large", f"Path and headers may be {most} together.")

    def _check_health(self) -> None:
        """A restart of the allocator is bridged by waiting; only what outlasts that makes us useless."""
        silent_s = self.leases.allocator_silent_s()
        if silent_s > self.limits.leases.away_s_max:
            raise AllocatorUnavailable(f"The allocator has not answered for {silent_s:.0f} s.")


async def _send_error(send: Send, error: RayschedulerError) -> None:
    await send_whole(send, error.http_status, b"application/json", error_body(error), error_headers(error))


def _ask(model: str, headers: Headers, wait_ms_max: int | None) -> Ask:
    """What to ask for; the client may say how urgent it is in `x-rayscheduler-{priority,tier,deadline-ms}`."""
    said = {name: value for name, value in headers if name.startswith(b"x-rayscheduler-")}
    if not said:
        return Ask(model, deadline_ms=wait_ms_max)
    tier = said.get(b"x-rayscheduler-tier")
    deadline_ms = _whole_number(said, b"x-rayscheduler-deadline-ms")
    if deadline_ms is not None and deadline_ms <= 0:
        raise ApiError(400, "invalid_header", "x-rayscheduler-deadline-ms must be more than 0.")
    return Ask(
        model,
        priority=_whole_number(said, b"x-rayscheduler-priority"),
        tier=None if tier is None else tier.decode("latin-1"),
        deadline_ms=min((ms for ms in (deadline_ms, wait_ms_max) if ms is not None), default=None),
    )


def _whole_number(said: dict[bytes, bytes], name: bytes) -> int | None:
    if name not in said:
        return None
    try:
        number = int(said[name][:12])
    except ValueError:
        raise ApiError(400, "invalid_header", f"{name.decode()} must be a whole number.") from None
    return number
