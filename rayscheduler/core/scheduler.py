"""The scheduler: events go in, decisions come out, and nothing else happens.

`handle(event, now_ms)` applies what has happened and then makes one pass over what could be done about it:

1. expire what was due before this instant;
2. apply the events (`requests.py`, `changes.py`);
3. grant waiting requests to running replicas, by priority, then arrival; others join abandoned loads;
4. when woken: expire deadlines and idle timeouts of this very instant;
5. relieve devices on which other programs took memory that we had promised;
6. start, or wake, replicas whose victims are gone;
7. plan for what still waits, then for standing wishes (`loading.py`).

No clock, no I/O, no randomness: equal events give equal decisions.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from rayscheduler.core import events as ev
from rayscheduler.core.changes import Changes
from rayscheduler.core.decisions import Decision
from rayscheduler.core.explain import PlanAnswer, answer_plan, refusals_of
from rayscheduler.core.fleet import Fleet
from rayscheduler.core.ledger import Ledger
from rayscheduler.core.lifecycle import State
from rayscheduler.core.loading import Loader
from rayscheduler.core.planner import Planner
from rayscheduler.core.policies import policy_of
from rayscheduler.core.records import ModelRecord, ReplicaRecord, Waiting
from rayscheduler.core.requests import Requests
from rayscheduler.core.timers import Timers
from rayscheduler.core.types import ModelName, Settings, Snapshot
from rayscheduler.core.view import snapshot_of, validate


class Scheduler:
    """The whole state of one cluster and the rules that change it. One thread, one owner."""

    def __init__(self, settings: Settings, explain_nodes_max: int = 0) -> None:
        """`explain_nodes_max`: tell with each start why every other node was not chosen, on clusters of up to
        so many nodes (it costs a look at each of them; what is decided does not depend on it)."""
        self.settings = settings
        ledger = Ledger()
        policy = policy_of(settings)
        self._models: dict[ModelName, ModelRecord] = {}
        self._timers = Timers()
        self._withheld: list[Decision] = []  # of `restore`
        self._fleet = Fleet(ledger)
        self._loader = Loader(self._fleet, Planner(ledger, settings), policy, settings)
        self._requests = Requests(self._models, self._fleet, self._loader, policy, settings, self._timers)
        self._loader.explain = partial(refusals_of, self._fleet, self._loader, explain_nodes_max)
        self._changes = Changes(self._models, self._fleet, self._requests, self._timers)

    def handle(self, event: ev.Event, now_ms: int) -> list[Decision]:
        """Apply one event at `now_ms` (milliseconds, never before the last call's) and decide."""
        return self.handle_batch((event,), now_ms)

    def handle_batch(self, events: Iterable[ev.Event], now_ms: int) -> list[Decision]:
        """Apply all events of one instant, then decide once: each request sees the ones before it."""
        fleet = self._fleet
        fleet.out, self._withheld = self._withheld, []
        self._note_conditions(now_ms)
        self._expire(now_ms - 1, now_ms)
        woken = False
        for event in events:
            woken = woken or isinstance(event, ev.Woken)
            self._apply(event, now_ms)
        self._requests.grant(now_ms)
        self._requests.take_up_abandoned()
        if woken:
            self._expire(now_ms, now_ms)
        if fleet.pressed:
            self._changes.relieve(now_ms)
        fleet.start_ready(now_ms)
        if not self._requests.shutting_down:
            self._loader.plan_all(self._requests.wanting.values(), self._changes.standing(), now_ms)
        self._requests.set_timers()
        return fleet.out

    def restore(self, events: Iterable[ev.Event], now_ms: int) -> None:
        """Learn what is there already and plan nothing yet: a start state, or what a restart has found.

        What cannot wait (the stop of a replica whose model is unknown) comes out of the next `handle`.
        """
        self._fleet.out = self._withheld
        for event in events:
            self._apply(event, now_ms)

    def wakeup(self) -> int | None:
        """The next instant (ms) at which `Woken` could change anything, or None."""
        return self._timers.next_ms()

    def validate(self) -> None:
        """Check every invariant that must hold between two events; AssertionError names the broken one."""
        validate(self._fleet, self._models, self._requests.waiting)

    def snapshot(self, now_ms: int) -> Snapshot:
        """All that is believed at this moment, sorted and immutable."""
        return snapshot_of(self._fleet, self._models, now_ms, self._requests.shutting_down)

    def ask_plan(self, model: ModelName, now_ms: int) -> PlanAnswer | None:
        """Where one more replica would go, and if nowhere, why; None for an unknown model. Changes nothing."""
        record = self._models.get(model)
        if record is None:
            return None
        return answer_plan(record, self._fleet, self._loader, now_ms, self._requests.node_has_joined)

    def seed_serial(self, model: ModelName, serial: int) -> None:
        """Never use serials up to this one (a restarted owner knows what was used before)."""
        self._changes.seed_serial(model, serial)

    def _apply(self, event: ev.Event, now_ms: int) -> None:
        requests, changes = self._requests, self._changes
        match event:
            case ev.RequestArrived():
                requests.arrive(event, now_ms)
            case ev.RequestEnded(request):
                requests.end(request, "the client went away", now_ms)
            case ev.HolderLost(holder):
                requests.end_of_holder(holder, now_ms)
            case ev.ReplicaStarted(replica, load_ms):
                changes.replica_started(replica, load_ms, now_ms)
            case ev.ReplicaFailed():
                changes.replica_failed(event, now_ms)
            case ev.ReplicaStopped(replica):
                changes.replica_stopped(replica, now_ms)
            case ev.ReplicaSlept(replica, nap):
                changes.replica_slept(replica, nap, now_ms)
            case ev.ReplicaWoke(replica, nap, wake_ms):
                changes.replica_woke(replica, nap, wake_ms, now_ms)
            case ev.ReplicaFound():
                changes.replica_found(event, now_ms)
            case ev.NodeJoined(node):
                changes.node_joined(node)
            case ev.NodeLost(name):
                changes.node_lost(name, now_ms)
            case ev.DeviceLost(device):
                changes.device_lost(device, now_ms)
            case ev.DeviceReturned(device):
                changes.device_returned(device)
            case ev.MemoryObserved(device, used_bytes):
                changes.memory_observed(device, used_bytes)
            case ev.ModelDeployed(model):
                changes.model_deployed(model, now_ms)
            case ev.ModelRemoved(model_name):
                changes.model_removed(model_name, now_ms)
            case ev.LoadAsked(model_name):
                changes.load_asked(model_name, now_ms)
            case ev.UnloadAsked(model_name):
                changes.unload_asked(model_name, now_ms)
            case ev.PinAsked(model_name, pinned):
                changes.pin(model_name, pinned, now_ms)
            case ev.ShutdownAsked():
                changes.shut_down(now_ms)
            case ev.Woken():
                pass

    def _note_conditions(self, now_ms: int) -> None:
        """Patience, staleness or a back-off may have come to its end: plans are worth another look."""
        for what in self._timers.due_conditions(now_ms):
            self._fleet.epoch += 1
            self._fleet.freed = True
            if isinstance(what, ReplicaRecord):
                what.stale_timer = False
                fresh = now_ms - what.used_ms < self.settings.stale_after_ms
                if fresh and what.state is State.RUNNING and not what.leases:
                    self._requests.idle(what, now_ms)

    def _expire(self, until_ms: int, now_ms: int) -> None:
        """Deadlines, then idle timeouts (longest idle first, of equals the newest) that are due by `until_ms`."""
        due = self._timers.due_actions(until_ms)
        if not due:
            return
        for waiting in sorted(what for what in due if isinstance(what, Waiting)):
            self._requests.expire(waiting, now_ms)
        replicas = [what for what in due if isinstance(what, ReplicaRecord)]
        for replica in sorted(replicas, key=lambda r: (r.used_ms, r.model.name, -r.serial)):
            self._requests.stop_idle(replica, until_ms, now_ms)
