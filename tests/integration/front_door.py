"""The service as its HTTP clients see it, for the integration tests: OpenAI's client, httpx, and a bare socket.

Rules of this file: no client retries or waits for longer than WITHIN_S; whoever runs in another thread is joined.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx
from openai import APIConnectionError, InternalServerError, OpenAI

from tests.integration.world import WITHIN_S, Json, World

T = TypeVar("T")
LOOK_EVERY_S = 0.02


class FrontDoor:
    """Close it, or use it as a context."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.http = httpx.Client(base_url=url, timeout=WITHIN_S, trust_env=False)
        self.openai = OpenAI(base_url=f"{url}/v1", api_key="not needed", max_retries=0, timeout=WITHIN_S)
        self._threads = ThreadPoolExecutor(max_workers=60)

    def __enter__(self) -> FrontDoor:
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown()
        self.openai.close()
        self.http.close()

    # -- asking ---------------------------------------------------------------------------------------

    def chat(self, model: str, text: str = "hello", **more: Any) -> str:
        """What the model says, through OpenAI's client; its errors are OpenAI's."""
        messages: Any = [{"role": "user", "content": text}]
        answer = self.openai.chat.completions.create(model=model, messages=messages, **more)
        return str(answer.choices[0].message.content)

    def chat_stream(self, model: str, text: str = "hello", **more: Any) -> Iterator[str]:
        """The pieces of what it says, as they come. Leaving it early hangs up."""
        messages: Any = [{"role": "user", "content": text}]
        with self.openai.chat.completions.create(model=model, messages=messages, stream=True, **more) as chunks:
            for chunk in chunks:
                if chunk.choices and (piece := chunk.choices[0].delta.content):
                    yield piece

    def chat_in_the_end(self, model: str) -> str:
        """The same, asked again while the front door itself is out of order."""
        deadline_s = time.monotonic() + WITHIN_S
        while True:
            try:
                return self.chat(model)
            except (InternalServerError, APIConnectionError):
                assert time.monotonic() < deadline_s, f"the front door is out of order for {WITHIN_S:g} s"
                time.sleep(LOOK_EVERY_S)

    def meanwhile(self, call: Callable[..., T], *args: Any, **more: Any) -> Future[T]:
        """The call in a thread of its own."""
        return self._threads.submit(call, *args, **more)

    def get(self, path: str) -> Any:
        return self.http.get(path).raise_for_status().json()

    def post(self, path: str, body: object = None, **headers: str) -> httpx.Response:
        """`headers` with `_` for `-`."""
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.http.post(path, json=body, headers=names)

    def refused(self, path: str, body: object, status: int, code: str, **headers: str) -> str:
        """Posts what has to be refused so, with an error in OpenAI's form; its message."""
        answer = self.post(path, body, **headers)
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (status, code), answer.text
        assert set(error) == {"message", "type", "param", "code"}
        return str(error["message"])

    @contextmanager
    def hanging_on(self, model: str) -> Iterator[socket.socket]:
        """A client that has sent its whole request for a chat and waits. The end of the block hangs up."""
        address = urlsplit(self.url).netloc
        body = json.dumps({"model": model, "messages": [{"role": "user", "content": "hello"}]}).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {address}\r\nContent-Length: {len(body)}\r\n\r\n"
        host, _, port = address.rpartition(":")
        with socket.create_connection((host, int(port)), WITHIN_S) as client:
            client.sendall(head.encode() + body)
            yield client


class EngineWindow:
    """A look at an engine past the gateway, to see what reaches it."""

    def __init__(self, world: World, model: str) -> None:
        ask = world.ask(model)
        lease = ask.granted()
        ask.release()
        self.replica: str = lease["replica"]
        self._http = httpx.Client(
            base_url=lease["endpoint"],
            headers={"authorization": f"Bearer {lease['api_key']}"},
            timeout=WITHIN_S,
            trust_env=False,
        )

    def __enter__(self) -> EngineWindow:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def post(self, path: str, body: Json) -> httpx.Response:
        return self._http.post(path, json=body)

    def stats(self) -> dict[str, int]:
        return dict(self._http.get("/stats").json())

    def until(self, holds: Callable[[dict[str, int]], object]) -> dict[str, int]:
        """Its first counts for which it holds."""
        deadline_s = time.monotonic() + WITHIN_S
        while not holds(stats := self.stats()):
            assert time.monotonic() < deadline_s, f"it does not hold after {WITHIN_S:g} s: {stats}"
            time.sleep(LOOK_EVERY_S)
        return stats
