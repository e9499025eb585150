"""The program of the engine `simulated`: a small OpenAI-compatible server that answers like a model.

It listens at once, says 503 until its load time is over, and then answers with its own name or a given
text at a given speed. A prompt may hold directives: `#tokens=500` (length of the answer), `#crash` (end
the process before the first byte) and `#crash=midstream` (after some tokens). `GET /stats` counts requests.
LoRA adapters are loaded and unloaded as with vLLM, by their name and a folder that has to be there.

Over several nodes this is the leader: it loads when its followers (simulated_follower.py) have all connected,
and ends when it loses one, as engines do whose nodes work in step.

Rules of this file: it is run by its path with `python -I -S`: the standard library only, no import from
the package but of the file beside it, and few imports, as a start must cost little. One connection is
served by one task, which is cancelled when the client goes away, as a model's server would stop generating.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import mmap
import os
import re
import signal
import sys
import time
from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rayscheduler.engines import simulated_answers as answers
else:
    sys.path.append(os.path.dirname(os.path.abspath(__file__)))  # `-I` has left it out
    import simulated_answers as answers

HEAD_BYTES_MAX = 64 << 10
BODY_BYTES_MAX = 64 << 20
ALLOCATION_STEP_BYTES = 64 << 20
MIDSTREAM_TOKENS = 3
ADAPTER_PATHS = ("/v1/load_lora_adapter", "/v1/unload_lora_adapter")
REASONS = {200: "OK", 400: "Bad Request", 401: "Unauthorized", 404: "Not Found", 405: "Method Not Allowed"}
REASONS |= {411: "Length Required", 413: "Content Too Large", 503: "Service Unavailable"}

_DIRECTIVE = re.compile(r"#(tokens|crash)(?:=(\w+))?")


class Model:
    """What stands in for a model: its load, its answers, and its count of requests."""

    def __init__(self, plan: Mapping[str, Any], api_key: str) -> None:
        self.plan = plan
        self.name: str = plan["model"]
        self.api_key = api_key
        self.ready = False
        self.stats = {"in_flight": 0, "served": 0, "aborted": 0, "tokens": 0, "adapter_loads": 0, "adapter_unloads": 0}
        self.adapters: dict[str, str] = {}  # name -> its folder
        self._slots = asyncio.Semaphore(plan["concurrency"])
        self._memory: list[mmap.mmap] = []
        self._ids = itertools.count(1)

    async def load(self) -> None:
        started_s = time.monotonic()
        left_bytes: int = self.plan["allocate_bytes"]
        if self.plan["allocate_counts_all"]:
            left_bytes -= resident_bytes()
        while left_bytes > 0:
            step_bytes = min(left_bytes, ALLOCATION_STEP_BYTES)
            flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_POPULATE", 0)
            self._memory.append(mmap.mmap(-1, step_bytes, flags=flags))
            left_bytes -= step_bytes
            await asyncio.sleep(0)
        await asyncio.sleep(max(0.0, self.plan["load_ms"] / 1000 - (time.monotonic() - started_s)))
        if self.plan["fail"] == "load":
            self.end("simulated failure of the load")
        self.ready = True
        if self.plan["fail"] == "crash" and self.plan["fail_after_ms"] is not None:
            await asyncio.sleep(self.plan["fail_after_ms"] / 1000)
            self.end("simulated crash")

    def load_adapter(self, name: str, folder: str) -> str:
        if name in self.adapters:
            raise answers.Refused(400, "InvalidUserInput", f"The lora adapter '{name}' has already been loaded.")
        if folder.startswith("/") and not os.path.isdir(folder):
            raise answers.Refused(404, "NotFoundError", f"No adapter found for {folder}")
        if len(self.adapters) >= self.plan["max_loras"]:
            raise answers.Refused(400, "BadRequestError", f"there is room for {self.plan['max_loras']} adapters")
        self.adapters[name] = folder
        self.stats["adapter_loads"] += 1
        return f"Success: LoRA adapter '{name}' added successfully."

    def unload_adapter(self, name: str) -> str:
        if self.adapters.pop(name, None) is None:
            raise answers.Refused(404, "NotFoundError", f"The lora adapter '{name}' cannot be found.")
        self.stats["adapter_unloads"] += 1
        return f"Success: LoRA adapter '{name}' removed successfully."

    def called(self, wanted: object) -> str:
        """The name of the model or adapter that a request wants. Without adapters, one model answers to every name."""
        if wanted in self.adapters:
            return str(wanted)
        if self.plan["max_loras"] and wanted not in (None, self.name):
            raise answers.Refused(404, "NotFoundError", f"The model `{wanted}` does not exist.")
        return self.name

    def end(self, why: str) -> None:
        sys.stderr.write(f"{self.name}: {why}\n")
        sys.stderr.flush()
        os._exit(self.plan["fail_status"])

    def begin(self) -> Answer:
        return Answer(self, next(self._ids))

    def fail_first_byte(self, prompt: str) -> None:
        """End the process here if the prompt or the plan wants that."""
        if ("crash", "") in _DIRECTIVE.findall(prompt) or (
            self.plan["fail"] == "crash" and self.plan["fail_after_ms"] is None
        ):
            self.end("simulated crash before the first byte")

    async def tokens(self, name: str, prompt: str, limit: int | None) -> AsyncIterator[str]:
        """The words of the answer, at the model's speed, once one of its slots is free."""
        directives = dict(_DIRECTIVE.findall(prompt))
        words = (self.plan["reply"] or f"This is {name}, simulated.").split(" ")
        length = int(directives["tokens"]) if directives.get("tokens", "").isdecimal() else len(words)
        rate = self.plan["tokens_per_second"]
        async with self._slots:
            self.fail_first_byte(prompt)
            started_s = time.monotonic()
            for index in range(length if limit is None else min(length, limit)):
                due_s = started_s + (index + 1) / rate if rate else 0.0
                await asyncio.sleep(max(0.0, due_s - time.monotonic()))  # 0 still lets others have their turn
                if directives.get("crash") == "midstream" and index == MIDSTREAM_TOKENS:
                    await asyncio.sleep(0.01)  # what was written before is on its way
                    self.end("simulated crash in the middle of an answer")
                self.stats["tokens"] += 1
                yield ("" if index == 0 else " ") + words[index % len(words)]


class Answer:
    """One request to the model, counted as in flight until it is served or aborted."""

    def __init__(self, model: Model, number: int) -> None:
        self._stats = model.stats
        self.number = number

    def __enter__(self) -> Answer:
        self._stats["in_flight"] += 1
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._stats["in_flight"] -= 1
        if kind is None:
            self._stats["served"] += 1
        elif issubclass(kind, asyncio.CancelledError):
            self._stats["aborted"] += 1


class Connection(asyncio.Protocol):
    """HTTP/1.1 with one client: reads a request, has it answered, reads the next."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._received = bytearray()
        self._task: asyncio.Task[None] | None = None
        self._may_write = asyncio.Event()
        self._may_write.set()
        self._continued = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        if self._task is None:
            self._next()

    def connection_lost(self, exc: Exception | None) -> None:
        self._may_write.set()
        if self._task is not None:
            self._task.cancel()

    def pause_writing(self) -> None:
        self._may_write.clear()

    def resume_writing(self) -> None:
        self._may_write.set()

    def _next(self) -> None:
        """Start on the next request, if all of it is here."""
        try:
            request = self._parsed()
        except answers.Refused as refused:
            self._send_error(refused)
            self._transport.close()
            return
        if request is not None:
            self._task = asyncio.ensure_future(self._serve(*request))
            self._task.add_done_callback(self._served)

    def _served(self, task: asyncio.Task[None]) -> None:
        self._task = None
        if task.cancelled() or self._transport.is_closing():
            return
        if task.exception() is not None:
            self._transport.abort()
        task.result()
        self._next()

    def _parsed(self) -> tuple[str, str, dict[str, str], bytes] | None:
        """Method, path, headers and body, taken off what was received; None while some is missing."""
        head, end, rest = self._received.partition(b"\r\n\r\n")
        if not end:
            if len(head) > HEAD_BYTES_MAX:
                raise answers.Refused(413, "invalid_request_error", "the head of the request is too long")
            return None
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {key.strip().lower(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
        words = first.split(" ")
        length = headers.get("content-length", "0")
        if len(words) != 3 or not length.isdecimal():
            raise answers.Refused(400, "invalid_request_error", "this is not an HTTP request")
        if "chunked" in headers.get("transfer-encoding", ""):
            body, used = answers.unchunked(bytes(rest))
        else:
            body, used = bytes(rest[: int(length)]), int(length)
        if used > BODY_BYTES_MAX or len(rest) > BODY_BYTES_MAX + HEAD_BYTES_MAX:
            raise answers.Refused(413, "invalid_request_error", "the body of the request is too long")
        if used < 0 or len(rest) < used:
            if headers.get("expect", "").lower() == "100-continue" and not self._continued:
                self._continued = True
                self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            return None
        self._continued = False
        self._received = bytearray(rest[used:])
        return words[0], words[1].partition("?")[0], headers, body

    async def _serve(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> None:
        try:
            await self._answer(method, path, headers, body)
        except answers.Refused as refused:
            self._send_error(refused)
        if headers.get("connection", "").lower() == "close":
            self._transport.close()

    async def _answer(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> None:
        model = self._model
        if path == "/health":
            return self._send_json({"status": "ok" if model.ready else "loading"}, 200 if model.ready else 503)
        if model.api_key and headers.get("authorization") != f"Bearer {model.api_key}":
            raise answers.Refused(401, "authentication_error", "the bearer token is missing or wrong")
        if path == "/stats":
            return self._send_json(model.stats)
        if not model.ready:
            raise answers.Refused(503, "unavailable_error", f"{model.name} is loading")
        if path == "/v1/models":
            return self._send_json({"object": "list", "data": answers.model_list(model.name, model.adapters)})
        if path in ADAPTER_PATHS and model.plan["max_loras"]:
            told = answers.asked(body)
            if path == ADAPTER_PATHS[0]:
                return self._send_text(model.load_adapter(str(told.get("lora_name")), str(told.get("lora_path"))))
            return self._send_text(model.unload_adapter(str(told.get("lora_name"))))
        if path not in ("/v1/chat/completions", "/v1/completions", "/v1/embeddings"):
            raise answers.Refused(404, "not_found_error", f"there is no {path}")
        if method != "POST":
            raise answers.Refused(405, "invalid_request_error", f"{path} takes POST, not {method}")
        asked = answers.asked(body)
        with model.begin() as answer:
            if path == "/v1/embeddings":
                model.fail_first_byte(answers.text_of(asked.get("input")))
                self._send_json(answers.embeddings(model.called(asked.get("model")), asked))
            else:
                await self._complete(answer.number, path == "/v1/chat/completions", asked)
        return None

    async def _complete(self, number: int, chat: bool, asked: Mapping[str, Any]) -> None:
        prompt = answers.text_of(asked.get("messages") if chat else asked.get("prompt"))
        limit = asked.get("max_completion_tokens", asked.get("max_tokens"))
        if limit is not None and (not isinstance(limit, int) or limit < 0):
            raise answers.Refused(400, "invalid_request_error", "max_tokens takes a whole number")
        name = self._model.called(asked.get("model"))
        shape = answers.Shape(name, number, chat, streamed=bool(asked.get("stream")))
        tokens = self._model.tokens(name, prompt, limit)
        count, text = 0, ""
        if not shape.streamed:
            async for token in tokens:
                count, text = count + 1, text + token
            usage = answers.usage(prompt, count)
            return self._send_json(shape.whole(text, answers.finish(count, limit), usage))
        async for token in tokens:
            if count == 0:
                self._begin_stream(shape)
            count += 1
            self._send_events(shape.piece(token))
            await self._may_write.wait()
        if count == 0:
            self._begin_stream(shape)
        self._send_events(shape.piece(None, answers.finish(count, limit)))
        if (asked.get("stream_options") or {}).get("include_usage"):
            self._send_events({**shape.piece(None), "choices": [], "usage": answers.usage(prompt, count)})
        self._send_chunk(b"data: [DONE]\n\n")
        self._transport.write(b"0\r\n\r\n")
        return None

    def _begin_stream(self, shape: answers.Shape) -> None:
        self._send_head(200, "text/event-stream", "Transfer-Encoding: chunked")
        self._send_events(*shape.opening())

    def _send_head(self, status: int, kind: str, length: str) -> None:
        head = f"HTTP/1.1 {status} {REASONS[status]}\r\nContent-Type: {kind}\r\n{length}\r\n"
        self._transport.write(head.encode() + (b"Retry-After: 1\r\n\r\n" if status == 503 else b"\r\n"))

    def _send_json(self, answer: object, status: int = 200) -> None:
        body = json.dumps(answer).encode()
        self._send_head(status, "application/json", f"Content-Length: {len(body)}")
        self._transport.write(body)

    def _send_text(self, answer: str) -> None:
        self._send_head(200, "text/plain", f"Content-Length: {len(answer.encode())}")
        self._transport.write(answer.encode())

    def _send_error(self, refused: answers.Refused) -> None:
        error = {"message": str(refused), "type": refused.kind, "param": None, "code": refused.status}
        self._send_json({"error": error}, refused.status)

    def _send_events(self, *events: Mapping[str, Any]) -> None:
        for event in events:
            self._send_chunk(b"data: " + json.dumps(event).encode() + b"\n\n")

    def _send_chunk(self, text: bytes) -> None:
        self._transport.write(b"%x\r\n%b\r\n" % (len(text), text))


def resident_bytes() -> int:
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[1]) * mmap.PAGESIZE


async def lead(model: Model) -> None:
    """Returns when the followers of all other nodes have joined; the loss of one ends this process."""
    awaited = {b"%d\n" % rank for rank in range(1, model.plan["node_count"])}
    all_joined = asyncio.Event()

    async def joined(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        hello = await reader.readline()
        if hello not in awaited:
            return writer.close()
        awaited.discard(hello)
        if not awaited:
            all_joined.set()
        with contextlib.suppress(OSError):  # a reset is an end, too
            await reader.read()
        return model.end(f"the connection to its node {hello.decode().strip()} was lost")

    await asyncio.start_server(joined, model.plan["host"], model.plan["leader_port"])
    await all_joined.wait()


async def main(plan: Mapping[str, Any]) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, lambda: loop.call_later(plan["unload_ms"] / 1000, os._exit, 0))
    model = Model(plan, os.environ.pop("RAYSCHEDULER_API_KEY", ""))
    server = await loop.create_server(lambda: Connection(model), plan["host"], plan["port"], backlog=1024)
    if plan["node_count"] > 1:
        await lead(model)
    await model.load()
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1])))
