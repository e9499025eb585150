"""A server whose every chunk says when it was written, for `bench_service.py`: `stamping_server.py HOST PORT`.

Every POST gets a stream of `data: {"ns": …}` events, the time being this machine's monotonic clock. Its body
says how many and how often: `{"chunks": 300, "every_ms": 10}`.

Rules of this file: the standard library only; it trusts its one client.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"\r\ncontent-length: *(\d+)", head, re.I)
            body = await reader.readexactly(int(length[1]) if length else 0)
            if head.startswith(b"POST"):
                await stream(writer, **{key: value for key, value in json.loads(body).items() if key != "model"})
            else:
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


async def stream(writer: asyncio.StreamWriter, chunks: int, every_ms: float) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
    began_s = time.monotonic()
    for index in range(chunks):
        await asyncio.sleep(began_s + index * every_ms / 1000 - time.monotonic())
        event = b'data: {"ns": %d}\n\n' % time.monotonic_ns()
        writer.write(b"%x\r\n%b\r\n" % (len(event), event))
    writer.write(b"0\r\n\r\n")
    await writer.drain()


async def main(host: str, port: int) -> None:
    server = await asyncio.start_server(serve, host, port)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
