"""The runners: what each has reported, and how much of its exit is confirmed.

    reported:  nothing ─► ANNOUNCED ─► (QUEUED) ─► LOADING ─► RUNNING      (reports.RunnerState)
    asleep:    RUNNING ─► SUSPENDING ─► ASLEEP ─► WAKING ─► RUNNING. A turn is told until the runner has taken it;
               what Ray holds shrinks before the core hears that it sleeps, and grows before the runner is told to wake
    exit:      the engine is gone (its runner says so, or the agent of each of its nodes, or the node is dead)
               and its placement group is gone (the executor says so)     = ReplicaStopped

Rules of this file: it belongs to the allocator's loop and does no I/O. Of a replica, the first incarnation
that announces itself counts; news of a failure goes to the core exactly once. A replica over several nodes
is gone when nothing of it is left on any of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field

from rayscheduler.cluster.mailbox import Mailbox, now_ms
from rayscheduler.cluster.placement_groups import bytes_on
from rayscheduler.cluster.reports import Launch, Measured, Part, RunnerReport, RunnerState, Turn, Verdict, Watched
from rayscheduler.core.events import (
    FailureKind,
    ReplicaFailed,
    ReplicaSlept,
    ReplicaStarted,
    ReplicaStopped,
    ReplicaWoke,
)
from rayscheduler.core.types import DeviceId, NodeName, Placement, ReplicaId
from rayscheduler.engines import by_name

SILENT_S = 5.0  # a runner announces itself within two
ANNOUNCE_WITHIN_S = 180.0  # but Ray may have to start a worker on a busy node
LATE_S = 30.0  # after its load timeout, or its stop's grace, a runner is taken for hung
_TURNING = (RunnerState.SUSPENDING, RunnerState.WAKING)


@dataclass
class RunnerRecord:
    """`leaving`: the core wants it gone, or knows that it is. `failed`: the core was told of a failure.
    `gone_on`: the nodes (Ray's ids) on which nothing of it is left. `measured`: what it holds, by node. `turn`: the
    last that it was to take. `since_ms`: when its load, or its turn, began."""

    launch: Launch
    since_ms: int
    report: RunnerReport | None = None
    leaving_since_ms: int | None = None
    failed: bool = False
    engine_gone: bool = False
    group_gone: bool = False
    gone_on: set[str] = field(default_factory=set)
    measured: dict[NodeName, Measured] = field(default_factory=dict)
    away: asyncio.Event = field(default_factory=asyncio.Event)
    turn: Turn | None = None
    orders: asyncio.Event = field(default_factory=asyncio.Event)  # set when there is another order

    @property
    def measured_bytes(self) -> int | None:
        """What its processes hold, wherever they are; None: nothing was measured yet."""
        return sum(each.all_bytes for each in self.measured.values()) if self.measured else None

    def measured_device_bytes(self) -> list[int | None]:
        """The same device by device, in the order of its placement; None where it is not known."""
        return [self._measured_on(device) for device in self.launch.placement.devices]

    def _measured_on(self, device: DeviceId) -> int | None:
        node, _, index = device.rpartition("/")
        measured = self.measured.get(NodeName(node))
        return measured.device_bytes.get(int(index)) if measured else None

    @property
    def state(self) -> RunnerState | None:
        return self.report.state if self.report else None


class Roster:
    """`suspect` is called with a replica whose engine may live without its runner: find out, then call `died`.
    `engine_ended` is called once when an engine is certainly gone, `engine_asleep` when it has gone to sleep."""

    def __init__(
        self,
        mailbox: Mailbox,
        suspect: Callable[[ReplicaId], None],
        engine_ended: Callable[[ReplicaId], None],
        engine_asleep: Callable[[RunnerReport], None],
    ) -> None:
        self._mailbox = mailbox
        self._suspect = suspect
        self._engine_ended = engine_ended
        self._engine_asleep = engine_asleep
        self.records: dict[ReplicaId, RunnerRecord] = {}

    # -- what the core decides --------------------------------------------------------------------

    def start(self, launch: Launch) -> None:
        self.records[launch.replica] = RunnerRecord(launch, now_ms())

    def stop(self, replica: ReplicaId) -> None:
        """The core wants it gone, or knows that it is: a runner that is there is told."""
        record = self.records.get(replica)
        if record is None:
            return
        self._send_away(record)
        if record.report is None:
            self._gone(record)  # no engine is started before its runner has announced itself

    def sleep(self, replica: ReplicaId, nap: int, keeps: Placement) -> None:
        """Tell its runner to put the engine to sleep."""
        if (record := self.records.get(replica)) is not None:
            self._tell(record, Turn(True, nap, keeps))

    # -- what runners, agents and the executor say ------------------------------------------------

    def reported(self, report: RunnerReport) -> Verdict:
        record = self.records.get(report.launch.replica)
        if record is None:
            return Verdict.STAND_DOWN
        if record.report is not None and record.report.incarnation != report.incarnation:
            # Serve has restarted it in place: the one that we knew is dead.
            self._suspect(report.launch.replica)
            return Verdict.STAND_DOWN
        before = record.state
        if before is RunnerState.QUEUED:
            record.since_ms = now_ms()  # its load begins now
        record.report = report
        if report.state is not before:
            self._changed(record, report)
        return Verdict.GO if record.leaving_since_ms is None else Verdict.STAND_DOWN

    def adopt(self, report: RunnerReport) -> None:
        """A runner that an allocator before this one has started."""
        self.records[report.launch.replica] = RunnerRecord(report.launch, now_ms(), report, turn=report.turn)

    async def orders(self, replica: ReplicaId, incarnation: str, taken: Turn | None = None) -> Verdict | Turn:
        """Waits until this runner has to end, or to take another turn than the last that it has taken."""
        record = self.records.get(replica)
        if record is None or record.report is None:
            return Verdict.ANNOUNCE
        while record.report.incarnation == incarnation and record.leaving_since_ms is None:
            if record.turn is not None and record.turn != taken:
                return record.turn
            record.orders.clear()
            await record.orders.wait()
        return Verdict.STAND_DOWN

    def devices_held(self, replica: ReplicaId, turn: Turn | None) -> None:
        """Ray holds what it takes of its devices for this turn: now it sleeps, or may wake."""
        record = self.records.get(replica)
        if record is None or turn is None or record.leaving_since_ms is not None:
            return
        if not turn.asleep:
            self._tell(record, turn)
        elif record.turn == turn and record.state is RunnerState.ASLEEP:
            self._mailbox.put(ReplicaSlept(replica, turn.nap))

    def died(self, replica: ReplicaId, incarnation: str, node_id: str) -> None:
        """Its runner on this node, or its follower there, is dead and everything that it started is gone."""
        record = self.records.get(replica)
        if record is not None and record.report is not None and record.report.incarnation == incarnation:
            self._part_gone(record, record.report, node_id)

    def only_alive(self, node_ids: Container[str]) -> None:
        """Nothing is left on other nodes than these. The core hears of their loss first, and then wants
        everything gone that had a part there."""
        for record in list(self.records.values()):
            report = record.report
            if report is None:
                continue
            lost = [part.node_id for part in report.parts if part.node_id not in node_ids]
            for node_id in lost:
                if node_id not in record.gone_on:
                    self._send_away(record)
                    self._part_gone(record, report, node_id)

    def group_gone(self, replica: ReplicaId) -> None:
        """Its placement group is gone, and with it its runner."""
        record = self.records.get(replica)
        if record is None or record.group_gone:
            return
        record.group_gone = True
        if record.report is None:
            self._gone(record)  # no engine was started before its runner announced itself
        elif not record.engine_gone:
            self._suspect(replica)
        self._confirm(record)

    def start_failed(self, replica: ReplicaId, detail: str) -> None:
        """There is no runner: Serve would not have it."""
        record = self.records.get(replica)
        if record is not None:
            self._failed(record, FailureKind.LOAD, detail)

    def measured(self, node: NodeName, by_replica: Mapping[ReplicaId, Measured]) -> None:
        """What the agent of a node has read."""
        for replica, measured in by_replica.items():
            if record := self.records.get(replica):
                record.measured[node] = measured

    # -- housekeeping -----------------------------------------------------------------------------

    def silent_s(self) -> dict[ReplicaId, float]:
        """For how long those whose runner should be there by now have not been heard of."""
        waited_s = {
            replica: (now_ms() - record.since_ms) / 1000
            for replica, record in self.records.items()
            if record.report is None and record.leaving_since_ms is None
        }
        return {replica: seconds for replica, seconds in waited_s.items() if seconds > SILENT_S}

    def hung(self) -> list[ReplicaId]:
        """Those whose runner neither ended a load nor an engine in its time, and has to be killed."""
        return [replica for replica, record in self.records.items() if _is_hung(record)]

    def watched(self, node_id: str) -> list[Watched]:
        """The runners and followers that the agent of a node has to watch."""
        return [
            _watched(record.report, part, record.launch.placement.nodes[rank])
            for record in self.records.values()
            if record.report is not None and not record.engine_gone and node_id not in record.gone_on
            for rank, part in enumerate(record.report.parts)
            if part.node_id == node_id
        ]

    # -- how ends are told ------------------------------------------------------------------------

    def _changed(self, record: RunnerRecord, report: RunnerReport) -> None:
        replica = report.launch.replica
        if report.state is RunnerState.ANNOUNCED and record.leaving_since_ms is not None:
            self._gone(record)  # it stands down without having started anything
        elif report.state is RunnerState.RUNNING and report.turn is not None:
            self._mailbox.put(ReplicaWoke(replica, report.turn.nap, report.turn_ms))
        elif report.state is RunnerState.RUNNING:
            self._mailbox.put(ReplicaStarted(replica, report.load_ms))
        elif report.state is RunnerState.ASLEEP and record.leaving_since_ms is None:
            self._engine_asleep(report)
        elif report.state is RunnerState.FAILED:
            self._failed(record, FailureKind.LOAD, report.detail)
        elif report.state is RunnerState.CRASHED:
            self._failed(record, FailureKind.CRASH, report.detail)
        elif report.state is RunnerState.STOPPED:
            self._gone(record)

    def _part_gone(self, record: RunnerRecord, report: RunnerReport, node_id: str) -> None:
        record.gone_on.add(node_id)
        if all(part.node_id in record.gone_on for part in report.parts):
            self._failed(record, FailureKind.CRASH, "the process of its runner ended")
        elif node_id == report.node_id:
            self._suspect(record.launch.replica)  # its followers have nobody else who ends them

    def _failed(self, record: RunnerRecord, kind: FailureKind, detail: str) -> None:
        """It is gone. If the core did not send it away, that is a failure."""
        if record.leaving_since_ms is None:
            record.failed = True
            self._send_away(record)
            self._mailbox.put(ReplicaFailed(record.launch.replica, kind, detail))
        self._gone(record)

    def _tell(self, record: RunnerRecord, turn: Turn) -> None:
        if record.turn != turn:
            record.turn, record.since_ms = turn, now_ms()
            record.orders.set()

    def _send_away(self, record: RunnerRecord) -> None:
        if record.leaving_since_ms is None:
            record.leaving_since_ms = now_ms()
        record.away.set()
        record.orders.set()

    def _gone(self, record: RunnerRecord) -> None:
        if not record.engine_gone:
            record.engine_gone = True
            self._engine_ended(record.launch.replica)
        self._confirm(record)

    def _confirm(self, record: RunnerRecord) -> None:
        replica = record.launch.replica
        if record.engine_gone and record.group_gone and self.records.get(replica) is record:
            del self.records[replica]
            if not record.failed:
                self._mailbox.put(ReplicaStopped(replica))


def _is_hung(record: RunnerRecord) -> bool:
    if record.report is None or record.engine_gone:
        return False
    launch, now = record.launch, now_ms()
    if record.leaving_since_ms is not None:
        return now > record.leaving_since_ms + (launch.stop_grace_s + LATE_S) * 1000
    loading = record.report.state in (RunnerState.ANNOUNCED, RunnerState.LOADING)
    turns = record.turn is not None and (record.turn != record.report.turn or record.report.state in _TURNING)
    return (loading or turns) and now > record.since_ms + launch.request.load_timeout_ms + (
        ANNOUNCE_WITHIN_S + LATE_S
    ) * 1000


def _watched(report: RunnerReport, part: Part, node: NodeName) -> Watched:
    launch = report.launch
    loads = report.state is RunnerState.LOADING and bool(launch.request.visible_devices)
    return Watched(
        replica=launch.replica,
        incarnation=report.incarnation,
        runner_pid=part.runner_pid,
        engine_pid=part.engine_pid,
        device_bytes=bytes_on(report.holds, node),
        held_elsewhere_bytes=report.held_elsewhere_bytes if part.node_id == report.node_id else 0,
        profiling=loads and by_name(launch.engine).profiles_memory,
    )
