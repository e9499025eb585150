"""The requests: their queue, their grants, and every way in which they end.

Rules of this file: a request is in `fleet.requests` from its arrival to its end, either as a `Waiting` or
as the replica that serves it, and leaves exactly once. What it leaves behind (a load that nobody waits
for any more) is given up or marked here.
"""

from __future__ import annotations

from collections.abc import Iterable

from rayscheduler.core import events as ev
from rayscheduler.core.decisions import Grant, Reject
from rayscheduler.core.explain import never_fits_message
from rayscheduler.core.fleet import Fleet
from rayscheduler.core.lifecycle import PROMISED, State
from rayscheduler.core.loading import Loader
from rayscheduler.core.policies import Policy
from rayscheduler.core.records import ModelRecord, Origin, ReplicaRecord, Waiting
from rayscheduler.core.timers import Timers
from rayscheduler.core.types import HolderId, ModelName, RejectCode, RequestId, Settings, StopReason


class Requests:
    def __init__(
        self,
        models: dict[ModelName, ModelRecord],
        fleet: Fleet,
        loader: Loader,
        policy: Policy,
        settings: Settings,
        timers: Timers,
    ) -> None:
        self._models = models
        self._fleet = fleet
        self._loader = loader
        self._policy = policy
        self._settings = settings
        self._timers = timers
        self.wanting: dict[ModelName, ModelRecord] = {}  # models with waiting requests or a wanted load
        self.waiting = 0
        self.node_has_joined = False
        self.shutting_down = False
        self._grantable: dict[ModelName, ModelRecord] = {}  # models that may have a waiter and a free lease
        self._holders: dict[HolderId, set[RequestId]] = {}
        self._arrived: list[Waiting] = []  # in this pass
        self._places_in_line = 0

    @property
    def patience_ms(self) -> int | None:
        return None if self._policy.strict else self._settings.patience_ms

    def next_order(self, priority: int) -> tuple[int, int]:
        """A place in the queue; `serial` knows no priorities."""
        self._places_in_line += 1
        return (0 if self._policy.strict else -priority, self._places_in_line)

    # -- arriving ---------------------------------------------------------------------------------

    def arrive(self, event: ev.RequestArrived, now_ms: int) -> None:
        """1. known already: nothing. 2. unknown model: 404. 3. fits never: 422. 4. shutting down: 503.
        5. too late already: 504. 6. the queue is full and nothing is free for it: 429. 7. it waits (and may be
        granted in this pass)."""
        if event.request in self._fleet.requests:
            return
        record = self._models.get(event.model)
        refused = self._refused(event, record, now_ms)
        if record is None or refused is not None:
            code, message = refused or (RejectCode.MODEL_NOT_FOUND, "")
            self._fleet.out.append(Reject(event.request, event.model, code, message))
            return
        priority = record.model.priority if event.priority is None else event.priority
        order = self.next_order(priority)
        waiting = Waiting(event.request, record, order, now_ms, event.deadline_ms, event.holder)
        record.enqueue(waiting)
        self._fleet.requests[event.request] = waiting
        self.waiting += 1
        if event.holder:
            self._holders.setdefault(event.holder, set()).add(event.request)
        self._arrived.append(waiting)
        self.wanting[record.name] = record
        self._grantable[record.name] = record

    def _refused(
        self, event: ev.RequestArrived, record: ModelRecord | None, now_ms: int
    ) -> tuple[RejectCode, str] | None:
        if record is None:
            return RejectCode.MODEL_NOT_FOUND, f"there is no model {event.model!r} in the catalog"
        there = record.serving() or record.asleep()
        if self.node_has_joined and not there and not self._loader.fits_ever(record):
            return RejectCode.NEVER_FITS, never_fits_message(record, self._fleet.ledger, self._loader.planner)
        if self.shutting_down:
            return RejectCode.SHUTTING_DOWN, "the service is shutting down"
        if event.deadline_ms is not None and event.deadline_ms < now_ms:
            return RejectCode.DEADLINE_EXCEEDED, "its deadline had passed when it arrived"
        limit = self._settings.queue_limit
        if self.waiting >= limit and self._still_waiting() >= limit and not self._free_lease(record):
            return RejectCode.QUEUE_FULL, f"{self.waiting} requests wait already and the limit is {limit}; try later"
        return None

    def _still_waiting(self) -> int:
        """How many wait, without those of this batch that will be granted at its end."""
        if self._policy.strict:
            head = self._head()
            return self.waiting - bool(head and _running(head) and not self._fleet.leases)
        granted = (min(len(r.waiting), self._loader.places(_running(r), r)) for r in self._grantable.values())
        return self.waiting - sum(granted)

    def _free_lease(self, record: ModelRecord) -> bool:
        """Whether one more request for it would be granted at once."""
        running = _running(record)
        if self._policy.strict:
            return bool(running) and not self._fleet.leases and self._head() is None
        return self._loader.places(running, record) > len(record.waiting)

    def take_up_abandoned(self) -> None:
        """Whoever waits joins a load that nobody waited for any more, if nothing else has a place for it: for a
        new request, or for an old one whose own load has failed."""
        for replica in sorted(self._fleet.abandoned(), key=lambda r: r.id_key):
            record = replica.model
            others = [r for r in record.serving() if not r.abandoned]
            if len(record.waiting) > self._loader.places(others, record):
                self._fleet.take_up(replica)

    # -- granting ---------------------------------------------------------------------------------

    def may_grant(self, record: ModelRecord) -> None:
        """Something about this model changed that may let a waiting request be granted."""
        if record.waiting:
            self._grantable[record.name] = record

    def grant(self, now_ms: int) -> None:
        """Give free leases of running replicas to those that wait, by priority, then arrival."""
        if self._policy.strict:
            self._grant_strictly(now_ms)
            return
        if not self._grantable:
            return
        picked: list[tuple[Waiting, ReplicaRecord]] = []
        for record in self._grantable.values():
            picked.extend(self._picks(record))
        self._grantable.clear()
        picked.sort(key=lambda pick: pick[0].order)
        for waiting, replica in picked:
            self._fleet.out.append(Grant(waiting.request, replica.id, replica.model.name))
            waiting.model.note_grant(now_ms)

    def _picks(self, record: ModelRecord) -> list[tuple[Waiting, ReplicaRecord]]:
        """Lease as many of the model's waiting requests as its running replicas have places for, each to
        the replica with the fewest leases, lowest serial first."""
        running = [r for r in _running(record) if len(r.leases) < record.model.concurrency]
        picks = []
        count = 0
        while running and count < len(record.waiting):
            waiting = record.waiting[count]
            count += 1
            replica = min(running, key=lambda r: len(r.leases)) if len(running) > 1 else running[0]
            self._fleet.lease(waiting, replica)
            if len(replica.leases) >= record.model.concurrency:
                running.remove(replica)
            picks.append((waiting, replica))
        if count:
            del record.waiting[:count]
            self.waiting -= count
            self._settle(record)
        return picks

    def _grant_strictly(self, now_ms: int) -> None:
        """One request in the system: the oldest of all whose model can be served on this cluster."""
        if self._fleet.leases:
            return
        record = self._head()
        if record is None:
            return
        running = _running(record)
        if running:
            waiting = record.waiting.pop(0)
            self.waiting -= 1
            self._fleet.lease(waiting, running[0])
            self._settle(record)
            self._fleet.out.append(Grant(waiting.request, running[0].id, record.name))
            record.note_grant(now_ms)

    def _head(self) -> ModelRecord | None:
        """Whose oldest request is next in strict order, of the models that can be served on this cluster."""
        waiting = (r for r in self.wanting.values() if r.waiting and (r.serving() or self._loader.fits_ever(r)))
        return min(waiting, key=lambda r: r.waiting[0], default=None)

    def _settle(self, record: ModelRecord) -> None:
        if not record.waiting and record.wanted is None:
            self.wanting.pop(record.name, None)

    def set_timers(self) -> None:
        """For those that arrived in this pass and still wait: when patience ends, and their deadlines."""
        for waiting in self._arrived:
            if self._fleet.requests.get(waiting.request) is not waiting:
                continue
            if self.patience_ms is not None:
                self._timers.condition(waiting.arrived_ms + self.patience_ms, waiting)
            if waiting.deadline_ms is not None:
                self._timers.action(waiting.deadline_ms, waiting)
        self._arrived.clear()

    # -- ending -----------------------------------------------------------------------------------

    def end(self, request: RequestId, why: str, now_ms: int) -> None:
        """A granted request is done; a waiting one is cancelled; anything else is late news."""
        found = self._fleet.requests.get(request)
        if found is None:
            return
        if isinstance(found, Waiting):
            self.reject(found, RejectCode.CANCELLED, why)
            self.give_up_surplus(found.model, now_ms)
            return
        self._forget(request, found.leases[request])
        self._fleet.end_lease(request, found, now_ms)
        self.may_grant(found.model)
        if not found.leases and found.state is State.RUNNING:
            self.idle(found, now_ms)

    def idle(self, replica: ReplicaRecord, now_ms: int) -> None:
        """Set the timers of an idle replica: one of each kind, set again if it comes too early."""
        timeout_ms = replica.model.model.idle_timeout_ms
        if timeout_ms is not None and not replica.idle_timer:
            replica.idle_timer = True
            self._timers.action(replica.used_ms + timeout_ms, replica)
        stale_ms = replica.used_ms + self._settings.stale_after_ms
        if stale_ms > now_ms and not replica.stale_timer:
            replica.stale_timer = True
            self._timers.condition(stale_ms, replica)

    def end_of_holder(self, holder: HolderId, now_ms: int) -> None:
        for request in sorted(self._holders.pop(holder, ())):
            self.end(request, "its holder is gone", now_ms)

    def hold(self, request: RequestId, holder: HolderId) -> None:
        """Note who holds a lease that was found, not granted."""
        if holder:
            self._holders.setdefault(holder, set()).add(request)

    def expire(self, waiting: Waiting, now_ms: int) -> None:
        if self._fleet.requests.get(waiting.request) is not waiting:
            return
        waited_s = (now_ms - waiting.arrived_ms) / 1000
        message = f"not granted within its deadline: it waited {waited_s:g} s for {waiting.model.name}"
        self.reject(waiting, RejectCode.DEADLINE_EXCEEDED, message)
        self.give_up_surplus(waiting.model, now_ms)

    def reject(self, waiting: Waiting, code: RejectCode, message: str) -> None:
        record = waiting.model
        record.waiting.remove(waiting)
        del self._fleet.requests[waiting.request]
        self.waiting -= 1
        self._forget(waiting.request, waiting.holder)
        self._settle(record)
        self._fleet.out.append(Reject(waiting.request, record.name, code, message))

    def reject_all(self, records: Iterable[ModelRecord], code: RejectCode, message: str) -> None:
        """Reject everything that waits for these models, in the order of the queue."""
        for waiting in sorted(w for record in records for w in record.waiting):
            self.reject(waiting, code, message)

    def _forget(self, request: RequestId, holder: HolderId) -> None:
        held = self._holders.get(holder)
        if held is not None:
            held.discard(request)
            if not held:
                del self._holders[holder]

    def give_up_surplus(self, record: ModelRecord, now_ms: int) -> None:
        """Fewer wait than before: give up promised loads that nobody needs, newest first; one that is STARTING
        or WAKING runs on and is only marked as abandoned."""
        for replica in reversed(record.serving()):
            if replica.origin is not Origin.REQUEST or replica.state is State.RUNNING or replica.abandoned:
                continue
            others = [r for r in record.serving() if r is not replica and not r.abandoned]
            if len(record.waiting) > self._loader.places(others, record):
                continue
            if replica.state in PROMISED:
                self._fleet.give_up(replica, now_ms)
            else:
                self._fleet.abandon(replica)

    def drop_leases(self, replica: ReplicaRecord) -> None:
        """Its replica is going: what it served has ended."""
        for request, holder in replica.leases.items():
            self._forget(request, holder)

    def stop_idle(self, replica: ReplicaRecord, until_ms: int, now_ms: int) -> None:
        """Stop a replica that has been unleased for its idle timeout, never below `replicas.min`."""
        replica.idle_timer = False
        record = replica.model
        timeout_ms = record.model.idle_timeout_ms
        if replica.state is not State.RUNNING or replica.leases or timeout_ms is None:
            return
        if replica.used_ms + timeout_ms > until_ms:
            self.idle(replica, now_ms)
        elif not record.model.pinned and len(record.serving()) > record.standing_minimum():
            record.idled = True
            self._fleet.stop(replica, StopReason.IDLE, now_ms)


def _running(record: ModelRecord) -> list[ReplicaRecord]:
    return [replica for replica in record.replicas.values() if replica.state is State.RUNNING]
