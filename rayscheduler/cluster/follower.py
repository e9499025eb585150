"""A follower: the actor that hosts the engine of one further node of a replica, in that node's bundle.

Rules of this file: it decides nothing. Its runner made it and owns it, so Ray ends it with its runner, and the
engine's supervisor ends the engine with it; it is never restarted.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace

import ray

from rayscheduler.cluster.engine_host import EngineHost, end_in_words
from rayscheduler.cluster.reports import Part
from rayscheduler.core.types import ReplicaId
from rayscheduler.engines import EngineRequest
from rayscheduler.engines.orphans import start_time
from rayscheduler.engines.process import EngineProcess


class Follower:
    """An actor of Ray's, made by `Followers`."""

    def __init__(self, replica: ReplicaId, engine: str, needed: Mapping[int, int]) -> None:
        """`needed`: the bytes that are reserved on this node, by device index."""
        pid = os.getpid()
        self._host = EngineHost(replica, engine, needed)
        self._part = Part(ray.get_runtime_context().get_node_id(), pid, start_time(pid))
        self._engine: EngineProcess | None = None

    async def part(self) -> Part:
        return self._part

    async def wait_for_devices(self) -> None:
        """Returns when the engine may start. EngineError: there is no room for it."""
        await self._host.wait_for_devices()

    async def end_turn(self) -> None:
        """The leader is ready, and so is this engine."""
        await self._host.end_turn()

    async def start(self, request: EngineRequest) -> Part:
        """Start the engine of this node; it is ready when its leader is. EngineError: it cannot be started."""
        self._engine = await self._host.start(request)
        self._part = replace(self._part, engine_pid=self._engine.pid)
        return self._part

    async def ended(self) -> str:
        """Waits for the end of the engine; how it ended. For after `start`."""
        assert self._engine is not None
        return await end_in_words(self._engine)

    async def stop(self, grace_s: float) -> None:
        """End the engine, if there is one; returns when it is gone and its memory is back."""
        await self._host.end(grace_s)
