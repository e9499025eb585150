"""The runner: the Serve deployment that hosts one replica's engine, in its own placement group.

    ANNOUNCED ──GO──► LOADING ──ready──► RUNNING ──the engine ended unasked──► CRASHED
                         └─────not ready─────► FAILED       any ──stop──► STOPPED

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

from rayscheduler.cluster.allocator_line import AllocatorAway, AllocatorLine
from rayscheduler.cluster.names import NAMESPACE, agent_name
from rayscheduler.cluster.reports import Launch, RunnerReport, RunnerState, Verdict
from rayscheduler.engines import by_name
from rayscheduler.engines.process import EngineProcess, log_file_name
from rayscheduler.errors import EngineError

LOG_LINES = 20
MEMORY_BACK_S = 10.0

logger = logging.getLogger(__name__)


class Runner:
    """Made by Serve, on its loop for user code."""

    def __init__(self, launch: Launch) -> None:
        context = ray.get_runtime_context()
        self._launch = launch
        self._line = AllocatorLine()
        self._engine: EngineProcess | None = None
        self._starting: asyncio.Future[EngineProcess] | None = None
        self._leaving = False
        self._report = RunnerReport(
            launch=launch,
            incarnation=uuid.uuid4().hex,
            state=RunnerState.ANNOUNCED,
            node_id=context.get_node_id(),
            runner_pid=os.getpid(),
        )
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
        started_s = time.monotonic()
        try:
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
            held_elsewhere_bytes=await self._engine.held_elsewhere_bytes(),
        )
        if not self._leaving:
            await self._say(RunnerState.RUNNING)
        ended = await self._engine.wait_exit()
        if not self._leaving:
            told = f"the engine {ended.words}\n{self._engine.log_tail(LOG_LINES)}"
            await self._say(RunnerState.CRASHED, told.strip())

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
        if self._starting is not None:
            with suppress(EngineError):
                self._engine = await asyncio.shield(self._starting)
        if self._engine is None:
            return
        pids = self._engine.pids()
        await self._engine.stop(self._launch.stop_grace_s)
        if self._launch.request.visible_devices:
            await self._memory_back(pids)

    async def _memory_back(self, pids: list[int]) -> None:
        """A driver may take a moment to take back what a dead process held."""
        try:
            agent = ray.get_actor(agent_name(self._report.node_id), namespace=NAMESPACE)
            await asyncio.wait_for(agent.memory_back.remote(pids, MEMORY_BACK_S), MEMORY_BACK_S + 1)
        except Exception as problem:
            logger.warning("nobody confirms that the memory of %s is back: %s", self._launch.replica, problem)


def _log_path(replica: str) -> Path:
    """Among Ray's own logs of this session, so that the dashboard shows it."""
    node = ray._private.worker._global_node
    return Path(node.get_logs_dir_path()) / "rayscheduler" / log_file_name(replica)
