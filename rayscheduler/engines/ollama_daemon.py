"""A running Ollama daemon, by its HTTP API.

    GET  /api/version   {"version": "0.12.3"}
    GET  /api/tags      {"models": [{"name", "digest", "remote_host"?}]}                  what is stored
    GET  /api/ps        {"models": [{"digest", "size", "size_vram", "context_length"}]}   what is loaded
    POST /api/generate  {"model", "keep_alive"}, no prompt: load it; with keep_alive 0: unload it
    POST /api/embed     the same for a model of embeddings, which /api/generate does not load

Rules of this file: nothing here changes the store (pull, create, delete). The only option of a load is
`num_gpu: 0`: the daemon compares the options of each request with those of the load and loads the model anew
where they differ, and OpenAI's API, by which requests come, has no place for them. So a context, for one, is
never asked for here; what came of it is read afterwards.
"""

from __future__ import annotations

import asyncio
import difflib
import json
import re
from dataclasses import dataclass
from typing import Any

import aiohttp

from rayscheduler.core.words import sized
from rayscheduler.engines.ollama import INSTALL, Plan
from rayscheduler.errors import EngineError

ANSWER_TIMEOUT_S = 30.0
VERSION_MIN = (0, 5, 13)  # the first that heeds OLLAMA_CONTEXT_LENGTH
NAMES_SHOWN_MAX = 12
_LIBRARY = ("registry.ollama.ai/", "library/")  # what a name may begin with and mean the same


class DaemonGone(EngineError):
    """Nobody answers at the daemon's address."""


class DaemonBusy(EngineError):
    """The daemon has not answered in time; it does not while it loads something large."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model in memory: `size_bytes` in all, of which `vram_bytes` on GPUs. `context_length` 0: not said."""

    size_bytes: int
    vram_bytes: int
    context_length: int

    def on_devices_bytes(self, on_gpus: bool) -> int:
        """What is charged to the replica's devices: on a cpu node they are the host's memory."""
        return self.vram_bytes if on_gpus else self.size_bytes

    def misfit(self, plan: Plan) -> str:
        """Why it must not stay as it is; "" if it may."""
        held_bytes = self.on_devices_bytes(plan.on_gpus)
        if 0 < plan.reserved_bytes < held_bytes:
            return (
                f"it takes {sized(held_bytes)}, and {sized(plan.reserved_bytes)} are reserved for it; give it a "
                f"`memory` of {-(-held_bytes // 2**20)}MiB or more, or lower its context_length or concurrency"
            )
        if not plan.on_gpus and self.vram_bytes:
            return (
                f"it takes {sized(self.vram_bytes)} on GPUs, and none is reserved for it; give it GPUs with `gpus`, "
                "or a daemon that sees none"
            )
        if plan.context_length and 0 < self.context_length < plan.context_length:
            return (
                f"its context is {self.context_length:,} tokens, and the catalog's context_length is "
                f"{plan.context_length:,}; lower that, or raise the `num_ctx` of its Modelfile"
                + (" or the daemon's OLLAMA_CONTEXT_LENGTH" if plan.daemon else "")
            )
        return ""

    def told(self, plan: Plan) -> str:
        """One line for the log; what spilled into host memory is said as a warning."""
        spilled_bytes = self.size_bytes - self.vram_bytes if plan.on_gpus else 0
        line = f"{plan.tag} takes {sized(self.on_devices_bytes(plan.on_gpus))} of {sized(plan.reserved_bytes)} reserved"
        line += f", context {self.context_length:,} tokens" if self.context_length else ""
        if spilled_bytes > 0:
            line += (
                f"\nwarning: {sized(spilled_bytes)} of {plan.tag} are in host memory, as Ollama found no room for them "
                "on the GPUs: it will be slow; give it more `memory` or GPUs"
            )
        return line


class Daemon:
    """The daemon at a URL. Every method may raise DaemonGone, DaemonBusy, or EngineError with the daemon's words."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self.session = session
        self.url = url

    async def check_version(self) -> str:
        """Its version. EngineError: it is too old, or no Ollama."""
        try:
            version = str((await self._ask("GET", "/api/version")).get("version", ""))
        except (DaemonGone, DaemonBusy):
            raise
        except EngineError:
            version = ""
        numbers = re.match(r"(\d+)\.(\d+)\.(\d+)", version)
        if numbers is None:
            raise EngineError(f"what answers at {self.url} is no Ollama daemon; give the address of one")
        found = tuple(map(int, numbers.groups()))
        if found != (0, 0, 0) and found < VERSION_MIN:  # 0.0.0: built from source
            wanted = ".".join(map(str, VERSION_MIN))
            raise EngineError(f"Ollama {version} is too old, {wanted} or newer is needed; run: {INSTALL}")
        return version

    async def digest_of(self, tag: str) -> str:
        """The digest by which the stored model is known. EngineError: it is not stored here, with what to do."""
        stored = {_whole_name(str(model.get("name"))): model for model in await self._models("/api/tags")}
        model = stored.get(_whole_name(tag))
        if model is None:
            near = difflib.get_close_matches(_whole_name(tag), stored, n=1)
            shown = near or sorted(stored)[:NAMES_SHOWN_MAX]
            there = "there is " + ", ".join(shown) if shown else "the store is empty"
            raise EngineError(
                f"it is not in the daemon's store ({there}); run `ollama pull {tag}` on this machine, or point "
                "OLLAMA_MODELS at the store that has it (Ollama's Linux service: /usr/share/ollama/.ollama/models)"
            )
        if model.get("remote_host"):
            raise EngineError(f"it runs at {model['remote_host']}, not here; give a model that is stored here")
        return str(model.get("digest"))

    async def load(self, plan: Plan, keep_alive_s: float, timeout_s: float | None = None) -> None:
        """Load it, or begin its time anew if it is loaded; it is ready then. A negative time has no end."""
        body: dict[str, object] = {"model": plan.tag, "keep_alive": f"{round(keep_alive_s * 1000)}ms"}
        if not plan.on_gpus:
            body["options"] = {"num_gpu": 0}
        if plan.embedding:
            await self._ask("POST", "/api/embed", {**body, "input": ""}, timeout_s)
        else:
            await self._ask("POST", "/api/generate", {**body, "stream": False}, timeout_s)

    async def unload(self, tag: str) -> None:
        """Ask for it; it is done when `loaded` no longer finds it."""
        await self._ask("POST", "/api/generate", {"model": tag, "keep_alive": 0, "stream": False})

    async def loaded(self, digest: str) -> Loaded | None:
        """What it holds in memory now; None: it is not loaded."""
        for model in await self._models("/api/ps"):
            if model.get("digest") == digest:
                return Loaded(*(int(model.get(key) or 0) for key in ("size", "size_vram", "context_length")))
        return None

    async def _models(self, path: str) -> list[dict[str, Any]]:
        return [model for model in (await self._ask("GET", path)).get("models") or [] if isinstance(model, dict)]

    async def _ask(
        self, method: str, path: str, body: object = None, timeout_s: float | None = ANSWER_TIMEOUT_S
    ) -> dict[str, Any]:
        timeout = aiohttp.ClientTimeout(total=timeout_s)
        try:
            async with self.session.request(method, self.url + path, json=body, timeout=timeout) as response:
                text = await response.text(errors="replace")
        except asyncio.TimeoutError:
            raise DaemonBusy(f"the Ollama daemon at {self.url} has not answered {path} within {timeout_s} s") from None
        except (aiohttp.ClientError, OSError) as error:
            raise DaemonGone(f"no Ollama daemon answers at {self.url} ({error})") from error
        try:
            answer = json.loads(text)
        except ValueError:
            answer = None
        if response.status != 200 or not isinstance(answer, dict):
            words = answer.get("error", text) if isinstance(answer, dict) else text
            raise EngineError(f"Ollama says: {words}")
        return answer


def _whole_name(tag: str) -> str:
    """The name as /api/tags has it: without the registry's own name, with a tag, in one case."""
    name = tag.lower()
    for prefix in _LIBRARY:
        name = name.removeprefix(prefix)
    return name if ":" in name.rpartition("/")[2] else f"{name}:latest"
