"""A runner's line to the agent of its node.

Rules of this file: an agent that restarts is asked again, for as long as a restart may take. Whatever is asked
must be harmless when it is asked twice.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import ray
from ray.exceptions import RayActorError

from rayscheduler.cluster.names import NAMESPACE, agent_name
from rayscheduler.core.types import ReplicaId
from rayscheduler.errors import EngineError

MEMORY_BACK_S = 10.0
ROOM_WITHIN_S = 30.0
SHRUNK_WITHIN_S = 30.0
RESTART_WITHIN_S = 60.0
PAUSE_S = 0.5

logger = logging.getLogger(__name__)


class AgentLine:
    def __init__(self, node_id: str, replica: ReplicaId) -> None:
        self._node_id = node_id
        self._replica = replica

    async def take_turn(self, runner_pid: int, indices: Sequence[int]) -> None:
        """Returns when this engine may start on these devices. EngineError: nobody says when."""
        if not await self._ask("take_turn", self._replica, runner_pid, list(indices)):
            raise EngineError(f"{self._replica} was told not to start while it waited for its turn")

    async def end_turn(self) -> None:
        """Another may start. An agent that is not there has no turns to end."""
        with suppress(RayActorError, ValueError):
            await self._agent().end_turn.remote(self._replica)

    async def await_room(self, needed: Mapping[int, int]) -> None:
        """Returns when `needed` (bytes by device index) is free. EngineError: it is not, and who holds it."""
        why_not = await self._ask("await_room", self._replica, dict(needed), ROOM_WITHIN_S)
        if why_not:
            raise EngineError(why_not)

    async def await_shrunk(self, kept: Mapping[int, int]) -> None:
        """Returns when it holds no more than that (bytes by device index). EngineError: it still does, and how much."""
        holds_more = await self._ask("await_shrunk", self._replica, dict(kept), SHRUNK_WITHIN_S)
        if holds_more:
            raise EngineError(holds_more)

    async def memory_back(self, pids: list[int]) -> None:
        """A driver may take a moment to take back what a dead process held."""
        try:
            back = self._agent().memory_back.remote(pids, MEMORY_BACK_S)
            if not await asyncio.wait_for(back, MEMORY_BACK_S + 1):
                logger.warning("the driver still counts memory of %s, %g s after its end", self._replica, MEMORY_BACK_S)
        except Exception as problem:
            logger.warning("nobody confirms that the memory of %s is back: %s", self._replica, problem)

    async def _ask(self, method: str, *args: object) -> Any:
        deadline_s: float | None = None
        while True:
            try:
                return await getattr(self._agent(), method).remote(*args)
            except (RayActorError, ValueError) as problem:  # ValueError: there is no actor of that name
                deadline_s = deadline_s or time.monotonic() + RESTART_WITHIN_S
                if time.monotonic() > deadline_s:
                    raise EngineError(
                        f"the agent of {self._replica}'s node has not answered for {RESTART_WITHIN_S:g} s ({problem}); "
                        "look at `ray list actors` and the logs of its node"
                    ) from None
            await asyncio.sleep(PAUSE_S)

    def _agent(self) -> Any:
        return ray.get_actor(agent_name(self._node_id), namespace=NAMESPACE)
