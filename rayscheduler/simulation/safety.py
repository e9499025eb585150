"""What must never happen, checked from outside: it sees the events told and the decisions heard, nothing else.

Rules of this file: every rule is a sentence of the design or of the scenario format, and stands where it is
checked. A rule is one-sided where the outside cannot know (a PENDING replica prints nothing): it never
blames what may have been right. `Violation` names the rule.

One pass is `told` (what is handed in), then `decided` (what came out). What the snapshot says is compared
with the book, and used only for what prints nothing: which replicas drain, and which are pending.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rayscheduler.core import events as ev
from rayscheduler.core.decisions import Decision, Grant, Reject, SleepReplica, StartReplica, StopReplica, WakeReplica
from rayscheduler.core.types import DeviceId, ModelName, ReplicaId, RequestId, Rest, Settings, Snapshot, StopReason
from rayscheduler.simulation import passes
from rayscheduler.simulation.book import Book
from rayscheduler.simulation.naps import check_sleep, check_sleeps_first, check_wake, check_wakes_first
from rayscheduler.simulation.rules import Pass, check_grant, check_reject, check_start, check_stop
from rayscheduler.simulation.violation import demand


class Watch:
    """Follows one run, across restarts of the scheduler, and raises `Violation` at the first wrong."""

    def __init__(self, settings: Settings) -> None:
        self.book = Book(settings)
        self._answered: set[RequestId] = set()
        self._pass = Pass()
        self._draining: frozenset[ReplicaId] = frozenset()
        self._promised: frozenset[DeviceId] = frozenset()  # where replicas are pending
        self._coming: frozenset[ModelName] = frozenset()  # of which models
        self._impatient_ms = -1  # the latest instant at which somebody was past patience
        self._owed: dict[ReplicaId, set[StopReason]] = {}

    # -- before -----------------------------------------------------------------------------------

    def told(self, events: Sequence[ev.Event], now_ms: int) -> None:
        self._pass = Pass(now_ms, events, draining=self._draining, impatient_ms=self._impatient_ms)
        self._pass.promised = self._promised
        self._pass.obliged, self._owed = self._owed, {}
        for event in events:
            self._tell(event, now_ms)
        self._note_impatience(now_ms)

    def _tell(self, event: ev.Event, now_ms: int) -> None:
        book, this = self.book, self._pass
        match event:
            case ev.NodeJoined(node):
                book.join(node)
            case ev.NodeLost(name):
                for replica in book.lose_node(name):
                    if not replica.stop_sent:
                        this.must_stop(replica.id, StopReason.NODE_LOST)
            case ev.DeviceLost(device):
                if book.home_of(device) in book.nodes and device not in book.lost_devices:
                    book.lost_devices.add(device)
                    for replica in book.on_device(device):
                        if not replica.stop_sent:
                            this.must_stop(replica.id, StopReason.DEVICE_LOST)
            case ev.DeviceReturned(device):
                book.lost_devices.discard(device)
            case ev.MemoryObserved(device, used):
                if book.home_of(device) in book.nodes:
                    book.others[device] = used
            case ev.ModelDeployed(model):
                if model.name not in book.models:
                    book.silenced.discard(model.name)
                book.deploy(model)
            case ev.PinAsked(name, pinned):
                if name in book.models:
                    book.deploy(replace(book.models[name].model, pinned=pinned))
            case ev.ModelRemoved(name):
                if book.remove(name):
                    self._unload(name, StopReason.MODEL_REMOVED)
            case ev.UnloadAsked(name):
                if name in book.models and self._is_there(name):
                    book.models[name].unloaded = True
                    self._unload(name, StopReason.UNLOADED)
            case ev.LoadAsked(name):
                if name in book.models and not book.shutting_down:
                    book.models[name].unloaded = False
                    book.silenced.discard(name)
                    there = [r for r in book.of_model(name) if r.comes_or_serves() and r.id not in this.draining]
                    if not there and name not in self._coming:
                        book.wanted.setdefault(name, now_ms)
            case ev.RequestArrived():
                self._arrive(event, now_ms)
            case ev.RequestEnded(request):
                self._end(request, now_ms)
            case ev.HolderLost(holder):
                for request in [r for r, h in book.holders.items() if h == holder]:
                    self._end(request, now_ms)
            case ev.ShutdownAsked():
                book.shutting_down = True
                book.wanted.clear()
                for replica in book.replicas.values():
                    if not replica.stop_sent:
                        this.must_stop(replica.id, StopReason.SHUTDOWN)
                this.must_reject.update(book.waiting)
            case _:
                self._replica_news(event, now_ms)

    def _replica_news(self, event: ev.Event, now_ms: int) -> None:
        book, this = self.book, self._pass
        match event:
            case ev.ReplicaStarted(name, load_ms):
                replica = book.replicas.get(name)
                if replica is not None and not replica.running and not replica.stop_sent:
                    replica.running = True
                    replica.used_ms = replica.granted_ms = now_ms
                    book.wanted.pop(replica.model, None)
                    if replica.model in book.models:
                        book.models[replica.model].loaded(load_ms)
            case ev.ReplicaSlept(name, nap):
                book.slept(name, nap)
            case ev.ReplicaWoke(name, nap, wake_ms):
                replica = book.replicas.get(name)
                wakes = replica is not None and (replica.rest, replica.nap) == (Rest.WAKING, nap)
                if replica is not None and wakes and not replica.stop_sent:
                    replica.rest, replica.keeps = Rest.AWAKE, None
                    replica.used_ms = replica.granted_ms = now_ms
                    book.wanted.pop(replica.model, None)
                    if replica.model in book.models:
                        book.models[replica.model].woken(wake_ms)
            case ev.ReplicaStopped(name):
                self._exit(name, None, now_ms)
            case ev.ReplicaFailed(name, kind):
                known = book.replicas.get(name)
                loading = known is not None and not known.running and not known.stop_sent
                self._exit(name, kind, now_ms)
                if known is not None and loading and kind is ev.FailureKind.LOAD:
                    this.failed_loads.add(known.model)

    def _exit(self, name: ReplicaId, kind: ev.FailureKind | None, now_ms: int) -> None:
        replica = self.book.exit(name, kind, now_ms)
        if replica is not None and not replica.stop_sent:
            failed = kind is ev.FailureKind.LOAD and not replica.running
            self._pass.must_stop(name, StopReason.LOAD_FAILED if failed else StopReason.CRASHED)

    def _is_there(self, name: ModelName) -> bool:
        """Whether there is anything to unload: else `unload` is late news, and changes nothing. What is PENDING
        is wanted by somebody, and so need not be seen."""
        book = self.book
        waits = name in book.wanted or any(request.model == name for request in book.waiting.values())
        return waits or any(not replica.stop_sent for replica in book.of_model(name))

    def _unload(self, name: ModelName, reason: StopReason) -> None:
        self.book.silenced.add(name)
        self._pass.unloaded.add(name)
        self.book.wanted.pop(name, None)
        for replica in self.book.of_model(name):
            if not replica.stop_sent:
                self._pass.must_stop(replica.id, reason)
        self._pass.must_reject.update(r.id for r in self.book.waiting.values() if r.model == name)

    def _arrive(self, event: ev.RequestArrived, now_ms: int) -> None:
        book = self.book
        if event.request in book.waiting or event.request in book.leased:
            return
        demand(event.request not in self._answered, "the world", f"{event.request} arrives again after its answer")
        known = book.models.get(event.model)
        own = event.priority if event.priority is not None else (known.model.priority if known else 0)
        self._pass.arrived[event.request] = set(book.waiting)
        book.arrive(event.request, event.model, own, event.deadline_ms, event.holder, now_ms)
        if known is None or book.shutting_down:
            self._pass.must_reject.add(event.request)

    def _end(self, request: RequestId, now_ms: int) -> None:
        if request in self.book.waiting:
            self._pass.must_reject.add(request)
            self._pass.cancelled.add(request)
        replica = self.book.end_lease(request, now_ms)
        if replica is not None:
            self._pass.lease_ended.add(replica.id)

    def _note_impatience(self, now_ms: int) -> None:
        patience_ms = self.book.settings.patience_ms
        if patience_ms is None:
            return
        since = [request.arrived_ms for request in self.book.waiting.values()]
        since.extend(self.book.wanted.values())
        if since and now_ms - min(since) >= patience_ms:
            self._impatient_ms = self._pass.impatient_ms = now_ms

    # -- after ------------------------------------------------------------------------------------

    def decided(self, decisions: Sequence[Decision], snapshot: Snapshot, now_ms: int) -> None:
        this, book = self._pass, self.book
        this.pending = {r.id: r for r in snapshot.replicas if r.state in ("PENDING", "ROUSED")}
        this.draining_after = frozenset(r.id for r in snapshot.replicas if r.state == "DRAINING")
        for decision in decisions:
            match decision:
                case StartReplica():
                    check_start(book, this, decision)
                    book.start(decision.replica, decision.model, decision.placement, now_ms)
                case SleepReplica():
                    check_sleep(book, this, decision)
                    self._sent_to_sleep(decision)
                case WakeReplica():
                    check_wake(book, this, decision)
                    book.replicas[decision.replica].rest = Rest.WAKING
                case StopReplica():
                    check_stop(book, this, decision)
                    self._stopped(decision)
                case Grant(request, name):
                    self._answer(request)
                    check_grant(book, this, decision)
                    book.grant(request, book.replicas[name], now_ms)
                    book.models[decision.model].granted_ms.append(now_ms)
                case Reject(request):
                    self._answer(request)
                    check_reject(book, this, decision)
                    book.waiting.pop(request, None)
        passes.check_obligations(book, this, snapshot)
        passes.check_queue(book, this)
        passes.check_snapshot(book, snapshot)
        passes.check_pressure(book, this)
        passes.check_victims(book, this)
        started = [d for d in decisions if isinstance(d, StartReplica)]
        passes.check_best_place(book, this, started)
        check_wakes_first(book, this, started)
        check_sleeps_first(book, this)
        passes.check_idle_hands(book, this, snapshot)
        self._draining = this.draining_after
        self._coming = frozenset(r.model for r in this.pending.values())
        self._promised = frozenset(device for r in this.pending.values() for device in r.placement.devices)

    def _answer(self, request: RequestId) -> None:
        demand(request not in self._answered, "answered once", f"{request} is answered twice")
        demand(request in self.book.waiting, "answered once", f"{request} is answered, and nobody asked")
        self._answered.add(request)

    def _stopped(self, decision: StopReplica) -> None:
        self._pass.obliged.pop(decision.replica, None)
        if decision.reason is StopReason.IDLE and ev.LoadAsked(decision.model) in self._pass.events:
            self.book.wanted.setdefault(decision.model, self._pass.now_ms)  # it was due to go before the load came
        replica = self.book.replicas.get(decision.replica)
        if replica is not None:
            replica.stop_sent = True
            self.book.end_leases(replica)
        if decision.reason not in (StopReason.EVICTED, StopReason.ABANDONED):
            self.book.made_way.pop(decision.replica, None)  # whoever it was drained for has its room all the same
        else:
            self.book.make_way(decision.replica, decision.makes_way_for)
            if decision.makes_way_for is not None and replica is not None:
                self._pass.evicted.setdefault(decision.makes_way_for, []).append(replica)

    def _sent_to_sleep(self, decision: SleepReplica) -> None:
        replica, way = self.book.replicas[decision.replica], decision.makes_way_for
        replica.rest, replica.keeps, replica.nap = Rest.SUSPENDING, decision.keeps, decision.nap
        self.book.make_way(decision.replica, way)
        if way is not None:
            self._pass.evicted.setdefault(way, []).append(replica)

    # -- restarts ---------------------------------------------------------------------------------

    def forgotten(self, decisions: Sequence[Decision]) -> None:
        """The scheduler died before anybody acted on these decisions; only their ids are used up."""
        for decision in decisions:
            if isinstance(decision, StartReplica):
                self.book.ids_used.add(decision.replica)

    def restarted(self, found: Sequence[ev.Event], now_ms: int) -> None:
        """A new scheduler was told these. Whoever waited has to ask it again, and waits from then on."""
        old, self.book = self.book, Book(self.book.settings)
        book = self.book
        book.ids_used, book.shutting_down = old.ids_used, False
        self._draining, self._promised, self._coming = frozenset(), frozenset(), frozenset()
        self._impatient_ms = -1
        self._pass = Pass(now_ms, found)
        for event in found:
            if isinstance(event, ev.ReplicaFound):
                self._found(event, now_ms)
            else:
                self._tell(event, now_ms)
        self._owed = self._pass.obliged  # found, and unknown to the catalog: the first pass stops them

    def _found(self, event: ev.ReplicaFound, now_ms: int) -> None:
        replica = self.book.start(event.replica, event.model, event.placement, now_ms)
        replica.running, replica.stop_sent = event.running or event.rest is not Rest.AWAKE, event.leaving
        replica.rest, replica.keeps, replica.nap = event.rest, event.keeps, event.nap
        replica.used_ms = now_ms - event.idle_ms
        for request, holder in event.leases.items():
            self.book.grant(request, replica, now_ms)
            self.book.holders[request] = holder
            self._answered.add(request)
        if event.model not in self.book.models and not event.leaving:
            self._pass.must_stop(event.replica, StopReason.MODEL_REMOVED)
