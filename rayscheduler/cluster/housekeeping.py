"""What the allocator does by itself: each second it looks who is in the cluster, who is silent and who hangs.

Rules of this file: it notices and passes on; what follows from it is the core's affair. Ray's head is asked
in threads.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

import ray

from rayscheduler.cluster.agents import KILL_AFTER_S, Agents
from rayscheduler.cluster.agreement import held_groups
from rayscheduler.cluster.executor import EngineEnded, Executor, Stop, start_problems
from rayscheduler.cluster.lease_book import LeaseBook
from rayscheduler.cluster.mailbox import Mailbox
from rayscheduler.cluster.membership import Membership
from rayscheduler.cluster.reports import Part, RunnerReport
from rayscheduler.cluster.roster import ANNOUNCE_WITHIN_S, Roster
from rayscheduler.core.types import ReplicaId

LOOK_EVERY_S = 1.0
STRAYS_EVERY_S = 15.0

logger = logging.getLogger(__name__)


class Housekeeping:
    """`watch_memory` is called each second: what do replicas take?"""

    def __init__(
        self,
        mailbox: Mailbox,
        membership: Membership,
        agents: Agents,
        leases: LeaseBook,
        roster: Roster,
        executor: Executor,
        watch_memory: Callable[[], None],
    ) -> None:
        self._mailbox = mailbox
        self._membership = membership
        self._agents = agents
        self._leases = leases
        self._roster = roster
        self._executor = executor
        self._watch_memory = watch_memory

    async def look_around(self) -> None:
        """From the first moment on, for ever. A round that fails (Ray is busy, or restarts) is not the last."""
        while True:
            try:
                await self._look()
            except Exception:
                logger.exception("a round of housekeeping failed")
            await asyncio.sleep(LOOK_EVERY_S)

    async def _look(self) -> None:
        self._leases.drop_silent()
        self._watch_memory()
        nodes = await asyncio.to_thread(ray.nodes)
        self._mailbox.put_all(self._membership.observe(nodes, time.monotonic()))
        self._roster.only_alive(self._membership.alive())
        await self._agents.drop(node_id for node_id in self._agents.node_ids() if not self._lives(node_id))
        await self._agents.make(self._membership.without_agent(self._agents.node_ids()))
        for replica, problem in (await self._start_problems()).items():
            self._roster.start_failed(replica, problem)
        for replica in self._roster.hung():
            logger.warning("the runner of %s hangs; it is killed", replica)
            await self.end(replica)

    async def mend_strays(self) -> None:
        """Once it is known what runs, for ever: delete what Ray holds for two rounds for nobody that we know."""
        strays: set[ReplicaId] = set()
        while True:
            await asyncio.sleep(STRAYS_EVERY_S)
            try:
                held = await asyncio.to_thread(held_groups)
            except Exception:
                logger.exception("Ray does not say what it holds")
                continue
            before, strays = strays, set(held) - self._roster.records.keys()
            for replica in sorted(before & strays):
                logger.warning("Ray holds something for %s, which nobody knows: it is deleted", replica)
                self._executor.order([Stop(replica, clean=False), EngineEnded(replica)])

    async def make_sure_of_end(self, replica: ReplicaId) -> None:
        """A runner is gone, or should be: see that nothing of it and its followers is left, and say so."""
        record = self._roster.records.get(replica)
        if record is None or record.report is None:
            return
        # Followers whose runner is gone have nobody to tell them to end.
        patience_s = 0.0 if record.report.node_id in record.gone_on else KILL_AFTER_S
        left = [part for part in record.report.parts if part.node_id not in record.gone_on]
        await asyncio.gather(*(self._see_gone(record.report, part, patience_s) for part in left))

    async def _see_gone(self, report: RunnerReport, part: Part, patience_s: float) -> None:
        if await self._agents.wait_gone(report.launch.replica, part, patience_s):
            self._roster.died(report.launch.replica, report.incarnation, part.node_id)

    async def _start_problems(self) -> dict[ReplicaId, str]:
        """Why runners that should be there by now will not come, where that is known."""
        silent_s = self._roster.silent_s()
        if not silent_s:
            return {}
        problems = await asyncio.to_thread(start_problems, list(silent_s))
        for replica, waited_s in silent_s.items():
            if waited_s > ANNOUNCE_WITHIN_S:
                what = f"its runner did not come up within {ANNOUNCE_WITHIN_S:g} s"
                problems.setdefault(replica, f"{what}; `ray list actors` and `serve status` may say why")
        return problems

    async def end(self, replica: ReplicaId) -> None:
        """End a replica by its runner's end, which its node's agent will tell."""
        record = self._roster.records.get(replica)
        if record is not None and record.report is not None:
            await self._agents.kill(record.report.own_part)

    def _lives(self, node_id: str) -> bool:
        node = self._membership.nodes.get(node_id)
        return node is not None and node.alive
