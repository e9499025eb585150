"""One HTTP request to an engine, by hand: an HTTP client takes longer to import than small engines take to load.

Rules of this file: HTTP/1.0, so that an answer ends where the connection does. Bounded in bytes; the
caller bounds the time. Nothing is retried.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from rayscheduler.engines.protocol import Call

ANSWER_BYTES_MAX = 16 << 20


@dataclass(frozen=True, slots=True)
class Answer:
    """What an engine answered."""

    status: int
    text: str

    @property
    def ok(self) -> bool:
        return 200 <= self.status < 300


async def ask(host: str, port: int, api_key: str, call: Call) -> Answer:
    """The engine's answer. OSError: there is none. ValueError: it is no HTTP."""
    async with _sent(host, port, api_key, call) as reader:
        status = await _status(reader)
        answer = b"\r\n"  # the status line's, so that an answer without headers is found to have none
        while piece := await reader.read(65536):
            answer += piece
            if len(answer) > ANSWER_BYTES_MAX:
                raise ValueError(f"more than {ANSWER_BYTES_MAX >> 20} MiB")
        return Answer(status, answer.partition(b"\r\n\r\n")[2].decode("utf-8", "replace"))


async def ask_status(host: str, port: int, api_key: str, call: Call) -> int:
    """The status alone, also of an engine that never ends its answer. Errors as of `ask`."""
    async with _sent(host, port, api_key, call) as reader:
        return await _status(reader)


@asynccontextmanager
async def _sent(host: str, port: int, api_key: str, call: Call) -> AsyncIterator[asyncio.StreamReader]:
    reader, writer = await asyncio.open_connection(host, port)
    shown_host = f"[{host}]" if ":" in host else host
    body = call.body.encode()
    about_body = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n" if call.method != "GET" else ""
    try:
        writer.write(
            f"{call.method} {call.path} HTTP/1.0\r\nHost: {shown_host}:{port}\r\n"
            f"Authorization: Bearer {api_key}\r\nConnection: close\r\n{about_body}\r\n".encode()
            + body
        )
        yield reader
    finally:
        writer.transport.abort()


async def _status(reader: asyncio.StreamReader) -> int:
    words = (await reader.readline()).decode("latin-1").split()
    if len(words) < 2 or not words[0].startswith("HTTP/") or not words[1].isdecimal():
        raise ValueError("what it said is no HTTP")
    return int(words[1])
