"""A day of trouble on a small cluster: random steps turned into events that mean something at that moment.

Rules of this file: a step is a verb and what it points at (which request, which replica), looked up in the
books. The same dice give the same events. After every event the scheduler validates itself, the books are
kept, and the two are compared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from rayscheduler.core import events as ev
from rayscheduler.core.decisions import Decision
from rayscheduler.core.scheduler import Scheduler
from rayscheduler.core.types import HolderId, ModelName, ReplicaId, RequestId
from tests.property.books import Books
from tests.property.clusters import Cluster
from tests.property.dice import Dice

T = TypeVar("T")

DAILY = ["request"] * 8 + ["settle"] * 3 + ["started"] * 3 + ["stopped"] * 3 + ["end"] * 5 + ["wait"] * 4 + ["wake"]
RARE = ["cancel", "cancel", "fails", "crash", "load", "load", "unload", "pin", "observe", "holder", "again"]
MISHAPS = ["nobody", "node", "device", "remove", "deploy", "batch", "batch"]
PAUSES_MS = (1, 400, 1000, 2500, 6000)


@dataclass(frozen=True)
class Told:
    """What was sent at an instant and what was decided."""

    events: tuple[ev.Event, ...]
    now_ms: int
    decisions: tuple[Decision, ...]


Judge = Callable[["Traffic", Told], None]


class Traffic:
    """A scheduler under test with its books and everything that it was told."""

    def __init__(self, cluster: Cluster, judge: Judge | None = None) -> None:
        self.cluster = cluster
        self.scheduler = Scheduler(cluster.settings)
        self.books = Books(cluster.settings)
        self.now_ms = 0
        self.told: list[Told] = []
        self._judge = judge
        self._asked = 0
        self._drained: dict[ReplicaId, set[RequestId]] = {}  # whom the draining replicas still serve
        self._held_back: list[ev.Event] | None = None  # events of a batch that is being collected
        self.send(*map(ev.ModelDeployed, cluster.models), *map(ev.NodeJoined, cluster.nodes), *cluster.found)

    def send(self, *events: ev.Event) -> list[Decision]:
        decisions = self.scheduler.handle_batch(events, self.now_ms)
        self.told.append(Told(events, self.now_ms, tuple(decisions)))
        self.scheduler.validate()
        self.books.note(events, decisions, self.now_ms)
        self._both_believe_the_same()
        if self._judge is not None:
            self._judge(self, self.told[-1])
        return decisions

    def _both_believe_the_same(self) -> None:
        seen = self.scheduler.snapshot(self.now_ms)
        assert {r.id for r in seen.replicas if r.state != "PENDING"} == set(self.books.held)
        assert {w.request for w in seen.waiting} == set(self.books.waiting())
        for replica in seen.replicas:
            if replica.state == "PENDING":
                assert replica.waits_for, f"{replica.id} waits for nothing"
                assert set(replica.waits_for) <= set(self.books.held), f"{replica.id} waits for what is gone"
            else:
                held = self.books.held[replica.id]
                assert replica.leases == len(held.leases), replica.id
                assert (held.phase == "stopping") == (replica.state == "STOPPING"), replica.id
                assert held.leases <= self._drained.get(replica.id, held.leases), f"{replica.id} is being drained"
        draining = [r.id for r in seen.replicas if r.state == "DRAINING"]
        self._drained = {name: set(self.books.held[name].leases) for name in draining}

    # -- steps ------------------------------------------------------------------------------------

    def run(self, dice: Dice, verbs: Sequence[str] = (*DAILY * 4, *RARE, *MISHAPS)) -> Traffic:
        while dice.more():
            verb = dice.pick(verbs)
            if verb == "batch":
                self._held_back = []
            elif verb == "settle":
                self.settle()
            else:
                self._do(verb, dice)
        return self

    def _do(self, verb: str, dice: Dice) -> None:
        if verb in ("wait", "wake", "again"):
            self._flush()
        if verb == "wait":
            self.now_ms += dice.pick(PAUSES_MS)
        event = self._event(verb, dice)
        if event is None:
            return
        if self._held_back == [] and verb != "again":
            self._held_back.append(event)
        else:
            self._flush(event)

    def _flush(self, *more: ev.Event) -> None:
        """Send what was held back, before time passes or with what comes next."""
        events, self._held_back = [*(self._held_back or ()), *more], None
        if events:
            self.send(*events)

    def settle(self) -> None:
        """Everything that starts is ready, everything that stops is gone."""
        outcomes: list[ev.Event] = [ev.ReplicaStarted(name) for name in self.books.in_phase("starting")]
        outcomes += [ev.ReplicaStopped(name) for name in self.books.in_phase("stopping")]
        self._flush(*outcomes)

    def _event(self, verb: str, dice: Dice) -> ev.Event | None:
        """The event that a step means now, or None where it means nothing."""
        books = self.books
        match verb:
            case "request" | "nobody":
                return self._request(verb, dice)
            case "wait":
                return ev.Woken()
            case "wake":
                return self._wake()
            case "started":
                load_ms = dice.pick([None, None, None, 500, 9000])
                return _about(books.in_phase("starting"), dice, lambda r: ev.ReplicaStarted(r, load_ms))
            case "fails":
                return _about(books.in_phase("starting"), dice, lambda r: ev.ReplicaFailed(r, ev.FailureKind.LOAD))
            case "stopped":
                return _about(books.in_phase("stopping"), dice, ev.ReplicaStopped)
            case "crash":
                return _about(list(books.held), dice, lambda r: ev.ReplicaFailed(r, ev.FailureKind.CRASH))
            case "end":
                return _about(books.granted(), dice, ev.RequestEnded)
            case "cancel":
                return _about(books.waiting(), dice, ev.RequestEnded)
            case "holder":
                return ev.HolderLost(HolderId(dice.pick("gh")))
            case "again":
                return self._late(dice)
        return self._change(verb, dice)

    def _change(self, verb: str, dice: Dice) -> ev.Event | None:
        """What operators and machines do."""
        model, node = dice.pick(self.cluster.models), dice.pick(self.cluster.nodes)
        device = dice.pick(node.devices)
        if model.name not in self.books.models:
            verb = "deploy"
        match verb:
            case "load":
                return ev.LoadAsked(model.name)
            case "unload":
                return ev.UnloadAsked(model.name)
            case "pin":
                return ev.PinAsked(model.name, dice.one_in(3))
            case "remove":
                return ev.ModelRemoved(model.name) if dice.one_in(3) else None
            case "deploy":
                most, each = dice.pick([1, 2]), dice.pick([1, 2])
                return ev.ModelDeployed(replace(model, concurrency=each, replicas_max=most))
            case "observe":
                return ev.MemoryObserved(device.id, dice.pick([0, 0, 1, 3, 6, 9]))
            case "node":
                away = [each for each in self.cluster.nodes if each.name not in self.books.nodes]
                return ev.NodeJoined(away[0]) if away else ev.NodeLost(node.name)
            case "device":
                if device.id in self.books.lost:
                    return ev.DeviceReturned(device.id)
                return ev.DeviceLost(device.id) if dice.one_in(3) else None
            case "shutdown":
                return ev.ShutdownAsked()
        raise ValueError(f"no such step: {verb}")

    def _request(self, verb: str, dice: Dice) -> ev.Event:
        self._asked += 1
        catalog = [*self.books.models] if verb == "request" else []
        name = dice.pick(catalog or [ModelName("nobody")])
        priority = dice.pick([None, None, None, None, 2])
        deadline_ms = self.now_ms + 1500 if dice.one_in(8) else None
        return ev.RequestArrived(
            RequestId(f"r{self._asked}"), name, priority, deadline_ms, HolderId(dice.pick(["", "g", "h"]))
        )

    def _wake(self) -> ev.Event | None:
        """Let the time pass until something is due."""
        due_ms = self.scheduler.wakeup()
        if due_ms is None:
            return None
        self.now_ms = max(self.now_ms, due_ms)
        return ev.Woken()

    def _late(self, dice: Dice) -> ev.Event | None:
        """Something that was said before, once more."""
        before = [event for told in self.told[-12:] for event in told.events]
        event = dice.pick(before)
        return None if isinstance(event, ev.ModelDeployed | ev.ReplicaFound) else event


    # -- and the day after --------------------------------------------------------------------------

    def restart(self) -> None:
        """The scheduler dies. Its successor is told what is there; who waited asks again."""
        books = self.books
        waiting = [(name, books.requests[name]) for name in books.waiting()]
        self.scheduler = Scheduler(self.cluster.settings)
        self._drained = {}  # a successor finds replicas that run, and knows of no drain
        self.scheduler.restore(self.inventory(), self.now_ms)
        for name in sorted(books.seen):
            model, _, serial = name.rpartition("#")
            self.scheduler.seed_serial(ModelName(model), int(serial))
        books.forget_waiting()
        self.send(*(ev.RequestArrived(n, a.model, a.priority, a.deadline_ms, a.holder) for n, a in waiting))

    def inventory(self) -> list[ev.Event]:
        """What is there, as it is told to a scheduler that knows nothing."""
        books = self.books
        told: list[ev.Event] = [ev.NodeJoined(node) for node in books.nodes.values()]
        told += [ev.DeviceLost(device) for device in sorted(books.lost)]
        told += [ev.MemoryObserved(device, used) for device, used in books.others.items()]
        told += [ev.ModelDeployed(model) for model in books.models.values()]
        for name, held in books.held.items():
            leases = {request: books.requests[request].holder for request in sorted(held.leases)}
            running, idle_ms = held.phase == "running", self.now_ms - held.used_ms
            leaving = held.phase == "stopping"
            told.append(ev.ReplicaFound(name, held.model, held.placement, running or leaving, leases, idle_ms, leaving))
        return told

    def heal(self) -> None:
        """No more trouble: lost nodes and devices are back, other programs are gone."""
        self._flush()
        for node in self.cluster.nodes:
            broken = any(device.id in self.books.lost for device in node.devices)
            if broken and node.name in self.books.nodes:
                self.send(ev.NodeLost(node.name))
            if node.name not in self.books.nodes:
                self.send(ev.NodeJoined(node))
        self.send(*(ev.MemoryObserved(device, 0) for device in sorted(self.books.devices())))

    def come_to_rest(self, rounds_max: int = 200) -> None:
        """Loads become ready, requests end, time passes, until nothing happens any more."""
        still = 0
        for _ in range(rounds_max):
            before = len(self.told)
            self.settle()
            if self.books.granted():
                self.send(*(ev.RequestEnded(request) for request in self.books.granted()))
            quiet = len(self.told) == before
            self.now_ms += 10_000
            decided = self.send(ev.Woken())
            still = still + 1 if quiet and not decided else 0
            if still > 10:
                return
        raise AssertionError(f"it never comes to rest: {self.told[-6:]}")


def _about(names: Sequence[T], dice: Dice, event: Callable[[T], ev.Event]) -> ev.Event | None:
    return event(dice.pick(names)) if names else None
