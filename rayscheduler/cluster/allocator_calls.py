"""The allocator actor behind the port that gateways and clients use.

Rules of this file: one call per method, no retries: whoever asks knows how long to be patient.
"""

from __future__ import annotations

from typing import Any

from rayscheduler.cluster.allocator_line import AllocatorAway, AllocatorLine
from rayscheduler.cluster.names import LOCAL_OPERATOR
from rayscheduler.errors import AllocatorUnavailable


class AllocatorCalls:
    """An `AllocatorPort`. In a process that has joined Ray; calls are awaited on any event loop."""

    def __init__(self, line: AllocatorLine | None = None) -> None:
        self._line = line or AllocatorLine()

    async def _call(self, method: str, *args: object) -> Any:
        try:
            return await self._line.ask_once(method, *args)
        except AllocatorAway:
            raise AllocatorUnavailable(
                "The allocator is not there: it is restarting, or the service is not up "
                "(`rayscheduler status` says which)."
            ) from None

    async def lease(
        self,
        model: str,
        request_id: str,
        holder: str,
        priority: int | None = None,
        tier: str | None = None,
        deadline_ms: int | None = None,
    ) -> Any:
        return await self._call("lease", model, request_id, holder, priority, tier, deadline_ms)

    async def exchange(self, holder: str, ended: list[str], asks: list[list[Any]]) -> Any:
        return await self._call("exchange", holder, ended, asks)

    async def replica_unreachable(self, replica_id: str, request_id: str) -> Any:
        return await self._call("replica_unreachable", replica_id, request_id)

    async def heartbeat(self, holder: str, held: list[list[str]]) -> Any:
        return await self._call("heartbeat", holder, held)

    async def status(self) -> Any:
        return await self._call("status")

    async def models(self) -> Any:
        return await self._call("models")

    async def decisions(self, limit: int = 100, subject: str | None = None) -> Any:
        return await self._call("decisions", limit, subject)

    async def explain(self, subject: str) -> Any:
        return await self._call("explain", subject)

    async def load(self, model: str, wait: bool = False, by: str = LOCAL_OPERATOR) -> Any:
        return await self._call("operate", by, "load", [model, wait])

    async def unload(self, model: str, by: str = LOCAL_OPERATOR) -> Any:
        return await self._call("operate", by, "unload", [model])

    async def pin(self, model: str, pinned: bool, by: str = LOCAL_OPERATOR) -> Any:
        return await self._call("operate", by, "pin", [model, pinned])

    async def keys(self, version: str = "") -> Any:
        return await self._call("keys", version)

    async def create_key(self, settings: dict[str, Any], replace: bool = False) -> Any:
        return await self._call("operate", LOCAL_OPERATOR, "create_key", [settings, replace])

    async def revoke_key(self, name: str) -> Any:
        return await self._call("operate", LOCAL_OPERATOR, "revoke_key", [name])

    async def listed_keys(self) -> Any:
        return await self._call("listed_keys")
