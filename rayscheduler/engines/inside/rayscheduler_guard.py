"""Lets nobody at an engine's HTTP server but those who know its key, and counts who is there.

Engines guard the paths of OpenAI's interface at best: vLLM 0.33 asks no key for /sleep, /pause or /tokenize,
transformers 5.24 for nothing at all. This ASGI middleware asks it for everything but health and metrics.

Rules of this file: see the folder's. No key, no service: a guard that was given none lets nobody in.
"""

from __future__ import annotations

import json
import os
import secrets
from typing import Any

KEY_ENV = "RAYSCHEDULER_API_KEY"
OPEN_PATHS = frozenset({"/health", "/metrics"})
COUNT_PATH = "/rayscheduler/in_flight"


class Guard:
    """`app` for those who know the key. With vLLM: `--middleware rayscheduler_guard.Guard`."""

    def __init__(self, app: Any) -> None:
        self._app = app
        key = os.environ.get(KEY_ENV, "")
        self._expected = f"Bearer {key}".encode() if key else b""
        self._in_flight = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] not in ("http", "websocket") or scope["path"] in OPEN_PATHS:
            await self._app(scope, receive, send)
        elif not self._knows_key(scope):
            await _refuse(scope, send)
        elif scope["path"] == COUNT_PATH:
            await _answer(send, 200, {"in_flight": self._in_flight})
        else:
            self._in_flight += 1
            try:
                await self._app(scope, receive, send)
            finally:
                self._in_flight -= 1

    def _knows_key(self, scope: Any) -> bool:
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        return bool(self._expected) and len(given) == 1 and secrets.compare_digest(given[0], self._expected)


async def _refuse(scope: Any, send: Any) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
    else:
        told = {"message": "the bearer token is missing or wrong", "type": "authentication_error", "code": None}
        await _answer(send, 401, {"error": told})


async def _answer(send: Any, status: int, document: Any) -> None:
    body = json.dumps(document).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
