"""A scenario file, checked as a whole and turned into the values that the simulation runs on.

Rules of this file: entries have been checked one by one already (`models`, `nodes`, `events`); here they
are checked against each other. What is wrong is told where it stands, the first such place in the file's
own order: nodes, models, replicas, events. The start state must fit, device by device.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from enum import Enum
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from rayscheduler.config.adapters import ModelOrAdapter, adapters_among, models_among
from rayscheduler.config.cross_checks import check_catalog, check_unique
from rayscheduler.config.events import EventSection
from rayscheduler.config.fields import CountOrZero, Duration, Name, Section, Size, SizeRange, word, word_schema
from rayscheduler.config.models import ModelSection, SchedulerSection
from rayscheduler.config.nodes import NodeSection
from rayscheduler.config.start_state import Room
from rayscheduler.config.values import Path, Wrong, one_of_these, shown
from rayscheduler.config.yaml_lines import Document, load_file, load_text
from rayscheduler.core.types import Model, ModelName, Node, ReplicaId, RequestId
from rayscheduler.simulation.scenario import At, Request, Scenario, ScenarioReplica

SCENARIO_BYTES_MAX = 96 * 2**20  # a million requests and more; they take some 3 KiB of memory each while they are read


class StartState(str, Enum):
    """What a replica may be doing when the clock starts."""

    RUNNING = "running"
    STARTING = "starting"
    ASLEEP = "asleep"


class ReplicaSection(Section):
    """One entry of `replicas:`."""

    model: Name = Field(examples=["a"])
    devices: list[Name] | None = Field(default=None, examples=["[n1/0]"])
    """Devices it holds; none for a model with `gpus: [0]`."""
    node: Name | None = Field(default=None, examples=["n1"])
    """Its node, where no device says it."""
    memory: Size | None = None
    """What it holds, instead of its model's figure."""
    state: Annotated[StartState, BeforeValidator(word(StartState, "states")), word_schema(StartState)] = (
        StartState.RUNNING
    )
    idle: Duration | None = None
    """Unleased for this long already."""
    leases: CountOrZero = 0
    """Requests that it serves; they never end."""

    @model_validator(mode="after")
    def _one_story(self) -> Any:
        if self.state is not StartState.RUNNING and self.leases:
            state = "a starting" if self.state is StartState.STARTING else "an asleep"
            raise Wrong(f"{state} replica has no leases", "remove leases, or write state: running", ("leases",))
        if self.idle and self.state is StartState.STARTING:
            raise Wrong("a starting replica is not idle", "remove idle, or write state: running", ("idle",))
        if self.idle and self.leases:
            raise Wrong("a replica with leases is not idle", "keep leases or idle", ("idle",))
        return self


class ScenarioFile(Section):
    """A cluster and a day of traffic."""

    scheduler: SchedulerSection = SchedulerSection()
    nodes: list[NodeSection] = Field(default_factory=list, examples=["[{name: n1, backend: nvidia, devices: 2x80GiB}]"])
    models: list[ModelOrAdapter[ModelSection]] = Field(default_factory=list, examples=["[{name: a, memory: 60GiB}]"])
    replicas: list[ReplicaSection] = Field(default_factory=list)
    """What already runs when the clock starts."""
    events: list[EventSection] = Field(default_factory=list)
    """What happens, in the order of time."""
    until: Duration | None = None
    """Stop the clock after this instant; if left out, when nothing is left to happen."""


def load_scenario(path: str | os.PathLike[str]) -> Scenario:
    """The scenario in a file; ConfigError on anything wrong."""
    return parse_scenario(load_file(os.fspath(path), SCENARIO_BYTES_MAX))


def scenario_from_text(text: str, file: str = "<scenario>") -> Scenario:
    """The scenario in a text; `file` is what errors call it."""
    return parse_scenario(load_text(text, file))


def node_from_mapping(mapping: object, file: str = "<node>") -> Node:
    """One node, written as in `nodes:`; ConfigError on anything wrong."""
    return Document(file, mapping, None, "").parse(NodeSection).to_node()


def parse_scenario(document: Document) -> Scenario:
    """The scenario in a document."""
    file = document.parse(ScenarioFile)
    node_names = [node.name for node in file.nodes]
    check_unique(document, [("nodes", i, "name") for i in range(len(node_names))], node_names, "the node")
    check_catalog(document, file.scheduler, file.models)
    sections = models_among(file.models)
    nodes = tuple(node.to_node() for node in file.nodes)
    models = {ModelName(entry.name): entry.to_model() for entry in sections}
    aliases = {alias: entry.name for entry in sections for alias in entry.aliases}
    for adapter in adapters_among(file.models):  # who asks for one asks for its base
        aliases |= dict.fromkeys((adapter.name, *adapter.aliases), adapter.base)
    return Scenario(
        settings=file.scheduler.settings(),
        nodes=nodes,
        models=tuple(models.values()),
        unload_ms={ModelName(entry.name): entry.simulate.unload for entry in sections},
        replicas=_start_state(document, file, nodes, models, aliases),
        events=_events(document, file, aliases),
        until_ms=file.until,
    )


def _start_state(
    document: Document,
    file: ScenarioFile,
    nodes: tuple[Node, ...],
    models: Mapping[ModelName, Model],
    aliases: Mapping[str, str],
) -> tuple[ScenarioReplica, ...]:
    """The replicas that are there at 0; ConfigError at the first that cannot be."""
    room = Room(nodes, file.scheduler.cpu_models_on_gpu_nodes)
    sections = {ModelName(section.name): section for section in models_among(file.models)}
    serials: Counter[ModelName] = Counter()
    replicas = []
    for index, entry in enumerate(file.replicas):
        path: Path = ("replicas", index)
        name = ModelName(aliases.get(entry.model, entry.model))
        model = models.get(name)
        if model is None:
            fix = one_of_these(name, models, "models")
            raise document.wrong((*path, "model"), f"there is no model {shown(name)}", fix)
        if entry.leases > model.concurrency:
            what = f"{entry.leases} leases are more than the concurrency of {shown(name)}, which is {model.concurrency}"
            fix = f"write leases: {model.concurrency}, or concurrency: {entry.leases} at the model"
            raise document.wrong((*path, "leases"), what, fix)
        try:
            memory = _own_memory(entry, sections[name])
            is_asleep = entry.state is StartState.ASLEEP
            placement, keeps = room.taken_by(model, entry.devices, entry.node, memory, is_asleep)
        except Wrong as wrong:
            raise document.wrong((*path, *wrong.at), wrong.what, wrong.fix) from None
        serials[name] += 1
        replicas.append(
            ScenarioReplica(
                id=ReplicaId(f"{name}#{serials[name]}"),
                model=name,
                placement=placement,
                running=entry.state is StartState.RUNNING,
                leases=entry.leases,
                idle_ms=entry.idle or 0,
                keeps=keeps,
            )
        )
    return tuple(replicas)


def _own_memory(entry: ReplicaSection, model: ModelSection) -> int | None:
    """What this replica holds if that is not its model's figure for so many devices.

    The device counts that are the default are no statement: a replica on three devices shares `memory` too.
    """
    if entry.memory is not None:
        return entry.memory
    unforeseen = model.gpus is None and len(entry.devices or ()) not in (0, *model.bytes_by_count())
    memory = model.memory.min if isinstance(model.memory, SizeRange) else model.memory
    return memory if unforeseen else None


def _events(document: Document, file: ScenarioFile, aliases: Mapping[str, str]) -> tuple[At, ...]:
    """The events in their order; ConfigError where time goes back or a request's name is used again."""
    tiers = file.scheduler.tiers
    first_use: dict[RequestId, int] = {}
    latest_ms = 0
    events = []
    for index, entry in enumerate(file.events):
        if entry.at < latest_ms:
            what = f"{entry.at} ms is before the event above it, which is at {latest_ms} ms"
            raise document.wrong(("events", index, "at"), what, "put the events in the order of their times")
        latest_ms = entry.at
        try:
            what_happens = entry.happening(tiers, aliases)
        except Wrong as wrong:
            raise document.wrong(("events", index, *wrong.at), wrong.what, wrong.fix) from None
        if isinstance(what_happens, Request):
            before = first_use.setdefault(what_happens.request, index)
            if before != index:
                line = document.line(("events", before, "request"))
                what = f"the request {shown(what_happens.request)} stands twice, first in line {line}"
                raise document.wrong(("events", index, "request"), what, "give each request a name of its own")
        events.append(At(entry.at, what_happens))
    return tuple(events)
