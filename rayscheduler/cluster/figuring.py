"""What models take, between the catalog and the core: the core has a model as soon as that is known.

    catalog ─► FigureBook ─(nodes are asked)─► ModelDeployed ─► core
    roster  ─► Learning ──(readings, peaks)──►     │   └ bytes that the next load reserves
               store ◄─────────────────────────────┘

Rules of this file: it belongs to the allocator's loop; what the store is told, it is told from a thread.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import replace

from rayscheduler.cluster.agents import Agents
from rayscheduler.cluster.asking import Asking
from rayscheduler.cluster.catalog import Catalog
from rayscheduler.cluster.figure_book import FigureBook
from rayscheduler.cluster.learning import Learning, Sighting
from rayscheduler.cluster.lease_book import LeaseBook, Reply, said
from rayscheduler.cluster.mailbox import Mailbox, now_ms
from rayscheduler.cluster.membership import Membership
from rayscheduler.cluster.reports import RunnerState
from rayscheduler.cluster.roster import Roster, RunnerRecord
from rayscheduler.cluster.store import Store
from rayscheduler.core.events import ModelDeployed, ModelRemoved, Woken
from rayscheduler.core.types import Model, ModelName, Snapshot

Ask = Callable[[int | None], asyncio.Future[Reply]]

logger = logging.getLogger(__name__)


class Figuring:
    """`snapshot`: what the core believes now. `pins`: what an operator pinned by hand."""

    def __init__(
        self,
        mailbox: Mailbox,
        membership: Membership,
        agents: Agents,
        roster: Roster,
        leases: LeaseBook,
        store: Store,
        snapshot: Callable[[], Snapshot],
        pins: Mapping[str, bool],
    ) -> None:
        self._mailbox = mailbox
        self._roster = roster
        self._leases = leases
        self._store = store
        self._snapshot = snapshot
        self._pins = pins
        self._tasks: set[asyncio.Task[None]] = set()
        self._waiting: set[asyncio.Task[Reply]] = set()
        self._learning = Learning(self._keep_learned)
        nodes = membership.nodes.values
        self.book = FigureBook(Asking(agents.size_up), self._learning, nodes, self._keep_size, self._refigured)
        self._told: dict[ModelName, Model] = {}  # what the core has of the catalog
        self._begun = False

    async def begin(self, catalog: Catalog, after_restart: bool) -> list[ModelDeployed]:
        """The catalog that an allocator begins with, and what one before it knew; the models that are ready."""
        self._learning.remember(await asyncio.to_thread(self._store.learned))
        self.book.remember(await asyncio.to_thread(self._store.sizes))
        self.book.deploy(catalog, unasked=after_restart)
        self._told = self.book.models()
        return [ModelDeployed(model) for model in self._told.values()]

    async def work(self) -> None:
        """For ever, once the core knows what `begin` said: ask for what is not known yet."""
        self._begun = True
        for name in self.book.models():
            self._refigured(name)  # what was learned since `begin`
        await self.book.work()

    def deploy(self, catalog: Catalog) -> None:
        """Another catalog. Models whose figures are not known yet stay as they were until they are."""
        self.book.deploy(catalog)
        for name in sorted(self._told.keys() - {entry.name for entry in catalog}):
            self._refigured(name)

    def once_sized(self, name: ModelName, deadline_ms: int | None, ask: Ask) -> asyncio.Future[Reply]:
        """What `ask` gets, once the core has the model or never will; or why it has not. `deadline_ms`: a duration;
        `ask` is told what is left of it."""
        if self.book.is_settled(name):
            problem = self.book.problem(name)
            return ask(deadline_ms) if problem is None else said(problem)
        self._mailbox.put(Woken())  # who waits for the next pass must not wait for a node
        waiting = asyncio.get_running_loop().create_task(self._once_sized(name, deadline_ms, ask))
        self._waiting.add(waiting)
        waiting.add_done_callback(self._waiting.discard)
        return waiting

    async def _once_sized(self, name: ModelName, deadline_ms: int | None, ask: Ask) -> Reply:
        asked_ms = now_ms()
        problem = await self.book.why_not(name, None if deadline_ms is None else deadline_ms / 1000)
        if problem is not None:
            return problem
        return await ask(None if deadline_ms is None else max(0, deadline_ms - (now_ms() - asked_ms)))

    def watch(self) -> None:
        """Each second: what do replicas take, and is that news?"""
        leases = self._leases.leases_by_replica()
        records = self._roster.records.items()
        self.book.learned(self._learning.watch((_sighting(record, leases[name]) for name, record in records), now_ms()))

    def _refigured(self, name: ModelName) -> None:
        """Another figure, or another entry. What the core has learned of a model (how long a load takes) stays."""
        if not self._begun:
            return
        model, told = self.book.model(name), self._told.pop(name, None)
        if model is None:
            if told is not None:
                self._mailbox.put(ModelRemoved(name))
            return
        self._told[name] = model
        if told is not None and told != model and replace(told, requirement=model.requirement) == model:
            self._mailbox.put(ModelDeployed(self._as_it_runs(model)))
        elif told != model:
            self._mailbox.put(ModelDeployed(model))

    def _as_it_runs(self, model: Model) -> Model:
        """The model with its new requirement and otherwise as the core has it."""
        now = next((seen.model for seen in self._snapshot().models if seen.model.name == model.name), model)
        return replace(now, requirement=model.requirement, pinned=self._pins.get(model.name, now.pinned))

    async def _keep_size(self, model: str, told: str) -> None:
        await asyncio.to_thread(self._store.write_size, model, told)

    def _keep_learned(self, key: str, told: str) -> None:
        self._spawn(asyncio.to_thread(self._store.write_learned, key, told))

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (problem := task.exception()) is not None:
            logger.warning("what was learned is not kept: %s", problem)


def _sighting(record: RunnerRecord, leases: int) -> Sighting:
    """Device by device where that is known; of a replica without devices, what it holds of the host."""
    held = [] if record.measured_bytes is None else record.measured_device_bytes() or [record.measured_bytes]
    known = [size for size in held if size is not None]
    held_bytes = tuple(known) if len(known) == len(held) else ()
    return Sighting(record.launch, record.state is RunnerState.RUNNING, held_bytes, leases)
