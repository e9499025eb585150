"""The little of ASGI that the gateway needs: reading a bounded body, sending a whole answer.

Rules of this file: no framework; a limit on everything that a client sends.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

from rayscheduler.cluster.bounded import within
from rayscheduler.serving.openai import ApiError

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = Iterable[tuple[bytes, bytes]]


class ClientGone(Exception):
    """The client hung up before its request was whole: there is nobody to answer."""


def header(headers: Headers, name: bytes) -> bytes:
    """The first header of that (lower case) name, or b""."""
    for key, value in headers:
        if key == name:
            return value
    return b""


async def read_body(scope: Scope, receive: Receive, bytes_max: int, idle_s: float, whole_s: float) -> bytes:
    """The request's whole body, at most `bytes_max` long.

    ApiError 413 when it is longer, 408 when `idle_s` pass without a byte, or `whole_s` and it is not whole; ClientGone.
    """
    declared = header(scope["headers"], b"content-length")
    too_large = declared.isdigit() and int(declared) > bytes_max
    if too_large and header(scope["headers"], b"expect"):
        raise _too_large(bytes_max)  # it asks before it sends
    message = await receive()
    if message["type"] == "http.request" and not message.get("more_body", False):  # the usual one
        body: bytes = message.get("body", b"")
        if len(body) > bytes_max:
            raise _too_large(bytes_max)
        return body
    clock = asyncio.get_running_loop().time
    until_s = clock() + whole_s
    parts: list[bytes] = []
    size = 0
    while True:
        if message["type"] == "http.disconnect":
            raise ClientGone
        part = message.get("body", b"")
        size += len(part)
        if size > bytes_max:
            too_large = True
            parts.clear()
        elif not too_large:
            parts.append(part)
        # A client that is still sending would see a reset instead of our answer: listen on for a while.
        done = not message.get("more_body", False)
        if too_large and (done or size > 2 * bytes_max):
            raise _too_large(bytes_max)
        if done:
            return b"".join(parts)
        left_s = until_s - clock()
        try:
            message = await within(min(idle_s, left_s), receive())
        except asyncio.TimeoutError:
            late = f"No byte of the body came for {idle_s:g} s."
            if left_s < idle_s:
                late = f"The body was not whole after {whole_s:g} s."
            raise ApiError(408, "body_timeout", late) from None


def _too_large(bytes_max: int) -> ApiError:
    return ApiError(413, "request_too_large", f"The request body is larger than {bytes_max} bytes.")


async def send_whole(send: Send, status: int, content_type: bytes, body: bytes, headers: Headers = ()) -> None:
    """One complete answer."""
    head = [
        (b"content-type", content_type),
        (b"content-length", str(len(body)).encode()),
        *headers,
    ]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": body})


async def send_json(send: Send, status: int, value: object, headers: Headers = ()) -> None:
    await send_whole(send, status, b"application/json", json.dumps(value).encode(), headers)
