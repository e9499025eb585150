"""What gateways and clients ask of the allocator, as a protocol: a Ray actor in production, an object in tests.

Rules of this file: the methods, arguments and answers of the allocator actor, JSON-able both ways.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from rayscheduler.cluster.names import LOCAL_OPERATOR

Answer = Mapping[str, Any]


class AllocatorPort(Protocol):
    """Every method raises AllocatorUnavailable while the allocator cannot be reached."""

    async def lease(
        self,
        model: str,
        request_id: str,
        holder: str,
        priority: int | None = None,
        tier: str | None = None,
        deadline_ms: int | None = None,
    ) -> Answer:
        """Waits until granted or rejected. Asked again with the same id, it is the same lease.

        `{"granted": True, "replica", "endpoint", "api_key", "model"}` or
        `{"granted": False, "code", "status", "message", "retry_after_s"}`. `deadline_ms` is a duration.
        """

    async def exchange(self, holder: str, ended: list[str], asks: list[list[Any]]) -> Sequence[Answer | None]:
        """All that is new at a holder, in one call and decided in one pass.

        `ended`: ids of requests that do not hold or wait any more; unknown ones change nothing. `asks`: new
        ones, each the arguments of `lease` without the holder: [model, request id, priority, tier, deadline].
        An answer for each, in their order, as of `lease`; None: it waits, and `lease` will tell.
        """

    async def replica_unreachable(self, replica_id: str, request_id: str) -> object:
        """The holder of a lease could not talk to the replica; returns when the allocator has looked."""

    async def heartbeat(self, holder: str, held: list[list[str]]) -> object:
        """`held`: the holder's leases as [request id, replica id]."""

    async def status(self) -> Answer: ...

    async def models(self) -> Sequence[Answer]: ...

    async def decisions(self, limit: int = 100, subject: str | None = None) -> Sequence[Answer]: ...

    async def explain(self, subject: str) -> Answer:
        """What was decided about a model, replica or request and why, or `{"error": …}`."""

    async def load(self, model: str, wait: bool = False, by: str = LOCAL_OPERATOR) -> Answer:
        """`by`: who asks, as the audit log will say."""

    async def unload(self, model: str, by: str = LOCAL_OPERATOR) -> Answer: ...

    async def pin(self, model: str, pinned: bool, by: str = LOCAL_OPERATOR) -> Answer: ...

    async def keys(self, version: str = "") -> Answer:
        """The API keys, if they are not those of `version`: `{"version", "keys": […], "tiers": {name: priority}}`,
        keys as `Key.told` with every name of their models; else `{"version"}`."""

    async def create_key(self, settings: dict[str, Any], replace: bool = False) -> Answer:
        """`settings`: as `Key.told`. `{"ok", "message", "key"}` or `{"error": …}`."""

    async def revoke_key(self, name: str) -> Answer: ...

    async def listed_keys(self) -> Sequence[Answer]: ...
