"""The followers of a runner: what its replica has on further nodes, started, watched and ended as one with it.

    gather:  one actor in each further bundle of the runner's placement group; no engine yet
    start:   all engines at once; the leader's, which the runner starts, meets them at a port of its node
    beside:  whatever the runner waits for, the end of one follower is the end of the replica
    stop:    returns when nothing is left on any living node, whoever has to say so

Rules of this file: a follower that does not answer is taken for lost, and the agent of its node ends it and
says that it is gone. If the node itself is dead, `node_lost` is set: its loss is for Ray to tell the allocator.
Of a replica on a single node there are none, and nothing here does anything.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, TypeVar, cast

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from rayscheduler.cluster.follower import Follower
from rayscheduler.cluster.names import NAMESPACE, agent_name
from rayscheduler.cluster.placement_groups import bytes_on
from rayscheduler.cluster.reports import Launch, Part
from rayscheduler.core.types import NodeName
from rayscheduler.engines import EngineRequest
from rayscheduler.engines.ports import ClaimedPort, claim_port
from rayscheduler.errors import EngineError

GATHER_WITHIN_S = 120.0  # Ray may have to start workers on busy nodes
LATE_S = 15.0  # after its stop's grace, a follower is taken for hung
ASK_WITHIN_S = 5.0
LOOK_PAUSE_S = 0.1

T = TypeVar("T")


class Followers:
    """Of one runner, on its loop. `parts`: what there is of them on each node, once they are gathered."""

    def __init__(self, launch: Launch) -> None:
        self.parts: tuple[Part, ...] = ()
        self.node_lost = False
        self._launch = launch
        self._actors: list[Any] = []
        self._host = ""
        self._meeting: ClaimedPort | None = None
        self._ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._watching: list[asyncio.Task[None]] = []
        self._stopping: asyncio.Future[None] | None = None

    async def gather(self) -> None:
        """Have an actor on each further node. EngineError: one does not come up."""
        launch = self._launch
        if not launch.follower_requests:
            return
        group = ray.util.get_current_placement_group()
        self._actors = [
            ray.remote(Follower)
            .options(**launch.actor_options, scheduling_strategy=PlacementGroupSchedulingStrategy(group, bundle))
            .remote(launch.replica, launch.engine, bytes_on(launch.placement, node))
            for bundle, node in enumerate(launch.placement.nodes[1:], start=1)
        ]
        self._host = ray.util.get_node_ip_address()
        self._meeting = claim_port(self._host)
        coming = asyncio.gather(*(actor.part.remote() for actor in self._actors))
        try:
            self.parts = tuple(await asyncio.wait_for(coming, GATHER_WITHIN_S))
        except asyncio.TimeoutError:
            raise EngineError(f"not all of its followers came up within {GATHER_WITHIN_S:g} s") from None
        except RayError as problem:
            raise EngineError(f"one of its followers did not come up: {problem}") from None

    def meeting(self, request: EngineRequest) -> EngineRequest:
        """A request with the address at which its nodes meet."""
        if self._meeting is None:
            return request
        return replace(request, leader_host=self._host, leader_port=self._meeting.number)

    async def wait_for_devices(self) -> None:
        """Returns when all their engines may start. EngineError: one has no room."""
        await self._all([actor.wait_for_devices.remote() for actor in self._actors])

    async def end_turns(self) -> None:
        """All engines are ready: others may start on their devices."""
        await asyncio.gather(*(actor.end_turn.remote() for actor in self._actors), return_exceptions=True)

    async def start(self) -> None:
        """Start their engines. EngineError: one cannot be started."""
        requests = map(self.meeting, self._launch.follower_requests)
        starting = [actor.start.remote(request) for actor, request in zip(self._actors, requests, strict=True)]
        self.parts = tuple(await self._all(starting))
        for actor, name in zip(self._actors, self._names, strict=True):
            self._watching.append(asyncio.ensure_future(self._watch(actor, name)))

    @property
    def _names(self) -> tuple[NodeName, ...]:
        return self._launch.placement.nodes[1:]

    async def _all(self, calls: Sequence[Awaitable[T]]) -> list[T]:
        """Their answers to calls, one to each. EngineError for the first that failed, once all have answered."""
        answers = await asyncio.gather(*calls, return_exceptions=True)
        for answer, name in zip(answers, self._names, strict=False):
            if isinstance(answer, BaseException):
                raise _told(answer, name) from None
        return cast("list[T]", answers)

    async def beside(self, work: Awaitable[T]) -> T:
        """The result of `work`. EngineError as soon as one of the followers has ended."""
        task = asyncio.ensure_future(work)
        either: set[asyncio.Future[Any]] = {task, self._ended}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        task.cancel()
        raise EngineError(self._ended.result())

    async def stop(self, grace_s: float) -> None:
        """End them all; returns when nothing of them is left and its memory is back. May be called again."""
        if self._stopping is None:
            self._stopping = asyncio.ensure_future(self._stop_all(grace_s))
        await asyncio.shield(self._stopping)

    async def _watch(self, actor: Any, name: str) -> None:
        try:
            told = await actor.ended.remote()
        except RayError:
            told = "was lost"
        if not self._ended.done():
            self._ended.set_result(f"the engine of its follower on {name} {told}")

    async def _stop_all(self, grace_s: float) -> None:
        # Where they were not all gathered, no engine was started anywhere, and `parts` is empty.
        both = zip(self._actors, self.parts, strict=False)
        await asyncio.gather(*(self._stop_one(actor, part, grace_s) for actor, part in both))
        for task in self._watching:
            task.cancel()
        for actor in self._actors:
            ray.kill(actor)
        if self._meeting is not None:
            self._meeting.release()

    async def _stop_one(self, actor: Any, part: Part, grace_s: float) -> None:
        try:
            await asyncio.wait_for(actor.stop.remote(grace_s), grace_s + LATE_S)
        except (RayError, asyncio.TimeoutError):
            await self._see_gone(part)

    async def _see_gone(self, part: Part) -> None:
        """Returns when the agent of its node has ended a follower that does not answer, or the node is dead."""
        runner = (part.runner_pid, part.runner_started)
        while True:
            with suppress(RayError, ValueError, asyncio.TimeoutError):  # ValueError: there is no such actor
                agent = ray.get_actor(agent_name(part.node_id), namespace=NAMESPACE)
                await asyncio.wait_for(agent.kill.remote(*runner), ASK_WITHIN_S)
                if await asyncio.wait_for(agent.confirm_gone.remote(self._launch.replica, *runner), ASK_WITHIN_S):
                    return
            if not await asyncio.to_thread(_lives, part.node_id):
                self.node_lost = True
                return
            await asyncio.sleep(LOOK_PAUSE_S)


def _told(problem: BaseException, node: str) -> BaseException:
    """What is said of a follower that did not start its engine."""
    if isinstance(problem, RayTaskError):
        return problem.cause if isinstance(problem.cause, EngineError) else problem
    return EngineError(f"its follower on {node} was lost") if isinstance(problem, RayError) else problem


def _lives(node_id: str) -> bool:
    return any(node["NodeID"] == node_id and node["Alive"] for node in ray.nodes())
