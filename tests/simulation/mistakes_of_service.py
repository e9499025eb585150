"""Mistakes about requests and replicas that schedulers are known for, each as a patch of the real core.

Rules of this file: a mistake changes one thing, as an oversight would, and leaves the rest of the code as
it is. Its name says what somebody thought, or forgot.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from rayscheduler.core import changes, requests
from rayscheduler.core.changes import Changes
from rayscheduler.core.decisions import Reject
from rayscheduler.core.fleet import Fleet
from rayscheduler.core.lifecycle import TRANSITIONS, State
from rayscheduler.core.loading import Loader
from rayscheduler.core.records import ModelRecord
from rayscheduler.core.requests import Requests
from rayscheduler.core.scheduler import Scheduler
from tests.simulation.planting import mistake, wrap

# -- requests -------------------------------------------------------------------------------------


@mistake
def forgets_to_wake_the_waiters(patch: pytest.MonkeyPatch) -> None:
    """A load is ready, and those who wait for it hear nothing."""
    wrap(patch, Requests, "may_grant", lambda original, self, record: None)


@mistake
def never_tries_again_after_an_exit(patch: pytest.MonkeyPatch) -> None:
    """That nothing fitted is remembered, and not forgotten when memory comes back."""

    def gone(original: Any, self: Fleet, replica: Any, now_ms: int) -> None:
        epoch = self.epoch
        original(self, replica, now_ms)
        self.epoch = epoch

    wrap(patch, Fleet, "gone", gone)


@mistake
def grants_to_a_draining_replica(patch: pytest.MonkeyPatch) -> None:
    states = (State.RUNNING, State.DRAINING)
    patch.setattr(requests, "_running", lambda record: [r for r in record.replicas.values() if r.state in states])


@mistake
def grants_beyond_the_concurrency(patch: pytest.MonkeyPatch) -> None:
    def picks(original: Any, self: Requests, record: Any) -> Any:
        kept, record.model = record.model, replace(record.model, concurrency=record.model.concurrency + 1)
        try:
            return original(self, record)
        finally:
            record.model = kept

    wrap(patch, Requests, "_picks", picks)


@mistake
def grants_the_youngest_first(patch: pytest.MonkeyPatch) -> None:
    def enqueue(original: Any, self: ModelRecord, waiting: Any) -> None:
        self.waiting.insert(0, waiting)

    wrap(patch, ModelRecord, "enqueue", enqueue)


@mistake
def a_cancelled_request_is_granted(patch: pytest.MonkeyPatch) -> None:
    """The client is told, and the queue is not."""

    def end(original: Any, self: Requests, request: str, why: str, now_ms: int) -> None:
        found = self._fleet.requests.get(request)
        if isinstance(found, requests.Waiting):
            self._fleet.out.append(Reject(found.request, found.model.name, requests.RejectCode.CANCELLED, why))
        else:
            original(self, request, why, now_ms)

    wrap(patch, Requests, "end", end)


@mistake
def a_failed_load_loses_the_waiters(patch: pytest.MonkeyPatch) -> None:
    """They are taken off the queue, and nobody tells them."""

    def reject_all(original: Any, self: Requests, *args: Any) -> None:
        told = len(self._fleet.out)
        original(self, *args)
        del self._fleet.out[told:]

    wrap(patch, Requests, "reject_all", reject_all)


@mistake
def a_repeated_request_waits_twice(patch: pytest.MonkeyPatch) -> None:
    def arrive(original: Any, self: Requests, event: Any, now_ms: int) -> None:
        known = self._fleet.requests.pop(event.request, None)
        original(self, event, now_ms)
        if known is not None:
            self._fleet.requests.setdefault(event.request, known)

    wrap(patch, Requests, "arrive", arrive)


@mistake
def deadlines_are_forgotten(patch: pytest.MonkeyPatch) -> None:
    wrap(patch, Requests, "expire", lambda original, self, waiting, now_ms: None)


@mistake
def the_queue_has_no_limit(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Requests, "_still_waiting", lambda self: 0)


@mistake
def what_never_fits_waits(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Loader, "fits_ever", lambda self, model: True)


@mistake
def a_dead_holder_keeps_its_leases(patch: pytest.MonkeyPatch) -> None:
    wrap(patch, Requests, "end_of_holder", lambda original, self, holder, now_ms: None)


@mistake
def grants_after_the_shutdown(patch: pytest.MonkeyPatch) -> None:
    def shut_down(original: Any, self: Changes, now_ms: int) -> None:
        original(self, now_ms)
        self._requests.shutting_down = False

    wrap(patch, Changes, "shut_down", shut_down)


@mistake
def serial_serves_two_at_once(patch: pytest.MonkeyPatch) -> None:
    def strictly(original: Any, self: Requests, now_ms: int) -> None:
        kept, self._fleet.leases = self._fleet.leases, 0
        original(self, now_ms)
        self._fleet.leases += kept

    wrap(patch, Requests, "_grant_strictly", strictly)


# -- replicas -------------------------------------------------------------------------------------


@mistake
def believes_late_news_of_an_old_load(patch: pytest.MonkeyPatch) -> None:
    """A "load done" that does not say which load: it is taken for the one that is under way."""

    def started(original: Any, self: Changes, name: str, load_ms: Any, now_ms: int) -> None:
        model = self._models.get(name.rpartition("#")[0])
        if name not in self._fleet.replicas and model is not None:
            name = next((r.id for r in model.replicas.values() if r.state is State.STARTING), name)
        original(self, name, load_ms, now_ms)

    wrap(patch, Changes, "replica_started", started)


@mistake
def a_stopping_replica_that_is_ready_runs(patch: pytest.MonkeyPatch) -> None:
    """`ready` arrives after the stop was sent, and wins."""
    patch.setattr("rayscheduler.core.lifecycle.TRANSITIONS", {**TRANSITIONS, State.STOPPING: frozenset(State)})

    def started(original: Any, self: Changes, name: str, load_ms: Any, now_ms: int) -> None:
        replica = self._fleet.replicas.get(name)
        if replica is not None and replica.state is State.STOPPING:
            replica.state = State.STARTING
        original(self, name, load_ms, now_ms)

    wrap(patch, Changes, "replica_started", started)


@mistake
def a_crash_keeps_its_leases(patch: pytest.MonkeyPatch) -> None:
    wrap(patch, Fleet, "_end_leases", lambda original, self, replica: None)


@mistake
def backs_off_for_ever(patch: pytest.MonkeyPatch) -> None:
    def back_off(original: Any, self: ModelRecord, now_ms: int) -> int:
        self.backoff_until_ms = 1 << 60
        return 1 << 60

    wrap(patch, ModelRecord, "back_off", back_off)


@mistake
def never_backs_off(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Loader, "_backing_off", lambda self, model, now_ms: False)


@mistake
def backing_off_nobody_looks_again(patch: pytest.MonkeyPatch) -> None:
    """The back-off ends, and no timer says so."""

    def conditions(original: Any, self: Scheduler, now_ms: int) -> None:
        self._timers.due_conditions(now_ms)

    wrap(patch, Scheduler, "_note_conditions", conditions)


@mistake
def uses_serials_again_after_a_restart(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Scheduler, "seed_serial", lambda self, model, serial: None)


@mistake
def starts_what_was_removed(patch: pytest.MonkeyPatch) -> None:
    """`remove` strikes the entry, and a load that waits for its victims goes on."""

    def stop(original: Any, self: Fleet, replica: Any, reason: Any, now_ms: int) -> None:
        removed = reason in (changes.StopReason.MODEL_REMOVED, changes.StopReason.UNLOADED)
        if not (removed and replica.state is State.PENDING):
            original(self, replica, reason, now_ms)

    wrap(patch, Fleet, "stop", stop)


@mistake
def loads_beyond_the_maximum(patch: pytest.MonkeyPatch) -> None:
    def needs(original: Any, self: Loader, model: Any) -> bool:
        kept, model.model = model.model, replace(model.model, replicas_max=9)
        try:
            return bool(original(self, model))
        finally:
            model.model = kept

    wrap(patch, Loader, "_needs_one_more", needs)


@mistake
def a_blocked_head_blocks_all(patch: pytest.MonkeyPatch) -> None:
    """Head-of-line blocking: the first that cannot be planned ends the walk."""

    def plan_queue(original: Any, self: Loader, models: Any, now_ms: int) -> Any:
        waiting = sorted((m for m in models if m.waiting), key=lambda m: m.waiting[0].order)
        for model in waiting:
            if self._turns(model, now_ms) and not self._backing_off(model, now_ms):
                return original(self, [model], now_ms)
        return original(self, models, now_ms)

    wrap(patch, Loader, "_plan_queue", plan_queue)


@mistake
def idle_timeout_ends_a_request(patch: pytest.MonkeyPatch) -> None:
    """The timer was set when the replica was last idle, and fires while it serves."""

    def stop_idle(original: Any, self: Requests, replica: Any, until_ms: int, now_ms: int) -> None:
        if replica.state is State.RUNNING and replica.leases:
            self._fleet.stop(replica, changes.StopReason.IDLE, now_ms)
        else:
            original(self, replica, until_ms, now_ms)

    wrap(patch, Requests, "stop_idle", stop_idle)
