"""What the scheduler remembers about one replica, one model, one waiting request.

Rules of this file: plain mutable records, changed only by the scheduler's own modules; nothing leaves
the core but through `Snapshot`.
"""

from __future__ import annotations

from bisect import insort
from collections import deque

from rayscheduler.core.lifecycle import COMING, State, checked
from rayscheduler.core.types import (
    HolderId,
    Model,
    ModelName,
    Placement,
    Refusal,
    ReplicaId,
    RequestId,
    StopReason,
    Word,
)

DEMAND_WINDOW_MS = 600_000  # recent demand = requests granted in the last ten minutes
BACKOFF_FIRST_MS = 1_000
BACKOFF_LAST_MS = 60_000
STORY_LENGTH = 8


class Origin(Word):
    """Why a replica was started: only a load for requests can be given up with them."""

    REQUEST = "request"
    LOAD = "load"
    STANDING = "standing"  # replicas.min or preload
    FOUND = "found"


class Waiting:
    """A request without a lease. `order` sorts the queue: priority first, then arrival."""

    __slots__ = ("arrived_ms", "deadline_ms", "holder", "model", "order", "request")

    def __init__(
        self,
        request: RequestId,
        model: ModelRecord,
        order: tuple[int, int],
        arrived_ms: int,
        deadline_ms: int | None,
        holder: HolderId,
    ) -> None:
        self.request = request
        self.model = model
        self.order = order
        self.arrived_ms = arrived_ms
        self.deadline_ms = deadline_ms
        self.holder = holder

    def __lt__(self, other: Waiting) -> bool:
        return self.order < other.order


class ReplicaRecord:
    __slots__ = (
        "abandoned",
        "evicts",
        "holds",
        "id",
        "idle_timer",
        "keeps",
        "leases",
        "makes_way_for",
        "model",
        "nap",
        "origin",
        "placement",
        "refusals",
        "serial",
        "since_ms",
        "stale_timer",
        "state",
        "stop_reason",
        "story",
        "used_ms",
        "waits_for",
        "why",
    )

    def __init__(
        self, model: ModelRecord, serial: int, state: State, placement: Placement, origin: Origin, now_ms: int
    ) -> None:
        self.id = ReplicaId(f"{model.name}#{serial}")
        self.model = model
        self.serial = serial
        self.state = state
        self.placement = placement
        self.holds = placement  # what the ledger has for it now
        self.keeps: Placement | None = None  # what it holds asleep: from the decision that it sleeps until it woke
        self.nap = 0  # how often it was put to sleep
        self.origin = origin
        self.since_ms = now_ms
        self.used_ms = now_ms
        self.leases: dict[RequestId, HolderId] = {}
        self.waits_for: set[ReplicaId] = set()
        self.evicts: tuple[ReplicaId, ...] = ()
        self.makes_way_for: ReplicaId | None = None
        self.stop_reason: StopReason | None = None
        self.abandoned = False
        self.idle_timer = self.stale_timer = False  # whether a timer of that kind is set
        self.story: deque[str] = deque((f"{now_ms} ms {state}",), STORY_LENGTH)
        self.why = ""
        self.refusals: tuple[Refusal, ...] = ()

    @property
    def id_key(self) -> tuple[str, int]:
        return self.model.name, self.serial

    def move(self, state: State, now_ms: int) -> None:
        self.state = checked(self.id, self.state, state, tuple(self.story))
        self.since_ms = now_ms
        self.story.append(f"{now_ms} ms {state}")

    def serves(self) -> bool:
        """Whether it is running or on its way there: such replicas count towards `replicas.max`."""
        return self.state is State.RUNNING or self.state in COMING


class ModelRecord:
    __slots__ = (
        "backoff_until_ms",
        "ever",
        "failures",
        "granted",
        "granted_count",
        "idled",
        "in_catalog",
        "last_error",
        "model",
        "name",
        "no_fit",
        "replicas",
        "serial",
        "shrinks",
        "unloaded",
        "waiting",
        "wanted",
        "wanted_since_ms",
    )

    def __init__(self, model: Model) -> None:
        self.name: ModelName = model.name
        self.model = model
        self.in_catalog = True
        self.serial = 0
        self.replicas: dict[ReplicaId, ReplicaRecord] = {}  # by serial, lowest first
        self.waiting: list[Waiting] = []
        self.wanted: tuple[int, int] | None = None  # its place in the queue, when an operator asked for a load
        self.wanted_since_ms = 0
        self.unloaded = False  # an operator unloaded it: standing wishes rest until `load`
        self.shrinks = False  # it had more than it needs, and made way: it is to be loaded again with what is left
        self.idled = False  # it stopped for lack of use: preload rests until it runs again
        self.failures = 0
        self.backoff_until_ms: int | None = None
        self.last_error = ""
        self.granted: deque[list[int]] = deque()  # [instant in ms, how many]
        self.granted_count = 0  # the sum of those
        self.no_fit: tuple[int, bool] = (-1, False)  # (epoch, drained) of the last plan that found no place
        self.ever: tuple[int, bool] = (-1, False)  # (topology, answer)

    def serving(self) -> list[ReplicaRecord]:
        return [replica for replica in self.replicas.values() if replica.serves()]

    def asleep(self) -> list[ReplicaRecord]:
        return [replica for replica in self.replicas.values() if replica.state is State.ASLEEP]

    def standing_minimum(self) -> int:
        """How many replicas no victim set may go below."""
        return self.model.replicas_min if self.in_catalog else 0

    def standing_wish(self) -> int:
        """How many replicas are wanted without anybody asking."""
        if self.unloaded or not self.in_catalog:
            return 0
        preload = 1 if self.shrinks or (self.model.preload and not self.idled) else 0
        return max(self.model.replicas_min, preload)

    def enqueue(self, waiting: Waiting) -> None:
        if not self.waiting or self.waiting[-1] < waiting:
            self.waiting.append(waiting)
        else:
            insort(self.waiting, waiting)

    def note_grant(self, now_ms: int) -> None:
        self.granted_count += 1
        if self.granted and self.granted[-1][0] == now_ms:
            self.granted[-1][1] += 1
        else:
            self.granted.append([now_ms, 1])
            self._forget(now_ms)

    def _forget(self, now_ms: int) -> None:
        while self.granted and self.granted[0][0] <= now_ms - DEMAND_WINDOW_MS:
            self.granted_count -= self.granted.popleft()[1]

    def demand(self, now_ms: int) -> int:
        """Requests granted in the last ten minutes."""
        self._forget(now_ms)
        return self.granted_count

    def value(self, now_ms: int) -> int:
        """What losing one replica is expected to cost: load time (ms) × recent demand."""
        return self.model.load_ms * self.demand(now_ms)

    def waking_value(self, now_ms: int) -> int:
        """What putting one replica to sleep is expected to cost: wake time (ms) × recent demand."""
        return 0 if self.model.sleep is None else self.model.sleep.wake_ms * self.demand(now_ms)

    def back_off(self, now_ms: int) -> int:
        """Note a failure; the instant until which no load is tried."""
        self.failures += 1
        pause_ms = min(BACKOFF_LAST_MS, BACKOFF_FIRST_MS << min(self.failures - 1, 16))
        self.backoff_until_ms = now_ms + pause_ms
        return self.backoff_until_ms
