"""The service from Python, without HTTP: for programs that run where the Ray cluster can be reached.

    with AllocatorClient.connect() as client:
        client.load("llama-70b")
        with client.lease("llama-70b") as lease:
            ask(lease.endpoint, lease.api_key, lease.model)   # any OpenAI client

Rules of this file: `AsyncAllocatorClient` does the work, `AllocatorClient` runs it on a thread. Every call
may be repeated, so a restart of the allocator is waited out; RequestRejected carries code and status.
"""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from types import TracebackType
from typing import Any, TypeVar

from rayscheduler.cluster.allocator_port import AllocatorPort
from rayscheduler.cluster.bounded import within
from rayscheduler.cluster.holder import Ask, Lease, LeaseLimits, Leases
from rayscheduler.cluster.names import ALLOCATOR, NAMESPACE
from rayscheduler.errors import AllocatorUnavailable, RequestRejected, VersionMismatch

__all__ = ["AllocatorClient", "AsyncAllocatorClient", "Lease"]

T = TypeVar("T")
LIMITS = LeaseLimits(away_s_max=10.0)  # a restart of the allocator takes about a second
LISTENS_WITHIN_S = 3.0
WAS_THERE_S = 1.0  # a call that lasted so long was being worked on before it failed


def _join(address: str | None) -> AllocatorPort:
    """Connects this process to the cluster and looks for the allocator; AllocatorUnavailable, VersionMismatch."""
    try:
        import ray
    except ImportError:
        raise VersionMismatch('Ray is not installed; run `pip install "ray[serve]>=2.60"`.') from None
    from rayscheduler.cluster.allocator_calls import AllocatorCalls
    from rayscheduler.cluster.joining import join

    if not ray.is_initialized():
        wanted = address or os.environ.get("RAY_ADDRESS") or "auto"
        _check_that_somebody_listens(wanted)
        join(wanted)
    try:
        ray.get_actor(ALLOCATOR, namespace=NAMESPACE)
    except ValueError:
        raise AllocatorUnavailable(
            "The Ray cluster is there, but no rayscheduler on it; start it with `rayscheduler up`."
        ) from None
    return AllocatorCalls()


def _check_that_somebody_listens(address: str) -> None:
    """Ray itself looks for a head that is not there for two minutes. Only for `host:port`."""
    host, _, port = address.rpartition(":")
    if "://" in address or not host or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), LISTENS_WITHIN_S).close()
    except (OSError, OverflowError) as error:
        raise AllocatorUnavailable(
            f"No Ray cluster answers at {address} ({error}); start the service with `rayscheduler up`."
        ) from None


class AsyncAllocatorClient:
    """`connect` it, use it on one event loop, `close` it (or `async with`)."""

    def __init__(self, allocator: AllocatorPort, limits: LeaseLimits | None = None) -> None:
        self._allocator = allocator
        holder = f"client-{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._limits = limits or LIMITS
        self._leases = Leases(allocator, holder, self._limits)
        self._keeps_leases = False

    @classmethod
    async def connect(cls, address: str | None = None) -> AsyncAllocatorClient:
        """`address` None: the cluster of RAY_ADDRESS, else the one on this machine."""
        return cls(await asyncio.to_thread(_join, address))

    async def __aenter__(self) -> AsyncAllocatorClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Gives back what is still leased. The connection to Ray is left as it is."""
        if self._keeps_leases:
            self._keeps_leases = False
            await self._leases.close()

    async def status(self) -> dict[str, Any]:
        """Nodes with their devices, replicas, models, queue and counters; the keys of `GET /api/v1/status`."""
        return dict(await self._ask(self._allocator.status))

    async def models(self) -> list[dict[str, Any]]:
        """The catalog: each model's state, replicas, waiting requests."""
        return [dict(model) for model in await self._ask(self._allocator.models)]

    async def decisions(self, limit: int = 100, subject: str | None = None) -> list[dict[str, Any]]:
        """The last decisions, with their reasons; of one model, replica or request if `subject` names it."""
        told = await self._ask(lambda: self._allocator.decisions(limit, subject))
        return [dict(decision) for decision in told]

    async def explain(self, subject: str) -> dict[str, Any]:
        """What was last decided about a model, a replica or a request, why, and what it waits for now.

        RequestRejected for a name of which nothing is known.
        """
        return self._said(await self._ask(lambda: self._allocator.explain(subject)))

    async def load(self, model: str, wait: bool = True, timeout_s: float | None = None) -> dict[str, Any]:
        """Loads a model, and waits until it runs unless told not to.

        RequestRejected when it cannot; asyncio.TimeoutError after `timeout_s` (the load goes on).
        """
        asked = self._ask(lambda: self._allocator.load(model, wait))
        return self._said(await within(timeout_s, asked))

    async def unload(self, model: str) -> dict[str, Any]:
        """Stops all replicas of a model, serving or not, and rejects who waits for it."""
        return self._said(await self._ask(lambda: self._allocator.unload(model)))

    async def pin(self, model: str) -> dict[str, Any]:
        """Its replicas make way for nobody from now on."""
        return self._said(await self._ask(lambda: self._allocator.pin(model, True)))

    async def unpin(self, model: str) -> dict[str, Any]:
        return self._said(await self._ask(lambda: self._allocator.pin(model, False)))

    async def create_key(self, settings: dict[str, Any], replace: bool = False) -> dict[str, Any]:
        """Lets whoever has this API key in (`cluster.keys.Key.told`: its digest, and what it may do)."""
        return self._said(await self._ask(lambda: self._allocator.create_key(settings, replace)))

    async def revoke_key(self, name: str) -> dict[str, Any]:
        """An API key is refused from now on (2 s at most)."""
        return self._said(await self._ask(lambda: self._allocator.revoke_key(name)))

    async def api_keys(self) -> list[dict[str, Any]]:
        """The API keys: names, and what they may do."""
        return [dict(key) for key in await self._ask(self._allocator.listed_keys)]

    @asynccontextmanager
    async def lease(
        self,
        model: str,
        *,
        priority: int | None = None,
        tier: str | None = None,
        timeout_s: float | None = None,
    ) -> AsyncIterator[Lease]:
        """A replica of the model, loaded if need be, that is ours until the block ends.

        RequestRejected when there is none to be had, or not within `timeout_s`.
        """
        if not self._keeps_leases:
            self._keeps_leases = True
            await self._leases.start()
        deadline_ms = None if timeout_s is None else max(1, int(timeout_s * 1000))
        lease = await self._leases.take(Ask(model, priority, tier, deadline_ms))
        try:
            yield lease
        finally:
            self._leases.give_back(lease)

    async def _ask(self, call: Callable[[], Awaitable[T]]) -> T:
        away_since_s: float | None = None
        while True:
            asked_s = time.monotonic()
            try:
                return await call()
            except AllocatorUnavailable:
                now_s = time.monotonic()
                if away_since_s is None or now_s - asked_s > WAS_THERE_S:
                    away_since_s = now_s
                if now_s - away_since_s > self._limits.away_s_max:
                    raise
            await asyncio.sleep(self._limits.pause_s_min)

    @staticmethod
    def _said(answer: Any) -> dict[str, Any]:
        if error := answer.get("error"):
            raise RequestRejected(error["code"], error["status"], error["message"], error.get("retry_after_s"))
        return dict(answer)


class AllocatorClient:
    """The same for programs without an event loop. Its thread keeps leases alive while the program works."""

    def __init__(self, twin: AsyncAllocatorClient) -> None:
        self._twin = twin
        self._closed = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="rayscheduler-client", daemon=True)
        self._thread.start()

    @classmethod
    def connect(cls, address: str | None = None) -> AllocatorClient:
        """`address` None: the cluster of RAY_ADDRESS, else the one on this machine."""
        return cls(AsyncAllocatorClient(_join(address)))

    def __enter__(self) -> AllocatorClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Gives back what is still leased. The connection to Ray is left as it is."""
        if self._closed:
            return
        self._closed = True
        self._do(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _end(self) -> None:
        await self._twin.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}  # other threads' calls
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    def status(self) -> dict[str, Any]:
        return self._do(self._twin.status())

    def models(self) -> list[dict[str, Any]]:
        return self._do(self._twin.models())

    def decisions(self, limit: int = 100, subject: str | None = None) -> list[dict[str, Any]]:
        return self._do(self._twin.decisions(limit, subject))

    def explain(self, subject: str) -> dict[str, Any]:
        return self._do(self._twin.explain(subject))

    def load(self, model: str, wait: bool = True, timeout_s: float | None = None) -> dict[str, Any]:
        return self._do(self._twin.load(model, wait, timeout_s))

    def unload(self, model: str) -> dict[str, Any]:
        return self._do(self._twin.unload(model))

    def pin(self, model: str) -> dict[str, Any]:
        return self._do(self._twin.pin(model))

    def unpin(self, model: str) -> dict[str, Any]:
        return self._do(self._twin.unpin(model))

    def create_key(self, settings: dict[str, Any], replace: bool = False) -> dict[str, Any]:
        return self._do(self._twin.create_key(settings, replace))

    def revoke_key(self, name: str) -> dict[str, Any]:
        return self._do(self._twin.revoke_key(name))

    def api_keys(self) -> list[dict[str, Any]]:
        return self._do(self._twin.api_keys())

    @contextmanager
    def lease(
        self,
        model: str,
        *,
        priority: int | None = None,
        tier: str | None = None,
        timeout_s: float | None = None,
    ) -> Iterator[Lease]:
        """As AsyncAllocatorClient.lease."""
        block = self._twin.lease(model, priority=priority, tier=tier, timeout_s=timeout_s)
        lease = self._do(block.__aenter__())
        try:
            yield lease
        finally:
            self._do(block.__aexit__(None, None, None))

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:  # Ctrl-C, too, gives up what is being waited for
            future.cancel()
            raise
