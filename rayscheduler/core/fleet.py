"""The replicas: their lifecycle, their leases, and the bytes that they hold from promise to confirmed exit.

Rules of this file: every state change goes through `ReplicaRecord.move`, every byte through the ledger.
A reservation is made when a replica is promised room and released only when its exit is confirmed; it shrinks
only when its sleep is confirmed. What is reserved in which state is said in one place (`_charge`).
`epoch` counts the changes that may let a plan succeed that found no place before; `topology` those that
may change what fits an empty cluster.
"""

from __future__ import annotations

from collections.abc import Iterable

from rayscheduler.core.decisions import Decision, SleepReplica, StartReplica, StopReplica, WakeReplica
from rayscheduler.core.ledger import NOBODY, Ledger
from rayscheduler.core.lifecycle import PROMISED, State
from rayscheduler.core.records import ModelRecord, Origin, ReplicaRecord, Waiting
from rayscheduler.core.sleeping import turning
from rayscheduler.core.types import (
    DeviceId,
    HolderId,
    NodeName,
    Placement,
    Plan,
    Refusal,
    ReplicaId,
    RequestId,
    StopReason,
)
from rayscheduler.core.words import sized


class Fleet:
    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.replicas: dict[ReplicaId, ReplicaRecord] = {}
        self.requests: dict[RequestId, Waiting | ReplicaRecord] = {}
        self.out: list[Decision] = []  # the decisions of the event being handled
        self.epoch = 0
        self.topology = 0
        self.leases = 0
        self.freed = True  # memory became free since standing wishes were last looked at
        self.pressed: set[DeviceId] = set()  # devices where others and we together may exceed what there is
        self._idle: dict[ReplicaId, ReplicaRecord] = {}  # running without leases, longest idle first
        self._idle_is_sorted = True
        self._abandoned: dict[ReplicaId, ReplicaRecord] = {}
        self._asleep: dict[ReplicaId, ReplicaRecord] = {}
        self._pinned: tuple[int, list[ReplicaId]] = (-1, [])  # (topology, answer)
        self._awaited: dict[ReplicaId, list[ReplicaRecord]] = {}  # victim -> PROMISED replicas that wait for it
        self._ready: list[ReplicaRecord] = []  # PROMISED, and everything they waited for is gone

    # -- coming -----------------------------------------------------------------------------------

    def promise(
        self,
        model: ModelRecord,
        plan: Plan,
        also_awaits: frozenset[ReplicaId],
        origin: Origin,
        now_ms: int,
        why: str,
        refusals: tuple[Refusal, ...] = (),
    ) -> ReplicaRecord:
        """Reserve room for a new replica, or for one to wake, and send its victims away; it starts when all of them
        are gone, or asleep.

        `also_awaits`: replicas that are leaving already and must be gone as well. `why` and `refusals` explain
        the plan and are told with the start.
        """
        if plan.wakes is None:
            model.serial += 1
            replica = ReplicaRecord(model, model.serial, State.PENDING, plan.placement, origin, now_ms)
            self._add(replica)
        else:
            replica = self._roused(plan.wakes, origin, now_ms)
        replica.why, replica.refusals = why, refusals
        replica.evicts = plan.evictions
        replica.waits_for = {*plan.evictions, *also_awaits}
        self._charge(replica)
        self._moved_pinned(model)
        if model.standing_minimum():
            self.epoch += 1  # with one more coming, another of its replicas may be a victim
        for name in sorted(replica.waits_for):
            self._awaited.setdefault(name, []).append(replica)
        for name in plan.evictions:
            self._send_away(self.replicas[name], replica.id, plan.sleeping.get(name), now_ms)
        if not replica.waits_for:
            self._start(replica, now_ms)
        return replica

    def _roused(self, name: ReplicaId, origin: Origin, now_ms: int) -> ReplicaRecord:
        replica = self._asleep.pop(name)
        replica.origin = origin
        replica.move(State.ROUSED, now_ms)
        return replica

    def _send_away(self, victim: ReplicaRecord, way: ReplicaId, keeps: Placement | None, now_ms: int) -> None:
        """Drain it first if it serves; then it sleeps (`keeps`: what it will hold) or stops."""
        victim.makes_way_for = way
        if keeps is None and not victim.abandoned and victim.model.model.needs_less_than(victim.placement):
            victim.model.shrinks = True
        if victim.leases:
            victim.stop_reason = StopReason.EVICTED
            victim.move(State.DRAINING, now_ms)
            if keeps is not None:
                victim.keeps = keeps
                self._charge(victim)
        elif keeps is not None:
            victim.keeps = keeps
            self._suspend(victim, now_ms)
        else:
            self.stop(victim, StopReason.ABANDONED if victim.abandoned else StopReason.EVICTED, now_ms)

    def adopt(
        self,
        model: ModelRecord,
        serial: int,
        placement: Placement,
        state: State,
        now_ms: int,
        keeps: Placement | None = None,
        nap: int = 0,
    ) -> ReplicaRecord:
        """Take over a replica that exists already; `keeps` unless it is awake: what it holds asleep."""
        replica = ReplicaRecord(model, serial, state, placement, Origin.FOUND, now_ms)
        replica.keeps, replica.nap = keeps, nap
        model.serial = max(model.serial, serial)
        self._add(replica)
        self._charge(replica)
        if state is State.ASLEEP:
            self._asleep[replica.id] = replica
        self._moved_pinned(model)
        self.pressed.update(placement.devices)
        self.epoch += 1
        return replica

    def _add(self, replica: ReplicaRecord) -> None:
        self.replicas[replica.id] = replica
        replica.model.replicas[replica.id] = replica

    def _charge(self, replica: ReplicaRecord) -> None:
        """Reserve what a replica holds, or is promised, in its state.

        Asleep: what it keeps. On the way there and back: its devices, and the host memory of its weights already.
        """
        place, keeps, state = replica.placement, replica.keeps, replica.state
        overlaps = NOBODY if state not in PROMISED else frozenset(replica.evicts).intersection(replica.waits_for)
        if keeps is not None:
            place = keeps if state is State.ASLEEP else turning(place, keeps)
            if state in (State.ASLEEP, State.WAKING, State.STOPPING):
                keeps = None  # all of that goes with its exit, and none of it is promised to anybody yet
        replica.holds = place
        self.ledger.reserve(replica.id, place, overlaps, keeps)

    def _start(self, replica: ReplicaRecord, now_ms: int) -> None:
        told = (replica.evicts, replica.why, replica.refusals)
        if replica.state is State.ROUSED:
            replica.move(State.WAKING, now_ms)
            self._charge(replica)
            self.out.append(WakeReplica(replica.id, replica.model.name, replica.placement, replica.nap, *told))
        else:
            replica.move(State.STARTING, now_ms)
            self.out.append(StartReplica(replica.id, replica.model.name, replica.placement, *told))

    def start_ready(self, now_ms: int) -> bool:
        """Start or wake the promised replicas whose victims are gone; False if one found its room taken meanwhile."""
        all_fit = True
        ready, self._ready = self._ready, []
        for replica in ready:
            if replica.state not in PROMISED or replica.waits_for:
                continue
            if self.ledger.fits_now(replica.placement) and not self._on_lost_device(replica.placement):
                self._start(replica, now_ms)
            else:
                self.give_up(replica, now_ms)
                all_fit = False
        return all_fit

    def _on_lost_device(self, placement: Placement) -> bool:
        for device in placement.devices:
            account = self.ledger.account_of(device)
            if account is None or account.lost[account.index[device]]:
                return True
        return False

    # -- leaving ----------------------------------------------------------------------------------

    def stop(self, replica: ReplicaRecord, reason: StopReason, now_ms: int) -> None:
        """Send the stop, serving or not. Its bytes stay reserved until the exit is confirmed."""
        if replica.state in PROMISED:
            self.give_up(replica, now_ms)
            if replica.state is State.STOPPED:
                return
        self._say_stop(replica, reason)
        self._end_leases(replica)
        replica.stop_reason = reason
        self.leaves(replica, now_ms)
        self.epoch += 1
        self.freed = True  # a standing wish may be unmet now
        self._moved_pinned(replica.model)

    def leaves(self, replica: ReplicaRecord, now_ms: int) -> None:
        """Its stop is sent. On the way to sleep or back it gives all of that back; asleep, what it keeps."""
        slept = replica.state is State.ASLEEP
        self._no_candidate(replica)
        replica.move(State.STOPPING, now_ms)
        if replica.keeps is not None and not slept:
            self._charge(replica)

    def lost(self, replica: ReplicaRecord, reason: StopReason, now_ms: int) -> None:
        """It is gone already: say so, unless its stop was sent before, and release what it held."""
        if replica.state in PROMISED:
            self.give_up(replica, now_ms)
            if replica.state is State.STOPPED:
                return
        if replica.state is not State.STOPPING:
            self._say_stop(replica, reason)
        self.gone(replica, now_ms)

    def _say_stop(self, replica: ReplicaRecord, reason: StopReason) -> None:
        way = replica.makes_way_for if reason in (StopReason.EVICTED, StopReason.ABANDONED) else None
        why = f"makes way for {way}" if way else ""
        self.out.append(StopReplica(replica.id, replica.model.name, reason, way, why))

    def give_up(self, replica: ReplicaRecord, now_ms: int) -> None:
        """Take a promise back: nothing was started, so nothing is said. Its victims leave all the same. A PENDING
        replica is dropped; a ROUSED one sleeps on."""
        for name in replica.evicts:
            victim = self.replicas.get(name)
            if victim is not None and victim.makes_way_for == replica.id:
                victim.makes_way_for = None
        for name in replica.waits_for:
            self._awaited[name].remove(replica)
        if replica.state is State.ROUSED:
            replica.waits_for.clear()
            self._lies(replica, now_ms)
        else:
            self.gone(replica, now_ms)

    def gone(self, replica: ReplicaRecord, now_ms: int) -> None:
        """The exit is confirmed: release the bytes and tell whoever waited for them."""
        self._end_leases(replica)
        self._no_candidate(replica)
        replica.move(State.STOPPED, now_ms)
        del self.replicas[replica.id]
        del replica.model.replicas[replica.id]
        self.ledger.release(replica.id, replica.placement)
        self._moved_pinned(replica.model)
        self.epoch += 1
        self.freed = True
        for waiter in self._awaited.pop(replica.id, ()):
            waiter.waits_for.discard(replica.id)
            if not waiter.waits_for:
                self._ready.append(waiter)

    def _no_candidate(self, replica: ReplicaRecord) -> None:
        self._idle.pop(replica.id, None)
        self._abandoned.pop(replica.id, None)
        self._asleep.pop(replica.id, None)

    def _moved_pinned(self, model: ModelRecord) -> None:
        if model.model.pinned:
            self.topology += 1

    # -- asleep -----------------------------------------------------------------------------------

    def _suspend(self, replica: ReplicaRecord, now_ms: int) -> None:
        """Send it to sleep. Its devices stay reserved until that is confirmed; the host memory is charged already."""
        assert replica.keeps is not None
        replica.nap += 1
        way = replica.makes_way_for
        weights = sized(replica.keeps.host_bytes - replica.placement.host_bytes)
        why = f"makes way{f' for {way}' if way else ''}: {weights} go to host memory"
        self.out.append(SleepReplica(replica.id, replica.model.name, replica.keeps, replica.nap, way, why))
        self._no_candidate(replica)
        replica.move(State.SUSPENDING, now_ms)
        self._charge(replica)
        self.epoch += 1
        self.freed = True
        self._moved_pinned(replica.model)

    def slept(self, replica: ReplicaRecord, now_ms: int) -> None:
        """The sleep is confirmed: its devices are free but for the residue. Tell whoever waited for them."""
        replica.makes_way_for = replica.stop_reason = None
        self._lies(replica, now_ms)
        for waiter in self._awaited.pop(replica.id, ()):
            waiter.waits_for.discard(replica.id)
            self._charge(waiter)  # it lies over others only: what this one keeps is promised to nobody
            if not waiter.waits_for:
                self._ready.append(waiter)

    def _lies(self, replica: ReplicaRecord, now_ms: int) -> None:
        replica.move(State.ASLEEP, now_ms)
        self._charge(replica)
        self._asleep[replica.id] = replica
        self._moved_pinned(replica.model)
        self.epoch += 1
        self.freed = True

    def woke(self, replica: ReplicaRecord, now_ms: int) -> None:
        """It runs again: the host memory of its weights is free."""
        replica.keeps = None
        replica.move(State.RUNNING, now_ms)
        self._charge(replica)
        self.epoch += 1
        self.freed = True

    def asleep(self) -> Iterable[ReplicaRecord]:
        return self._asleep.values()

    # -- leases -----------------------------------------------------------------------------------

    def lease(self, waiting: Waiting, replica: ReplicaRecord) -> None:
        self.hold(waiting.request, waiting.holder, replica)

    def became_idle(self, replica: ReplicaRecord) -> None:
        """It runs and serves nobody, since `used_ms`."""
        last = next(reversed(self._idle.values()), None)
        if last is not None and last.used_ms > replica.used_ms:
            self._idle_is_sorted = False
        self._idle[replica.id] = replica
        self.epoch += 1

    def idle_longest_first(self) -> Iterable[ReplicaRecord]:
        if not self._idle_is_sorted:
            self._idle = dict(sorted(self._idle.items(), key=lambda item: item[1].used_ms))
            self._idle_is_sorted = True
        return self._idle.values()

    def abandon(self, replica: ReplicaRecord) -> None:
        """Nobody waits for this load any more: it runs on, and makes way when its room is wanted."""
        replica.abandoned = True
        self._abandoned[replica.id] = replica
        self.epoch += 1

    def take_up(self, replica: ReplicaRecord) -> None:
        replica.abandoned = False
        self._abandoned.pop(replica.id, None)

    def abandoned(self) -> Iterable[ReplicaRecord]:
        return self._abandoned.values()

    def hold(self, request: RequestId, holder: HolderId, replica: ReplicaRecord) -> None:
        """A lease that was found, not granted."""
        if not replica.leases:
            self._idle.pop(replica.id, None)
        replica.leases[request] = holder
        self.requests[request] = replica
        self.leases += 1

    def end_lease(self, request: RequestId, replica: ReplicaRecord, now_ms: int) -> None:
        """One request is done; a drained replica stops with its last one."""
        del replica.leases[request]
        del self.requests[request]
        self.leases -= 1
        replica.used_ms = now_ms
        if replica.leases:
            return
        if replica.state is State.DRAINING and replica.keeps is not None:
            self._suspend(replica, now_ms)
        elif replica.state is State.DRAINING:
            self.stop(replica, replica.stop_reason or StopReason.EVICTED, now_ms)
        else:
            self.became_idle(replica)

    def _end_leases(self, replica: ReplicaRecord) -> None:
        for request in replica.leases:
            del self.requests[request]
        self.leases -= len(replica.leases)
        replica.leases.clear()

    # -- looking ----------------------------------------------------------------------------------

    def on_node(self, name: NodeName) -> list[ReplicaRecord]:
        """The replicas with a reservation on a node, in the order of their ids."""
        held = self.ledger.accounts[name].reservations
        return sorted((self.replicas[r] for r in held), key=lambda r: r.id_key)

    def on_device(self, device: DeviceId) -> list[ReplicaRecord]:
        """The replicas that hold bytes of a device, in the order of their ids."""
        account = self.ledger.account_of(device)
        if account is None:
            return []
        host = account.node.device_is_host_memory
        return [
            r
            for r in self.on_node(account.node.name)
            if device in r.placement.devices or (host and r.placement.host_bytes)
        ]

    def pinned_ids(self) -> list[ReplicaId]:
        """The replicas that nobody may move: of pinned models, there or on their way."""
        if self._pinned[0] != self.topology:
            found = [r.id for r in self.replicas.values() if r.model.model.pinned and r.serves()]
            self._pinned = (self.topology, found)
        return self._pinned[1]
