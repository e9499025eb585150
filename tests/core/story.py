"""Stories: events and the decisions they must lead to, in plain text, run against the real scheduler.

    node  n1  80GiB                    # or 2x80GiB, 80GiB,40GiB
    model a   60GiB  concurrency=2     # any field of `Model`, and gpus=1,2
    > request a r1   -> start a#1 n1/0
    +5000                              # five seconds pass
    > started a#1    -> grant r1 a#1

A `node` or `model` line sets the scene, and fails when that decides anything; `> joined` and `> deploy` are the
same events with their decisions compared. `sleep=300` lets a model sleep, and wake in 300 ms; `residue=1GiB` and
`weights=30GiB` say what it then keeps on each device and takes of the host. `> slept a#1` and `> woke a#1` confirm its
first nap, with `nap=2` its second. `> ended r1 & ended r2 -> ...` is one batch: two events, one pass.
After each event `validate()` runs, and *all* the decisions are compared, in their order. `wake` sends Woken.
A comment needs two spaces after its `#`.
"""

from __future__ import annotations

from rayscheduler.core import events as ev
from rayscheduler.core.decisions import Decision, Grant, Reject, SleepReplica, StartReplica, StopReplica, WakeReplica
from rayscheduler.core.scheduler import Scheduler
from rayscheduler.core.sleeping import asleep
from rayscheduler.core.types import (
    Backend,
    Device,
    Model,
    Node,
    Pin,
    Placement,
    Requirement,
    Rest,
    Settings,
    SleepTraits,
)

GIB = 1 << 30


def size(text: str) -> int:
    return int(text.removesuffix("GiB")) * GIB


def pairs(text: str) -> dict[str, str]:
    """`zone:a,rack:7` as a mapping."""
    return dict(pair.split(":") for pair in text.split(",") if pair)


def node(name: str, devices: str, **options: str) -> Node:
    """`type=H100` for all devices or `type=H100,A100` for each; `ram=yes`: its one device *is* the host's memory."""
    count, _, each = devices.rpartition("x")
    sizes = [each] * int(count) if count else each.split(",")
    backend = Backend(options.get("backend", "nvidia"))
    types = options.get("type", "").split(",")
    if len(types) == 1:
        types *= len(sizes)
    headroom, sliced = size(options.get("headroom", "0GiB")), "slices" in options
    made = tuple(Device(f"{name}/{i}", size(text), headroom, types[i], sliced) for i, text in enumerate(sizes))
    cpus = int(options["cpus"]) * 1000 if "cpus" in options else None
    memory = size(options["memory"]) if "memory" in options else None
    ram = options.get("ram") == "yes"
    return Node(
        name,
        backend,
        made,
        millicpus=cpus,
        memory_bytes=size(sizes[0]) if ram else memory,
        labels=pairs(options.get("labels", "")),
        device_is_host_memory=ram,
    )


def model(name: str, memory: str, **options: str) -> Model:
    """`each=1:60GiB,2:33GiB` stands for `memory_per_device` (`memory` is ignored then); `most=60GiB`: elastic."""
    counts = [int(n) for n in options.pop("gpus", "1,2,4,8").split(",")]
    each = {int(n): size(text) for n, text in pairs(options.pop("each", "")).items()}
    most = size(options.pop("most", "0GiB"))
    backend = options.pop("backend", "")
    want = {
        "bytes_by_count": each or {n: -(-size(memory) // max(n, 1)) for n in counts},
        "bytes_max_by_count": {n: -(-most // n) for n in counts if most and n},
        "backend": Backend(backend) if backend else None,
        "labels": pairs(options.pop("labels", "")),
        "node_millicpus": int(options.pop("node_cpus", "0")) * 1000,
        "host_memory_bytes": size(options.pop("host_memory", "0GiB")),
        "device_memory_bytes": size(options.pop("device_memory", "0GiB")),
        "total_device_memory_bytes": size(options.pop("total_device_memory", "0GiB")),
        "exclusive": bool(options.pop("exclusive", "")),
        "across_nodes": bool(options.pop("across", "")),
        "millicpus": int(options.pop("cpus", "0")) * 1000,
        "types": tuple(t for t in options.pop("types", "").split(",") if t),
    }
    pin = options.pop("pin", "")
    sleep = traits(options)
    fields = {key: int(value) if value.isdigit() else value == "yes" for key, value in options.items()}
    at = Pin(pin.split("/")[0], tuple(d for d in pin.split(",") if "/" in d)) if pin else None
    return Model(name, Requirement(**want), pin=at, sleep=sleep, **fields)


def traits(options: dict[str, str]) -> SleepTraits | None:
    """Takes what is said about sleep out of the options."""
    wake_ms, residue, weights = (options.pop(key, "") for key in ("sleep", "residue", "weights"))
    if not wake_ms:
        return None
    return SleepTraits(1000, int(wake_ms), size(residue or "0GiB"), size(weights) if weights else None)


def words(decision: Decision) -> str:
    """A decision as a story writes it."""
    match decision:
        case StartReplica(replica, _, placement):
            return f"start {replica} {','.join(placement.devices or placement.nodes)}"
        case WakeReplica(replica, _, placement):
            return f"wake {replica} {','.join(placement.devices)}"
        case SleepReplica(replica, _, makes_way_for=way):
            return f"sleep {replica}" + (f" for {way}" if way else "")
        case StopReplica(replica, _, reason, way):
            return f"stop {replica} {reason}" + (f" for {way}" if way else "")
        case Grant(request, replica):
            return f"grant {request} {replica}"
        case Reject(request, _, code):
            return f"reject {request} {code}"


def found(name: str, devices: str, memory: str, **options: str) -> ev.ReplicaFound:
    """`found a#1 n1/0,n1/1 60GiB leases=r1,r2 idle_ms=5000 running=no`: `memory` on each device. `rest=asleep
    residue=1GiB nap=2`: it sleeps."""
    taken = tuple(devices.split(","))
    nodes = tuple(dict.fromkeys(device.split("/")[0] for device in taken))
    rest, place = Rest(options.get("rest", "awake")), Placement(nodes, taken, (size(memory),) * len(taken))
    return ev.ReplicaFound(
        name,
        name.rpartition("#")[0],
        place,
        running=options.get("running", "yes") == "yes",
        leases={request: options.get("holder", "") for request in options.get("leases", "").split(",") if request},
        idle_ms=int(options.get("idle_ms", "0")),
        leaving=options.get("leaving") == "yes",
        rest=rest,
        keeps=asleep(place, SleepTraits(residue_bytes=size(options.get("residue", "0GiB"))))
        if rest != "awake"
        else None,
        nap=int(options.get("nap", "0")),
    )


class Story:
    """A scheduler being told a story. `tell` fails at the first line whose decisions differ."""

    def __init__(self, **settings: object) -> None:
        self.scheduler = Scheduler(Settings(**settings))
        self.now_ms = 0
        self.decided: list[Decision] = []  # by the last event

    def tell(self, text: str) -> Story:
        for line in text.strip().splitlines():
            told = line.split("#  ")[0].strip() if "#  " in line else line.strip()
            if told.startswith("+"):
                self.now_ms += int(told[1:])
            elif told.startswith(">"):
                said, _, expected = told[1:].partition("->")
                events = [self.event(one.split()) for one in said.split(" & ")]
                decisions = [words(d) for d in self.send_batch(*events)]
                wanted = [part.strip() for part in expected.split(";") if part.strip()]
                assert decisions == wanted, f"{told}\n  decided: {'; '.join(decisions)}"
            elif told:
                kind, name, first, *rest = told.split()
                options = dict(pair.split("=") for pair in rest)
                made = node(name, first, **options) if kind == "node" else model(name, first, **options)
                decided = self.send(ev.NodeJoined(made) if kind == "node" else ev.ModelDeployed(made))
                assert not decided, f"{told}\n  decided: {'; '.join(words(d) for d in decided)}"
        return self

    def send(self, event: ev.Event) -> list[Decision]:
        return self.send_batch(event)

    def send_batch(self, *events: ev.Event) -> list[Decision]:
        """All events of one instant, then one pass."""
        self.decided = self.scheduler.handle_batch(events, self.now_ms)
        self.scheduler.validate()
        return self.decided

    def event(self, said: list[str]) -> ev.Event:
        verb, *rest = said
        options = dict(pair.split("=") for pair in rest if "=" in pair)
        names = [word for word in rest if "=" not in word]
        match verb:
            case "request":
                deadline = self.now_ms + int(options["deadline"]) if "deadline" in options else None
                priority = int(options["priority"]) if "priority" in options else None
                return ev.RequestArrived(names[1], names[0], priority, deadline, options.get("holder", ""))
            case "ended":
                return ev.RequestEnded(names[0])
            case "started":
                return ev.ReplicaStarted(names[0], int(options["load_ms"]) if "load_ms" in options else None)
            case "slept":
                return ev.ReplicaSlept(names[0], int(options.get("nap", "1")))
            case "woke":
                wake_ms = int(options["wake_ms"]) if "wake_ms" in options else None
                return ev.ReplicaWoke(names[0], int(options.get("nap", "1")), wake_ms)
            case "stopped":
                return ev.ReplicaStopped(names[0])
            case "failed":
                return ev.ReplicaFailed(names[0], ev.FailureKind.LOAD, "out of luck")
            case "crashed":
                return ev.ReplicaFailed(names[0], ev.FailureKind.CRASH)
            case "load":
                return ev.LoadAsked(names[0])
            case "unload":
                return ev.UnloadAsked(names[0])
            case "pin" | "unpin":
                return ev.PinAsked(names[0], verb == "pin")
            case "remove":
                return ev.ModelRemoved(names[0])
            case "lost":
                return ev.DeviceLost(names[0]) if "/" in names[0] else ev.NodeLost(names[0])
            case "returned":
                return ev.DeviceReturned(names[0])
            case "deploy":
                return ev.ModelDeployed(model(names[0], names[1], **options))
            case "found":
                return found(*names, **options)
            case "joined":
                return ev.NodeJoined(node(names[0], names[1], **options))
            case "observed":
                return ev.MemoryObserved(names[0], size(names[1]))
            case "holder-lost":
                return ev.HolderLost(names[0])
            case "wake":
                return ev.Woken()
            case "shutdown":
                return ev.ShutdownAsked()
        raise ValueError(f"no such event: {verb}")
