"""The engine `ollama`: a model of Ollama's store, served by a daemon of the replica's own or by the operator's.

    own (the default)   runner ► ollama_server.py ► `ollama serve` ► its model's process
    `daemon: URL`       runner ► ollama_server.py ──HTTP──► a daemon that hosts other models too

Either way ollama_server.py serves the replica's port: it checks the key, says when the model is really loaded,
and ends when it no longer is. A daemon of its own sees the reserved devices only and ends with the replica.

Rules of this file: nothing is asked of a daemon here, and aiohttp is not imported. The store is the operator's:
it is read, never pulled into. What decides about memory is said by the catalog, so no second way to say it is taken.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from ipaddress import ip_address
from urllib.parse import urlsplit

from rayscheduler.engines.protocol import (
    Command,
    Engine,
    EngineRequest,
    InFlight,
    check_environment,
    check_one_node,
)
from rayscheduler.errors import EngineError, EngineMissing, SourceError

NAME = "ollama"
PROGRAM = "ollama"
INSTALL = "curl -fsSL https://ollama.com/install.sh | sh"
CONTEXT_DEFAULT = 4096  # tokens; Ollama's own default grows with the device up to 262,144, and the KV cache with it
# How long a shared daemon keeps a model that is not asked for, and how often that time is begun anew: a
# replica that was killed cannot unload its model, so what it had borrowed goes back by itself.
KEEP_ALIVE_S, RENEW_S = 120, 20
WATCH_S = 5  # between two looks at whether the model is still there

# variables that rayscheduler itself decides -> what to use instead
DECIDED_ELSEWHERE: Mapping[str, str] = {
    "OLLAMA_CONTEXT_LENGTH": "give the tokens of one request as `context_length`",
    "OLLAMA_NUM_PARALLEL": "give it as `concurrency`",
    "OLLAMA_LOAD_TIMEOUT": "give it as `load_timeout`",
    **dict.fromkeys(
        (
            *("OLLAMA_HOST", "OLLAMA_KEEP_ALIVE", "OLLAMA_MAX_LOADED_MODELS"),
            *("OLLAMA_NOPRUNE", "OLLAMA_NO_CLOUD", "OLLAMA_SCHED_SPREAD"),
        ),
        "it is chosen by rayscheduler",
    ),
}
# [host/][namespace/]model[:tag], as `ollama list` shows it
_TAG = re.compile(r"[A-Za-z0-9][\w.-]*(?::\d+)?(?:/[\w.-]+)*(?::[\w.-]+)?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Plan:
    """What ollama_server.py is told, as one JSON argument. `daemon`: None, one of its own.

    `reserved_bytes`: on all devices together, as Ollama tells no more than the sum; 0: not limited.
    `context_length`: what a request must be able to take, None: whatever the model is loaded with.
    """

    model: str
    tag: str
    host: str
    port: int
    daemon: str | None
    embedding: bool
    on_gpus: bool
    reserved_bytes: int
    context_length: int | None
    keep_alive_s: float
    renew_s: float
    watch_s: float


class Ollama(Engine):
    """Serves `source`, a model's name as `ollama list` shows it."""

    name = NAME
    profiles_memory = True  # it decides by what is free how much goes to the GPU

    def validate(self, request: EngineRequest) -> None:
        check_environment(request)
        check_one_node(request, NAME)
        model_tag(request)
        if request.args:
            raise EngineError(
                f"model {request.model}: ollama takes no args; set `env`, such as OLLAMA_KV_CACHE_TYPE: q8_0, "
                "or make a model of it with `ollama create`"
            )
        if request.daemon is not None:
            _check_daemon(request, request.daemon)
        for key in request.env:
            if key in DECIDED_ELSEWHERE:
                raise EngineError(f"model {request.model} sets {key} in its env; {DECIDED_ELSEWHERE[key]}")

    def check(self, request: EngineRequest) -> None:
        self.validate(request)
        if request.daemon is not None:
            return  # whether one runs there is seen when it is asked
        path = request.env.get("PATH", os.environ.get("PATH"))
        if shutil.which(PROGRAM, path=path) is None:
            raise EngineMissing(
                f"model {request.model} needs the engine {NAME}, which is not installed; run: {INSTALL}"
            )

    def command(self, request: EngineRequest, port: int, api_key: str, host: str) -> Command:
        plan = Plan(
            model=request.model,
            tag=model_tag(request),
            host=host,
            port=port,
            daemon=request.daemon.rstrip("/") if request.daemon else None,
            embedding=request.embedding,
            on_gpus=bool(request.visible_devices),
            reserved_bytes=sum(request.device_bytes),
            context_length=request.context_length,
            keep_alive_s=KEEP_ALIVE_S,
            renew_s=RENEW_S,
            watch_s=WATCH_S,
        )
        return Command(
            argv=(sys.executable, "-m", "rayscheduler.engines.ollama_server", json.dumps(asdict(plan))),
            env=dict(request.env) if request.daemon else {**request.env, **_daemon_environment(request)},
            ready_path="/health",
            held_elsewhere_path="/stats" if request.daemon else "",
        )

    def in_flight(self) -> InFlight:
        return InFlight("/stats", lambda page: int(json.loads(page)["in_flight"]))


def model_tag(request: EngineRequest) -> str:
    """The source as a name of Ollama's. SourceError: there is none, or it is a file."""
    source = request.source or ""
    told = f"model {request.model}: {source!r}" if source else f"model {request.model} has no source, which"
    if source.lower().endswith(".gguf"):
        raise SourceError(
            f"{told} is a file; give it to the engine llama-cpp, or make a model of it: "
            "echo 'FROM FILE' > Modelfile; ollama create NAME -f Modelfile"
        )
    if not _TAG.fullmatch(source):
        raise SourceError(f"{told} is no name of Ollama's; give one that `ollama list` shows, such as llama3.2:3b")
    return source


def _check_daemon(request: EngineRequest, daemon: str) -> None:
    """EngineError: it is not the URL of a daemon on this machine."""
    told = f"model {request.model} has the daemon {daemon!r}, which"
    try:
        url = urlsplit(daemon)
        port = url.port
    except ValueError:
        raise EngineError(f"{told} is no URL; give one such as http://127.0.0.1:11434") from None
    if url.scheme != "http" or not url.hostname or port is None or url.path.strip("/") or url.query or url.username:
        raise EngineError(f"{told} is no address of a daemon; give one such as http://127.0.0.1:11434")
    if not _is_loopback(url.hostname):
        raise EngineError(
            f"{told} may be on another machine, whose memory nobody here counts; "
            "give the loopback address of the node's own daemon, such as http://127.0.0.1:11434"
        )
    for key in request.env:
        if key.startswith("OLLAMA_"):
            raise EngineError(
                f"model {request.model} sets {key} in its env, but its daemon runs already; "
                "set it where that daemon is started, or leave out `daemon`"
            )


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _daemon_environment(request: EngineRequest) -> dict[str, str]:
    """Of a daemon that serves this replica and nothing else; its address is chosen when it is started.

    It must not prune the store, which other daemons are at work in. Of several devices it takes all, as the
    ledger has reserved a part of each; by itself it would fill the first.
    """
    environment = {
        "OLLAMA_CONTEXT_LENGTH": str(request.context_length or CONTEXT_DEFAULT),
        "OLLAMA_KEEP_ALIVE": "-1",
        "OLLAMA_LOAD_TIMEOUT": f"{request.load_timeout_ms}ms",
        "OLLAMA_MAX_LOADED_MODELS": "1",
        "OLLAMA_NOPRUNE": "1",
        "OLLAMA_NO_CLOUD": "1",
        "OLLAMA_NUM_PARALLEL": str(request.concurrency),
    }
    if len(request.visible_devices) > 1:
        environment["OLLAMA_SCHED_SPREAD"] = "1"
    return environment
