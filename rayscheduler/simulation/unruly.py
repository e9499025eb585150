"""A world that misbehaves: one run of a story, through faults and restarts to the moment when all must end.

Rules of this file: in phase one everything may happen, and the watch looks on. At `heal_ms` the faults end;
`bound_ms` later nobody may wait whose model fits beside what is pinned. Then minima and pins end as well,
and after as long again nobody may wait whose model fits at all.
"""

from __future__ import annotations

from dataclasses import replace

from rayscheduler.core import events as ev
from rayscheduler.core.scheduler import Scheduler
from rayscheduler.core.types import DeviceId, HolderId, Node, NodeName, Placement, RequestId, Rest
from rayscheduler.simulation import faults as ft
from rayscheduler.simulation import passes
from rayscheduler.simulation import scenario as sc
from rayscheduler.simulation.faults import FaultAt, Story
from rayscheduler.simulation.rules import Pass
from rayscheduler.simulation.truth import HEAL, LOOSEN, UP, Client, Item, Process, Ready, Served, Truth
from rayscheduler.simulation.violation import Violation, demand

OF_REPLICAS = (ev.ReplicaStarted, ev.ReplicaFailed, ev.ReplicaStopped, ev.ReplicaSlept, ev.ReplicaWoke)
AT_REST = ("RUNNING", "ASLEEP")
STEPS_AT_MOST = 100_000  # a story has hundreds; more is a scheduler that never comes to rest


def run(story: Story) -> UnrulyWorld:
    """Run a story to its end. `Violation`, or whatever the core raises, at the first wrong."""
    world = UnrulyWorld(story)
    world.run()
    return world


class UnrulyWorld:
    def __init__(self, story: Story) -> None:
        self.story = story
        self.truth = Truth(story)
        self.nodes: dict[NodeName, Node] = {}
        self.known_nodes: dict[NodeName, Node] = {}  # every node that there ever was
        self.lost: set[DeviceId] = set()
        self.others: dict[DeviceId, int] = {}
        self.shut = False
        self.settled_by_ms = story.heal_ms + story.bound_ms
        for happening in story.scenario.events:
            self.truth.later(happening.at_ms, happening)
        for fault in story.faults:
            self.truth.later(fault.at_ms, fault)
        self.truth.later(story.heal_ms, HEAL)
        self.truth.later(self.settled_by_ms, LOOSEN)

    def run(self) -> None:
        self._begin()
        for _ in range(STEPS_AT_MOST):
            if not self._step():
                self._check_all_ended()
                return
        raise Violation("rest", f"not at rest after {STEPS_AT_MOST} steps, at {self.truth.now_ms} ms")

    def _step(self) -> bool:
        """The next thing that happens; False when nothing is left, or nobody may wait any more."""
        truth = self.truth
        woken_ms = truth.scheduler.wakeup() if truth.mailbox is None else None
        next_ms = truth.next_ms()
        if woken_ms is not None:
            woken_ms = max(truth.now_ms, woken_ms + self.story.wake_late_ms)
        at_ms = min((t for t in (woken_ms, next_ms) if t is not None), default=None)
        if at_ms is None or at_ms > self.settled_by_ms + self.story.bound_ms:
            return False
        truth.now_ms = max(truth.now_ms, at_ms)
        if next_ms is None or next_ms > truth.now_ms:
            truth.wake()
            return True
        news = truth.news_due()
        if news:
            truth.tell_each(news)
            return True
        item = truth.turn_due()
        if item is not None:
            self._take_turn(item)
        return True

    def _begin(self) -> None:
        truth, scenario = self.truth, self.story.scenario
        for node in scenario.nodes:
            self.nodes[node.name] = self.known_nodes[node.name] = node
        state: list[ev.Event] = [ev.ModelDeployed(model) for model in scenario.models]
        state.extend(ev.NodeJoined(node) for node in scenario.nodes)
        for found in scenario.replicas:
            process = Process(found.id, found.model, found.placement, truth.load_ms[found.model])
            process.ready = found.running or found.keeps is not None
            if found.keeps is not None:
                process.rest, process.keeps, process.nap = Rest.ASLEEP, found.keeps, 1
            truth.processes[found.id] = process
            truth.serials[found.model] = max(truth.serials.get(found.model, 0), int(found.id.rpartition("#")[2]))
            if not process.ready:
                truth.later(process.load_ms, Ready(process))
            leases = {RequestId(f"{found.id}/lease-{n}"): self._served(found, n) for n in range(1, found.leases + 1)}
            state.append(
                ev.ReplicaFound(
                    found.id,
                    found.model,
                    found.placement,
                    found.running,
                    leases,
                    found.idle_ms,
                    rest=process.rest,
                    keeps=process.keeps,
                    nap=process.nap,
                )
            )
        truth.scheduler.restore(state, 0)
        truth.watch.restarted(state, 0)
        truth.tell([ev.Woken()])

    def _served(self, found: sc.ScenarioReplica, number: int) -> HolderId:
        """A client that was there before the story began; the holder of its lease."""
        request = sc.Request(RequestId(f"{found.id}/lease-{number}"), found.model, 4_000 * number)
        client = Client(self.truth.arrival(request), request.duration_ms)
        client.served_by = found.id
        self.truth.clients[request.request] = client
        self.truth.later(4_000 * number, Served(client))
        return client.arrival.holder

    # -- turns ------------------------------------------------------------------------------------

    def _take_turn(self, item: Item) -> None:
        truth = self.truth
        match item:
            case sc.At(_, sc.Request() as first):
                requests = [first]
                while self.story.batches and truth.request_is_next():
                    following = truth.turn_due()
                    assert isinstance(following, sc.At)
                    assert isinstance(following.what, sc.Request)
                    requests.append(following.what)
                truth.ask(requests)
            case sc.At(_, what):
                self._happen(what)
            case FaultAt(_, fault):
                self._strike(fault)
            case _:
                {UP: self._come_up, HEAL: self._heal, LOOSEN: self._loosen}[item]()  # type: ignore[index]

    def _happen(self, what: sc.Happening) -> None:
        truth = self.truth
        match what:
            case sc.End(request) | sc.Cancel(request):
                truth.leave(request)
            case sc.Load(model):
                truth.tell([ev.LoadAsked(model)])
            case sc.Unload(model):
                truth.tell([ev.UnloadAsked(model)])
            case sc.Pin(model) | sc.Unpin(model):
                pinned = isinstance(what, sc.Pin)
                if model in truth.catalog:
                    truth.catalog[model] = replace(truth.catalog[model], pinned=pinned)
                self._tell_fact(ev.PinAsked(model, pinned))
            case sc.Remove(model):
                truth.catalog.pop(model, None)
                self._tell_fact(ev.ModelRemoved(model))
            case sc.NodeUp(node):
                self._node_up(node)
            case sc.NodeDown(name):
                self._node_down(name)
            case sc.DeviceDown(device):
                if any(device == d.id for node in self.nodes.values() for d in node.devices):
                    self.lost.add(device)
                self._tell_fact(ev.DeviceLost(device))
            case sc.Observe(device, used_by_others_bytes):
                if any(device == d.id for node in self.nodes.values() for d in node.devices):
                    self.others[device] = used_by_others_bytes
                self._tell_fact(ev.MemoryObserved(device, used_by_others_bytes))
            case sc.LoadFails(model):
                truth.failing.add(model)
            case sc.Crash(model):
                process = truth.oldest(model)
                if process is not None:
                    truth.die(process, ev.ReplicaFailed(process.replica, ev.FailureKind.CRASH, "the story says so"))
            case sc.Shutdown():
                self.shut = True
                truth.tell([ev.ShutdownAsked()])

    def _tell_fact(self, event: ev.Event) -> None:
        """What a new allocator learns from its restart, and so nobody has to tell it again."""
        if self.truth.mailbox is None:
            self.truth.tell([event])

    def _node_up(self, node: Node) -> None:
        truth = self.truth
        if node.name not in self.nodes:
            if node.name in truth.untold_losses:
                truth.untold_losses.discard(node.name)
                self._tell_fact(ev.NodeLost(node.name))
            self.nodes[node.name] = self.known_nodes[node.name] = node
        self._tell_fact(ev.NodeJoined(node))

    def _node_down(self, name: NodeName) -> None:
        truth = self.truth
        node = self.nodes.pop(name, None)
        if node is not None:
            for device in node.devices:
                self.lost.discard(device.id)
                self.others.pop(device.id, None)
            for process in list(truth.processes.values()):
                process.homes.discard(name)
                if not process.homes:
                    del truth.processes[process.replica]
        if node is not None and truth.late_left and truth.mailbox is None:
            truth.untold_losses.add(name)
            truth.hold_up(ev.NodeLost(name))
        elif name not in truth.untold_losses:
            self._tell_fact(ev.NodeLost(name))

    def _strike(self, fault: ft.Fault) -> None:
        truth = self.truth
        match fault:
            case ft.SlowLoad(model, extra_ms):
                truth.slow_loads[model] = extra_ms
            case ft.SlowExit(model, extra_ms):
                truth.slow_exits[model] = extra_ms
            case ft.SlowSleep(model, extra_ms):
                truth.slow_sleeps[model] = extra_ms
            case ft.SleepFails(model):
                truth.restless.add(model)
            case ft.ExitsUnasked(model):
                process = truth.oldest(model)
                if process is not None:
                    truth.die(process, ev.ReplicaStopped(process.replica))
            case ft.LateNews(delay_ms, count):
                truth.late_ms, truth.late_left = delay_ms, count
            case ft.Echo(back, of_replicas):
                self._echo(back, of_replicas)
            case ft.Nudge():
                self._tell_nothing_new(ev.Woken())
            case ft.Restart(down_ms, loses_decisions):
                if truth.mailbox is None and not self.shut:
                    if loses_decisions:
                        truth.dying_ms = down_ms
                    else:
                        truth.go_down(down_ms)
            case ft.HolderDies(index):
                truth.holder_dies(index)
            case ft.Redeploy(model):
                truth.catalog[model.name] = model
                truth.load_ms[model.name] = model.load_ms
                self._tell_fact(ev.ModelDeployed(model))

    # -- old news ---------------------------------------------------------------------------------

    def _echo(self, back: int, of_replicas: bool) -> None:
        told = [event for event in self.truth.history if isinstance(event, OF_REPLICAS) or not of_replicas]
        if back < len(told) and self._is_old_news(told[-1 - back]):
            self._tell_nothing_new(told[-1 - back])

    def _is_old_news(self, event: ev.Event) -> bool:
        """Whether it says nothing that is not known: told before, and not made untrue since."""
        truth = self.truth
        match event:
            case ev.RequestEnded() | ev.HolderLost():
                return True
            case _ if isinstance(event, OF_REPLICAS):
                return True
            case ev.RequestArrived(request):
                client = truth.clients[request]
                process = truth.processes.get(client.served_by)
                return not client.over and (not client.served_by or (process is not None and not process.stopping))
            case ev.NodeJoined(node):
                return self.nodes.get(node.name) == node
            case ev.NodeLost(name):
                return name not in self.nodes and name not in truth.untold_losses
            case ev.DeviceLost(device):
                return device in self.lost
            case ev.DeviceReturned(device):
                return device not in self.lost
            case ev.MemoryObserved(device, used):
                return self.others.get(device) == used
        return False

    def _tell_nothing_new(self, event: ev.Event) -> None:
        """Late or repeated news changes nothing."""
        truth = self.truth
        asked_ms = truth.scheduler.wakeup()
        if truth.mailbox is not None or (asked_ms is not None and asked_ms <= truth.now_ms):
            return
        before = truth.scheduler.snapshot(truth.now_ms)
        decisions = truth.tell([event])
        same = not decisions and truth.mailbox is None and truth.scheduler.snapshot(truth.now_ms) == before
        demand(same, "old news", f"{event} was known, and changed something")

    # -- restarts ---------------------------------------------------------------------------------

    def _come_up(self) -> None:
        """A new allocator finds what is there; whoever still waits asks it again; then old news come in."""
        truth = self.truth
        kept, truth.mailbox = truth.mailbox or [], None
        truth.untold_losses.clear()
        found: list[ev.Event] = [ev.ModelDeployed(model) for _, model in sorted(truth.catalog.items())]
        found.extend(ev.NodeJoined(node) for _, node in sorted(self.nodes.items()))
        found.extend(ev.DeviceLost(device) for device in sorted(self.lost))
        found.extend(ev.MemoryObserved(device, used) for device, used in sorted(self.others.items()))
        found.extend(self._found(process) for _, process in sorted(truth.processes.items()))
        truth.scheduler = Scheduler(self.story.scenario.settings)
        truth.scheduler.restore(found, truth.now_ms)
        truth.watch.restarted(found, truth.now_ms)
        for model, serial in truth.serials.items():
            truth.scheduler.seed_serial(model, serial)
        truth.scheduler.validate()
        truth.tell([ev.Woken()])
        again: list[ev.Event] = []
        for client in truth.waiting_clients():
            deadline_ms = client.arrival.deadline_ms
            if deadline_ms is not None and deadline_ms <= truth.now_ms:
                client.over = True  # its own clock has run out meanwhile
            else:
                again.append(client.arrival)
        truth.tell_each(again)
        for event in kept:
            truth.tell([event])

    def _found(self, process: Process) -> ev.ReplicaFound:
        """What is left of it; a new allocator can see that it was told to stop."""
        place, keeps = _left(process.placement, process), process.keeps
        running = process.ready and not process.stopping and process.rest is Rest.AWAKE
        leases = {
            client.arrival.request: client.arrival.holder
            for client in self.truth.clients.values()
            if running and client.served_by == process.replica and not client.over
        }
        leaving = process.stopping
        return ev.ReplicaFound(
            process.replica,
            process.model,
            place,
            running,
            leases,
            leaving=leaving,
            rest=process.rest,
            keeps=None if keeps is None else _left(keeps, process),
            nap=process.nap,
        )

    # -- phase two --------------------------------------------------------------------------------

    def _heal(self) -> None:
        """Every fault ends: nodes and devices are repaired, other programs leave, clients know when to end."""
        truth = self.truth
        truth.failing.clear()
        truth.slow_loads.clear()
        truth.slow_exits.clear()
        truth.restless.clear()
        truth.slow_sleeps.clear()
        truth.late_left, truth.dying_ms = 0, None
        for device in sorted(self.others):
            self._happen(sc.Observe(device, 0))
        for device in sorted(self.lost):
            self._repair(device)
        for name in sorted(self.known_nodes.keys() - self.nodes.keys()):
            self._happen(sc.NodeUp(self.known_nodes[name]))
        for client in truth.clients.values():
            if client.duration_ms is None:
                client.duration_ms = 1_000
                if client.served_by and not client.over:
                    truth.later(truth.now_ms + 1_000, Served(client))

    def _repair(self, device: DeviceId) -> None:
        """Every second one is reset where it is; for the others their node is started anew, which repairs all of it."""
        name, _, index = device.rpartition("/")
        if device in self.lost and int(index) % 2:
            self.lost.discard(device)
            self._tell_fact(ev.DeviceReturned(device))
        elif device in self.lost:
            self._happen(sc.NodeDown(NodeName(name)))

    def _loosen(self) -> None:
        """The bound has passed: check what waits, then let minima and pins go for the second half."""
        book = self.truth.watch.book
        if not any(model.replicas_min for model in self.truth.catalog.values()):
            self._check_nobody_waits(self.story.heal_ms)
        passes.check_standing(book, self.truth.scheduler.snapshot(self.truth.now_ms))
        for _, model in sorted(self.truth.catalog.items()):
            if model.replicas_min or model.pinned or book.waiting:
                loose = replace(model, replicas_min=0, pinned=False)
                if loose != model:
                    self._strike(ft.Redeploy(loose))

    def _check_all_ended(self) -> None:
        truth = self.truth
        self._check_nobody_waits(truth.now_ms)
        snapshot = truth.scheduler.snapshot(truth.now_ms)
        for replica in snapshot.replicas:
            demand(replica.state in AT_REST, "liveness", f"{replica.id} is {replica.state} at the end of all things")
        for client in truth.clients.values():
            waits = not client.over and not client.served_by and client.arrival.request not in truth.watch.book.waiting
            demand(not waits, "answered once", f"{client.arrival.request} was never answered, and does not wait")

    def _check_nobody_waits(self, since_ms: int) -> None:
        """Nobody who asked by `since_ms` waits for a model that fits."""
        truth = self.truth
        waiting = passes.could_be_served(truth.watch.book, Pass(truth.now_ms))
        names = [request.id for request in waiting if request.arrived_ms <= since_ms]
        demand(not names, "liveness", f"{', '.join(names)} wait at {truth.now_ms} ms, though their models fit")


def _left(place: Placement, process: Process) -> Placement:
    """What of a placement is on nodes where the process still is."""
    if len(process.homes) == len(place.nodes):
        return place
    kept = [i for i, d in enumerate(place.devices) if d.rpartition("/")[0] in process.homes]
    return Placement(
        tuple(name for name in place.nodes if name in process.homes),
        tuple(place.devices[i] for i in kept),
        tuple(place.device_bytes[i] for i in kept),
        place.host_bytes,
        place.millicpus,
    )
