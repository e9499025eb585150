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
from rayscheduler.core.events import HolderLost, RequestArrived, RequestEnded
from rayscheduler.core.types import HTTP_STATUS, HolderId, ModelName, RejectCode, ReplicaId, RequestId

SILENCE_S = 10.0
REMEMBERED_S = 60.0  # for how long a release that came before its request is remembered

Reply = dict[str, Any]


@dataclass
class LeaseRecord:
    """`replica` None: it waits."""

    holder: HolderId
    reply: asyncio.Future[Reply]
    replica: ReplicaId | None = None


class LeaseBook:
    def __init__(self, mailbox: Mailbox) -> None:
        self._mailbox = mailbox
        self._records: dict[RequestId, LeaseRecord] = {}
        self._heard_ms: dict[HolderId, int] = {}
        self._released_early: dict[RequestId, int] = {}

    def ask(
        self, model: ModelName, request: RequestId, holder: HolderId, priority: int | None, deadline_ms: int | None
    ) -> asyncio.Future[Reply]:
        """The core's decision, some day; not to be cancelled. `deadline_ms` is a duration from now."""
        self.heard(holder)
        if request in self._released_early:
            return said(rejection(RejectCode.CANCELLED, "this request was released before it arrived"))
        record = self._records.get(request)
        if record is None:
            record = LeaseRecord(holder, asyncio.get_running_loop().create_future())
            self._records[request] = record
            until_ms = None if deadline_ms is None else now_ms() + deadline_ms
            self._mailbox.put(RequestArrived(request, model, priority, until_ms, holder))
        return record.reply

    def granted(self, request: RequestId, replica: ReplicaId, reply: Reply) -> None:
        record = self._records.get(request)
        if record is not None:
            record.replica = replica
            _answer(record, reply)

    def rejected(self, request: RequestId, reply: Reply) -> None:
        record = self._records.pop(request, None)
        if record is not None:
            _answer(record, reply)

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
        self._records[request] = LeaseRecord(holder, said(reply), replica)
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


def _answer(record: LeaseRecord, reply: Reply) -> None:
    if not record.reply.done():
        record.reply.set_result(reply)
