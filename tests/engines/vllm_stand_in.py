"""Stands in for `vllm serve` where there is no GPU: the same processes, paths and manners, none of the model.

    API process            answers /health, /metrics, /v1/models, /sleep, /wake_up
      └ EngineCore          a session of its own; holds memory; heeds no SIGTERM, and outlives the API process
          └ Worker           the same, one per device

Told `VLLM_STAND_IN=refuse`, it fails as vLLM does where too little is free. What it does not know of its
arguments it refuses, as vLLM does.
"""

from __future__ import annotations

import http.server
import importlib
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

WITH_VALUE = frozenset(
    {"--served-model-name", "--host", "--port", "--middleware", "--tensor-parallel-size", "--pipeline-parallel-size"}
    | {"--max-num-seqs", "--max-model-len", "--max-num-batched-tokens", "--kv-cache-dtype", "--kv-cache-memory-bytes"}
    | {"--gpu-memory-utilization", "--runner", "--distributed-executor-backend", "--nnodes", "--node-rank"}
    | {"--master-addr", "--master-port"}
)
ALONE = frozenset({"--disable-uvicorn-access-log", "--enable-sleep-mode", "--headless", "--enforce-eager"})
HELD_BYTES = 32 << 20
KEPT: list[bytearray] = []


def parsed(words: list[str]) -> dict[str, str]:
    """The flags by name; it exits on what vLLM would not understand."""
    if words[:1] != ["serve"] or len(words) < 2:
        sys.exit("usage: vllm serve MODEL")
    flags, rest = {"model": words[1]}, words[2:]
    while rest:
        name = rest.pop(0)
        if name in ALONE:
            flags[name] = ""
        elif name in WITH_VALUE and rest:
            flags[name] = rest.pop(0)
        else:
            sys.exit(f"vllm: error: unrecognized arguments: {name}")
    return flags


def hold(workers: int) -> None:
    """EngineCore and its workers, with memory and deaf to SIGTERM. Returns when all are there."""
    said, say = os.pipe()
    if os.fork() == 0:
        settle(say)
        for _ in range(workers):
            if os.fork() == 0:
                settle(say)
                break
        while True:
            signal.pause()
    for _ in range(1 + workers):
        os.read(said, 1)


def settle(say: int) -> None:
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    held = bytearray(HELD_BYTES)
    held[::4096] = b"x" * len(held[::4096])
    KEPT.append(held)
    os.write(say, b"x")


class Handler(http.server.BaseHTTPRequestHandler):
    flags: dict[str, str]
    running = 0
    asleep = False

    def do_GET(self) -> None:
        if self.path == "/health":
            self.answer({})
        elif self.path == "/metrics":
            name = self.flags["--served-model-name"]
            page = (
                f'# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running{{engine="0",model_name="{name}"}} '
            )
            page += f'{float(Handler.running)}\nvllm:num_requests_waiting{{engine="0",model_name="{name}"}} 2.0\n'
            self.answer(page)
        elif self.path == "/is_sleeping" and self.may_sleep():
            self.answer({"is_sleeping": Handler.asleep})
        elif self.path == "/v1/models" and self.knows_key():
            self.answer({"data": [{"id": self.flags["--served-model-name"]}]})
        else:
            self.send_error(404)

    def do_POST(self) -> None:
        if self.path in ("/sleep?level=1", "/wake_up") and self.may_sleep():
            Handler.asleep = self.path != "/wake_up"
            self.answer({})
        elif self.path == "/v1/completions" and self.knows_key():
            Handler.running += 1  # and it never ends
            time.sleep(3600)
        else:
            self.send_error(404)

    def may_sleep(self) -> bool:
        return "--enable-sleep-mode" in self.flags and os.environ.get("VLLM_SERVER_DEV_MODE") == "1"

    def knows_key(self) -> bool:
        return self.headers["Authorization"] == "Bearer " + os.environ["VLLM_API_KEY"]

    def answer(self, said: object) -> None:
        body = said.encode() if isinstance(said, str) else json.dumps(said).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def main() -> None:
    flags = parsed(sys.argv[1:])
    module, _, attribute = flags.get("--middleware", "").rpartition(".")
    if module:
        getattr(importlib.import_module(module), attribute)
    if os.environ.get("VLLM_STAND_IN") == "refuse":
        share = flags["--gpu-memory-utilization"]
        sys.exit(f"ValueError: Free memory on device cuda:0 on startup is less than desired ({share}, 40.0 GiB)")
    hold(int(flags["--tensor-parallel-size"]) // int(flags.get("--nnodes", "1")))
    if "--headless" in flags:
        while True:
            signal.pause()
    Handler.flags = flags
    server = http.server.ThreadingHTTPServer((flags["--host"], int(flags["--port"])), Handler)
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
    server.serve_forever()


def install(folder: Path, version: str = "0.33.0") -> str:
    """A Python environment in which this is vLLM; its path."""
    program = folder / "bin" / "vllm"
    program.parent.mkdir(parents=True)
    (folder / "bin" / "python").symlink_to(sys.executable)
    program.write_text(f"#!{sys.executable} -S\n" + Path(__file__).read_text())
    program.chmod(0o755)
    (folder / "lib" / "python3.12" / "site-packages" / f"vllm-{version}.dist-info").mkdir(parents=True)
    return str(folder)


if __name__ == "__main__":
    main()
