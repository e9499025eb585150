"""The section `limits:`, what a client may make the service hold or wait for.

Rules of this file: every limit has a default, and says in one line what happens beyond it. How many requests may
wait is `queue_limit` of the section `scheduler:`.
"""

from __future__ import annotations

from typing import Any

from pydantic import model_validator

from rayscheduler.config.fields import Count, Duration, DurationOrNever, Section, Size
from rayscheduler.config.values import Wrong


class LimitsSection(Section):
    """Limits on what clients send, and on how long they and engines may take."""

    body: Size = 64 * 2**20
    """A request's body that is longer is a 413."""
    body_idle: Duration = 30_000
    """A body of which no byte comes for so long is a 408."""
    body_time: Duration = 600_000
    """A body that is not whole after so long is a 408."""
    headers: Size = 16 * 2**10
    """Headers and path that are longer together are a 431. The front door takes no more than this either."""
    header_count: Count = 100
    """More headers are a 431."""
    queue_wait: DurationOrNever = 3_600_000
    """A request that has no replica after so long is a 504; it may ask for less."""
    engine_idle: Duration = 600_000
    """An engine that sends nothing for so long is a 504, or an error event in a stream."""
    client_idle: Duration = 60_000
    """A client that takes nothing of its answer for so long is cut off, and its place given back."""
    answer: DurationOrNever = 7_200_000
    """An answer that is not whole after so long is ended, however it moves."""

    @model_validator(mode="after")
    def _some_time(self) -> Any:
        for key in ("body_idle", "body_time", "queue_wait", "engine_idle", "client_idle", "answer"):
            if getattr(self, key) == 0:
                raise Wrong("gives no time at all", "write for example 30s", (key,))
        return self

    def gateway_settings(self) -> dict[str, Any]:
        """The same by the names that the gateway has for them."""
        return {
            "body_bytes_max": self.body,
            "body_idle_s_max": self.body_idle / 1000,
            "body_s_max": self.body_time / 1000,
            "header_bytes_max": self.headers,
            "headers_max": self.header_count,
            "queue_wait_ms_max": self.queue_wait,
            "idle_s_max": self.engine_idle / 1000,
            "client_idle_s_max": self.client_idle / 1000,
            "answer_s_max": None if self.answer is None else self.answer / 1000,
        }
