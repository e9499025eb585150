"""The restart of the allocator: it learns what runs from those who run it, and no model is reloaded.

1. nodes: from Ray; their agents report within a second;
2. replicas: those that Serve lists; their runners notice that the allocator is new and announce themselves;
3. leases: the holders' heartbeats say which they hold;
4. what cannot be adopted (nobody announces it, it is ending, its node is gone) is deleted, and awaited.

Rules of this file: it is over within LIMIT_S whatever is missing. Until then nothing is decided; what
arrives waits in the mailbox.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from rayscheduler.cluster.agreement import held_groups
from rayscheduler.cluster.executor import Executor, Stop, listed_replicas
from rayscheduler.cluster.lease_book import held_by_replica
from rayscheduler.cluster.membership import Membership
from rayscheduler.cluster.reports import RunnerReport, RunnerState
from rayscheduler.core.events import ReplicaFound
from rayscheduler.core.types import HolderId, ReplicaId, RequestId

LIMIT_S = 20.0
HOLDERS_S = 2.5  # a heartbeat comes each second
LOOK_EVERY_S = 0.05
ENDED = (RunnerState.FAILED, RunnerState.CRASHED, RunnerState.STOPPED)

logger = logging.getLogger(__name__)


@dataclass
class Recovery:
    """What is said while the allocator comes back."""

    reports: dict[ReplicaId, RunnerReport] = field(default_factory=dict)
    dead: set[ReplicaId] = field(default_factory=set)
    heartbeats: dict[HolderId, list[list[str]]] = field(default_factory=dict)

    def reported(self, report: RunnerReport) -> None:
        """The last word of a runner counts; of two incarnations, the one that came last lives."""
        self.reports[report.launch.replica] = report

    def died(self, replica: ReplicaId, incarnation: str) -> None:
        """An agent has seen the end of a runner or of a follower of it; Serve may bring up another in its place."""
        report = self.reports.get(replica)
        if report is None or report.incarnation == incarnation:
            self.reports.pop(replica, None)
            self.dead.add(replica)

    async def replicas(self, membership: Membership, executor: Executor) -> list[RunnerReport]:
        """Waits until all is said, and for the end of what cannot be adopted; the reports of what can."""
        begun_s = time.monotonic()
        await _until(lambda: bool(membership.nodes) and not membership.awaited(), begun_s + LIMIT_S)
        listed, seen = await asyncio.to_thread(_with_runner), await asyncio.to_thread(_seen_in_ray)
        if not seen:
            return []
        await _until(lambda: listed <= self.reports.keys() | self.dead, begun_s + LIMIT_S)
        await _until(lambda: False, begun_s + HOLDERS_S)
        alive = {name: report for name, report in self.reports.items() if self._lives(report, membership)}
        lost = sorted((listed | seen) - alive.keys())
        if lost:
            logger.warning("not adopted, but deleted: %s", ", ".join(lost))
            executor.order(Stop(replica, clean=False) for replica in lost)
            await _until_gone(lost, time.monotonic() + LIMIT_S)
        return [alive[name] for name in sorted(alive)]

    def found(self, reports: Iterable[RunnerReport]) -> list[ReplicaFound]:
        """The replicas to be adopted, with the leases that somebody says they serve."""
        held = held_by_replica(self.heartbeats)
        return [_found(report, held.get(report.launch.replica, {})) for report in reports]

    def _lives(self, report: RunnerReport, membership: Membership) -> bool:
        """All of it: it runs, and each node of its placement is there, under the same name."""
        joined = {node.node_id: node.name for node in membership.nodes.values() if node.joined}
        names = report.launch.placement.nodes
        homes = [joined.get(part.node_id) for part in report.parts]  # without followers that are not there yet
        return report.state not in ENDED and set(names) <= set(joined.values()) and homes == list(names[: len(homes)])


def _found(report: RunnerReport, leases: dict[RequestId, HolderId]) -> ReplicaFound:
    launch = report.launch
    running = report.state is RunnerState.RUNNING
    turn = report.turn
    return ReplicaFound(
        launch.replica,
        launch.model,
        launch.placement,
        running,
        leases if running else {},
        rest=report.rest,
        keeps=turn.keeps if turn else None,
        nap=turn.nap if turn else 0,
    )


def _with_runner() -> frozenset[ReplicaId]:
    """The replicas that have a runner, or may be about to have one."""
    held = held_groups().items()
    return listed_replicas() | {name for name, groups in held if not all(group.is_of_devices for group in groups)}


def _seen_in_ray() -> frozenset[ReplicaId]:
    return listed_replicas() | held_groups().keys()


async def _until(holds: Callable[[], bool], deadline_s: float) -> None:
    while not holds() and time.monotonic() < deadline_s:  # noqa: ASYNC110 (it is told in many places)
        await asyncio.sleep(LOOK_EVERY_S)


async def _until_gone(replicas: Iterable[ReplicaId], deadline_s: float) -> None:
    left = set(replicas)
    while left and time.monotonic() < deadline_s:
        await asyncio.sleep(LOOK_EVERY_S)
        left &= await asyncio.to_thread(_seen_in_ray)
    if left:
        logger.error("still there after %g s: %s", LIMIT_S, ", ".join(sorted(left)))
