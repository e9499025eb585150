"""Load for an HTTP server, and the time that each answer takes, for `bench_service.py`.

Rules of this file: as little work per request as Python allows, since the client shares the machine with
what it measures; one request at a time on each kept-alive connection; an answer that is not 200 is an error.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from dataclasses import dataclass
from urllib.parse import urlsplit

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.I)
_STAMP = re.compile(rb'"ns": (\d+)')


@dataclass(frozen=True)
class Target:
    """A POST of some JSON, ready to be sent."""

    host: str
    port: int
    request: bytes

    @classmethod
    def of(cls, url: str, body: object, api_key: str = "") -> Target:
        parts = urlsplit(url)
        data = json.dumps(body).encode()
        lines = [f"POST {parts.path} HTTP/1.1", f"Host: {parts.netloc}", "Content-Type: application/json"]
        lines += [f"Content-Length: {len(data)}", *([f"Authorization: Bearer {api_key}"] if api_key else [])]
        assert parts.hostname is not None
        return cls(parts.hostname, parts.port or 80, "\r\n".join(lines).encode() + b"\r\n\r\n" + data)


class Connection(asyncio.Protocol):
    """One kept-alive connection. `delays_ns`: of stamped chunks, from their stamp to their arrival here."""

    def __init__(self) -> None:
        self.delays_ns: list[int] = []
        self._received = b""
        self._answered: asyncio.Future[bytes] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        now_ns = time.monotonic_ns()
        if b'"ns"' in data:
            self.delays_ns += [now_ns - int(stamp) for stamp in _STAMP.findall(data)]
        self._received += data
        head, end, body = self._received.partition(b"\r\n\r\n")
        if not end or self._answered is None:
            return
        length = _LENGTH.search(head)
        whole = len(body) >= int(length[1]) if length else body.endswith(b"0\r\n\r\n")
        if whole:
            self._received = b""
            answered, self._answered = self._answered, None
            if head.startswith(b"HTTP/1.1 200"):
                answered.set_result(body)
            else:
                answered.set_exception(RuntimeError(f"an answer was not 200: {head + body!r}"))

    def connection_lost(self, problem: Exception | None) -> None:
        if self._answered is not None and not self._answered.done():
            self._answered.set_exception(problem or ConnectionResetError("the server hung up"))

    async def ask(self, target: Target) -> bytes:
        self._answered = asyncio.get_running_loop().create_future()
        self._transport.write(target.request)
        return await self._answered

    def close(self) -> None:
        self._transport.close()


async def connect(target: Target) -> Connection:
    _, connection = await asyncio.get_running_loop().create_connection(Connection, target.host, target.port)
    return connection


async def latencies_s(target: Target, count: int) -> list[float]:
    """Of so many requests, one after the other on one connection; the first few are not counted."""
    connection = await connect(target)
    times = []
    for index in range(count + 5):
        began_s = time.perf_counter()
        await connection.ask(target)
        if index >= 5:
            times.append(time.perf_counter() - began_s)
    connection.close()
    return times


async def requests_per_second(target: Target, clients: int, seconds: float) -> float:
    """What so many clients get answered in that time, each asking again as soon as it has its answer."""
    until_s = 0.0
    done = 0

    async def client() -> None:
        nonlocal done
        connection = await connect(target)
        await connection.ask(target)
        await started.wait()
        while time.perf_counter() < until_s:
            await connection.ask(target)
            done += 1
        connection.close()

    started = asyncio.Event()
    tasks = [asyncio.create_task(client()) for _ in range(clients)]
    await asyncio.sleep(0.5)
    until_s = time.perf_counter() + seconds
    started.set()
    await asyncio.gather(*tasks)
    return done / seconds


async def chunk_delays_s(target: Target, streams: int) -> list[float]:
    """From the writing of a chunk to its arrival here, of all chunks of so many streams at once."""
    connections = [await connect(target) for _ in range(streams)]
    await asyncio.gather(*(connection.ask(target) for connection in connections))
    for connection in connections:
        connection.close()
    return [delay_ns / 1e9 for connection in connections for delay_ns in connection.delays_ns]
