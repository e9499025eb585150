"""The runner: the Serve deployment that hosts one replica's engine, in its own placement group. Over several
nodes it is in the first bundle, hosts the engine that leads, and has a follower in each further one.

    ANNOUNCED ──GO──► (QUEUED) ──► LOADING ──ready──► RUNNING ──the engine ended unasked──► CRASHED
                         └─────no room─────┴─────not ready─────► FAILED       any ──stop──► STOPPED

    RUNNING ──sleep──► SUSPENDING ──► ASLEEP ──wake──► WAKING ──► RUNNING     what fails of that: CRASHED

QUEUED is for engines on GPUs: until it is their turn, if they profile free memory, and until what they need of
the devices is free.

Rules of this file: no engine is started before the allocator says GO to this incarnation, so a runner that
Serve restarts in place stands down. A state is reported only when it is true: STOPPED, FAILED and CRASHED
mean that every process of the engine is gone, on all nodes that live, and its memory is back; ASLEEP, that its
devices have back what it does not keep. Requests do not come through here.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
import uuid
from contextlib import suppress
from dataclasses import replace

import ray

from rayscheduler.cluster.allocator_line import AllocatorAway, AllocatorLine
from rayscheduler.cluster.engine_host import EngineHost, end_in_words
from rayscheduler.cluster.followers import Followers
from rayscheduler.cluster.placement_groups import bytes_on
from rayscheduler.cluster.reports import Launch, RunnerReport, RunnerState, Turn, Verdict
from rayscheduler.engines.orphans import start_time
from rayscheduler.engines.process import EngineProcess
from rayscheduler.errors import EngineError

logger = logging.getLogger(__name__)


class Runner:
    """Made by Serve, on its loop for user code."""

    def __init__(self, launch: Launch) -> None:
        context = ray.get_runtime_context()
        self._launch = launch
        self._line = AllocatorLine()
        self._followers = Followers(launch)
        self._starting: asyncio.Future[EngineProcess] | None = None
        self._queueing: asyncio.Future[tuple[None, None]] | None = None
        self._turning: asyncio.Task[None] | None = None
        self._leaving = False
        self._telling = asyncio.Lock()  # no report overtakes another
        self._report = RunnerReport(
            launch=launch,
            incarnation=uuid.uuid4().hex,
            state=RunnerState.ANNOUNCED,
            node_id=context.get_node_id(),
            runner_pid=os.getpid(),
            runner_started=start_time(os.getpid()),
        )
        first, *_ = launch.placement.nodes
        self._host = EngineHost(launch.replica, launch.engine, bytes_on(launch.placement, first))
        self._life = asyncio.get_running_loop().create_task(self._live())

    async def __del__(self) -> None:
        """Serve calls this before it ends the process, and waits for it."""
        await self._leave()

    async def _live(self) -> None:
        try:
            if await self._tell() != Verdict.GO:
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
            await self._gather()
            if self._launch.request.visible_devices and not await self._wait_for_devices():
                return
            started_s = time.monotonic()
            self._starting = asyncio.ensure_future(self._start_engines())
            engine = await self._starting
            self._report = replace(self._report, engine_pid=engine.pid, followers=self._followers.parts)
            await self._say(RunnerState.LOADING)
            await self._followers.beside(engine.wait_ready(self._launch.request.load_timeout_ms / 1000))
        except EngineError as problem:
            await self._ended(RunnerState.FAILED, str(problem))
            return
        self._report = replace(
            self._report,
            endpoint=engine.endpoint,
            api_key=engine.api_key,
            load_ms=round((time.monotonic() - started_s) * 1000),
            held_elsewhere_bytes=await engine.held_elsewhere_bytes(),
        )
        if not self._leaving:
            await self._say(RunnerState.RUNNING)
        await self._end_turns()
        try:
            told = "the engine " + await self._followers.beside(end_in_words(engine))
        except EngineError as problem:
            told = str(problem)
        await self._ended(RunnerState.CRASHED, told)

    async def _gather(self) -> None:
        """Have a follower on each further node. EngineError: one does not come up, or none is wanted any more."""
        await self._followers.gather()
        if self._followers.parts:
            # Before anything is started on a node, the allocator knows who would have to be ended there.
            self._report = replace(self._report, followers=self._followers.parts)
            if await self._say(RunnerState.ANNOUNCED) != Verdict.GO or self._leaving:
                raise EngineError("it is not wanted any more")

    async def _wait_for_devices(self) -> bool:
        """Whether the engines may start now; False: they are not to start any more. EngineError: there is no room."""
        await self._say(RunnerState.QUEUED)
        if self._leaving:
            return False
        waits = (self._host.wait_for_devices(), self._followers.wait_for_devices())
        self._queueing = asyncio.ensure_future(asyncio.gather(*waits))
        await asyncio.wait({self._queueing})  # `_leave` may cancel it
        if self._queueing.cancelled() or self._leaving:
            return False
        self._queueing.result()
        return True

    async def _end_turns(self) -> None:
        if self._queueing is not None:
            await asyncio.gather(self._host.end_turn(), self._followers.end_turns())

    async def _start_engines(self) -> EngineProcess:
        """Start the engine of each node; the one that leads. EngineError: not all can be started."""
        request = self._followers.meeting(self._launch.request)
        leading = self._host.start(request)
        started, followed = await asyncio.gather(leading, self._followers.start(), return_exceptions=True)
        if isinstance(started, BaseException):
            raise started
        if followed is not None:
            raise followed
        return started

    async def _ended(self, state: RunnerState, detail: str) -> None:
        """An engine of it ended unasked: end the others, and say so. That a node was lost is said by Ray, and
        has the allocator order this runner away."""
        if self._leaving:
            return
        await self._leave()
        if not self._followers.node_lost:
            await self._say(state, detail)

    async def _until_ordered_away(self) -> None:
        """Returns when the allocator, or the one that came after it, wants this replica to end. Until then it sleeps
        and wakes as it is told to."""
        me = (self._launch.replica, self._report.incarnation)
        while True:
            try:
                order: Verdict | Turn = await self._line.ask_once("runner_orders", *me, self._report.turn)
            except AllocatorAway:
                order = Verdict.ANNOUNCE
            if order == Verdict.ANNOUNCE:
                order = await self._tell()
            if isinstance(order, Turn):
                state = RunnerState.SUSPENDING if order.asleep else RunnerState.WAKING
                self._report = replace(self._report, state=state, turn=order)
                self._turning = asyncio.create_task(self._turn(order))
                self._turning.add_done_callback(_see_to_it)
            elif order == Verdict.STAND_DOWN:
                return

    async def _turn(self, turn: Turn) -> None:
        """Put the engine to sleep, or wake it. If it does not do so, that is its end: it is loaded anew when somebody
        asks for it."""
        await self._tell()
        started_s = time.monotonic()
        first, *_ = self._launch.placement.nodes
        keeps, limit_s = bytes_on(turn.keeps, first), self._launch.request.load_timeout_ms / 1000
        try:
            await (self._host.sleep(keeps, limit_s) if turn.asleep else self._host.wake(keeps, limit_s))
        except EngineError as problem:
            await self._ended(RunnerState.CRASHED, str(problem))
            return
        self._report = replace(self._report, turn_ms=round((time.monotonic() - started_s) * 1000))
        if not self._leaving:
            await self._say(RunnerState.ASLEEP if turn.asleep else RunnerState.RUNNING)

    async def _say(self, state: RunnerState, detail: str = "") -> Verdict:
        self._report = replace(self._report, state=state, detail=detail)
        return await self._tell()

    async def _tell(self) -> Verdict:
        async with self._telling:
            return Verdict(await self._line.ask("runner_reports", self._report))

    async def _leave(self) -> None:
        """End its engines, if there are any; returns when they are gone and their memory is back."""
        self._leaving = True
        if self._queueing is not None:
            self._queueing.cancel()
        if self._turning is not None and self._turning is not asyncio.current_task():
            self._turning.cancel()
        if self._starting is not None:
            with suppress(EngineError):
                await asyncio.shield(self._starting)
        grace_s = self._launch.stop_grace_s
        await asyncio.gather(self._followers.stop(grace_s), self._host.end(grace_s))


def _see_to_it(turning: asyncio.Task[None]) -> None:
    if not turning.cancelled() and (problem := turning.exception()) is not None:
        # As of `_live`: nobody else would end or report the engine.
        logger.critical("a turn of the runner failed", exc_info=problem)
        os._exit(1)
