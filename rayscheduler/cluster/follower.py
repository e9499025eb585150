"""A follower: the actor that hosts the engine of one further node of a replica, in that node's bundle.

Rules of this file: it decides nothing. Its runner made it and owns it, so Ray ends it with its runner, and the
engine's supervisor ends the engine with it; it is never restarted.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace

import ray

from rayscheduler.cluster.engine_host import end_engine, end_in_words, start_engine
from rayscheduler.cluster.reports import Part
from rayscheduler.engines import EngineRequest
from rayscheduler.engines.orphans import start_time
from rayscheduler.engines.process import EngineProcess


class Follower:
    """An actor of Ray's, made by `Followers`."""

    def __init__(self) -> None:
        pid = os.getpid()
        self._part = Part(ray.get_runtime_context().get_node_id(), pid, start_time(pid))
        self._engine: EngineProcess | None = None

    async def part(self) -> Part:
        return self._part

    async def start(self, engine: str, request: EngineRequest) -> Part:
        """Start the engine of this node; it is ready when its leader is. EngineError: it cannot be started."""
        self._engine = await asyncio.to_thread(start_engine, engine, request)
        self._part = replace(self._part, engine_pid=self._engine.pid)
        return self._part

    async def ended(self) -> str:
        """Waits for the end of the engine; how it ended. For after `start`."""
        assert self._engine is not None
        return await end_in_words(self._engine)

    async def stop(self, grace_s: float) -> None:
        """End the engine, if there is one; returns when it is gone and its memory is back."""
        if self._engine is not None:
            await end_engine(self._engine, grace_s)
