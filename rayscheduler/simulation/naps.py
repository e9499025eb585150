"""The rules of sleep: who may be sent to sleep, who may wake, what each holds meanwhile, and whether it could.

Rules of this file: as in `rules.py`. What a sleeper holds is worked out here a second time.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from rayscheduler.core.decisions import SleepReplica, StartReplica, StopReplica, WakeReplica
from rayscheduler.core.types import Model, Placement, PolicyName, ReplicaId, Rest, SleepTraits, StopReason
from rayscheduler.simulation.book import Book, SeenReplica
from rayscheduler.simulation.rooms import fits
from rayscheduler.simulation.rules import Pass, check_coming, check_fits, check_victim
from rayscheduler.simulation.violation import Violation, demand


def check_sleep(book: Book, this: Pass, sleep: SleepReplica) -> None:
    """A victim like any other, of a model that can sleep, on nodes whose host memory has room for its weights."""
    name = sleep.replica
    replica, seen = book.replicas.get(name), book.models.get(sleep.model)
    if replica is None or seen is None:
        raise Violation("sleeps", f"{name} is sent to sleep, and is not there, or its model is not")
    demand(name not in this.obliged, "sleeps", f"{name} is sent to sleep, and should stop")
    demand(replica.serves(), "sleeps", f"{name} is sent to sleep: stopped: {replica.stop_sent}, {replica.rest}")
    serving = sorted(replica.leases)
    demand(not serving, "never under a request", f"{name} is sent to sleep while it serves {serving}")
    demand(sleep.nap == replica.nap + 1, "ids", f"{name} is sent to nap {sleep.nap} after nap {replica.nap}")
    demand(bool(sleep.why), "explained", f"{name} is sent to sleep without a word why")
    check_victim(book, this, StopReplica(name, sleep.model, StopReason.EVICTED, sleep.makes_way_for), replica)
    traits = [version.sleep for version in seen.versions if version.sleep is not None]
    right = any(sleep.keeps == _kept(replica.placement, each) for each in traits)
    demand(right, "residue", f"{name} keeps {sleep.keeps} of {replica.placement}, which its model does not say")
    for room in book.rooms(without=(name,), beside=(replace(replica.placement, host_bytes=sleep.keeps.host_bytes),)):
        if room.node.name in replica.homes:
            lends = not room.node.device_is_host_memory
            demand(lends, "sleeps", f"{name} is sent to sleep on {room.node.name}, whose memory is its device")
            short = -room.host_bytes
            demand(
                short <= 0, "over-committed", f"{room.node.name} is {short} host bytes short as {name} goes to sleep"
            )


def _kept(awake: Placement, traits: SleepTraits) -> Placement:
    """What stays on the devices, and in the host memory of each node."""
    sizes = tuple(min(size, traits.residue_bytes) for size in awake.device_bytes)
    nodes = [device.rpartition("/")[0] for device in awake.devices]
    gaps = [size - kept for size, kept in zip(awake.device_bytes, sizes, strict=True)]
    back = [sum(gap for node, gap in zip(nodes, gaps, strict=True) if node == name) for name in awake.nodes]
    weights = max(back) if traits.host_bytes is None else traits.host_bytes
    return replace(awake, device_bytes=sizes, host_bytes=awake.host_bytes + weights)


def check_wake(book: Book, this: Pass, wake: WakeReplica) -> None:
    """One that sleeps, where it sleeps, into room that is really there."""
    name, replica, seen = wake.replica, book.replicas.get(wake.replica), book.models.get(wake.model)
    if replica is None or seen is None:
        raise Violation("wakes", f"{name} is woken, and is not there, or its model is not")
    demand(not book.shutting_down, "shutdown", f"{name} is woken after the shutdown")
    demand(replica.sleeps(), "wakes", f"{name} is woken: stopped: {replica.stop_sent}, {replica.rest}")
    demand(wake.nap == replica.nap, "ids", f"{name} is woken from nap {wake.nap}, and sleeps its nap {replica.nap}")
    demand(wake.placement == replica.placement, "wakes", f"{name} is woken on {wake.placement}: it cannot move")
    demand(bool(wake.why), "explained", f"{name} is woken without a word why")
    for node in wake.placement.nodes:
        demand(node in book.nodes, "present", f"{name} is woken on {node}, which is not there")
    for device in wake.placement.devices:
        demand(device not in book.lost_devices, "present", f"{name} is woken on {device}, which is lost")
    host_bytes = replica.held().host_bytes  # its weights are there until it woke
    check_fits(book, name, replace(wake.placement, host_bytes=host_bytes))
    check_coming(book, this, wake, seen)


def could_come(book: Book, model: Model, gone: Collection[ReplicaId]) -> bool:
    """Whether one more replica could load, or one that sleeps could wake, with `gone` gone."""
    sleepers = [r for r in book.of_model(model.name) if r.sleeps() and r.id not in gone]
    return could_load(book, model, gone) or any(fits_awake(book, sleeper, gone) for sleeper in sleepers)


def could_load(book: Book, model: Model, gone: Collection[ReplicaId]) -> bool:
    return fits(model, book.rooms(without=gone), book.settings)


def fits_awake(book: Book, sleeper: SeenReplica, gone: Collection[ReplicaId]) -> bool:
    """Whether it could wake where it is with `gone` gone."""
    if sleeper.keeps is None or sleeper.homes != set(sleeper.placement.nodes):
        return False
    awake = replace(sleeper.placement, host_bytes=sleeper.keeps.host_bytes)
    for room in book.rooms(without=[*gone, sleeper.id], beside=(awake,)):
        if room.node.name not in awake.nodes:
            continue
        taken = [free for d, free in zip(room.node.devices, room.free, strict=True) if d.id in awake.devices]
        if room.host_bytes < 0 or room.millicpus < 0 or any(free is None or free < 0 for free in taken):
            return False
    return True


def check_wakes_first(book: Book, this: Pass, started: Sequence[StartReplica]) -> None:
    """Nothing loads into free memory where one that sleeps could have woken. Judged where one load alone was
    planned."""
    if len(started) != 1 or this.pending or started[0].evicts or book.settings.policy is not PolicyName.FIFO:
        return
    start = started[0]
    for sleeper in book.of_model(start.model):
        could = sleeper.sleeps() and fits_awake(book, sleeper, (start.replica,))
        demand(not could, "wakes first", f"{start.replica} loads, and {sleeper.id} could have woken")


def check_sleeps_first(book: Book, this: Pass) -> None:
    """No victim stops that could have slept. Judged where one alone made way, and nothing else was pending."""
    if book.settings.policy is not PolicyName.FIFO or this.impatient_ms == this.now_ms:
        return
    for way, victims in this.evicted.items():
        coming = this.pending.get(way)
        victim = victims[0]
        if coming is None or len(this.pending) > 1 or len(victims) > 1 or victim.rest is not Rest.AWAKE:
            continue
        seen = book.models.get(victim.model)
        if seen is None or not victim.running or len(seen.versions) > 1 or seen.model.sleep is None:
            continue
        if seen.model.sleep.wake_ms > seen.model.load_ms or victim.homes != set(victim.placement.nodes):
            continue
        keeps = _kept(victim.placement, seen.model.sleep)
        gives = keeps.device_bytes != victim.placement.device_bytes
        lends = not any(book.nodes[name].device_is_host_memory for name in keeps.nodes)
        if gives and lends and _fit_together(book, victim, keeps, way, coming.placement):
            raise Violation("sleeps first", f"{victim.id} stops for {way}, and could have slept")


def _fit_together(book: Book, victim: SeenReplica, keeps: Placement, way: ReplicaId, coming: Placement) -> bool:
    """Whether the host has room for its weights now, and everything for both of them then."""
    turning = replace(victim.placement, host_bytes=keeps.host_bytes)
    wakes = book.replicas.get(way)
    if wakes is not None and wakes.keeps is not None:
        coming = replace(coming, host_bytes=wakes.keeps.host_bytes)
    now = book.rooms(without=(victim.id,), beside=(turning,))
    then = book.rooms(without=(victim.id, way), beside=(keeps, coming))
    for room in then:
        free = [left for d, left in zip(room.node.devices, room.free, strict=True) if d.id in coming.devices]
        short = room.host_bytes < 0 or room.millicpus < 0 or any(left is None or left < 0 for left in free)
        if room.node.name in {*keeps.nodes, *coming.nodes} and short:
            return False
    return all(room.host_bytes >= 0 for room in now if room.node.name in keeps.nodes)
