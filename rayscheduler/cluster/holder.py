"""What one holder (a gateway, a client) has leased: asked for and given back in batches, kept alive.

    take ──► exchange ──► granted or rejected at once (a warm model: one call, shared by all that is new)
                 └──────► it waits ──► lease: a call of its own, which returns when it is decided

Rules of this file: every request id that the allocator may have heard of is released exactly once, also
when the caller is cancelled or the allocator is away; giving back never waits and never fails. One exchange
at a time: what comes up while it is under way goes with the next one.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from dataclasses import dataclass, field

from rayscheduler.cluster.allocator_port import AllocatorPort, Answer
from rayscheduler.cluster.bounded import within
from rayscheduler.errors import AllocatorUnavailable, RequestRejected

logger = logging.getLogger(__name__)

ASKS_MAX = 2  # for one request, when the allocator cancels what nobody has cancelled


@dataclass(frozen=True)
class LeaseLimits:
    """`away_s_max`: how long a request waits for an allocator that is away before it gets its 503."""

    away_s_max: float = 30.0
    pause_s_min: float = 0.05  # between two tries while it is away, doubled up to pause_s_max
    pause_s_max: float = 1.0
    heartbeat_s: float = 1.0
    heartbeat_s_max: float = 3.0  # for the allocator to answer one
    verdict_s_max: float = 25.0  # for the allocator to look at a replica that we could not reach
    flush_s_max: float = 5.0  # at the end, for the last releases


@dataclass(frozen=True)
class Ask:
    """What a request wants. `deadline_ms` None: as long as it takes."""

    model: str
    priority: int | None = None
    tier: str | None = None
    deadline_ms: int | None = None


@dataclass(frozen=True)
class Lease:
    """One request's hold on a replica. `model` is the name under which the engine serves."""

    request_id: str
    replica: str
    endpoint: str
    api_key: str = field(repr=False)
    model: str


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that goes with the next exchange. `answer` None: it waits over there."""

    arguments: list[object]
    answer: asyncio.Future[Answer | None]


class Leases:
    """All that one holder has taken from the allocator. `start` and `close` on the loop that uses it."""

    def __init__(self, allocator: AllocatorPort, holder: str, limits: LeaseLimits | None = None) -> None:
        self.holder = holder
        self._allocator = allocator
        self._limits = limits or LeaseLimits()
        self._serials = itertools.count(1)
        self._held: dict[str, str] = {}  # request id -> replica id
        self._ended: list[str] = []  # to be released
        self._asked: list[Asked] = []  # to be asked
        self._something_new = asyncio.Event()
        self._all_released = asyncio.Event()
        self._all_released.set()
        self._tasks: list[asyncio.Task[None]] = []
        self._seen_s = 0.0

    @property
    def held(self) -> list[list[str]]:
        return [[request_id, replica] for request_id, replica in self._held.items()]

    def allocator_silent_s(self) -> float:
        """For how long the allocator has not answered anything."""
        return asyncio.get_running_loop().time() - self._seen_s

    async def start(self) -> None:
        self._seen_s = asyncio.get_running_loop().time()
        self._tasks = [
            asyncio.create_task(self._exchange_forever(), name="exchanges"),
            asyncio.create_task(self._send_heartbeats(), name="heartbeats"),
        ]

    async def close(self) -> None:
        """Gives everything back; what the allocator does not take in time it learns from our silence."""
        for request_id in list(self._held):
            self._end(request_id)
        with contextlib.suppress(asyncio.TimeoutError):
            await within(self._limits.flush_s_max, self.flushed())
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def flushed(self) -> None:
        """Returns when the allocator has confirmed every release so far."""
        await self._all_released.wait()

    async def take(self, ask: Ask) -> Lease:
        """Waits for a replica. RequestRejected with the allocator's reason; AllocatorUnavailable."""
        for _ in range(ASKS_MAX):
            request_id = f"{self.holder}-{next(self._serials)}"
            try:
                answer = await self._patiently_ask(ask, request_id)
            except BaseException:  # cancelled, or failed: it may be waiting or granted over there
                self._end(request_id)
                raise
            if answer["granted"]:
                self._held[request_id] = answer["replica"]
                return Lease(request_id, answer["replica"], answer["endpoint"], answer["api_key"], answer["model"])
            # `cancelled`, and not by us: the allocator took us for dead, and has heard us again since.
            if answer["code"] != "cancelled":
                break
        status = answer["status"] if answer["code"] != "cancelled" else 503
        raise RequestRejected(answer["code"], status, answer["message"], answer.get("retry_after_s"))

    def give_back(self, lease: Lease) -> None:
        if lease.request_id in self._held:
            self._end(lease.request_id)

    async def unreachable(self, lease: Lease) -> None:
        """Tells the allocator, which looks for itself; returns after its look, or a bounded time."""
        try:
            call = self._allocator.replica_unreachable(lease.replica, lease.request_id)
            await within(self._limits.verdict_s_max, call)
        except (AllocatorUnavailable, asyncio.TimeoutError):
            pass  # it will find out by itself
        except Exception:
            logger.exception("the allocator failed on an unreachable replica")

    async def _patiently_ask(self, ask: Ask, request_id: str) -> Answer:
        clock = asyncio.get_running_loop().time
        limits = self._limits
        since_s = clock()
        pause_s = limits.pause_s_min
        while True:
            left_ms = ask.deadline_ms
            if left_ms is not None:
                left_ms = max(1, left_ms - int((clock() - since_s) * 1000))
            try:
                answer = await self._exchanged([ask.model, request_id, ask.priority, ask.tier, left_ms])
                if answer is None:
                    answer = await self._allocator.lease(
                        ask.model, request_id, self.holder, ask.priority, ask.tier, left_ms
                    )
            except AllocatorUnavailable:
                # An allocator that was there a moment ago is restarting: count from when it was seen last.
                if clock() - max(self._seen_s, since_s) >= limits.away_s_max:
                    raise AllocatorUnavailable(
                        f"The allocator has been away for more than {limits.away_s_max:g} s. Try again later."
                    ) from None
            else:
                self._seen_s = clock()
                return answer
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, limits.pause_s_max)

    def _end(self, request_id: str) -> None:
        self._held.pop(request_id, None)
        self._ended.append(request_id)
        self._all_released.clear()
        self._something_new.set()

    async def _exchanged(self, arguments: list[object]) -> Answer | None:
        asked = Asked(arguments, asyncio.get_running_loop().create_future())
        self._asked.append(asked)
        self._something_new.set()
        return await asked.answer

    async def _exchange_forever(self) -> None:
        pause_s = self._limits.pause_s_min
        while True:
            await self._something_new.wait()
            ended = list(self._ended)
            asked = [each for each in self._asked if not each.answer.done()]  # others were cancelled meanwhile
            self._asked.clear()
            if not ended and not asked:
                self._something_new.clear()
                continue
            try:
                answers = await self._allocator.exchange(self.holder, ended, [each.arguments for each in asked])
            except Exception as problem:
                _fail(asked, problem)  # who asked decides how long to be patient
                if not isinstance(problem, AllocatorUnavailable):
                    logger.exception("the allocator failed on an exchange; what has ended will be sent again")
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, self._limits.pause_s_max)
            else:
                del self._ended[: len(ended)]
                if not self._ended:
                    self._all_released.set()
                for each, answer in zip(asked, answers, strict=True):
                    if not each.answer.done():
                        each.answer.set_result(answer)
                pause_s = self._limits.pause_s_min

    async def _send_heartbeats(self) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            try:
                # Bounded: a call that hangs must not keep us silent once the allocator is back.
                call = self._allocator.heartbeat(self.holder, self.held)
                await within(self._limits.heartbeat_s_max, call)
                self._seen_s = clock()
            except (AllocatorUnavailable, asyncio.TimeoutError):
                pass
            except Exception:
                logger.exception("the allocator failed on a heartbeat")
            await asyncio.sleep(self._limits.heartbeat_s)


def _fail(asked: list[Asked], problem: Exception) -> None:
    for each in asked:
        if not each.answer.done():
            each.answer.set_exception(problem)
