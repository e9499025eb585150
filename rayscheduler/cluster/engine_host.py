"""What a runner and its followers do for the engine on their node: await its turn, start it, put it to sleep and wake
it, and end it for good.

Rules of this file: an engine has ended when its processes are gone and its memory is back, and sleeps when it says
so and what it does not keep of its memory is back. Another that profiles
free memory may start on its devices when this one is ready, or gone.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from pathlib import Path

import ray

from rayscheduler.cluster.agent_line import AgentLine
from rayscheduler.core.types import ReplicaId
from rayscheduler.engines import EngineRequest, by_name
from rayscheduler.engines.process import EngineProcess, log_file_name
from rayscheduler.engines.protocol import Call
from rayscheduler.errors import EngineError

LOG_LINES = 20
TOLD_WITHIN_S = 1.0  # that an engine has ended is known so soon after it has


class EngineHost:
    """Of one replica on this node. `needed`: the bytes that are reserved for it here, by device index."""

    def __init__(self, replica: ReplicaId, engine: str, needed: Mapping[int, int]) -> None:
        self._kind = by_name(engine)
        self._needed = needed
        self._agent = AgentLine(ray.get_runtime_context().get_node_id(), replica)
        self._engine: EngineProcess | None = None

    async def wait_for_devices(self) -> None:
        """Returns when the engine may start. EngineError: there is no room for it, and who has it."""
        if self._kind.profiles_memory:
            await self._agent.take_turn(os.getpid(), sorted(self._needed))
        await self._agent.await_room(self._needed)

    async def end_turn(self) -> None:
        """Others may start on its devices. May be called again."""
        if self._kind.profiles_memory:
            await self._agent.end_turn()

    async def start(self, request: EngineRequest) -> EngineProcess:
        """Start it; it is not ready yet. EngineError: it is not installed, or cannot serve this."""
        self._engine = await asyncio.to_thread(self._start, request)
        return self._engine

    async def sleep(self, keeps: Mapping[int, int], limit_s: float) -> None:
        """Returns when it sleeps, and holds no more of its devices than it `keeps` (bytes by index). EngineError: it
        does not go to sleep within the time, ends, or holds more."""
        await self._ask("sleep", limit_s)
        if self._on_devices:
            await self._agent.await_shrunk(keeps)

    async def wake(self, keeps: Mapping[int, int], limit_s: float) -> None:
        """Returns when it answers again. EngineError: what it does not `keep` is not free, it does not wake within the
        time, or ends."""
        if self._on_devices:
            more = {index: size - keeps.get(index, 0) for index, size in self._needed.items()}
            await self._agent.await_room(more)
        await self._ask("wake", limit_s)

    @property
    def _on_devices(self) -> bool:
        return self._engine is not None and bool(self._engine.request.visible_devices)

    async def _ask(self, what: str, limit_s: float) -> None:
        engine = self._engine
        calls = self._kind.sleep_calls(engine.request) if engine is not None else None
        if engine is None or calls is None:
            raise EngineError("the engine was started without the means to sleep")
        call: Call = calls.sleep if what == "sleep" else calls.wake
        asked, ended = asyncio.ensure_future(engine.call(call)), asyncio.ensure_future(engine.wait_exit())
        try:
            await asyncio.wait({asked, ended}, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
            if asked.done() and asked.exception() is not None:
                await asyncio.wait({ended}, timeout=TOLD_WITHIN_S)
            if ended.done():
                raise EngineError("the engine " + await end_in_words(engine))
            if not asked.done():
                raise EngineError(f"the engine did not {what} within {limit_s:g} s")
            answer = asked.result()
        except (OSError, ValueError) as problem:
            raise EngineError(f"the engine did not {what}: {problem}") from None
        finally:
            asked.cancel()
            ended.cancel()
        if not answer.ok:
            raise EngineError(f"the engine did not {what}: HTTP {answer.status} from {call.path}: {answer.text[:200]}")

    async def end(self, grace_s: float) -> None:
        """End it, if there is one; returns when it is gone and its memory is back."""
        if self._engine is not None:
            pids = self._engine.pids()
            await self._engine.stop(grace_s)
            if self._engine.request.visible_devices:
                await self._agent.memory_back(pids)
        await self.end_turn()

    def _start(self, request: EngineRequest) -> EngineProcess:
        self._kind.check(request)
        return EngineProcess.start(self._kind, request, ray.util.get_node_ip_address(), _log_path(request))


async def end_in_words(engine: EngineProcess) -> str:
    """Waits for the end of an engine; how it ended, and the last lines that it wrote."""
    ended = await engine.wait_exit()
    return f"{ended.words}\n{engine.log_tail(LOG_LINES)}".strip()


def _log_path(request: EngineRequest) -> Path:
    """Among Ray's own logs of this session, so that the dashboard shows it."""
    node = ray._private.worker._global_node
    name = log_file_name(request.replica, request.node_rank)
    return Path(node.get_logs_dir_path()) / "rayscheduler" / name
