"""How the core hears of figures, and what those who ask for a model get while nobody knows any."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from rayscheduler.cluster.agents import Agents
from rayscheduler.cluster.catalog import Catalog
from rayscheduler.cluster.figuring import Figuring
from rayscheduler.cluster.inventory import LentDevice, NodeInventory
from rayscheduler.cluster.lease_book import LeaseBook, said
from rayscheduler.cluster.mailbox import Mailbox
from rayscheduler.cluster.membership import KnownNode, Membership
from rayscheduler.cluster.reports import DeviceEstimate, SizeAnswer, SizeQuestion
from rayscheduler.cluster.roster import Roster
from rayscheduler.cluster.store import Store
from rayscheduler.config.service import config_from_text
from rayscheduler.core import events as ev
from rayscheduler.core.scheduler import Scheduler
from rayscheduler.core.types import Backend, ModelName, NodeName, Settings, Snapshot

GIB = 2**30
A, B = ModelName("a"), ModelName("b")
ESTIMATED = "{name: a, engine: llama-cpp, source: a.gguf, gpus: [1]}"
STATED = "{name: b, engine: simulated, memory: 1GiB, gpus: [1]}"


class KeptInMemory(Store):
    def __init__(self) -> None:
        self.written: dict[str, str] = {}

    def write_size(self, model: str, told: str) -> None:
        self.written[model] = told

    def sizes(self) -> dict[str, str]:
        return dict(self.written)

    def write_learned(self, key: str, told: str) -> None:
        self.written[key] = told

    def learned(self) -> dict[str, str]:
        return {}


class FilesOf(Agents):
    """Every node says of every model that it takes so much; 0: its file is not there."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    async def size_up(self, node_id: str, question: SizeQuestion) -> SizeAnswer:
        if not self.size:
            return SizeAnswer(problem="it does not exist")
        return SizeAnswer("digest", "1.0", {1: DeviceEstimate(self.size)})


class Told:
    """A core that hears what is put into the mailbox."""

    def __init__(self, size: int = 10 * GIB, store: KeptInMemory | None = None) -> None:
        self.mailbox, self.membership, self.store = Mailbox(), Membership(), store or KeptInMemory()
        self.agents = FilesOf(size)
        self.scheduler = Scheduler(Settings())
        self.pins: dict[str, bool] = {}
        roster = Roster(self.mailbox, lambda replica: None, lambda replica: None, lambda report: None)
        leases = LeaseBook(self.mailbox)
        self.figuring = Figuring(
            self.mailbox, self.membership, self.agents, roster, leases, self.store, self.snapshot, self.pins
        )
        self.working: asyncio.Future[None] | None = None

    def snapshot(self) -> Snapshot:
        return self.scheduler.snapshot(0)

    def node_joins(self) -> None:
        inventory = NodeInventory("n", Backend.NVIDIA, (LentDevice(0, 1024, "GPU-n", "H100"),))
        self.membership.nodes["id"] = KnownNode(NodeName("n"), "id", "", 0, {}, {}, inventory=inventory)
        self.figuring.book.node_reported()

    async def begin(self, *entries: str) -> None:
        for event in await self.figuring.begin(catalog(*entries), False):
            self.scheduler.handle(event, 0)
        self.working = asyncio.ensure_future(self.figuring.work())

    def hears(self) -> list[ev.Event]:
        events = self.mailbox.now_there()
        self.scheduler.handle_batch(events, 0)
        return [event for event in events if not isinstance(event, ev.Woken)]

    def bytes_of(self, name: ModelName) -> dict[int, int]:
        models = {seen.model.name: seen.model for seen in self.snapshot().models}
        return dict(models[name].requirement.bytes_by_count) if name in models else {}

    def ask(self, deadline_ms: int | None = None) -> asyncio.Future[dict[str, Any]]:
        return self.figuring.once_sized(A, deadline_ms, lambda left_ms: said({"left_ms": left_ms}))

    def end(self) -> None:
        if self.working is not None:
            self.working.cancel()


def catalog(*entries: str) -> Catalog:
    return Catalog(config_from_text(f"models: [{', '.join(entries)}]"))


@pytest.mark.parametrize("exists", [True, False])
async def test_a_request_waits_for_the_figure_and_a_pass_does_not_wait_for_the_request(exists: bool) -> None:
    told = Told(10 * GIB if exists else 0)
    await told.begin(ESTIMATED, STATED)
    assert (told.bytes_of(A), told.bytes_of(B)) == ({}, {1: GIB})
    asked = told.ask()
    assert not asked.done()
    assert told.mailbox.now_there() == [ev.Woken()], "so that a pass takes place"
    told.node_joins()
    reply = await asyncio.wait_for(asked, 10)
    news = told.hears()
    if exists:
        assert reply == {"left_ms": None}
        assert [event.model.name for event in news if isinstance(event, ev.ModelDeployed)] == ["a"]
        assert told.bytes_of(A) == {1: 10 * GIB}
    else:
        assert (reply["granted"], reply["status"], news) == (False, 503, [])
    assert told.ask().done(), "now it is known"
    told.end()


async def test_a_deadline_runs_while_nobody_knows() -> None:
    told = Told()
    await told.begin(ESTIMATED)
    reply = await asyncio.wait_for(told.ask(deadline_ms=20), 10)
    assert (reply["status"], reply["code"]) == (504, "deadline_exceeded")
    told.end()


async def test_another_catalog_and_what_the_core_has_seen_stays() -> None:
    told = Told()
    told.node_joins()
    await told.begin(ESTIMATED, STATED)
    await asyncio.wait_for(told.ask(), 10)
    told.hears()
    told.scheduler.handle(ev.PinAsked(B, True), 0)
    told.pins["b"] = True
    told.figuring.deploy(catalog(ESTIMATED, STATED.replace("1GiB", "2GiB")))
    (event,) = told.hears()
    assert isinstance(event, ev.ModelDeployed)
    assert event.model.pinned, "only its figure is another"
    assert told.bytes_of(B) == {1: 2 * GIB}
    told.figuring.deploy(catalog(STATED.replace("1GiB", "2GiB")))
    assert told.hears() == [ev.ModelRemoved(A)]
    told.figuring.deploy(catalog(STATED.replace("1GiB", "2GiB")))
    assert told.hears() == [], "nothing is new"
    told.end()


async def test_a_refused_model_leaves_the_core() -> None:
    told = Told()
    told.node_joins()
    await told.begin(ESTIMATED)
    await asyncio.wait_for(told.ask(), 10)
    told.hears()
    told.figuring.deploy(catalog(ESTIMATED.replace("gpus", "memory: 1GiB, gpus")))
    reply = await asyncio.wait_for(told.ask(), 10)
    assert (reply["status"], reply["code"]) == (422, "memory_contradicted")
    assert told.hears() == [ev.ModelRemoved(A)]
    told.end()


async def test_the_next_allocator_begins_with_what_this_one_was_told() -> None:
    told = Told()
    told.node_joins()
    await told.begin(ESTIMATED)
    await asyncio.wait_for(told.ask(), 10)
    told.end()
    later = Told(store=told.store)
    (event,) = await later.figuring.begin(catalog(ESTIMATED), after_restart=True)
    assert event.model.requirement.bytes_by_count == {1: 10 * GIB}
