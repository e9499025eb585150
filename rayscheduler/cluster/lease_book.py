"""The allocator's book of the requests that its clients wait for or hold, and of the clients themselves.

Rules of this file: the core decides who is granted what; here its words are brought to those who wait. A
request id is one request: asked again while it lives, it is the same lease; if its release has overtaken
it, it is cancelled. A holder (but "") that is silent for SILENCE_S is gone, and all that it held with it.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from rayscheduler.cluster.mailbox import Mailbox, now_ms
from rayscheduler.config.adapters import AdapterSection
from rayscheduler.core.events import HolderLost, RequestArrived, RequestEnded
from rayscheduler.core.types import HTTP_STATUS, HolderId, ModelName, RejectCode, ReplicaId, RequestId

SILENCE_S = 10.0
REMEMBERED_S = 60.0  # for how long a release that came before its request is remembered

Reply = dict[str, Any]


@dataclass
class LeaseRecord:
    """`replica` None: it waits. `adapter`: what it wants on that replica. `adopted`: it is older than this allocator,
    which does not know its adapter."""

    holder: HolderId
    reply: asyncio.Future[Reply]
    replica: ReplicaId | None = None
    adapter: AdapterSection | None = None
    adopted: bool = False

    def answer(self, reply: Reply) -> None:
        if not self.reply.done():
            self.reply.set_result(reply)


class LeaseBook:
    def __init__(self, mailbox: Mailbox) -> None:
        self._mailbox = mailbox
        self._records: dict[RequestId, LeaseRecord] = {}
        self._heard_ms: dict[HolderId, int] = {}
        self._released_early: dict[RequestId, int] = {}

    def ask(
        self,
        model: ModelName,
        request: RequestId,
        holder: HolderId,
        priority: int | None,
        deadline_ms: int | None,
        adapter: AdapterSection | None = None,
    ) -> asyncio.Future[Reply]:
        """The core's decision, some day; not to be cancelled. `deadline_ms` is a duration from now."""
        self.heard(holder)
        if request in self._released_early:
            return said(rejection(RejectCode.CANCELLED, "this request was released before it arrived"))
        record = self._records.get(request)
        if record is None:
            record = LeaseRecord(holder, asyncio.get_running_loop().create_future(), adapter=adapter)
            self._records[request] = record
            until_ms = None if deadline_ms is None else now_ms() + deadline_ms
            self._mailbox.put(RequestArrived(request, model, priority, until_ms, holder))
        return record.reply

    def granted(self, request: RequestId, replica: ReplicaId, reply: Reply) -> None:
        record = self.placed(request, replica)
        if record is not None:
            record.answer(reply)

    def placed(self, request: RequestId, replica: ReplicaId) -> LeaseRecord | None:
        """It holds the replica from now on, and will be answered later; None: nobody waits for it any more."""
        record = self._records.get(request)
        if record is not None:
            record.replica = replica
        return record

    def withdraw(self, request: RequestId, record: LeaseRecord, reply: Reply) -> None:
        """One that holds a replica, and cannot be served there: it has ended."""
        if self._records.get(request) is record:
            del self._records[request]
            self._mailbox.put(RequestEnded(request))
        record.answer(reply)

    def adapter_of(self, request: RequestId) -> AdapterSection | None:
        record = self._records.get(request)
        return record.adapter if record is not None else None

    def serves(self, replica: ReplicaId, adapter: str) -> bool:
        """Whether a request uses the adapter there. One of which that is not known may."""
        return any(
            record.adopted or (record.adapter is not None and record.adapter.name == adapter and record.reply.done())
            for record in self._records.values()
            if record.replica == replica
        )

    def rejected(self, request: RequestId, reply: Reply) -> None:
        record = self._records.pop(request, None)
        if record is not None:
            record.answer(reply)

    def release(self, requests: Iterable[RequestId]) -> None:
        """They have ended, or are not waited for any more."""
        for request in requests:
            record = self._records.get(request)
            if record is None:
                self._released_early[request] = now_ms()
                continue
            if record.replica is not None:
                del self._records[request]
            self._mailbox.put(RequestEnded(request))

    def replica_gone(self, replica: ReplicaId) -> None:
        """What it served has ended."""
        for request in [request for request, record in self._records.items() if record.replica == replica]:
            del self._records[request]

    def adopt(self, request: RequestId, holder: HolderId, replica: ReplicaId, reply: Reply) -> None:
        """A lease that an allocator before this one has granted."""
        self._records[request] = LeaseRecord(holder, said(reply), replica, adopted=True)
        self.heard(holder)

    def leases_by_replica(self) -> Counter[ReplicaId]:
        """How many requests each replica serves."""
        return Counter(record.replica for record in self._records.values() if record.replica is not None)

    def heard(self, holder: HolderId) -> None:
        if holder:
            self._heard_ms[holder] = now_ms()

    def drop_silent(self) -> None:
        """To be called every second or so."""
        now = now_ms()
        for holder in [h for h, heard_ms in self._heard_ms.items() if now - heard_ms > SILENCE_S * 1000]:
            del self._heard_ms[holder]
            held = [request for request, record in self._records.items() if record.holder == holder]
            for request in held:
                if self._records[request].replica is not None:
                    del self._records[request]
            if held:
                self._mailbox.put(HolderLost(holder))
        self._released_early = {
            request: at_ms for request, at_ms in self._released_early.items() if now - at_ms < REMEMBERED_S * 1000
        }


def said(reply: Reply) -> asyncio.Future[Reply]:
    """A reply that is known already."""
    future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
    future.set_result(reply)
    return future


def rejection(code: RejectCode, message: str, retry_after_s: int | None = None) -> Reply:
    """What a client gets instead of a lease."""
    return {
        "granted": False,
        "code": str(code),
        "status": HTTP_STATUS[code],
        "message": message,
        "retry_after_s": retry_after_s,
    }


def refused(code: RejectCode, message: str) -> Reply:
    """What an operator gets instead of `ok`."""
    return error_of(rejection(code, message))


def error_of(reply: Reply) -> Reply:
    """What a client would get instead of a lease, for an operator."""
    return {"error": {key: value for key, value in reply.items() if key != "granted"}}


def unknown_tier(tier: str, tiers: Mapping[str, int]) -> Reply:
    message = f"there is no tier {tier!r}; known are: {', '.join(sorted(tiers)) or 'none'}"
    return {"granted": False, "code": "unknown_tier", "status": 400, "message": message, "retry_after_s": None}


def unknown_model(model: str) -> dict[str, Any]:
    return refused(RejectCode.MODEL_NOT_FOUND, f"there is no model {model!r} in the catalog")


def held_by_replica(heartbeats: Mapping[HolderId, Iterable[Iterable[str]]]) -> dict[str, dict[RequestId, HolderId]]:
    """What holders say they hold (pairs of request and replica), by replica."""
    by_replica: dict[str, dict[RequestId, HolderId]] = {}
    for holder, pairs in sorted(heartbeats.items()):
        for request, replica in pairs:
            by_replica.setdefault(replica, {})[RequestId(request)] = holder
    return by_replica
