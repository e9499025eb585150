"""What is true in a simulated world, whoever hears of it: clock, processes, clients, and news on their way.

Rules of this file: the truth is kept apart from what was told. The clock is a heap; at one instant news
come first, then what the story says. Nothing is drawn here: a story runs the same way each time. What
happens, and when, is the business of `unruly.py`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

from rayscheduler.core import events as ev
from rayscheduler.core.decisions import Decision, Grant, Reject, SleepReplica, StartReplica, StopReplica, WakeReplica
from rayscheduler.core.scheduler import Scheduler
from rayscheduler.core.types import HolderId, ModelName, NodeName, Placement, ReplicaId, RequestId, Rest, StopReason
from rayscheduler.simulation import scenario as sc
from rayscheduler.simulation.faults import HOLDERS, FaultAt, Story, holder_index, holder_name
from rayscheduler.simulation.safety import Watch
from rayscheduler.simulation.violation import Violation

GONE_ALREADY = (StopReason.CRASHED, StopReason.LOAD_FAILED)
HISTORY_LENGTH = 60
WAKES_AT_MOST = 3
EXIT_SEEN_MS = 50  # how long it takes to see that a replica is not there any more


class Process:
    """One engine, as it really is. `homes`: nodes on which it still is."""

    __slots__ = ("homes", "keeps", "load_ms", "model", "nap", "placement", "ready", "replica", "rest", "stopping")

    def __init__(self, replica: ReplicaId, model: ModelName, placement: Placement, load_ms: int) -> None:
        self.replica = replica
        self.model = model
        self.placement = placement
        self.homes = set(placement.nodes)
        self.load_ms = load_ms
        self.ready = False
        self.stopping = False
        self.rest = Rest.AWAKE
        self.keeps: Placement | None = None  # what it holds asleep, unless it is awake
        self.nap = 0


class Client:
    """One request, from its client's side. `served_by` is empty while it waits."""

    __slots__ = ("arrival", "duration_ms", "over", "served_by")

    def __init__(self, arrival: ev.RequestArrived, duration_ms: int | None) -> None:
        self.arrival = arrival
        self.duration_ms = duration_ms
        self.served_by = ReplicaId("")
        self.over = False


@dataclass(frozen=True, slots=True)
class Ready:
    """A process has finished loading."""

    process: Process


@dataclass(frozen=True, slots=True)
class Turned:
    """A process sleeps, or is awake again."""

    process: Process
    nap: int


@dataclass(frozen=True, slots=True)
class Gone:
    """A process has left, and its memory is back."""

    process: Process


@dataclass(frozen=True, slots=True)
class Served:
    """A client has all that it wanted."""

    client: Client


@dataclass(frozen=True, slots=True)
class Late:
    """News that was held up."""

    event: ev.Event


@dataclass(frozen=True, slots=True)
class Turn:
    """The story's own turns: the allocator is back, the faults end, standing wishes and pins end."""

    what: str


UP, HEAL, LOOSEN = Turn("up"), Turn("heal"), Turn("loosen")
NEWS = (Ready, Turned, Gone, Served, Late)
Item = Ready | Turned | Gone | Served | Late | Turn | sc.At | FaultAt


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the log: what the scheduler was told, and what it decided."""

    at_ms: int
    events: tuple[ev.Event, ...]
    decisions: tuple[Decision, ...]


class Truth:
    """Clock, processes and clients: what happens, whoever hears of it."""

    def __init__(self, story: Story) -> None:
        self.story = story
        self.now_ms = 0
        self.scheduler = Scheduler(story.scenario.settings)
        self.watch = Watch(story.scenario.settings)
        self.log: list[Entry] = []
        self.mailbox: list[ev.Event] | None = None  # what nobody hears while the allocator is down
        self.dying_ms: int | None = None  # it dies at its next decisions, for so long
        self.catalog = {model.name: model for model in story.scenario.models}
        self.load_ms = {model.name: model.load_ms for model in story.scenario.models}
        self.processes: dict[ReplicaId, Process] = {}
        self.clients: dict[RequestId, Client] = {}
        self.serials: dict[ModelName, int] = {}
        self.last_ready: dict[ModelName, ReplicaId] = {}
        self.generations = [0] * HOLDERS
        self.failing: set[ModelName] = set()
        self.slow_loads: dict[ModelName, int] = {}
        self.slow_exits: dict[ModelName, int] = {}
        self.traits = {model.name: model.sleep for model in story.scenario.models if model.sleep is not None}
        self.restless: set[ModelName] = set()  # whose next way to sleep or back fails
        self.slow_sleeps: dict[ModelName, int] = {}
        self.late_ms = self.late_left = 0
        self.untold_losses: set[NodeName] = set()
        self.history: deque[ev.Event] = deque(maxlen=HISTORY_LENGTH)
        self._heap: list[tuple[int, int, int, Item]] = []
        self._count = 0

    # -- the clock --------------------------------------------------------------------------------

    def later(self, at_ms: int, item: Item) -> None:
        self._count += 1
        rank = 0 if isinstance(item, NEWS) else 1
        heappush(self._heap, (at_ms, rank, self._count, item))

    def next_ms(self) -> int | None:
        return self._heap[0][0] if self._heap else None

    def news_due(self) -> list[ev.Event]:
        """The news of this instant, but for those that are held up."""
        due: list[ev.Event] = []
        while self._heap and self._heap[0][0] <= self.now_ms and self._heap[0][1] == 0:
            item = heappop(self._heap)[3]
            event = self._news_of(item)
            if event is None:
                continue
            if self.late_left and not isinstance(item, Late):
                self.hold_up(event)
            else:
                due.append(event)
        return due

    def hold_up(self, event: ev.Event) -> None:
        self.late_left -= 1
        self.later(self.now_ms + self.late_ms, Late(event))

    def turn_due(self) -> Item | None:
        """The next thing that the story says for this instant."""
        if self._heap and self._heap[0][0] <= self.now_ms:
            return heappop(self._heap)[3]
        return None

    def request_is_next(self) -> bool:
        """Whether the story's next thing, at this instant, is one more request."""
        if not self._heap or self._heap[0][0] > self.now_ms:
            return False
        item = self._heap[0][3]
        return isinstance(item, sc.At) and isinstance(item.what, sc.Request)

    def _news_of(self, item: Item) -> ev.Event | None:
        match item:
            case Ready(process):
                return self._ready(process)
            case Turned(process, nap):
                return self._turned(process, nap)
            case Gone(process):
                if self.processes.pop(process.replica, None) is None:
                    return None
                return ev.ReplicaStopped(process.replica)
            case Served(client):
                client.over = True
                return ev.RequestEnded(client.arrival.request)
            case Late(ev.NodeLost(name)) if name not in self.untold_losses:
                return None  # it came back, and the loss was told then
            case Late(event):
                if isinstance(event, ev.NodeLost):
                    self.untold_losses.discard(event.node)
                return event
        return None

    def _ready(self, process: Process) -> ev.Event | None:
        if process.stopping or process.replica not in self.processes:
            return None
        if process.model in self.failing:
            self.failing.discard(process.model)
            del self.processes[process.replica]
            return ev.ReplicaFailed(process.replica, ev.FailureKind.LOAD, "the story says so")
        process.ready = True
        self.last_ready[process.model] = process.replica
        measured_ms = process.load_ms if self.story.seed % 2 else None
        return ev.ReplicaStarted(process.replica, measured_ms)

    def _turned(self, process: Process, nap: int) -> ev.Event | None:
        if process.stopping or process.replica not in self.processes or process.nap != nap:
            return None
        if process.model in self.restless:
            self.restless.discard(process.model)
            del self.processes[process.replica]
            return ev.ReplicaFailed(process.replica, ev.FailureKind.LOAD, "the story says so")
        if process.rest is Rest.SUSPENDING:
            process.rest = Rest.ASLEEP
            return ev.ReplicaSlept(process.replica, nap)
        process.rest, process.keeps = Rest.AWAKE, None
        wake_ms = self.traits[process.model].wake_ms if self.story.seed % 2 else None
        return ev.ReplicaWoke(process.replica, nap, wake_ms)

    # -- what is told, and what comes of it -------------------------------------------------------

    def tell(self, events: Sequence[ev.Event]) -> list[Decision]:
        """Hand events in, check what comes out, carry it out. While the allocator is down they are kept."""
        if self.mailbox is not None:
            self.mailbox.extend(events)
            return []
        self.watch.told(events, self.now_ms)
        if len(events) == 1:
            decisions = self.scheduler.handle(events[0], self.now_ms)
        else:
            decisions = self.scheduler.handle_batch(events, self.now_ms)
        self.log.append(Entry(self.now_ms, tuple(events), tuple(decisions)))
        self.history.extend(events)
        self.scheduler.validate()
        if decisions and self.dying_ms is not None:
            self._note_serials(decisions)
            self.watch.forgotten(decisions)
            self.go_down(self.dying_ms)
            return []
        self.watch.decided(decisions, self.scheduler.snapshot(self.now_ms), self.now_ms)
        self._note_serials(decisions)
        for decision in decisions:
            self._carry_out(decision)
        return decisions

    def tell_each(self, events: Sequence[ev.Event]) -> None:
        """In one call or, where the story has no batches, one by one."""
        if not events:
            return
        if self.story.batches:
            self.tell(events)
            return
        for event in events:
            self.tell([event])

    def go_down(self, down_ms: int) -> None:
        self.mailbox, self.dying_ms = [], None
        self.later(self.now_ms + down_ms, UP)

    def _note_serials(self, decisions: Sequence[Decision]) -> None:
        """Which serials were ever named, so that a new scheduler can be told."""
        for decision in decisions:
            names = [decision.replica] if isinstance(decision, StartReplica) else []
            if isinstance(decision, (StopReplica, SleepReplica)) and decision.makes_way_for is not None:
                names.append(decision.makes_way_for)
            for name in names:
                model, _, serial = name.rpartition("#")
                self.serials[ModelName(model)] = max(self.serials.get(ModelName(model), 0), int(serial))

    def _carry_out(self, decision: Decision) -> None:
        match decision:
            case Grant(request, replica):
                client = self.clients[request]
                client.served_by = replica
                if client.duration_ms is not None:
                    self.later(self.now_ms + client.duration_ms, Served(client))
            case Reject(request):
                self.clients[request].over = True
            case StartReplica(replica, model, placement):
                load_ms = self.load_ms[model] + self.slow_loads.pop(model, 0)
                process = Process(replica, model, placement, load_ms)
                if not self.untold_losses.intersection(placement.nodes):
                    self.processes[replica] = process
                    self.later(self.now_ms + load_ms, Ready(process))
                if self.story.stutters and model in self.last_ready:
                    self.later(self.now_ms + load_ms // 2, Late(ev.ReplicaStarted(self.last_ready[model])))
            case SleepReplica(replica) | WakeReplica(replica):
                if replica in self.processes:
                    self._turn(self.processes[replica], decision)
            case StopReplica(replica, model, reason):
                self._stop(replica, model, reason)

    def _turn(self, process: Process, decision: SleepReplica | WakeReplica) -> None:
        """It is on its way to sleep, or back."""
        traits, nap = self.traits[process.model], decision.nap
        old: list[ev.Event] = [ev.ReplicaSlept(process.replica, nap - 1), ev.ReplicaWoke(process.replica, nap - 1)]
        if isinstance(decision, SleepReplica):
            process.rest, process.keeps, process.nap = Rest.SUSPENDING, decision.keeps, nap
            takes_ms = traits.sleep_ms
        else:
            process.rest = Rest.WAKING
            takes_ms = traits.wake_ms
            old.append(ev.ReplicaSlept(process.replica, nap))
        self.later(self.now_ms + takes_ms + self.slow_sleeps.pop(process.model, 0), Turned(process, nap))
        if self.story.stutters:
            for event in old:
                self.later(self.now_ms, Late(event))

    def _stop(self, replica: ReplicaId, model: ModelName, reason: StopReason) -> None:
        process = self.processes.get(replica)
        if reason in GONE_ALREADY:
            return
        if process is None:
            self.later(self.now_ms + EXIT_SEEN_MS, Late(ev.ReplicaStopped(replica)))
        elif not process.stopping:
            process.stopping = True
            if self.story.racy and not process.ready:
                self.later(self.now_ms, Late(ev.ReplicaStarted(replica)))
            if self.story.racy and process.rest is Rest.SUSPENDING:
                self.later(self.now_ms, Late(ev.ReplicaSlept(replica, process.nap)))
            if self.story.racy and process.rest is Rest.WAKING:
                self.later(self.now_ms, Late(ev.ReplicaWoke(replica, process.nap)))
            unload_ms = self.story.scenario.unload_ms.get(model, 0) + self.slow_exits.pop(model, 0)
            self.later(self.now_ms + unload_ms, Gone(process))

    # -- clients ----------------------------------------------------------------------------------

    def arrival(self, request: sc.Request) -> ev.RequestArrived:
        index = holder_index(request.request)
        deadline = None if request.deadline_ms is None else self.now_ms + request.deadline_ms
        holder = holder_name(index, self.generations[index])
        return ev.RequestArrived(request.request, request.model, request.priority, deadline, holder)

    def ask(self, requests: Sequence[sc.Request]) -> None:
        arrivals = []
        for request in requests:
            event = self.arrival(request)
            self.clients[request.request] = Client(event, request.duration_ms)
            arrivals.append(event)
        if self.mailbox is None:  # else the client finds nobody, and asks again when the allocator is back
            self.tell_each(arrivals)

    def leave(self, request: RequestId) -> None:
        """A client goes away, served or not; one that nobody knows is late news."""
        client = self.clients.get(request)
        if client is not None:
            client.over = True
        event = ev.RequestEnded(request)
        if self.late_left and client is not None:
            self.hold_up(event)
        else:
            self.tell([event])

    def holder_dies(self, index: int) -> None:
        name: HolderId = holder_name(index, self.generations[index])
        self.generations[index] += 1
        for client in self.clients.values():
            if client.arrival.holder == name:
                client.over = True
        self.tell([ev.HolderLost(name)])

    def waiting_clients(self) -> list[Client]:
        """Those that still want an answer, in the order in which they asked."""
        return [client for client in self.clients.values() if not client.over and not client.served_by]

    def oldest(self, model: ModelName) -> Process | None:
        """Of the model's processes that nobody has told to stop, the one with the lowest serial."""
        living = [p for p in self.processes.values() if p.model == model and not p.stopping]
        return min(living, key=lambda p: int(p.replica.rpartition("#")[2]), default=None)

    def die(self, process: Process, event: ev.Event) -> None:
        """A process ends unasked, and `event` tells of it, in time or late."""
        del self.processes[process.replica]
        if self.late_left:
            self.hold_up(event)
        else:
            self.tell([event])

    def wake(self) -> None:
        """Wake the scheduler until it has nothing more to ask for at this instant."""
        for _ in range(WAKES_AT_MOST):
            self.tell([ev.Woken()])
            asked_ms = self.scheduler.wakeup()
            if self.mailbox is not None or asked_ms is None or asked_ms > self.now_ms:
                return
        raise Violation("wakes", f"woken {WAKES_AT_MOST} times at {self.now_ms} ms, it asks for {asked_ms} ms again")
