"""Carries out the core's decisions: leases are answered, runners told, and Serve's part is ordered.

Rules of this file: every decision goes into the journal and to exactly one place; nothing here waits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from rayscheduler.cluster.adapters import Adapters
from rayscheduler.cluster.catalog import Catalog
from rayscheduler.cluster.executor import Hold, Order, Start, Stop
from rayscheduler.cluster.figure_book import FigureBook
from rayscheduler.cluster.inventory import NodeInventory
from rayscheduler.cluster.journal import Journal
from rayscheduler.cluster.lease_book import LeaseBook, Reply, rejection
from rayscheduler.cluster.membership import Membership
from rayscheduler.cluster.placement_groups import RayNode, bundles_of, device_bundle, runner_bundle
from rayscheduler.cluster.reports import RunnerReport, Turn
from rayscheduler.cluster.roster import Roster
from rayscheduler.core.decisions import Decision, Grant, Reject, SleepReplica, StartReplica, StopReplica, WakeReplica
from rayscheduler.core.types import ModelName, NodeName, Placement, RejectCode, ReplicaId, StopReason

RETRY_AFTER_S = {
    RejectCode.QUEUE_FULL: 1,
    RejectCode.UNLOADED: 1,
    RejectCode.LOAD_FAILED: 1,
    RejectCode.REPLICA_LOST: 1,
    RejectCode.SHUTTING_DOWN: 10,
}
_UNCLEAN = (StopReason.CRASHED, StopReason.LOAD_FAILED, StopReason.NODE_LOST)


class Dispatch:
    """`backoff_s`: how long a model is not loaded again after a failure, in whole seconds."""

    def __init__(
        self,
        leases: LeaseBook,
        roster: Roster,
        membership: Membership,
        journal: Journal,
        figures: FigureBook,
        adapters: Adapters,
        order: Callable[[Iterable[Order]], None],
        backoff_s: Callable[[ModelName], int],
    ) -> None:
        self._leases = leases
        self._roster = roster
        self._membership = membership
        self._journal = journal
        self._figures = figures
        self._adapters = adapters
        self._order = order
        self._backoff_s = backoff_s

    def carry_out(self, decisions: Iterable[Decision], catalog: Catalog, serial: int) -> None:
        orders: list[Order] = []
        nodes = self._membership.ray_nodes()
        for decision in decisions:
            self._journal.note(decision, serial)
            match decision:
                case Grant():
                    self._grant(decision)
                case Reject():
                    self._reject(decision)
                case StopReplica():
                    orders.append(self._stop(decision))
                case SleepReplica():
                    self._adapters.replica_gone(decision.replica)  # what it keeps over a sleep, its engine is asked
                    self._roster.sleep(decision.replica, decision.nap, decision.keeps)
                case WakeReplica():
                    orders += self._wake(decision, nodes)
                case StartReplica():
                    orders.append(self._start(decision, catalog, nodes))
        if orders:
            self._order(orders)

    def grant(self, replica: ReplicaId) -> Reply:
        """What a client needs to talk to a replica."""
        record = self._roster.records.get(replica)
        if record is None or record.report is None or not record.report.endpoint:
            return rejection(RejectCode.REPLICA_LOST, f"{replica} was lost as it was granted", 1)
        report = record.report
        return {
            "granted": True,
            "replica": replica,
            "endpoint": report.endpoint,
            "api_key": report.api_key,
            "model": str(report.launch.model),
        }

    def _grant(self, decision: Grant) -> None:
        request, replica = decision.request, decision.replica
        adapter = self._leases.adapter_of(request)
        if adapter is None:
            self._leases.granted(request, replica, self.grant(replica))
        else:
            self._adapters.lend(request, replica, adapter, self.grant(replica))

    def _reject(self, decision: Reject) -> None:
        problem = self._figures.problem(decision.model)
        if decision.code is RejectCode.MODEL_NOT_FOUND and problem is not None:
            self._leases.rejected(decision.request, problem)  # it is in the catalog, but not good enough for the core
            return
        retry_s = RETRY_AFTER_S.get(decision.code)
        if decision.code is RejectCode.LOAD_FAILED:
            retry_s = max(1, self._backoff_s(decision.model))
        self._leases.rejected(decision.request, rejection(decision.code, decision.message, retry_s))

    def _stop(self, decision: StopReplica) -> Stop:
        replica = decision.replica
        record = self._roster.records.get(replica)
        clean = decision.reason not in _UNCLEAN and record is not None and record.report is not None
        self._leases.replica_gone(replica)
        self._adapters.replica_gone(replica)
        self._roster.stop(replica)
        return Stop(replica, clean)

    def _start(self, decision: StartReplica, catalog: Catalog, nodes: Mapping[NodeName, RayNode]) -> Start:
        model, place = decision.model, decision.placement
        inventories = self._membership.inventories(place.nodes)
        figure = self._figures.figure(model, len(place.devices))
        key = self._memory_key(model, place, inventories[0])
        spare_bytes = figure.spare_bytes if figure is not None else 0
        launch = catalog.launch(decision.replica, model, place, inventories, key, spare_bytes)
        self._roster.start(launch)
        if not launch.request.sleep:
            return Start(launch, bundles_of(place, nodes))
        hold = Hold(launch.replica, device_bundle(place, nodes))
        return Start(launch, [runner_bundle(place, nodes)], hold)

    def _wake(self, decision: WakeReplica, nodes: Mapping[NodeName, RayNode]) -> Iterator[Hold]:
        """Its runner is told when Ray holds all of its devices' bytes again. Nothing where it has ended meanwhile,
        which the core will hear."""
        record = self._roster.records.get(decision.replica)
        if record is not None and record.turn is not None and record.leaving_since_ms is None:
            turn = Turn(False, decision.nap, record.turn.keeps)
            yield Hold(decision.replica, device_bundle(decision.placement, nodes), turn)

    def hold(self, report: RunnerReport) -> None:
        """Have Ray hold what a replica has of its devices now: it has gone to sleep, or was adopted."""
        nodes = self._membership.ray_nodes()
        if report.launch.request.sleep and set(report.holds.nodes) <= nodes.keys():
            self._order([Hold(report.launch.replica, device_bundle(report.holds, nodes), report.turn)])

    def _memory_key(self, model: ModelName, place: Placement, first: NodeInventory) -> str:
        """Under what it is kept what this replica takes. A pretended device says nothing of a real one."""
        if first.simulated:
            return ""
        types = {device.index: device.type for device in first.devices}
        kind = types.get(int(place.devices[0].rpartition("/")[2]), "") if place.devices else ""
        return self._figures.key(model, len(place.devices), kind)
