"""The runner: the Serve deployment that hosts one replica's engine, in its own placement group.

    ANNOUNCED ──GO──► (QUEUED) ──► LOADING ──ready──► RUNNING ──the engine ended unasked──► CRASHED
                         └─────no room─────┴─────not ready─────► FAILED       any ──stop──► STOPPED

QUEUED is for engines on GPUs: until it is their turn, if they profile free memory, and until what they need of
the devices is free.

Rules of this file: no engine is started before the allocator says GO to this incarnation, so a runner that
Serve restarts in place stands down. A state is reported only when it is true: STOPPED, FAILED and CRASHED
mean that every process of the engine is gone and its memory is back. Requests do not come through here.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
import uuid
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import ray

from rayscheduler.cluster.agent_line import AgentLine
from rayscheduler.cluster.allocator_line import AllocatorAway, AllocatorLine
from rayscheduler.cluster.reports import Launch, RunnerReport, RunnerState, Verdict
from rayscheduler.engines import by_name
from rayscheduler.engines.process import EngineProcess, log_file_name
from rayscheduler.errors import EngineError

LOG_LINES = 20

logger = logging.getLogger(__name__)


class Runner:
    """Made by Serve, on its loop for user code."""

    def __init__(self, launch: Launch) -> None:
        context = ray.get_runtime_context()
        self._launch = launch
        self._line = AllocatorLine()
        self._engine: EngineProcess | None = None
        self._starting: asyncio.Future[EngineProcess] | None = None
        self._queueing: asyncio.Future[None] | None = None
        self._leaving = False
        self._report = RunnerReport(
            launch=launch,
            incarnation=uuid.uuid4().hex,
            state=RunnerState.ANNOUNCED,
            node_id=context.get_node_id(),
            runner_pid=os.getpid(),
        )
        self._agent = AgentLine(self._report.node_id, launch.replica)
        self._life = asyncio.get_running_loop().create_task(self._live())

    async def __del__(self) -> None:
        """Serve calls this before it ends the process, and waits for it."""
        await self._leave()

    async def _live(self) -> None:
        try:
            if await self._line.ask("runner_reports", self._report) != Verdict.GO:
                return
            serving = asyncio.create_task(self._serve())
            away = asyncio.create_task(self._until_ordered_away())
            await asyncio.wait({serving, away}, return_when=asyncio.FIRST_COMPLETED)
            if serving.done():
                serving.result()  # raises what nobody expected
            await away
            await self._leave()
            await self._say(RunnerState.STOPPED)
            await serving
        except Exception:
            # Without a runner nobody would end or report the engine: let the node's agent see us die.
            logger.exception("the runner of %s failed", self._launch.replica)
            os._exit(1)

    async def _serve(self) -> None:
        """The engine's life, from its start to the end that nobody asked for."""
        try:
            if self._launch.request.visible_devices and not await self._wait_for_devices():
                return
            started_s = time.monotonic()
            self._starting = asyncio.ensure_future(asyncio.to_thread(self._start_engine))
            self._engine = await self._starting
            self._report = replace(self._report, engine_pid=self._engine.pid)
            await self._say(RunnerState.LOADING)
            await self._engine.wait_ready(self._launch.request.load_timeout_ms / 1000)
        except EngineError as problem:
            if not self._leaving:
                await self._leave()
                await self._say(RunnerState.FAILED, str(problem))
            return
        self._report = replace(
            self._report,
            endpoint=self._engine.endpoint,
            api_key=self._engine.api_key,
            load_ms=round((time.monotonic() - started_s) * 1000),
        )
        if not self._leaving:
            await self._say(RunnerState.RUNNING)
        await self._end_turn()
        ended = await self._engine.wait_exit()
        if not self._leaving:
            told = f"the engine {ended.words}\n{self._engine.log_tail(LOG_LINES)}"
            await self._say(RunnerState.CRASHED, told.strip())

    async def _wait_for_devices(self) -> bool:
        """Whether the engine may start now; False: it is not to start any more. EngineError: there is no room."""
        await self._say(RunnerState.QUEUED)
        if self._leaving:
            return False
        self._queueing = asyncio.ensure_future(self._queue())
        await asyncio.wait({self._queueing})  # `_leave` may cancel it
        if self._queueing.cancelled() or self._leaving:
            return False
        self._queueing.result()
        return True

    async def _queue(self) -> None:
        needed = self._launch.device_bytes_on(self._launch.placement.nodes[0])
        if self._profiles:
            await self._agent.take_turn(os.getpid(), sorted(needed))
        await self._agent.await_room(needed)

    async def _end_turn(self) -> None:
        if self._profiles and self._queueing is not None:
            await self._agent.end_turn()

    @property
    def _profiles(self) -> bool:
        return by_name(self._launch.engine).profiles_memory

    def _start_engine(self) -> EngineProcess:
        launch = self._launch
        engine = by_name(launch.engine)
        engine.check(launch.request)
        return EngineProcess.start(engine, launch.request, ray.util.get_node_ip_address(), _log_path(launch.replica))

    async def _until_ordered_away(self) -> None:
        """Returns when the allocator, or the one that came after it, wants this replica to end."""
        while True:
            try:
                order = await self._line.ask_once("runner_orders", self._launch.replica, self._report.incarnation)
            except AllocatorAway:
                order = Verdict.ANNOUNCE
            if order == Verdict.ANNOUNCE:
                order = await self._line.ask("runner_reports", self._report)
            if order == Verdict.STAND_DOWN:
                return

    async def _say(self, state: RunnerState, detail: str = "") -> None:
        self._report = replace(self._report, state=state, detail=detail)
        await self._line.ask("runner_reports", self._report)

    async def _leave(self) -> None:
        """End the engine, if there is one; returns when it is gone and its memory is back."""
        self._leaving = True
        if self._queueing is not None:
            self._queueing.cancel()
        if self._starting is not None:
            with suppress(EngineError):
                self._engine = await asyncio.shield(self._starting)
        if self._engine is not None:
            pids = self._engine.pids()
            await self._engine.stop(self._launch.stop_grace_s)
            if self._launch.request.visible_devices:
                await self._agent.memory_back(pids)
        await self._end_turn()


def _log_path(replica: str) -> Path:
    """Among Ray's own logs of this session, so that the dashboard shows it."""
    node = ray._private.worker._global_node
    return Path(node.get_logs_dir_path()) / "rayscheduler" / log_file_name(replica)
