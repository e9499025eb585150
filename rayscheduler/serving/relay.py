"""One request to one engine and back: lease, stream, release, whatever happens on either side.

What can happen to a request, in the order in which it is looked for:
    1. the client hangs up: while it waits, its place in the queue is given up; while it is served, the
       connection to the engine is closed, which stops the generation. Nobody is answered.
    2. the allocator rejects it: its reason and status.
    3. the replica dies before a byte of its answer has gone out: told to the allocator, tried once more
       on a new lease, then 502.
    4. the replica dies later: a stream of events gets an error event and ends; any other answer is cut
       off, so that nobody takes a part for the whole.
    5. the engine sends nothing for `idle_s_max`, or it all takes longer than `answer_s_max`: 504, or as in 4.
    6. the client takes nothing for `client_idle_s_max`: it is cut off, for it would hold the replica for ever.
    7. it is answered: status, headers and bytes as they came from the engine.
In each case the lease ends, once.

Rules of this file: bytes are never looked into, joined or held back; nothing is awaited after a cancel.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import logging
from collections.abc import Coroutine
from dataclasses import dataclass
from enum import Enum

import aiohttp
from yarl import URL

from rayscheduler.cluster.holder import Ask, Lease, Leases
from rayscheduler.config.limits import LimitsSection
from rayscheduler.errors import RayschedulerError
from rayscheduler.serving.asgi import Headers, Receive, Send
from rayscheduler.serving.openai import ApiError, ModelCall, error_event

logger = logging.getLogger(__name__)

TRIES = 2
# What aiohttp raises when an engine is gone, going, or not speaking HTTP.
ENGINE_ERRORS = (aiohttp.ClientError, OSError, asyncio.TimeoutError)
# Ends before the keep-alive of the engines' servers (5 s) does, so that we never write to a closed connection.
KEEP_ALIVE_S = 4.0
INLINE_BODY_BYTES_MAX = 1 << 20  # aiohttp wants larger ones as a file

_HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
# To the engine: nothing that belongs to this connection, and no secret that was meant for us.
_NOT_FORWARDED = _HOP_BY_HOP | {
    b"host",
    b"content-length",
    b"content-type",
    b"expect",
    b"authorization",
    b"api-key",
    b"x-api-key",
    b"cookie",
}
_NOT_RETURNED = _HOP_BY_HOP | {b"date", b"server"}  # our own server says these


LIMITS = LimitsSection()


@dataclass(frozen=True)
class RelayLimits:
    """Of a request that holds a lease: `idle_s_max` without a byte from the engine, `client_idle_s_max` without one
    taken by the client, `answer_s_max` for all of it (None: as long as it moves)."""

    idle_s_max: float = LIMITS.engine_idle / 1000
    client_idle_s_max: float = LIMITS.client_idle / 1000
    answer_s_max: float | None = None if LIMITS.answer is None else LIMITS.answer / 1000
    sweep_s: float = 1.0
    connect_s_max: float = 5.0


class Ending(Enum):
    """Why a request was ended from outside."""

    CLIENT_GONE = "the client hung up"
    IDLE = "nothing moved"
    OVER_TIME = "it took too long"


class ReplicaDied(Exception):
    """The replica failed before any byte of its answer went out."""


class Exchange:
    """One request that is being relayed. Ends at most once from outside."""

    __slots__ = ("begun_s", "ended", "moved_s", "sending", "started", "streaming", "task")

    def __init__(self, task: asyncio.Task[None]) -> None:
        self.task = task
        self.ended: Ending | None = None
        self.moved_s: float | None = None  # None: it holds no lease
        self.begun_s = 0.0  # when it got its lease
        self.started = False  # bytes have gone out
        self.sending = False  # it is the client that we wait for
        self.streaming = False  # the answer is a stream of events

    def end(self, why: Ending) -> None:
        if self.ended is None:
            self.ended = why
            self.task.cancel()

    async def watch(self, receive: Receive) -> None:
        """Returns when the client is gone. A server that fails to say so has lost it, too."""
        with contextlib.suppress(Exception):
            while (await receive())["type"] != "http.disconnect":
                pass
        self.end(Ending.CLIENT_GONE)


class Relay:
    """Streams requests to engines over one pool of kept-alive connections."""

    def __init__(self, leases: Leases, limits: RelayLimits | None = None) -> None:
        self._leases = leases
        self._limits = limits or RelayLimits()
        self._open: set[Exchange] = set()
        self._background: set[asyncio.Task[None]] = set()
        self._urls: dict[tuple[str, str], URL] = {}

    async def start(self) -> None:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_S),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._limits.connect_s_max),
            auto_decompress=False,
            skip_auto_headers=("user-agent", "accept", "accept-encoding"),
        )
        self._clock = asyncio.get_running_loop().time
        self._run_in_background(self._sweep())

    async def close(self) -> None:
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        await self._session.close()

    async def serve(
        self, call: ModelCall, ask: Ask, target: str, headers: Headers, receive: Receive, send: Send
    ) -> None:
        """Relays one request. `target`: path and query. ApiError only while nothing has been sent."""
        task = asyncio.current_task()
        assert task is not None
        exchange = Exchange(task)
        watcher = asyncio.create_task(exchange.watch(receive))
        self._open.add(exchange)
        try:
            await self._try(exchange, call, ask, target, headers, send)
        except asyncio.CancelledError:
            if exchange.ended is None:
                raise  # by the server that runs us, not by us
            if hasattr(task, "uncancel"):  # Python 3.11 counts them
                task.uncancel()
            if exchange.ended is not Ending.CLIENT_GONE and not exchange.sending:
                await self._cut_off(exchange, send, self._too_late(exchange.ended))
        finally:
            self._open.discard(exchange)
            watcher.cancel()

    async def _try(
        self, exchange: Exchange, call: ModelCall, ask: Ask, target: str, headers: Headers, send: Send
    ) -> None:
        forwarded = forwarded_headers(headers)
        for _ in range(TRIES):
            exchange.moved_s = None
            lease = await self._leases.take(ask)
            try:
                exchange.moved_s = exchange.begun_s = self._clock()
                await self._ask_engine(exchange, lease, call, target, forwarded, send)
                return
            except ReplicaDied as error:
                last = error
                # Addresses are for the log; a client is told which replica.
                logger.warning("%s (%s)", error, _said(error.__cause__ or error))
                await self._leases.unreachable(lease)
            finally:
                self._leases.give_back(lease)
        raise ApiError(502, "replica_lost", f"{last} It was tried {TRIES} times.")

    async def _ask_engine(
        self,
        exchange: Exchange,
        lease: Lease,
        call: ModelCall,
        target: str,
        forwarded: list[tuple[str, str]],
        send: Send,
    ) -> None:
        """One try. ReplicaDied while nothing has been sent."""
        body = call.body_for(lease.model)
        data = body if len(body) < INLINE_BODY_BYTES_MAX else io.BytesIO(body)
        key = ("Authorization", f"Bearer {lease.api_key}")
        try:
            response = await self._session.post(
                self._url(lease.endpoint, target), data=data, headers=[*forwarded, key], allow_redirects=False
            )
        except ENGINE_ERRORS as error:
            raise ReplicaDied(f"Replica {lease.replica} could not be reached.") from error
        try:
            if response.status == 401:  # it is not our engine that has this port now
                raise ReplicaDied(f"Replica {lease.replica} does not know its own key.")
            await self._return_answer(exchange, lease, response, send)
        finally:
            response.close()  # after its last byte the connection is back in the pool, and this does nothing

    async def _return_answer(
        self, exchange: Exchange, lease: Lease, response: aiohttp.ClientResponse, send: Send
    ) -> None:
        content = response.content
        try:
            chunk = await content.readany()
        except ENGINE_ERRORS as error:
            raise ReplicaDied(f"Replica {lease.replica} ended before its answer began.") from error
        exchange.streaming = response.content_type == "text/event-stream" and "content-encoding" not in response.headers
        exchange.started = exchange.sending = True
        exchange.moved_s = self._clock()
        head = returned_headers(response.raw_headers)
        await send({"type": "http.response.start", "status": response.status, "headers": head})
        while chunk:
            exchange.moved_s = self._clock()
            last = content.at_eof()
            exchange.sending = True
            await send({"type": "http.response.body", "body": chunk, "more_body": not last})
            if last:
                return
            exchange.sending = False
            try:
                chunk = await content.readany()
            except ENGINE_ERRORS as error:
                self._run_in_background(self._leases.unreachable(lease))
                logger.warning("%s broke off in mid-answer: %s", lease.replica, _said(error))
                died = ApiError(502, "replica_lost", f"Replica {lease.replica} ended in the middle of its answer.")
                await self._cut_off(exchange, send, died)
                return
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _cut_off(self, exchange: Exchange, send: Send, error: RayschedulerError) -> None:
        """Ends an answer that cannot be finished so that its client sees that it is not whole."""
        if not exchange.started:
            raise error
        if exchange.streaming:
            exchange.sending = True
            # The blank line ends an event that was under way; after a whole one it says nothing.
            await send({"type": "http.response.body", "body": b"\n\n" + error_event(error), "more_body": False})
        else:
            logger.warning("an answer was cut off: %s", error)  # unfinished, so the server drops the connection

    async def _sweep(self) -> None:
        """Ends what has not moved for too long: one look a second costs less than a timer per chunk."""
        while True:
            await asyncio.sleep(self._limits.sweep_s)
            now_s = self._clock()
            for exchange in list(self._open):
                if (why := self._overdue(exchange, now_s)) is not None:
                    exchange.end(why)

    def _overdue(self, exchange: Exchange, now_s: float) -> Ending | None:
        limits = self._limits
        if exchange.moved_s is None:
            return None
        if now_s - exchange.moved_s > (limits.client_idle_s_max if exchange.sending else limits.idle_s_max):
            return Ending.IDLE
        over_time = limits.answer_s_max is not None and now_s - exchange.begun_s > limits.answer_s_max
        return Ending.OVER_TIME if over_time else None

    def _too_late(self, why: Ending) -> ApiError:
        limits = self._limits
        if why is Ending.OVER_TIME:
            return ApiError(504, "answer_timeout", f"The answer was not whole after {limits.answer_s_max:g} s.")
        return ApiError(504, "engine_silent", f"The model has sent nothing for {limits.idle_s_max:g} s.")

    def _url(self, endpoint: str, target: str) -> URL:
        """Parsing costs more than looking up; endpoints change with every load, so forget now and then."""
        url = self._urls.get((endpoint, target))
        if url is None:
            if len(self._urls) > 10_000:
                self._urls.clear()
            url = self._urls[(endpoint, target)] = URL(endpoint + target, encoded=True)
        return url

    def _run_in_background(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)


def forwarded_headers(headers: Headers) -> list[tuple[str, str]]:
    """The client's headers that an engine may see. A body is JSON, whatever a hasty client called it."""
    content_type = "application/json"
    dropped = _NOT_FORWARDED
    kept = []
    for name, value in headers:
        if name == b"content-type":
            if value[:10].lower() == b"multipart/":
                content_type = value.decode("latin-1")
        elif name == b"connection" and value.lower() not in (b"keep-alive", b"close"):
            dropped = dropped | {token.strip() for token in value.lower().split(b",")}
        elif name not in dropped and not name.startswith(b"x-rayscheduler-") and value.isascii():
            kept.append((name.decode("latin-1"), value.decode()))
    if dropped is not _NOT_FORWARDED:  # the header that names others may stand behind them
        kept = [(name, value) for name, value in kept if name.encode() not in dropped]
    kept.append(("Content-Type", content_type))
    return kept


def returned_headers(raw: Headers) -> list[tuple[bytes, bytes]]:
    """The engine's headers without those of its connection to us."""
    headers = [(name.lower(), value) for name, value in raw]
    named = {token.strip() for name, value in headers if name == b"connection" for token in value.lower().split(b",")}
    return [(name, value) for name, value in headers if name not in _NOT_RETURNED and name not in named]


def _said(error: BaseException) -> str:
    return str(error) or type(error).__name__
