"""OpenAI's answers as the program of the engine `simulated` gives them: their shapes, and how requests are read.

Rules of this file: as of simulated_server.py, which finds it beside itself: the standard library only. Pure.
"""

from __future__ import annotations

import binascii
import json
import struct
import time
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

EMBEDDING_DIMENSIONS = 8


class Refused(Exception):
    """The request gets an error: its status, OpenAI's type of error, and a message."""

    def __init__(self, status: int, kind: str, message: str) -> None:
        super().__init__(message)
        self.status, self.kind = status, kind


def model_list(model: str, adapters: Mapping[str, str]) -> list[dict[str, Any]]:
    """As vLLM lists them: an adapter has its base for a parent."""
    common = {"object": "model", "created": 0, "owned_by": "rayscheduler"}
    of_adapters = [{"id": name, **common, "root": folder, "parent": model} for name, folder in adapters.items()]
    return [{"id": model, **common}, *of_adapters]


class Shape:
    """The JSON of OpenAI's answers, of chats and of plain completions, whole and in pieces."""

    def __init__(self, model: str, number: int, chat: bool, streamed: bool) -> None:
        self.chat, self.streamed = chat, streamed
        kind = "chat.completion" if chat else "text_completion"
        self._common = {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{number}",
            "object": f"{kind}.chunk" if chat and streamed else kind,
            "created": int(time.time()),
            "model": model,
        }

    def whole(self, text: str, finish: str, usage: Mapping[str, int]) -> dict[str, Any]:
        said = {"message": {"role": "assistant", "content": text}} if self.chat else {"text": text}
        return {**self._common, "choices": [{"index": 0, **said, "finish_reason": finish}], "usage": usage}

    def opening(self) -> Iterator[dict[str, Any]]:
        if self.chat:
            opening = {"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
            yield {**self._common, "choices": [opening]}

    def piece(self, token: str | None, finish: str | None = None) -> dict[str, Any]:
        said = {"delta": {} if token is None else {"content": token}} if self.chat else {"text": token or ""}
        return {**self._common, "choices": [{"index": 0, **said, "finish_reason": finish}]}


def finish(count: int, limit: int | None) -> str:
    return "length" if limit is not None and count >= limit else "stop"


def usage(prompt: str, count: int) -> dict[str, int]:
    asked = len(prompt.split())
    return {"prompt_tokens": asked, "completion_tokens": count, "total_tokens": asked + count}


def asked(body: bytes) -> dict[str, Any]:
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError):
        asked = None
    if not isinstance(asked, dict):
        raise Refused(400, "invalid_request_error", "the body is not a JSON object")
    return asked


def text_of(prompt: object) -> str:
    """All text in a prompt: a string, a list of messages, or messages made of parts."""
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, list):
        return " ".join(text_of(part) for part in prompt)
    if isinstance(prompt, dict):
        return text_of(prompt.get("content", prompt.get("text", "")))
    if prompt is None:
        raise Refused(400, "invalid_request_error", "the request has neither messages nor a prompt")
    return str(prompt)


def embeddings(model: str, asked: Mapping[str, Any]) -> dict[str, Any]:
    given = asked.get("input")
    texts = given if isinstance(given, list) and given and not isinstance(given[0], int) else [given]
    data = []
    for index, text in enumerate(texts):
        seen = text_of(text).encode("utf-8", "replace")
        raw = [zlib.crc32(seen, each) / 2**32 + 0.01 for each in range(EMBEDDING_DIMENSIONS)]
        length = sum(value * value for value in raw) ** 0.5
        vector: object = [value / length for value in raw]
        if asked.get("encoding_format") == "base64":
            packed = struct.pack(f"<{EMBEDDING_DIMENSIONS}f", *(value / length for value in raw))
            vector = binascii.b2a_base64(packed, newline=False).decode()
        data.append({"object": "embedding", "index": index, "embedding": vector})
    count = sum(len(text_of(text).split()) for text in texts)
    return {
        "object": "list",
        "model": model,
        "data": data,
        "usage": {"prompt_tokens": count, "total_tokens": count},
    }


def unchunked(rest: bytes) -> tuple[bytes, int]:
    """The body sent in chunks and how many bytes it took; -1 while some of it is missing."""
    body, at = b"", 0
    while True:
        line_end = rest.find(b"\r\n", at)
        if line_end < 0:
            return b"", -1
        try:
            size = int(rest[at:line_end].partition(b";")[0], 16)
        except ValueError:
            raise Refused(400, "invalid_request_error", "a chunk of the body has no size") from None
        at = line_end + 2 + size + 2
        if len(rest) < at:
            return b"", -1
        if size == 0:
            return body, at
        body += rest[line_end + 2 : at - 2]
