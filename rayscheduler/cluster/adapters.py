"""The LoRA adapters in the replicas of their bases: loaded when somebody asks for one, unloaded for another.

    granted a replica of the base ─► its engine holds the adapter: answered at once
                              └────► it does not: loaded, once for all who ask, and then answered

Rules of this file: it belongs to the allocator's loop. To the core a request for an adapter is one for its base; the
lease on the replica is held while the adapter is loaded. What a replica holds is what its engine says: a new
allocator asks. Where there is room for no more, the least recently used makes way, one that serves nobody before
one that does; that one gets no new requests, and leaves with its last.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections import Counter
from collections.abc import Awaitable, Coroutine, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import urlsplit

from rayscheduler.cluster.bounded import within
from rayscheduler.cluster.lease_book import LeaseBook, LeaseRecord, Reply
from rayscheduler.cluster.progress import Progress
from rayscheduler.cluster.reports import RunnerState
from rayscheduler.cluster.roster import Roster
from rayscheduler.config.adapters import AdapterSection
from rayscheduler.core.types import ReplicaId, RequestId
from rayscheduler.engines import by_name, http_call
from rayscheduler.engines.protocol import AdapterCalls, Call
from rayscheduler.errors import RequestRejected

T = TypeVar("T")
ANSWER_WITHIN_S = 10.0  # an engine that is asked which adapters it has, or told to unload one
WORDS_MAX = 400
# vLLM and SGLang refuse to load an adapter twice, each in its own words.
ALREADY = re.compile("is already loaded|has already been loaded")

logger = logging.getLogger(__name__)


class EngineAway(Exception):
    """The engine of a replica cannot be reached: whoever holds a lease on it finds that out, and asks again."""


@dataclass(frozen=True, slots=True)
class EngineLine:
    """How the engine of a replica is talked to about its adapters."""

    host: str
    port: int
    api_key: str
    calls: AdapterCalls
    most: int  # adapters that it holds
    load_within_s: float

    async def ask(self, call: Call, within_s: float) -> http_call.Answer:
        """EngineAway, also for an answer that makes no sense; asyncio.TimeoutError."""
        try:
            return await within(within_s, http_call.ask(self.host, self.port, self.api_key, call))
        except (OSError, ValueError) as problem:
            raise EngineAway(str(problem)) from problem


@dataclass
class Shelf:
    """The adapters of one replica. `held`: what each was loaded from, by name, the least recently used first.
    `known`: the engine has said what it had. `awaited`: how many requests wait for each to be loaded."""

    held: dict[str, str] = field(default_factory=dict)
    known: bool = False
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    loading: dict[str, asyncio.Future[None]] = field(default_factory=dict)
    awaited: Counter[str] = field(default_factory=Counter)

    def settle(self, name: str, problem: Exception | None = None) -> None:
        """Tell those who wait for it."""
        loaded = self.loading.pop(name, None)
        if loaded is None or loaded.done():
            return
        if problem is None:
            loaded.set_result(None)
        else:
            loaded.set_exception(problem)


class Adapters:
    def __init__(self, leases: LeaseBook, roster: Roster, progress: Progress) -> None:
        self._leases = leases
        self._roster = roster
        self._progress = progress
        self._shelves: dict[ReplicaId, Shelf] = {}
        self._tasks: set[asyncio.Task[Any]] = set()

    def held(self, replica: ReplicaId) -> list[str]:
        """The names of what it holds, the least recently used first."""
        shelf = self._shelves.get(replica)
        return list(shelf.held) if shelf else []

    # -- requests ---------------------------------------------------------------------------------

    def lend(self, request: RequestId, replica: ReplicaId, adapter: AdapterSection, reply: Reply) -> None:
        """The core has granted a replica, as `reply` says: answer as soon as the adapter is there."""
        if not reply["granted"]:
            self._leases.granted(request, replica, reply)
        elif (served := self._served(replica, adapter)) is not None:
            self._leases.granted(request, replica, {**reply, "model": served})
        elif (record := self._leases.placed(request, replica)) is not None:
            self._spawn(self._lend(request, record, replica, adapter, reply))

    async def _lend(
        self, request: RequestId, record: LeaseRecord, replica: ReplicaId, adapter: AdapterSection, reply: Reply
    ) -> None:
        try:
            reply = {**reply, "model": await self._have(replica, adapter)}
        except RequestRejected as refusal:
            self._leases.withdraw(request, record, _rejected(refusal))
            return
        except EngineAway:
            pass  # with the lease: whoever gets it cannot connect, has that looked into, and is served elsewhere
        record.answer(reply)

    # -- operators --------------------------------------------------------------------------------

    def load(self, adapter: AdapterSection, there: Awaitable[dict[str, Any]]) -> asyncio.Task[dict[str, Any]]:
        """Into every replica of its base. `there`: the answer to who loads the base."""
        return self._spawn(self._load_everywhere(adapter, there))

    async def _load_everywhere(self, adapter: AdapterSection, there: Awaitable[dict[str, Any]]) -> dict[str, Any]:
        answer = await there
        if "error" in answer:
            return answer
        loaded = []
        for replica in self._replicas(adapter):
            try:
                await self._have(replica, adapter)
            except RequestRejected as refusal:
                logger.warning("%s", refusal)
                return {"error": _rejected(refusal)}
            except EngineAway:
                continue
            loaded.append(replica)
        return {"ok": True, "message": f"{adapter.name} is loaded in {', '.join(loaded) or 'no replica'}"}

    def unload(self, adapter: AdapterSection) -> dict[str, Any]:
        """From all replicas; from one that serves it, with its last request."""
        replicas = self._replicas(adapter)
        for replica in replicas:
            self._spawn(self._unload(replica, adapter.name))
        held = [replica for replica in replicas if adapter.name in self.held(replica)]
        where = f"is unloaded from {', '.join(held)}" if held else "is loaded nowhere"
        return {"ok": True, "message": f"{adapter.name} {where}"}

    def redeployed(self, before: Iterable[AdapterSection], now: Iterable[AdapterSection]) -> None:
        """Another catalog: what it does not have, or has from elsewhere, leaves."""
        kept = {(adapter.name, adapter.base, adapter.loaded_from) for adapter in now}
        for adapter in before:
            if (adapter.name, adapter.base, adapter.loaded_from) not in kept:
                self.unload(adapter)

    # -- replicas ---------------------------------------------------------------------------------

    def found(self, replica: ReplicaId) -> None:
        """One that an allocator before this one has started: ask what it holds."""
        self._spawn(self._look(replica))

    def replica_gone(self, replica: ReplicaId) -> None:
        shelf = self._shelves.pop(replica, Shelf())
        for name in list(shelf.loading):
            shelf.settle(name, EngineAway(f"{replica} is gone"))

    def _replicas(self, adapter: AdapterSection) -> list[ReplicaId]:
        """Those of its base that run."""
        return [
            replica
            for replica, record in self._roster.records.items()
            if record.launch.model == adapter.base
            and record.state is RunnerState.RUNNING
            and record.leaving_since_ms is None
        ]

    # -- one replica and its engine ---------------------------------------------------------------

    def _served(self, replica: ReplicaId, adapter: AdapterSection) -> str | None:
        """What its engine calls the adapter, which has been used now; None: it does not hold it."""
        shelf = self._shelves.get(replica)
        if shelf is None or shelf.held.get(adapter.name) not in (adapter.loaded_from, ""):
            return None
        shelf.held[adapter.name] = shelf.held.pop(adapter.name)
        try:
            return self._line(replica, adapter.name).calls.prefix + adapter.name
        except EngineAway:
            return None

    async def _have(self, replica: ReplicaId, adapter: AdapterSection) -> str:
        """What its engine calls the adapter once it holds it. RequestRejected, EngineAway."""
        name = adapter.name
        while (served := self._served(replica, adapter)) is None:
            shelf = self._shelves.setdefault(replica, Shelf())
            loaded = shelf.loading.get(name)
            if loaded is None:
                loaded = shelf.loading[name] = asyncio.get_running_loop().create_future()
                self._spawn(self._load(replica, shelf, adapter))
            shelf.awaited[name] += 1
            try:
                await asyncio.wait({loaded})
                loaded.result()
            finally:
                shelf.awaited[name] -= 1
        return served

    async def _load(self, replica: ReplicaId, shelf: Shelf, adapter: AdapterSection) -> None:
        """Whatever becomes of it, those who wait hear of it."""
        try:
            line = self._line(replica, adapter.name)
            try:
                await within(line.load_within_s, self._load_in_turn(replica, shelf, adapter, line))
            except asyncio.TimeoutError:
                shelf.known = False  # it may be there or not
                told = f"{adapter.name} was not loaded into {replica} within {line.load_within_s:g} s"
                shelf.settle(adapter.name, RequestRejected("adapter_failed", 503, told, 1))
        except (RequestRejected, EngineAway) as problem:
            shelf.settle(adapter.name, problem)
        except Exception:
            logger.exception("the load of %s into %s failed", adapter.name, replica)
            told = f"{adapter.name} could not be loaded into {replica}; the allocator's log says more"
            shelf.settle(adapter.name, RequestRejected("adapter_failed", 503, told, 1))

    async def _load_in_turn(self, replica: ReplicaId, shelf: Shelf, adapter: AdapterSection, line: EngineLine) -> None:
        name, source = adapter.name, adapter.loaded_from
        async with shelf.turn:
            await self._learn(shelf, line)
            if shelf.held.get(name) not in (source, ""):
                if name in shelf.held:
                    await self._take_out(replica, shelf, name, line)
                while len(shelf.held) >= line.most:
                    await self._take_out(replica, shelf, self._least_wanted(replica, shelf), line)
                answer = await line.ask(line.calls.load(name, source), line.load_within_s)
                if not answer.ok and not ALREADY.search(answer.text):
                    raise _refusal(replica, adapter, answer)
                shelf.held[name] = source
            shelf.settle(name)
            while shelf.awaited[name]:  # noqa: ASYNC110 (each has its turn of the loop now)
                await asyncio.sleep(0)  # they are served before another adapter may take its place

    async def _unload(self, replica: ReplicaId, name: str) -> None:
        shelf = self._shelves.setdefault(replica, Shelf())
        with suppress(RequestRejected, EngineAway, asyncio.TimeoutError):
            line = self._line(replica, name)
            async with shelf.turn:
                await self._learn(shelf, line)
                if name in shelf.held:
                    await self._take_out(replica, shelf, name, line)

    async def _look(self, replica: ReplicaId) -> None:
        shelf = self._shelves.setdefault(replica, Shelf())
        with suppress(RequestRejected, EngineAway, asyncio.TimeoutError):
            async with shelf.turn:
                await self._learn(shelf, self._line(replica, "its adapters"))

    def _least_wanted(self, replica: ReplicaId, shelf: Shelf) -> str:
        """One that serves nobody and that nobody waits for, or else the first: the least recently used."""
        idle = (name for name in shelf.held if not shelf.awaited[name] and not self._leases.serves(replica, name))
        return next(idle, next(iter(shelf.held)))

    async def _take_out(self, replica: ReplicaId, shelf: Shelf, name: str, line: EngineLine) -> None:
        """From now on it is not held; returns when its last request has ended and the engine is rid of it."""
        source = shelf.held.pop(name)
        try:
            while self._leases.serves(replica, name):
                await self._progress.next()
            answer = await line.ask(line.calls.unload(name), ANSWER_WITHIN_S)
        except BaseException:
            shelf.held[name] = source
            raise
        if not answer.ok:
            logger.warning("%s did not unload %s: %s", replica, name, _words(answer.text))

    async def _learn(self, shelf: Shelf, line: EngineLine) -> None:
        """What the engine holds already: loaded under an allocator before this one, or in spite of a time limit."""
        if shelf.known:
            return
        answer = await line.ask(line.calls.names(), ANSWER_WITHIN_S)
        found = _named(answer.text) if answer.ok else {}
        shelf.held = {name: found[name] for name in shelf.held if name in found} | found
        shelf.known = True

    def _line(self, replica: ReplicaId, wanted: str) -> EngineLine:
        """EngineAway; RequestRejected where the engine was started for no adapters."""
        record = self._roster.records.get(replica)
        report = record.report if record else None
        if record is None or report is None or not report.endpoint or record.leaving_since_ms is not None:
            raise EngineAway(f"{replica} is gone")
        request = record.launch.request
        calls = by_name(record.launch.engine).adapter_calls(request)
        if calls is None:
            told = f"{replica} was started without room for adapters; unload {record.launch.model}, and ask again"
            raise RequestRejected("adapter_failed", 503, f"{wanted} cannot be loaded: {told}")
        place = urlsplit(report.endpoint)
        seconds = request.load_timeout_ms / 1000
        return EngineLine(place.hostname or "", place.port or 0, report.api_key, calls, request.max_loras, seconds)

    def _spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (problem := task.exception()) is not None:
            logger.error("the work on an adapter failed", exc_info=problem)


def pins_its_base(adapter: AdapterSection) -> dict[str, Any]:
    """To an operator who would pin an adapter."""
    told = f"{adapter.name} is an adapter, which is where its base is: pin {adapter.base}"
    return {"error": _rejected(RequestRejected("is_adapter", 400, told))}


def _rejected(refusal: RequestRejected) -> Reply:
    return {
        "granted": False,
        "code": refusal.code,
        "status": refusal.status,
        "message": str(refusal),
        "retry_after_s": refusal.retry_after_s,
    }


def _refusal(replica: ReplicaId, adapter: AdapterSection, answer: http_call.Answer) -> RequestRejected:
    """What the engine will not have is no use in asking again; what it could not do may be tried again."""
    told = f"{adapter.name} could not be loaded into {replica} from {adapter.loaded_from}: {_words(answer.text)}"
    if 400 <= answer.status < 500:
        return RequestRejected("adapter_refused", 422, told)
    return RequestRejected("adapter_failed", 503, told, 1)


def _words(text: str) -> str:
    """What an engine says of an error, on one line."""
    with suppress(ValueError):
        told = json.loads(text)
        told = told.get("error", told) if isinstance(told, dict) else told
        if isinstance(told, dict):
            told = told.get("message") or told.get("error_message") or text
        text = str(told)
    return " ".join(text.split())[:WORDS_MAX] or "it says nothing"


def _named(text: str) -> dict[str, str]:
    """The adapters in OpenAI's list of models, and what each was loaded from; "" where the engine does not say it."""
    with suppress(ValueError, TypeError, KeyError, AttributeError):
        return {
            str(entry["id"]): str(entry.get("root") or "") for entry in json.loads(text)["data"] if entry.get("parent")
        }
    return {}
