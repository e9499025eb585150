"""The agents of the nodes, from the allocator's side: one actor on each node that lends.

Rules of this file: making and killing actors blocks for some milliseconds, so it happens in threads. An agent
that does not answer is no error here: its node is dead, or the agent is restarting.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterable
from typing import Any, cast

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rayscheduler.cluster.membership import KnownNode
from rayscheduler.cluster.names import NAMESPACE, agent_name
from rayscheduler.cluster.node_agent import NodeAgent
from rayscheduler.cluster.reports import Part, SizeAnswer, SizeQuestion
from rayscheduler.core.types import ReplicaId

KILL_AFTER_S = 10.0
SIZE_WITHIN_S = 20.0  # a header takes some ten milliseconds, from a disk that is awake
FIRST_LOOK_S, LOOK_PAUSE_MAX_S = 0.020, 0.500

logger = logging.getLogger(__name__)


class Agents:
    def __init__(self) -> None:
        self._handles: dict[str, Any] = {}

    def node_ids(self) -> list[str]:
        """The nodes that have one."""
        return list(self._handles)

    async def make(self, nodes: Iterable[KnownNode]) -> None:
        """Give each of these nodes its agent, or find the one that is there."""
        for node in nodes:
            self._handles[node.node_id] = await asyncio.to_thread(_make, node)

    async def drop(self, node_ids: Iterable[str]) -> None:
        """Their nodes are gone, or the service is."""
        for node_id in node_ids:
            handle = self._handles.pop(node_id, None)
            if handle is not None:
                await asyncio.to_thread(ray.kill, handle, no_restart=True)

    def warm_up(self, node_id: str) -> None:
        """A runner has come up on this node; the next one will want a process, too."""
        handle = self._handles.get(node_id)
        if handle is not None:
            handle.warm_up.remote()

    async def kill(self, part: Part) -> None:
        """End a runner or follower with SIGKILL; its death will be reported."""
        handle = self._handles.get(part.node_id)
        if handle is not None:
            with contextlib.suppress(ray.exceptions.RayActorError):
                await handle.kill.remote(part.runner_pid, part.runner_started)

    async def size_up(self, node_id: str, question: SizeQuestion) -> SizeAnswer:
        """What a replica would take by the files on this node. Never raises."""
        handle = self._handles.get(node_id)
        if handle is None:
            return SizeAnswer(problem="the node's agent is not there")
        try:
            return cast(SizeAnswer, await asyncio.wait_for(handle.size_up.remote(question), SIZE_WITHIN_S))
        except asyncio.TimeoutError:
            return SizeAnswer(problem=f"the node's agent has not answered within {SIZE_WITHIN_S:g} s")
        except ray.exceptions.RayError as problem:
            return SizeAnswer(problem=f"the node's agent does not answer: {type(problem).__name__}")

    async def wait_gone(self, replica: ReplicaId, part: Part, kill_after_s: float = KILL_AFTER_S) -> bool:
        """Wait until nothing of a replica's part is left on its node; what stays is killed. False: nobody knows."""
        kill_s = time.monotonic() + kill_after_s
        pause_s = FIRST_LOOK_S
        while (handle := self._handles.get(part.node_id)) is not None:
            with contextlib.suppress(ray.exceptions.RayActorError):
                if await handle.confirm_gone.remote(replica, part.runner_pid, part.runner_started):
                    return True
            if time.monotonic() > kill_s:
                logger.warning("process %d of %s does not end; it is killed", part.runner_pid, replica)
                await self.kill(part)
                kill_s += KILL_AFTER_S
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, LOOK_PAUSE_MAX_S)
        return False


def _make(node: KnownNode) -> Any:
    return (
        ray.remote(NodeAgent)
        .options(
            name=agent_name(node.node_id),
            namespace=NAMESPACE,
            lifetime="detached",
            get_if_exists=True,
            max_restarts=-1,
            num_cpus=0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node.node_id, soft=False),
        )
        .remote(node.node_id, f"{node.address}:{node.raylet_port}", dict(node.resources))
    )
