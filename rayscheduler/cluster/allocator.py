"""The allocator: one detached, restartable actor that holds the scheduler of the whole cluster.

    what happens ─► Mailbox ─► Scheduler.handle_batch(events, now) ─► decisions ─► Dispatch ─► Executor

Rules of this file: one event loop, on which nothing blocks; Serve is called by the executor's thread, Ray's
head by threads. Its callers get dictionaries. If the loop fails, the process ends and Ray starts it again:
what it knew it learns anew from those who run (recovery.py).
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
from collections.abc import Coroutine
from typing import Any

import ray

from rayscheduler.cluster.adapters import Adapters, pins_its_base
from rayscheduler.cluster.agents import Agents
from rayscheduler.cluster.agreement import differences, held_groups
from rayscheduler.cluster.audit_log import AuditLog, OperatorCalls
from rayscheduler.cluster.catalog import Catalog
from rayscheduler.cluster.dispatch import Dispatch
from rayscheduler.cluster.event_log import EventLog, event_log_of
from rayscheduler.cluster.executor import EngineEnded, Executor
from rayscheduler.cluster.explaining import explain
from rayscheduler.cluster.figuring import Figuring
from rayscheduler.cluster.hearing import Hearing
from rayscheduler.cluster.housekeeping import Housekeeping
from rayscheduler.cluster.inventory import NodeInventory
from rayscheduler.cluster.journal import Journal
from rayscheduler.cluster.key_book import KeyBook, KeyCalls
from rayscheduler.cluster.lease_book import LeaseBook, Reply, error_of, refused, said, unknown_model, unknown_tier
from rayscheduler.cluster.mailbox import Mailbox, now_ms
from rayscheduler.cluster.membership import Membership
from rayscheduler.cluster.ports import accepts
from rayscheduler.cluster.progress import Progress
from rayscheduler.cluster.recovery import Recovery
from rayscheduler.cluster.reports import AgentReport, RunnerReport, RunnerState, Turn, Verdict, Watched
from rayscheduler.cluster.roster import Roster
from rayscheduler.cluster.seeing import seen
from rayscheduler.cluster.status_view import status_of
from rayscheduler.cluster.store import Store
from rayscheduler.config.service import config_from_json
from rayscheduler.core import events as ev
from rayscheduler.core.explain import Verdict as PlanVerdict
from rayscheduler.core.scheduler import Scheduler
from rayscheduler.core.types import HolderId, ModelName, RejectCode, ReplicaId, RequestId, Snapshot

EXPLAIN_NODES_MAX = 256  # beyond that, a start does not tell why each other node was not chosen
SIZED_WITHIN_S = 10.0  # for an operator who does not want to wait for a load
VERDICT_WITHIN_S = 20.0  # on a busy machine the death of an engine may take its time to be told
EXIT_AFTER_S = 0.1  # so that the answer is on its way
CONCURRENCY = 20_000  # requests that wait for a lease, each in a call of its own

logger = logging.getLogger(__name__)


class Allocator(OperatorCalls, KeyCalls):
    """Made once per cluster, by `start.py`. `checked`: validate every invariant after every event."""

    async def __init__(self, checked: bool = False) -> None:  # type: ignore[misc]
        self._checked = checked
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._ready = asyncio.Event()
        self._address = ray.get_runtime_context().gcs_address
        self._mailbox = Mailbox()
        self._progress = Progress()
        self._journal = Journal()
        self._leases = LeaseBook(self._mailbox)
        self._membership = Membership()
        self._agents = Agents()
        self._roster = Roster(self._mailbox, self._suspect, self._engine_ended, self._hold)
        self._store = Store()
        self._keys, self._audit = KeyBook(self._store), AuditLog()
        self._executor = Executor(Hearing(self._loop, self._roster, self._end), self._store)
        self._pins: dict[str, bool] = {}
        mailbox, nodes, leases, roster = self._mailbox, self._membership, self._leases, self._roster
        self._figuring = Figuring(mailbox, nodes, self._agents, roster, leases, self._store, self._snapshot, self._pins)
        self._figures = self._figuring.book
        self._adapters = Adapters(leases, roster, self._progress)
        books, order, backoff_s = (self._figures, self._adapters), self._executor.order, self._backoff_s
        self._dispatch = Dispatch(leases, roster, nodes, self._journal, *books, order, backoff_s)
        self._event_log: EventLog | None = None
        self._recovery: Recovery | None = None
        self._catalog: Catalog | None = None
        self._scheduler: Scheduler | None = None
        self._housekeeping = Housekeeping(
            mailbox, nodes, self._agents, leases, roster, self._executor, self._figuring.watch
        )
        self._looking = self._spawn(self._housekeeping.look_around())
        await self._keys.begin()
        config_json = await asyncio.to_thread(self._store.config)
        if config_json is not None:
            self._recovery = Recovery()
            self._spawn(self._begin(config_json))

    # -- the loop ---------------------------------------------------------------------------------

    async def _run(self, scheduler: Scheduler) -> None:
        while True:
            events = await self._mailbox.take(scheduler.wakeup())
            at_ms = now_ms()
            decisions = scheduler.handle_batch(events, at_ms)
            if self._event_log is not None:
                self._event_log.handled(at_ms, events, decisions)
            self._dispatch.carry_out(decisions, self._deployed, self._progress.serial + len(events))
            self._progress.advance(len(events))
            if self._checked:
                scheduler.validate()

    async def _begin(self, config_json: str) -> None:
        """Make the scheduler from the service file, learn what runs already, and go."""
        catalog = Catalog(config_from_json(config_json))
        scheduler = Scheduler(catalog.config.settings(), EXPLAIN_NODES_MAX)
        known: list[ev.Event] = [*await self._figuring.begin(catalog, self._recovery is not None)]
        self._pins.update(await asyncio.to_thread(self._store.pins))
        known += [ev.PinAsked(ModelName(name), pinned) for name, pinned in sorted(self._pins.items())]
        if self._recovery is not None:
            reports = await self._recovery.replicas(self._membership, self._executor)
            found = self._recovery.found(reports)
            for report in reports:
                self._roster.adopt(report)
                self._dispatch.hold(report)
                self._adapters.found(report.launch.replica)
            for event in found:
                for request, holder in event.leases.items():
                    self._leases.adopt(request, holder, event.replica, self._dispatch.grant(event.replica))
            # Nodes first: what was put into the mailbox meanwhile is older than what was found on them.
            known += [*self._mailbox.now_there(), *found]
        serials = await asyncio.to_thread(self._store.serials)
        at_ms = now_ms()
        scheduler.restore(known, at_ms)
        for model, serial in serials.items():
            scheduler.seed_serial(ModelName(model), serial)
        self._event_log = event_log_of(catalog.config)
        self._audit.open(catalog.config.audit_log)
        if self._event_log is not None:
            self._event_log.restored(at_ms, known, serials)
        self._catalog, self._scheduler = catalog, scheduler
        self._recovery = None
        self._ready.set()
        self._mailbox.put(ev.Woken())
        self._spawn(self._figuring.work())
        self._spawn(self._housekeeping.mend_strays())
        await self._run(scheduler)

    # -- what gateways and clients call -----------------------------------------------------------

    async def lease(
        self,
        model: str,
        request_id: str,
        holder: str,
        priority: int | None = None,
        tier: str | None = None,
        deadline_ms: int | None = None,
    ) -> Reply:
        """Wait for a lease on a replica of a model: granted or rejected. See allocator_port.py."""
        await self._ready.wait()
        return await asyncio.shield(self._ask(HolderId(holder), model, request_id, priority, tier, deadline_ms))

    async def exchange(self, holder: str, ended: list[str], asks: list[list[Any]]) -> list[Reply | None]:
        """Requests that have ended, and new ones, in one pass; None for those that wait. See allocator_port.py."""
        await self._ready.wait()
        self._leases.heard(HolderId(holder))
        self._leases.release(map(RequestId, ended))
        replies = [self._ask(HolderId(holder), *ask) for ask in asks]
        if not all(reply.done() for reply in replies):
            await self._progress.next()
        return [reply.result() if reply.done() else None for reply in replies]

    def _ask(
        self,
        holder: HolderId,
        model: str,
        request_id: str,
        priority: int | None,
        tier: str | None,
        deadline_ms: int | None,
    ) -> asyncio.Future[Reply]:
        if priority is None and tier is not None:
            tiers = self._deployed.config.settings().tiers
            if tier not in tiers:
                return said(unknown_tier(tier, tiers))
            priority = tiers[tier]
        name, adapter = self._deployed.resolve(model), self._deployed.adapter(model)

        def ask(left_ms: int | None) -> asyncio.Future[Reply]:
            return self._leases.ask(name, RequestId(request_id), holder, priority, left_ms, adapter)

        return self._figuring.once_sized(name, deadline_ms, ask)

    async def heartbeat(self, holder: str, held: list[list[str]] | None = None) -> None:
        """`held`: pairs of request and replica, for an allocator that has to learn them anew."""
        if self._recovery is not None:
            self._recovery.heartbeats[HolderId(holder)] = list(held or [])
        self._leases.heard(HolderId(holder))

    async def replica_unreachable(self, replica_id: str, request_id: str) -> dict[str, bool]:
        """A client could not connect. Returns when that is settled: `{"gone": whether it was ended}`."""
        await self._ready.wait()
        replica = ReplicaId(replica_id)
        record = self._roster.records.get(replica)
        if record is None or record.report is None or record.leaving_since_ms is not None:
            return {"gone": True}
        if await accepts(record.report.endpoint):
            return {"gone": False}
        logger.warning("%s does not accept connections (request %s): its runner is killed", replica, request_id)
        await self._agents.kill(record.report.own_part)
        try:
            await asyncio.wait_for(record.away.wait(), VERDICT_WITHIN_S)
        except asyncio.TimeoutError:
            return {"gone": False}
        return {"gone": True}

    async def status(self) -> dict[str, Any]:
        await self._ready.wait()
        scheduler = self._started
        head = {
            "serial": self._progress.serial,
            "policy": str(scheduler.settings.policy),
            "address": self._address,
            "counters": dict(self._journal.counters),
            "leaving": sum(record.leaving_since_ms is not None for record in self._roster.records.values()),
        }
        books = (self._membership, self._roster, self._deployed, self._figures, self._adapters)
        return status_of(self._snapshot(), *books, head)

    async def decisions(self, limit: int = 100, subject: str | None = None) -> list[dict[str, Any]]:
        """The last ones, newest first. `subject`: a model, replica or request."""
        return self._journal.latest(limit, subject)

    async def differences(self) -> list[str]:
        """What Ray holds otherwise than the ledger, in words; [] while nothing starts or leaves."""
        await self._ready.wait()
        groups = await asyncio.to_thread(held_groups)
        return differences(self._snapshot(), groups, self._membership.ray_nodes())

    async def explain(self, subject: str) -> dict[str, Any]:
        """What was last decided about a model, replica or request, and why; what it waits for now."""
        await self._ready.wait()
        found = explain(subject, self._started, self._journal, self._figures, self._deployed.resolve, now_ms())
        if found is None:
            message = f"nothing is known of {subject!r}: it is no model, replica or request of the last decisions"
            return refused(RejectCode.MODEL_NOT_FOUND, message)
        return found

    async def models(self) -> list[dict[str, Any]]:
        return list((await self.status())["models"])

    async def serial(self) -> int:
        return self._progress.serial

    async def wait_past(self, serial: int, timeout_s: float = 10.0) -> dict[str, Any]:
        """The status, as soon as more than `serial` events have been handled, or when the time is up."""
        await self._ready.wait()
        await self._progress.past(serial, timeout_s)
        return await self.status()

    # -- what operators call, by way of `operate` (audit_log.py) -----------------------------------

    async def deploy(self, config_json: str) -> dict[str, Any]:
        """Serve this catalog from now on. Another `scheduler:` section takes a restart of this actor, which
        keeps what runs."""
        catalog = Catalog(config_from_json(config_json))
        if not self._ready.is_set() and self._recovery is None:
            await asyncio.to_thread(self._store.write_config, config_json)
            self._spawn(self._begin(config_json))
            await self._ready.wait()
            return {"ok": True, "message": f"{len(catalog.config.models)} models"}
        await self._ready.wait()
        if catalog.config.settings() != self._started.settings:
            await asyncio.to_thread(self._store.write_config, config_json)
            self._ready.clear()  # whoever asks from now on is answered by the one that comes after
            self._loop.call_later(EXIT_AFTER_S, os._exit, 1)
            return {"ok": True, "message": "the scheduler section has changed: the allocator restarts"}
        await asyncio.to_thread(self._store.write_config, config_json)
        self._adapters.redeployed(self._deployed.config.adapters, catalog.config.adapters)
        self._catalog = catalog
        self._figuring.deploy(catalog)
        self._audit.open(catalog.config.audit_log)
        return {"ok": True, "message": f"{len(catalog.config.models)} models"}

    async def load(self, model: str, wait: bool = False) -> dict[str, Any]:
        """Load it, if it is not there. `wait`: until it runs, or has failed."""
        await self._ready.wait()
        name = self._deployed.resolve(model)
        refusal = await self._figures.why_not(name, None if wait else SIZED_WITHIN_S)
        if refusal is not None:
            return error_of(refusal)
        while (plan := self._started.ask_plan(name, now_ms())) is None and self._figures.model(name) is not None:
            await self._progress.past(self._progress.serial, 0.25)  # it is in the mailbox
        if plan is None:
            return unknown_model(model)
        now = seen(self._snapshot(), name)
        if plan.verdict is PlanVerdict.NEVER and not now["there"]:
            return refused(RejectCode.NEVER_FITS, plan.message)
        self._mailbox.put(ev.LoadAsked(name))
        if adapter := self._deployed.adapter(model):
            loading = self._adapters.load(adapter, self._loaded(name, now["failures"]))
            return await loading if wait else {"ok": True, "message": f"{adapter.name} is loaded into {name}"}
        if not wait:
            return {"ok": True, "message": f"{name} is there already" if now["there"] else plan.message}
        return await self._loaded(name, now["failures"])

    async def unload(self, model: str) -> dict[str, Any]:
        await self._ready.wait()
        if adapter := self._deployed.adapter(model):
            return self._adapters.unload(adapter)
        name = self._deployed.resolve(model)
        if self._deployed.entry(name) is None:
            return unknown_model(model)
        self._mailbox.put(ev.UnloadAsked(name))
        return {"ok": True, "message": f"{name} is unloaded"}

    async def pin(self, model: str, pinned: bool) -> dict[str, Any]:
        """Make its replicas immovable, or let them go; kept over a restart of the allocator."""
        await self._ready.wait()
        if adapter := self._deployed.adapter(model):
            return pins_its_base(adapter)
        name = self._deployed.resolve(model)
        if self._deployed.entry(name) is None:
            return unknown_model(model)
        self._pins[name] = pinned
        self._mailbox.put(ev.PinAsked(name, pinned))
        await asyncio.to_thread(self._store.write_pins, dict(self._pins))
        return {"ok": True, "message": f"{name} is {'pinned' if pinned else 'not pinned any more'}"}

    async def shutdown(self, timeout_s: float = 60.0) -> dict[str, Any]:
        """Stop every replica, and return when all are gone (`ok`), or when the time is up."""
        if self._scheduler is None:
            return {"ok": True, "message": "nothing was deployed"}
        self._mailbox.put(ev.ShutdownAsked())
        deadline_ms = now_ms() + round(timeout_s * 1000)
        while self._roster.records and now_ms() < deadline_ms:
            await self._progress.past(self._progress.serial, 0.25)
        left = sorted(self._roster.records)
        if not left:
            self._looking.cancel()
            await self._agents.drop(self._agents.node_ids())
            await asyncio.to_thread(self._store.clear)
        return {"ok": not left, "message": f"still there: {', '.join(left)}" if left else "all replicas are gone"}

    # -- what runners and agents call -------------------------------------------------------------

    async def runner_reports(self, report: RunnerReport) -> Verdict:
        if self._recovery is not None:
            self._recovery.reported(report)
        await self._ready.wait()
        if report.state is RunnerState.RUNNING:
            for part in report.parts:
                self._agents.warm_up(part.node_id)
        return self._roster.reported(report)

    async def runner_orders(self, replica: ReplicaId, incarnation: str, taken: Turn | None) -> Verdict | Turn:
        """Waits until this runner has to end, to sleep or to wake. `taken`: its last turn."""
        if self._recovery is not None:
            return Verdict.ANNOUNCE
        await self._ready.wait()
        return await self._roster.orders(replica, incarnation, taken)

    async def runner_died(self, replica: ReplicaId, incarnation: str, node_id: str) -> None:
        if self._recovery is not None:
            self._recovery.died(replica, incarnation)
        await self._ready.wait()
        self._roster.died(replica, incarnation, node_id)

    async def known_inventory(self, node_id: str) -> NodeInventory | None:
        """What the agent of a node has told of it; None: nothing yet."""
        node = self._membership.nodes.get(node_id)
        return node.inventory if node else None

    async def node_report(self, node_id: str, report: AgentReport) -> list[Watched]:
        if news := self._membership.reported(node_id, report, now_ms() / 1000):
            self._mailbox.put_all(news)
            self._figures.node_reported()
        node = self._membership.nodes.get(node_id)
        if node is not None:
            self._roster.measured(node.name, report.measured)
        return self._roster.watched(node_id)

    # -- by itself --------------------------------------------------------------------------------

    @property
    def _deployed(self) -> Catalog:
        assert self._catalog is not None
        return self._catalog

    @property
    def _started(self) -> Scheduler:
        assert self._scheduler is not None
        return self._scheduler

    def _snapshot(self) -> Snapshot:
        return self._started.snapshot(now_ms())

    def _suspect(self, replica: ReplicaId) -> None:
        self._spawn(self._housekeeping.make_sure_of_end(replica))

    def _engine_ended(self, replica: ReplicaId) -> None:
        self._executor.order([EngineEnded(replica)])

    def _hold(self, report: RunnerReport) -> None:
        self._dispatch.hold(report)

    def _end(self, replica: ReplicaId) -> None:
        self._spawn(self._housekeeping.end(replica))

    async def _loaded(self, name: ModelName, failures: int) -> dict[str, Any]:
        serial = self._progress.serial
        while True:
            await self._progress.past(serial, math.inf)
            serial = self._progress.serial
            now = seen(self._snapshot(), name)
            if now["running"]:
                return {"ok": True, "message": f"{name} runs as {', '.join(now['running'])}"}
            if now["failures"] > failures:
                return refused(RejectCode.LOAD_FAILED, f"{name} could not be loaded: {now['error']}")
            if not now["wanted"] and not now["there"]:
                return refused(RejectCode.UNLOADED, f"{name} was unloaded before it ran")

    def _backoff_s(self, name: ModelName) -> int:
        until_ms = seen(self._snapshot(), name)["backoff_until_ms"]
        return 0 if until_ms is None else math.ceil(max(0, until_ms - now_ms()) / 1000)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (problem := task.exception()) is not None:
            # Half an allocator is worse than none: the next one learns from those who run.
            logger.critical("the allocator failed and restarts", exc_info=problem)
            os._exit(1)
