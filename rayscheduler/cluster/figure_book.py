"""The allocator's book of what its models take: which are known, which are being asked for, which are refused.

    deployed ─► asking ──a node answers──► known ──► the core has the model
                  │  ▲                        └─contradicts its entry─► refused
                  └──┴──nobody can read it─► unreadable (asked again after a pause)

Rules of this file: it belongs to the allocator's loop and does no I/O; nodes are asked by `Asking`, in tasks, so
that no model waits for another. The core has a model exactly while its figures are known and not refused. A
model that says its memory waits for the answer of a node only as long as that takes moments.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from rayscheduler.cluster.asking import Asking, candidates, device_types, on_host
from rayscheduler.cluster.catalog import core_model
from rayscheduler.cluster.figures import Figure, Figures, figures_of
from rayscheduler.cluster.learned import Learned, memory_key
from rayscheduler.cluster.learning import Learning
from rayscheduler.cluster.lease_book import Reply, rejection
from rayscheduler.cluster.membership import KnownNode
from rayscheduler.cluster.reports import DeviceEstimate, SizeAnswer
from rayscheduler.config.service import ModelEntry
from rayscheduler.core.types import Backend, Model, ModelName, RejectCode

LOOK_EVERY_S = 1.0
CHECK_WITHIN_S = 5.0  # an entry that says its memory is believed if no node has answered by then
ASK_AGAIN_S, ASK_AGAIN_S_MAX = 1.0, 60.0
HOST_TYPE = "host"  # what stands for a type of device where a replica takes none
REFUSED_STATUS, REFUSED_CODE = 422, "memory_contradicted"

Keep = Callable[[str, str], Awaitable[None]]


@dataclass
class Sized:
    """One model. `answers` and `asking` by kind of node: True for those that lend their RAM. `old`: kinds whose
    answer is from before a restart, to be asked anew."""

    entry: ModelEntry
    fingerprint: str
    answers: dict[bool, SizeAnswer] = field(default_factory=dict)
    old: set[bool] = field(default_factory=set)
    asking: set[bool] = field(default_factory=set)
    problems: dict[bool, str] = field(default_factory=dict)
    pause_s: float = ASK_AGAIN_S
    again_s: float = 0.0
    asked_s: float | None = None  # when the first node was asked
    figures: Figures | None = None
    problem: Reply | None = None
    settled: asyncio.Event = field(default_factory=asyncio.Event)


class FigureBook:
    """`nodes` gives those that are there; `keep(model, text)` writes down what files say; `changed` is called with
    a model that the core should have otherwise than before."""

    def __init__(
        self,
        asking: Asking,
        learning: Learning,
        nodes: Callable[[], Iterable[KnownNode]],
        keep: Keep,
        changed: Callable[[ModelName], None],
    ) -> None:
        self._asking = asking
        self._learning = learning
        self._nodes = nodes
        self._keep = keep
        self._changed = changed
        self._models: dict[str, Sized] = {}
        self._kept: dict[str, str] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._look_now = asyncio.Event()

    # -- the catalog ------------------------------------------------------------------------------

    def remember(self, kept: Mapping[str, str]) -> None:
        """What an allocator before this one was told by nodes."""
        self._kept.update(kept)

    def deploy(self, entries: Iterable[ModelEntry], unasked: bool = False) -> None:
        """The catalog from now on. `unasked`: entries that say their memory are believed until a node has answered
        (after a restart, when their replicas may run already)."""
        before, self._models = self._models, {}
        for entry in entries:
            sized = Sized(entry, fingerprint_of(entry))
            known = before.get(entry.name)
            if known is not None and known.fingerprint == sized.fingerprint:
                sized.answers, sized.old = known.answers, known.old
            elif (answers := _read(self._kept.get(entry.name, ""), sized.fingerprint)) is not None:
                sized.answers, sized.old = answers, set(answers)
            self._models[entry.name] = sized
            self._settle(sized, unasked and entry.says_memory)
        for sized in before.values():
            sized.settled.set()  # whoever waits has to look again
        self._look_now.set()

    def model(self, name: str) -> Model | None:
        """As the core should have it; None: it should not."""
        sized = self._models.get(name)
        figures = sized.figures if sized is not None else None
        if sized is None or figures is None or figures.refusal:
            return None
        return core_model(sized.entry, figures.bytes_by_count())

    def models(self) -> dict[ModelName, Model]:
        """All that the core should have."""
        found = {ModelName(name): self.model(name) for name in self._models}
        return {name: model for name, model in found.items() if model is not None}

    def figure(self, name: str, count: int) -> Figure | None:
        sized = self._models.get(name)
        return sized.figures.by_count.get(count) if sized is not None and sized.figures is not None else None

    def key(self, name: str, count: int, device_type: str) -> str:
        """Under what a replica's memory will be kept."""
        sized = self._models.get(name)
        if sized is None:
            return ""
        answer = next(iter(sized.answers.values()), SizeAnswer())
        return _key(sized.entry, count, device_type, answer)

    # -- whoever asks for a model -----------------------------------------------------------------

    def is_settled(self, name: str) -> bool:
        """Whether there is nothing to wait for: the core has the model, or `problem` says why not."""
        sized = self._models.get(name)
        return sized is None or sized.settled.is_set()

    def problem(self, name: str) -> Reply | None:
        """Why a model of the catalog cannot be served, as its requests are told; None: nothing is known against it."""
        sized = self._models.get(name)
        return sized.problem if sized is not None else None

    async def why_not(self, name: str, within_s: float | None) -> Reply | None:
        """None as soon as the core has the model, or never will; else why it has not, after `within_s` at most."""
        until_s = None if within_s is None else time.monotonic() + within_s
        while (sized := self._models.get(name)) is not None and not sized.settled.is_set():
            left_s = None if until_s is None else until_s - time.monotonic()
            try:
                await asyncio.wait_for(sized.settled.wait(), left_s)
            except asyncio.TimeoutError:
                what = f"{name} was not sized up in time: nobody has said yet how much memory it takes"
                return rejection(RejectCode.DEADLINE_EXCEEDED, what)
        return sized.problem if sized is not None else None

    # -- the work ---------------------------------------------------------------------------------

    def node_reported(self) -> None:
        """There may be somebody new to ask."""
        self._look_now.set()

    def learned(self, names: Iterable[ModelName]) -> None:
        """More is known than before of what these models take."""
        for name in dict.fromkeys(names):
            sized = self._models.get(name)
            if sized is not None and sized.figures is not None:
                self._settle(sized)

    async def work(self) -> None:
        """For ever: ask whoever has to be asked."""
        while True:
            self._look()
            try:
                await asyncio.wait_for(self._look_now.wait(), LOOK_EVERY_S)
            except asyncio.TimeoutError:
                continue
            self._look_now.clear()

    def _look(self) -> None:
        """Most rounds find nothing to do, for a thousand models in a moment."""
        nodes = [node for node in self._nodes() if node.joined]
        kinds = {on_host(node) for node in nodes}
        for sized in list(self._models.values()) if nodes else ():
            due = [kind for kind in kinds if self._is_due(sized, kind)]
            if not sized.entry.can_be_estimated or (sized.figures is not None and not due):
                continue
            able = candidates(sized.entry, nodes)
            for kind in due:
                if of_kind := [node for node in able if on_host(node) is kind]:
                    self._ask(sized, of_kind, kind)
            if sized.figures is None:
                self._settle(sized, believe=not able)

    def _is_due(self, sized: Sized, kind: bool) -> bool:
        backend = sized.entry.requires.backend
        if backend is not None and (backend is Backend.CPU) is not kind:
            return False
        if kind in sized.asking or (kind in sized.answers and kind not in sized.old):
            return False
        return kind not in sized.problems or time.monotonic() >= sized.again_s

    def _ask(self, sized: Sized, nodes: list[KnownNode], kind: bool) -> None:
        sized.asking.add(kind)
        if sized.asked_s is None:
            sized.asked_s = time.monotonic()
        task = asyncio.get_running_loop().create_task(self._answered(sized, nodes, kind))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answered(self, sized: Sized, nodes: list[KnownNode], kind: bool) -> None:
        answer = await self._asking.of(sized.entry, nodes, kind)
        sized.asking.discard(kind)
        if self._models.get(sized.entry.name) is not sized:
            return  # another catalog was deployed meanwhile
        if answer.problem:
            sized.problems[kind] = answer.problem
            sized.again_s = time.monotonic() + sized.pause_s
            sized.pause_s = min(2 * sized.pause_s, ASK_AGAIN_S_MAX)
        else:
            sized.problems.pop(kind, None)
            sized.old.discard(kind)
            sized.pause_s = ASK_AGAIN_S
            sized.answers[kind] = answer
            await self._keep(sized.entry.name, _written(sized))  # first: a replica must not outlive what is known
        self._settle(sized)

    def _settle(self, sized: Sized, believe: bool = False) -> None:
        """Draw the conclusion from what is known by now. `believe`: what the entry says, though nobody was asked."""
        before = (sized.figures, sized.problem)
        sized.figures = self._figures(sized, believe)
        sized.problem = self._problem(sized, nobody_to_ask=believe)
        if sized.figures is None and sized.problem is None:
            sized.settled.clear()
            return
        sized.settled.set()
        if before != (sized.figures, sized.problem):
            self._changed(ModelName(sized.entry.name))

    def _figures(self, sized: Sized, believe: bool) -> Figures | None:
        entry = sized.entry
        if not entry.says_memory and not sized.answers:
            return None
        in_time = sized.asked_s is None or time.monotonic() < sized.asked_s + CHECK_WITHIN_S
        unchecked = entry.can_be_estimated and not entry.trust and not sized.answers
        if unchecked and not believe and in_time and not sized.problems and sized.figures is None:
            return None
        types = device_types(entry, candidates(entry, self._nodes()))
        learned = {count: self._learned(sized, count, types) for count in entry.device_counts}
        return figures_of(entry, sized.answers.values(), learned, types)

    def _learned(self, sized: Sized, count: int, types: frozenset[str]) -> dict[str, Learned]:
        runs: dict[str, Learned] = {}
        for answer in list(sized.answers.values()) or [SizeAnswer()]:
            for kind in sorted(types):
                run = self._learning.known(_key(sized.entry, count, kind, answer))
                if run is not None:
                    runs[kind] = run
        return runs

    def _problem(self, sized: Sized, nobody_to_ask: bool) -> Reply | None:
        name, figures = sized.entry.name, sized.figures
        if figures is not None:
            if not figures.refusal:
                return None
            refused = rejection(RejectCode.NEVER_FITS, figures.refusal)
            return {**refused, "code": REFUSED_CODE, "status": REFUSED_STATUS}
        if sized.entry.says_memory:
            return None
        if nobody_to_ask:
            what = f"{name} says no memory, and no node here that it could run on can estimate it"
            return rejection(RejectCode.NEVER_FITS, f"{what}; add such a node, or mend its `requires`")
        if not sized.problems or sized.asking - sized.problems.keys():
            return None
        told = "; ".join(dict.fromkeys(sized.problems.values()))
        message = f"{name} says no memory, and its files cannot be estimated: {told}. Mend that, or add memory"
        return rejection(RejectCode.LOAD_FAILED, message, max(1, round(sized.again_s - time.monotonic())))

    # -- for people -------------------------------------------------------------------------------

    def status(self, name: str) -> dict[str, Any]:
        """What is believed of a model's memory and why: the value of `memory` in its status."""
        sized = self._models.get(name)
        figures = sized.figures if sized is not None else None
        problem = sized.problem if sized is not None else None
        by_count = figures.by_count if figures is not None else {}
        return {
            "known": figures is not None and not figures.refusal,
            "problem": problem["message"] if problem is not None else None,
            "by_count": [_told(figure) for _, figure in sorted(by_count.items())],
        }


def _told(figure: Figure) -> dict[str, Any]:
    estimate, learned = figure.estimate, figure.learned
    return {
        "count": figure.count,
        "reserved_bytes": figure.reserved_bytes,
        "source": str(figure.source),
        "stated_bytes": figure.stated_bytes,
        "estimated_bytes": estimate.each_bytes if estimate is not None else None,
        "parts_bytes": dict(estimate.parts_bytes) if estimate is not None else {},
        "measured_bytes": learned.most_bytes if learned is not None else None,
        "exercised": learned.exercised if learned is not None else False,
    }


def _key(entry: ModelEntry, count: int, device_type: str, answer: SizeAnswer) -> str:
    kind = device_type if count else HOST_TYPE
    return memory_key(entry.engine.value, entry.engine_fields(), count, kind, answer.digest, answer.version)


def fingerprint_of(entry: ModelEntry) -> str:
    """What of an entry decides what its files say."""
    told = [entry.engine.value, entry.engine_fields(), entry.device_counts]
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()[:32]


def _written(sized: Sized) -> str:
    answers = {str(int(kind)): asdict(answer) for kind, answer in sized.answers.items()}
    return json.dumps({"fingerprint": sized.fingerprint, "answers": answers}, sort_keys=True)


def _read(text: str, fingerprint: str) -> dict[bool, SizeAnswer] | None:
    """The answers to the same question before; None where there are none, or another version wrote them."""
    try:
        told = json.loads(text)
        if told["fingerprint"] != fingerprint:
            return None
        return {kind == "1": _answer(each) for kind, each in told["answers"].items()}
    except (ValueError, KeyError, TypeError):
        return None


def _answer(told: Mapping[str, Any]) -> SizeAnswer:
    estimates = {int(count): DeviceEstimate(**each) for count, each in told["estimates"].items()}
    return replace(SizeAnswer(**told), estimates=estimates)
