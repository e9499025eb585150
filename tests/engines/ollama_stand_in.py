"""A program that behaves as `ollama serve` does where the engine `ollama` can notice, for tests without Ollama.

Faithful to: its environment; one process per loaded model, which outlives a killed daemon; loads that take time
and are given up when their client leaves; unloading by keep_alive and by OLLAMA_MAX_LOADED_MODELS; a model that is
loaded anew when a request's options differ from those of the load, or when its process has died; OpenAI's paths,
on which a request has no options and no keep_alive; a load that takes what the context costs for each of
OLLAMA_NUM_PARALLEL requests.

The store is a file, OLLAMA_MODELS/models.json: {"tiny:latest": {"size": bytes, "per_token": bytes, "host": bytes
that do not fit on the GPU, "trained": tokens, "num_ctx": of its Modelfile, "gate": a load waits until this file is
there, "fail": what a load ends with, "embedding", "endless", "remote_host"}}. GET /stand-in counts loads and
requests in flight.

Rules of this file: a program of its own, the standard library only; locks, no event loop, as the requests are few.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

VERSION = "0.12.3"
FOREVER_S = 1e9
UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
MODEL_PROCESS = "import signal, time\nheld = bytes(1)\nwhile True: time.sleep(3600)"


class Failed(Exception):
    """An answer other than 200."""

    def __init__(self, status: int, error: str) -> None:
        super().__init__(error)
        self.status = status


def seconds_of(keep_alive: object) -> float:
    if isinstance(keep_alive, (int, float)):
        return FOREVER_S if keep_alive < 0 else float(keep_alive)
    number, unit = re.fullmatch(r"(-?[\d.]+)([a-z]*)", str(keep_alive)).groups()  # type: ignore[union-attr]
    if not unit and number != "0" and float(number) >= 0:
        raise Failed(400, "time: missing unit in duration")
    return FOREVER_S if float(number) < 0 else float(number) * UNITS_S[unit or "s"]


class Running:
    """A model in memory."""

    def __init__(self, name: str, digest: str, spec: dict[str, Any], options: dict[str, Any], keep_s: float) -> None:
        self.name, self.digest, self.options = name, digest, options
        self.process = subprocess.Popen([sys.executable, "-I", "-S", "-c", MODEL_PROCESS])
        context = min(options["num_ctx"], spec.get("trained", 1 << 20))
        parallel = int(os.environ.get("OLLAMA_NUM_PARALLEL") or 1)
        self.context = context
        self.size = spec["size"] + spec.get("per_token", 0) * context * parallel
        on_gpu = options["num_gpu"] != 0 and os.environ.get("CUDA_VISIBLE_DEVICES") != ""
        self.vram = self.size - spec.get("host", 0) if on_gpu else 0
        self.keep_s, self.users = keep_s, 0
        self.idle_since_s = time.monotonic()

    def due(self) -> bool:
        return self.users == 0 and time.monotonic() >= self.idle_since_s + self.keep_s

    def unload(self) -> None:
        self.process.kill()
        self.process.wait()


class Stand:
    """What the daemon knows."""

    def __init__(self) -> None:
        self.loaded: dict[str, Running] = {}
        self.table = threading.RLock()
        self.scheduling = threading.Lock()  # one request is placed at a time, as in Ollama
        self.load_count = self.in_flight = 0

    def stored(self) -> dict[str, dict[str, Any]]:
        path = Path(os.environ.get("OLLAMA_MODELS") or Path.home() / ".ollama/models") / "models.json"
        found: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.exists() else {}
        return found

    def find(self, name: str) -> tuple[str, dict[str, Any]]:
        whole = name if ":" in name else f"{name}:latest"
        spec = self.stored().get(whole)
        if spec is None:
            raise Failed(404, f"model '{name}' not found")
        return whole, spec

    def use(self, body: dict[str, Any], client: socket.socket) -> Running:
        """The model of a request, loaded if need be, and counted as used."""
        name, spec = self.find(body["model"])
        options = {
            "num_ctx": spec.get("num_ctx") or int(os.environ.get("OLLAMA_CONTEXT_LENGTH") or 4096),
            "num_gpu": -1,
            **(body.get("options") or {}),
        }
        with self.scheduling:
            running = self.loaded.get(digest_of(name))
            if running is not None:
                same = {**running.options, "num_gpu": -1} if options["num_gpu"] < 0 else running.options
                if same != options or running.process.poll() is not None:
                    self.wait_and_unload(running)
                    running = None
            if running is None:
                running = self.load(name, spec, options, client)
            with self.table:
                running.users += 1
                if "keep_alive" in body:
                    running.keep_s = seconds_of(body["keep_alive"])
                return running

    def load(self, name: str, spec: dict[str, Any], options: dict[str, Any], client: socket.socket) -> Running:
        most = int(os.environ.get("OLLAMA_MAX_LOADED_MODELS") or 3)
        while len(self.loaded) >= most:
            self.wait_and_unload(min(self.loaded.values(), key=lambda running: running.idle_since_s))
        keep_s = seconds_of(os.environ.get("OLLAMA_KEEP_ALIVE") or "5m")
        running = Running(name, digest_of(name), spec, options, keep_s)
        while not Path(spec.get("gate", "/")).exists():
            if has_left(client):
                running.unload()
                raise Failed(499, "client closed connection")
        if spec.get("fail"):
            running.unload()
            raise Failed(500, spec["fail"])
        with self.table:
            self.loaded[running.digest] = running
            self.load_count += 1
        return running

    def wait_and_unload(self, running: Running) -> None:
        while running.users:
            time.sleep(0.01)
        self.unload(running)

    def done(self, running: Running) -> None:
        with self.table:
            running.users -= 1
            running.idle_since_s = time.monotonic()

    def unload(self, running: Running) -> None:
        with self.table:
            running.unload()
            self.loaded.pop(running.digest, None)

    def expire_forever(self) -> None:
        while True:
            with self.table:
                for running in list(self.loaded.values()):
                    if running.due():
                        self.unload(running)
            time.sleep(0.01)


def has_left(client: socket.socket) -> bool:
    """Whether it has closed its connection, within a moment."""
    return bool(select.select([client], [], [], 0.01)[0]) and not client.recv(1, socket.MSG_PEEK)


def digest_of(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    stand: Stand

    def do_GET(self) -> None:
        stand = self.stand
        match self.path:
            case "/api/version":
                self.answer({"version": os.environ.get("STAND_IN_VERSION", VERSION)})
            case "/api/tags":
                remote = ("remote_host",)
                models = [
                    {
                        "name": name,
                        "model": name,
                        "digest": digest_of(name),
                        **{k: spec[k] for k in remote if k in spec},
                    }
                    for name, spec in stand.stored().items()
                ]
                self.answer({"models": models})
            case "/api/ps":
                with stand.table:
                    self.answer({"models": [_process(running) for running in stand.loaded.values()]})
            case "/stand-in":
                pids = {running.name: running.process.pid for running in stand.loaded.values()}
                self.answer({"loads": stand.load_count, "in_flight": stand.in_flight, "pids": pids})
            case _:
                self.answer({"error": "404 page not found"}, 404)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        try:
            match self.path:
                case "/api/generate" | "/api/embed":
                    self.native(body)
                case "/v1/chat/completions" | "/v1/completions" | "/v1/embeddings":
                    self.openai({"model": body["model"], "asked": body})
                case _:
                    self.answer({"error": "404 page not found"}, 404)
        except Failed as failed:
            openai = self.path.startswith("/v1/")
            error: object = {"message": str(failed), "type": "api_error"} if openai else str(failed)
            self.answer({"error": error}, failed.status)
        except ConnectionError:
            self.close_connection = True

    def native(self, body: dict[str, Any]) -> None:
        stand = self.stand
        name, spec = stand.find(body["model"])
        if self.path == "/api/generate":
            if body.get("keep_alive") == 0:
                running = stand.loaded.get(digest_of(name))
                if running is not None:
                    running.keep_s = 0
                return self.answer({"model": body["model"], "done": True, "done_reason": "unload"})
            if spec.get("embedding"):
                raise Failed(400, f'"{body["model"]}" does not support generate')
        stand.done(stand.use(body, self.connection))
        if self.path == "/api/embed":
            return self.answer({"model": body["model"], "embeddings": []})
        return self.answer({"model": body["model"], "response": "", "done": True, "done_reason": "load"})

    def openai(self, request: dict[str, Any]) -> None:
        stand, asked = self.stand, request["asked"]
        running = stand.use({"model": request["model"]}, self.connection)
        stand.in_flight += 1
        try:
            if self.path == "/v1/embeddings":
                entry = {"object": "embedding", "index": 0, "embedding": [0.5, 0.5]}
                return self.answer({"object": "list", "data": [entry], "model": asked["model"]})
            words = itertools.cycle(["on", "and"]) if _endless(stand, running) else iter(["I", "am", running.name])
            if asked.get("stream"):
                return self.stream(asked, words)
            if isinstance(words, itertools.cycle):
                self.until_the_client_leaves()
            said = {"role": "assistant", "content": " ".join(words)}
            choice = {"index": 0, "message": said, "finish_reason": "stop"}
            whole = {"id": "chatcmpl-1", "object": "chat.completion", "created": 0, "model": asked["model"]}
            return self.answer({**whole, "choices": [choice], "authorized": "Authorization" in self.headers})
        finally:
            stand.in_flight -= 1
            stand.done(running)

    def stream(self, asked: dict[str, Any], words: Any) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for word in words:
            choice = {"index": 0, "delta": {"content": word}, "finish_reason": None}
            piece = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 0, "model": asked["model"]}
            self.chunk(b"data: " + json.dumps({**piece, "choices": [choice]}).encode() + b"\n\n")
            time.sleep(0.001)
        self.chunk(b"data: [DONE]\n\n")
        self.wfile.write(b"0\r\n\r\n")

    def until_the_client_leaves(self) -> None:
        while not has_left(self.connection):
            pass
        raise ConnectionError("client closed connection")

    def chunk(self, text: bytes) -> None:
        self.wfile.write(b"%x\r\n%b\r\n" % (len(text), text))

    def answer(self, value: object, status: int = 200) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        sys.stderr.write(f"[stand-in] {format % args}\n")


def _endless(stand: Stand, running: Running) -> bool:
    return bool(stand.stored()[running.name].get("endless"))


def _process(running: Running) -> dict[str, object]:
    ends_s = time.time() + min(running.keep_s, 3e8)
    return {
        "name": running.name,
        "model": running.name,
        "digest": running.digest,
        "size": running.size,
        "size_vram": running.vram,
        "context_length": running.context,
        "expires_at": datetime.fromtimestamp(ends_s, timezone.utc).isoformat(),
    }


def main() -> None:
    if sys.argv[1:] != ["serve"]:
        sys.exit(f"unknown command {sys.argv[1:]}")
    if os.environ.get("STAND_IN_FAILS"):
        sys.exit(os.environ["STAND_IN_FAILS"])
    host, _, port = os.environ.get("OLLAMA_HOST", "127.0.0.1:11434").rpartition(":")
    Handler.stand = Stand()
    threading.Thread(target=Handler.stand.expire_forever, daemon=True).start()
    server = ThreadingHTTPServer((host, int(port)), Handler)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    server.serve_forever()


if __name__ == "__main__":
    main()
