"""The event log: what the allocator was told and what it decided, to be run again or to be asked "what if".

The log is JSON lines. The first is `{"log": 1, "settings": …}`; each other is one batch: `{"at_ms": …,
"events": […], "decisions": […]}`, or `{"at_ms": …, "restore": […]}` for what was found at a start. Events
and decisions stand in the form of `core.wire`. Rules of this file: no I/O; lines come in and go out as
dictionaries.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rayscheduler.core import events as ev
from rayscheduler.core.decisions import Decision, Grant, StartReplica, StopReplica
from rayscheduler.core.scheduler import Scheduler
from rayscheduler.core.types import Model, ModelName, ReplicaId, RequestId, Settings
from rayscheduler.core.wire import WireError, decode, encode
from rayscheduler.simulation import scenario as sc

VERSION = 1
UNTOLD = ("why", "refusals", "message")  # words for people: not compared


def header(settings: Settings) -> dict[str, Any]:
    return {"log": VERSION, "settings": encode(settings)}


def restored(at_ms: int, events: Iterable[ev.Event], serials: Mapping[str, int] | None = None) -> dict[str, Any]:
    """What an allocator found when it started; `serials` that were used before, by model."""
    return {"at_ms": at_ms, "restore": [encode(event) for event in events], "serials": dict(serials or {})}


def entry(at_ms: int, events: Iterable[ev.Event], decisions: Iterable[Decision]) -> dict[str, Any]:
    """One batch and what was decided on it."""
    return {
        "at_ms": at_ms,
        "events": [encode(event) for event in events],
        "decisions": [_bare(encode(decision)) for decision in decisions],
    }


def _bare(told: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in told.items() if key != "refusals"}


class TraceError(ValueError):
    """A line of the log cannot be read. `line` counts from 1."""

    def __init__(self, line: int, problem: str) -> None:
        super().__init__(f"line {line}: {problem}")
        self.line = line
        self.problem = problem


@dataclass(frozen=True, slots=True)
class Difference:
    """The decisions on one batch are not those of the log. `line` counts from 1."""

    line: int
    at_ms: int
    logged: tuple[str, ...]
    decided: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Batch:
    line: int
    at_ms: int
    events: tuple[ev.Event, ...]
    decisions: tuple[Decision, ...]
    restore: bool
    serials: Mapping[str, int]


def read(lines: Iterable[Mapping[str, Any]]) -> tuple[Settings, Iterator[Batch]]:
    """The settings of a log and its batches in order; TraceError where a line is not one of a log."""
    numbered = enumerate(lines, 1)
    first = next(numbered, (1, {}))[1]
    if first.get("log") != VERSION:
        raise TraceError(1, f'a log begins with {{"log": {VERSION}, "settings": …}}')
    settings = _decoded(1, [first.get("settings")])[0]
    return settings, _batches(numbered)


def _batches(numbered: Iterator[tuple[int, Mapping[str, Any]]]) -> Iterator[Batch]:
    for number, line in numbered:
        if "log" in line:
            continue  # the allocator was restarted: a `restore` follows
        at_ms, found = line.get("at_ms"), line.get("restore", line.get("events"))
        if not isinstance(at_ms, int) or not isinstance(found, list):
            raise TraceError(number, "neither a batch of events nor a restore")
        decisions = _decoded(number, line.get("decisions", []))
        yield Batch(number, at_ms, _decoded(number, found), decisions, "restore" in line, line.get("serials", {}))


def _decoded(number: int, told: Sequence[Any]) -> tuple[Any, ...]:
    try:
        return tuple(decode(each) for each in told)
    except WireError as problem:
        raise TraceError(number, str(problem)) from problem


def replay(lines: Iterable[Mapping[str, Any]]) -> Iterator[Difference | int]:
    """Run a log again: every difference, then the number of batches that were compared."""
    settings, batches = read(lines)
    scheduler, begun = Scheduler(settings), False
    count = 0
    for batch in batches:
        if batch.restore:
            scheduler = Scheduler(settings)
            scheduler.restore(batch.events, batch.at_ms)
            for name, serial in batch.serials.items():
                scheduler.seed_serial(ModelName(name), serial)
            begun = True
            continue
        if not begun:
            raise TraceError(batch.line, "the log's beginning was rotated away, and with it the state it began from")
        count += 1
        decided = [_compared(d) for d in scheduler.handle_batch(batch.events, batch.at_ms)]
        logged = [_compared(d) for d in batch.decisions]
        if decided != logged:
            yield Difference(batch.line, batch.at_ms, tuple(map(str, logged)), tuple(map(str, decided)))
    yield count


def _compared(decision: Decision) -> dict[str, Any]:
    return {key: value for key, value in encode(decision).items() if key not in UNTOLD}


class _Reader:
    """Gathers, batch by batch, what a scenario needs to know of a log."""

    def __init__(self) -> None:
        self.models: dict[ModelName, Model] = {}
        self.unload_ms: dict[ModelName, int] = {}
        self.events: list[sc.At] = []
        self._begun: dict[ReplicaId, tuple[ModelName, int]] = {}
        self._stopping: dict[ReplicaId, tuple[ModelName, int]] = {}
        self._granted: dict[RequestId, int] = {}
        self._asked: dict[RequestId, int] = {}  # where in `events` a request stands

    def take(self, batch: Batch, at_ms: int) -> None:
        for event in batch.events:
            self._event(event, at_ms)
        for decision in batch.decisions:
            match decision:
                case Grant(request):
                    self._granted[request] = at_ms
                case StartReplica(name, model):
                    self._begun[name] = (model, at_ms)
                case StopReplica(name, model):
                    self._stopping[name] = (model, at_ms)

    def _event(self, event: ev.Event, at_ms: int) -> None:
        match event:
            case ev.ModelDeployed(model):
                self.models[model.name] = model
            case ev.RequestArrived(request, model_name, priority, deadline_ms):
                self._asked[request] = len(self.events)
                wait_ms = None if deadline_ms is None else max(0, deadline_ms - at_ms)
                self.events.append(sc.At(at_ms, sc.Request(request, model_name, None, priority, wait_ms)))
            case ev.RequestEnded(request):
                self._ended(request, at_ms)
            case ev.ReplicaStarted(name, load_ms) if name in self._begun:
                model_name, begun_ms = self._begun.pop(name)
                took_ms = at_ms - begun_ms if load_ms is None else load_ms
                self.models[model_name] = replace(self.models[model_name], load_ms=took_ms)
            case ev.ReplicaWoke(name, _, wake_ms) if wake_ms is not None:
                woken = self.models.get(ModelName(name.rpartition("#")[0]))
                if woken is not None and woken.sleep is not None:
                    self.models[woken.name] = replace(woken, sleep=replace(woken.sleep, wake_ms=wake_ms))
            case ev.ReplicaStopped(name) if name in self._stopping:
                model_name, begun_ms = self._stopping.pop(name)
                self.unload_ms[model_name] = at_ms - begun_ms
            case ev.LoadAsked(name):
                self.events.append(sc.At(at_ms, sc.Load(name)))
            case ev.UnloadAsked(name):
                self.events.append(sc.At(at_ms, sc.Unload(name)))
            case ev.PinAsked(name, pinned):
                self.events.append(sc.At(at_ms, sc.Pin(name) if pinned else sc.Unpin(name)))
            case _:
                pass

    def _ended(self, request: RequestId, at_ms: int) -> None:
        """A served request has a duration now; one that ended ungranted was given up."""
        at = self._asked.pop(request, None)
        if at is None:
            return
        asked = self.events[at]
        granted_ms = self._granted.pop(request, None)
        if granted_ms is None:
            self.events.append(sc.At(at_ms, sc.Cancel(request)))
        elif isinstance(asked.what, sc.Request):
            self.events[at] = sc.At(asked.at_ms, replace(asked.what, duration_ms=at_ms - granted_ms))


def scenario_of(lines: Iterable[Mapping[str, Any]], other: sc.Scenario) -> sc.Scenario:
    """The traffic of a log on another cluster: nodes and settings of `other`, whose models, where it names
    any, replace the log's. Load, service and exit times are those that the log saw."""
    _, batches = read(lines)
    reader = _Reader()
    start_ms: int | None = None
    for batch in batches:
        start_ms = batch.at_ms if start_ms is None else start_ms
        reader.take(batch, batch.at_ms - start_ms)
    models = {**reader.models, **{model.name: model for model in other.models}}
    unload_ms = {name: reader.unload_ms.get(name, 0) for name in models} | dict(other.unload_ms)
    return sc.Scenario(
        settings=other.settings,
        nodes=other.nodes,
        models=tuple(models.values()),
        unload_ms=unload_ms,
        replicas=other.replicas,
        events=tuple(reader.events),
        until_ms=other.until_ms,
    )
