"""The lease book, the journal and the mailbox: what clients hear, and when."""

from __future__ import annotations

import asyncio

import pytest

from rayscheduler.cluster import lease_book
from rayscheduler.cluster.journal import KEPT_MAX, Journal
from rayscheduler.cluster.lease_book import LeaseBook, held_by_replica, refused, rejection
from rayscheduler.cluster.mailbox import Mailbox, now_ms
from rayscheduler.cluster.progress import Progress
from rayscheduler.core.decisions import Grant, Reject, StartReplica, StopReplica
from rayscheduler.core.events import HolderLost, RequestArrived, RequestEnded, ShutdownAsked, Woken
from rayscheduler.core.types import (
    DeviceId,
    HolderId,
    ModelName,
    NodeName,
    Placement,
    RejectCode,
    ReplicaId,
    RequestId,
    StopReason,
)

M, R, H, A = ModelName("m"), RequestId("r"), HolderId("h"), ReplicaId("m#1")
YES = {"granted": True}


class Desk:
    def __init__(self) -> None:
        self.mailbox = Mailbox()
        self.book = LeaseBook(self.mailbox)

    async def answer(self, request: RequestId, holder: HolderId) -> dict[str, object]:
        return await asyncio.shield(self.book.ask(M, request, holder, None, None))

    def ask(self, request: RequestId = R, holder: HolderId = H) -> asyncio.Task[dict[str, object]]:
        return asyncio.ensure_future(self.answer(request, holder))


async def test_asked_twice_it_is_one_request_and_one_answer() -> None:
    desk = Desk()
    first, second = desk.ask(), desk.ask()
    await asyncio.wait({first, second}, timeout=0)
    assert desk.mailbox.now_there() == [RequestArrived(R, M, None, None, H)]
    desk.book.granted(R, A, YES)
    assert (await first, await second, await desk.ask()) == (YES, YES, YES)
    assert desk.mailbox.now_there() == []


async def test_a_deadline_is_an_instant_for_the_core() -> None:
    desk = Desk()
    before_ms = now_ms()
    desk.book.ask(M, R, H, 5, 1000)
    (arrived,) = desk.mailbox.now_there()
    assert isinstance(arrived, RequestArrived)
    assert arrived.deadline_ms is not None
    assert 1000 <= arrived.deadline_ms - before_ms < 2000
    assert arrived.priority == 5


async def test_released_while_it_waits_it_hears_what_the_core_says() -> None:
    desk = Desk()
    asking = desk.ask()
    await asyncio.wait({asking}, timeout=0)
    desk.book.release([R])
    assert desk.mailbox.now_there()[-1] == RequestEnded(R)
    desk.book.rejected(R, rejection(RejectCode.CANCELLED, "gone"))
    assert (await asking)["status"] == 499


async def test_a_release_that_overtook_its_request_wins() -> None:
    desk = Desk()
    desk.book.release([R])
    assert (await desk.ask())["code"] == "cancelled"
    assert desk.mailbox.now_there() == []


async def test_released_once_it_is_gone() -> None:
    desk = Desk()
    asking = desk.ask()
    await asyncio.wait({asking}, timeout=0)
    desk.book.granted(R, A, YES)
    desk.book.release([R])
    desk.mailbox.now_there()
    desk.book.replica_gone(A)
    desk.book.release([R])
    assert desk.mailbox.now_there() == [], "the core has heard of its end already"


async def test_a_silent_holder_loses_all_and_others_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk()
    asks = [
        desk.ask(),
        desk.ask(RequestId("waits")),
        desk.ask(RequestId("other"), HolderId("")),
    ]
    await asyncio.wait(asks, timeout=0)
    desk.book.granted(R, A, YES)
    desk.mailbox.now_there()
    desk.book.drop_silent()
    assert desk.mailbox.now_there() == []
    start_ms = now_ms()
    monkeypatch.setattr(lease_book, "now_ms", lambda: start_ms + 11_000)
    desk.book.drop_silent()
    assert desk.mailbox.now_there() == [HolderLost(H)]
    desk.book.drop_silent()
    assert desk.mailbox.now_there() == []
    for ask in asks:
        ask.cancel()


async def test_an_adopted_lease_is_a_lease() -> None:
    desk = Desk()
    desk.book.adopt(R, H, A, YES)
    assert await desk.ask() == YES
    desk.book.release([R])
    assert desk.mailbox.now_there() == [RequestEnded(R)]


def test_what_holders_hold_by_replica() -> None:
    said = {HolderId("g2"): [["r2", "m#1"]], HolderId("g1"): [["r1", "m#1"], ["r3", "n#4"]]}
    assert held_by_replica(said) == {"m#1": {"r1": "g1", "r2": "g2"}, "n#4": {"r3": "g1"}}


def test_refusals_have_their_status() -> None:
    assert refused(RejectCode.NEVER_FITS, "no")["error"]["status"] == 422
    assert "granted" not in refused(RejectCode.NEVER_FITS, "no")["error"]


def test_the_journal_keeps_the_last_decisions_with_their_reasons() -> None:
    journal = Journal()
    place = Placement((NodeName("n"),), (DeviceId("n/0"),), (5,))
    journal.note(StopReplica(ReplicaId("b#1"), ModelName("b"), StopReason.EVICTED, A, "makes way for m#1"), 1)
    journal.note(StartReplica(A, M, place, (ReplicaId("b#1"),), "m goes to n/0"), 2)
    journal.note(Grant(R, A, M), 3)
    journal.note(Reject(RequestId("x"), ModelName("x"), RejectCode.MODEL_NOT_FOUND, "no x"), 4)
    journal.note(StopReplica(A, M, StopReason.IDLE), 5)
    entries = journal.latest(10, None)
    assert [entry["serial"] for entry in entries] == [5, 4, 3, 2, 1], "newest first"
    assert all(entry["why"] and entry["at"] for entry in entries)
    assert entries[3]["bytes"] == [5]
    assert entries[4]["for"] == "m#1"
    assert [entry["serial"] for entry in journal.latest(10, "b#1")] == [2, 1]
    assert [entry["serial"] for entry in journal.latest(1, "m")] == [5]
    counted = {name: count for name, count in journal.counters.items() if count}
    assert counted == {"starts": 1, "stops": 2, "evictions": 1, "grants": 1, "rejects": 1}
    for serial in range(2 * KEPT_MAX):
        journal.note(Grant(R, A, M), serial)
    kept = journal.latest(10**6, None)
    assert len(kept) == KEPT_MAX + 4, "grants do not push out what was loaded and why"
    assert journal.counters["grants"] == 2 * KEPT_MAX + 1


async def test_the_mailbox_gives_all_at_once_or_wakes() -> None:
    mailbox = Mailbox()
    assert await mailbox.take(now_ms()) == [Woken()]
    mailbox.put(ShutdownAsked(), Woken())
    mailbox.put(ShutdownAsked())
    assert await mailbox.take(None) == [ShutdownAsked(), Woken(), ShutdownAsked()]
    taking = asyncio.ensure_future(mailbox.take(None))
    await asyncio.wait({taking}, timeout=0)
    mailbox.put(ShutdownAsked())
    assert await taking == [ShutdownAsked()]


async def test_progress_is_waited_for_with_a_bound() -> None:
    progress = Progress()
    assert not await progress.past(0, 0.01)
    waiting = asyncio.ensure_future(progress.past(1, 10))
    await asyncio.wait({waiting}, timeout=0)
    progress.advance(1)
    progress.advance(1)
    assert await waiting
    assert await progress.past(1, 0)
