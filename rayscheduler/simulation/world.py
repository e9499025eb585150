"""The world in which a scenario happens: it executes decisions in virtual time and tells what came of them.

Rules of this file: the clock is a heap. At one instant, all completions that are due are told in one
batch (there may be none: patience has a pass, too), then each of the file's events alone, then the
scheduler is woken if it asked for that. Nothing
here decides anything, and nothing reads a real clock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from heapq import heappop, heappush

from rayscheduler.core import events as ev
from rayscheduler.core.decisions import Decision, Grant, SleepReplica, StartReplica, StopReplica, WakeReplica
from rayscheduler.core.scheduler import Scheduler
from rayscheduler.core.types import ModelName, Placement, ReplicaId, RequestId, Rest, SleepTraits, StopReason
from rayscheduler.simulation import scenario as sc

GONE_ALREADY = (StopReason.CRASHED, StopReason.LOAD_FAILED)
AT_ONCE = SleepTraits()


class World:
    """One run of a scenario. `run()` yields each decision with its instant (ms), in order."""

    def __init__(self, scenario: sc.Scenario) -> None:
        self.scenario = scenario
        self.scheduler = Scheduler(scenario.settings)
        self.now_ms = 0
        self._due: list[tuple[int, int, ev.Event]] = []
        self._count = 0
        self._passed_ms = -1  # the last instant that had a pass before its events
        self._models = {model.name: model for model in scenario.models}
        self._durations: dict[RequestId, int] = {}
        self._failing: set[ModelName] = set()  # whose next load fails
        self._starting: set[ReplicaId] = set()
        self._processes: dict[ReplicaId, tuple[ModelName, Placement]] = {}  # whose stop has not been sent

    def start_state(self) -> list[ev.Event]:
        """What is there when the clock starts: the catalog, the nodes, the replicas that run already."""
        events: list[ev.Event] = [ev.ModelDeployed(model) for model in self.scenario.models]
        events.extend(ev.NodeJoined(node) for node in self.scenario.nodes)
        events.extend(_found(replica) for replica in self.scenario.replicas)
        return events

    def run(self, told: Callable[[int, sc.Happening], None]) -> Iterator[tuple[int, Decision]]:
        """Everything from the start state until `until`, or until nothing is left to happen.

        `told` hears of each of the file's own events just before the scheduler does.
        """
        state = self.start_state()
        for event in state:
            if isinstance(event, ev.ReplicaFound):
                self._processes[event.replica] = (event.model, event.placement)
                if not event.running and event.rest is Rest.AWAKE:
                    self._starting.add(event.replica)
                    self._later(self._models[event.model].load_ms, ev.ReplicaStarted(event.replica))
        yield from self._carry_out(self.scheduler.handle_batch(state, 0))
        position, script, until_ms = 0, self.scenario.events, self.scenario.until_ms
        while True:
            woken_ms = self.scheduler.wakeup()
            scripted_ms = script[position].at_ms if position < len(script) else None
            due_ms = self._due[0][0] if self._due else None
            times = [t for t in (due_ms, scripted_ms, woken_ms) if t is not None]
            if not times or (until_ms is not None and min(times) > until_ms):
                return
            self.now_ms = max(self.now_ms, min(times))
            if due_ms is not None and due_ms <= self.now_ms:
                decisions = self.scheduler.handle_batch(self._completions(), self.now_ms)
            elif scripted_ms is not None and woken_ms is not None and self._passed_ms < woken_ms <= scripted_ms:
                # What holds from this instant on (patience, staleness) is planned for before its events are told.
                self._passed_ms = self.now_ms
                decisions = self.scheduler.handle_batch((), self.now_ms)
            elif scripted_ms is not None and scripted_ms <= self.now_ms:
                told(self.now_ms, script[position].what)
                decisions = self._tell(script[position].what)
                position += 1
            else:
                decisions = self.scheduler.handle(ev.Woken(), self.now_ms)
            yield from self._carry_out(decisions)

    # -- what completes ---------------------------------------------------------------------------

    def _later(self, delay_ms: int, event: ev.Event) -> None:
        self._count += 1
        heappush(self._due, (self.now_ms + delay_ms, self._count, event))

    def _completions(self) -> list[ev.Event]:
        """All that is due now, as one batch."""
        batch: list[ev.Event] = []
        while self._due and self._due[0][0] <= self.now_ms:
            event = heappop(self._due)[2]
            if isinstance(event, ev.ReplicaStarted):
                if event.replica not in self._starting:
                    continue
                self._starting.discard(event.replica)
                model = self._processes[event.replica][0]
                if model in self._failing:
                    self._failing.discard(model)
                    event = ev.ReplicaFailed(event.replica, ev.FailureKind.LOAD, "the scenario says so")
            batch.append(event)
        return batch

    def _carry_out(self, decisions: list[Decision]) -> Iterator[tuple[int, Decision]]:
        for decision in decisions:
            yield self.now_ms, decision
            if isinstance(decision, Grant):
                duration_ms = self._durations.get(decision.request)
                if duration_ms is not None:
                    self._later(duration_ms, ev.RequestEnded(decision.request))
            elif isinstance(decision, StartReplica):
                self._processes[decision.replica] = (decision.model, decision.placement)
                self._starting.add(decision.replica)
                load_ms = self._models[decision.model].load_ms
                self._later(load_ms, ev.ReplicaStarted(decision.replica))
            elif isinstance(decision, SleepReplica):
                slept = ev.ReplicaSlept(decision.replica, decision.nap)
                self._later(self._traits(decision.model).sleep_ms, slept)
            elif isinstance(decision, WakeReplica):
                woke = ev.ReplicaWoke(decision.replica, decision.nap)
                self._later(self._traits(decision.model).wake_ms, woke)
            elif isinstance(decision, StopReplica):
                self._processes.pop(decision.replica, None)
                self._starting.discard(decision.replica)
                if decision.reason not in GONE_ALREADY:
                    self._later(self.scenario.unload_ms[decision.model], ev.ReplicaStopped(decision.replica))

    def _traits(self, model: ModelName) -> SleepTraits:
        return self._models[model].sleep or AT_ONCE

    # -- what the file says -----------------------------------------------------------------------

    def _tell(self, what: sc.Happening) -> list[Decision]:
        event = self._event(what)
        return [] if event is None else self.scheduler.handle(event, self.now_ms)

    def _event(self, what: sc.Happening) -> ev.Event | None:
        """The event that a scripted happening is; None where only the world learns of it."""
        match what:
            case sc.Request(request, model, duration_ms, priority, deadline_ms):
                if duration_ms is not None:
                    self._durations[request] = duration_ms
                deadline = None if deadline_ms is None else self.now_ms + deadline_ms
                return ev.RequestArrived(request, model, priority, deadline)
            case sc.End(request) | sc.Cancel(request):
                return ev.RequestEnded(request)
            case sc.Load(model):
                return ev.LoadAsked(model)
            case sc.Unload(model):
                return ev.UnloadAsked(model)
            case sc.Pin(model):
                return ev.PinAsked(model, True)
            case sc.Unpin(model):
                return ev.PinAsked(model, False)
            case sc.Remove(model):
                return ev.ModelRemoved(model)
            case sc.NodeUp(node):
                return ev.NodeJoined(node)
            case sc.NodeDown(name):
                return ev.NodeLost(name)
            case sc.DeviceDown(device):
                return ev.DeviceLost(device)
            case sc.Observe(device, used_by_others_bytes):
                return ev.MemoryObserved(device, used_by_others_bytes)
            case sc.Shutdown():
                return ev.ShutdownAsked()
            case sc.LoadFails(model):
                if model in self._models:
                    self._failing.add(model)
                return None
            case sc.Crash(model):
                return self._crash(model)

    def _crash(self, model: ModelName) -> ev.Event | None:
        """The replica with the lowest serial of those that live dies."""
        living = [name for name, (of, _) in self._processes.items() if of == model]
        if not living:
            return None
        victim = min(living, key=lambda name: int(name.rpartition("#")[2]))
        self._starting.discard(victim)
        del self._processes[victim]
        return ev.ReplicaFailed(victim, ev.FailureKind.CRASH, "the scenario says so")


def _found(replica: sc.ScenarioReplica) -> ev.ReplicaFound:
    leases = {RequestId(f"{replica.id}/lease-{n}"): ev.NOBODY for n in range(1, replica.leases + 1)}
    place, idle_ms, keeps = replica.placement, replica.idle_ms, replica.keeps
    if keeps is not None:
        return ev.ReplicaFound(
            replica.id, replica.model, place, False, {}, idle_ms, rest=Rest.ASLEEP, keeps=keeps, nap=1
        )
    return ev.ReplicaFound(replica.id, replica.model, place, replica.running, leases, idle_ms)
