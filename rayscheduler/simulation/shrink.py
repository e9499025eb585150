"""A failing seed, told so that a person can see what went wrong: the least of its story that still fails.

Rules of this file: a story is shrunk by taking things away (events, faults, replicas, models, nodes) as long
as the *same rule* breaks; nothing is ever added. A shrunk story is printed with everything that the
scheduler was told and decided, up to the wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from enum import Enum
from typing import Any, TypeVar

from rayscheduler.core.types import Settings
from rayscheduler.simulation.faults import Story
from rayscheduler.simulation.seeds import story_of
from rayscheduler.simulation.truth import Entry
from rayscheduler.simulation.unruly import UnrulyWorld
from rayscheduler.simulation.violation import Violation

RUNS_AT_MOST = 1_500
LINES_AT_MOST = 150
GIB = 1 << 30

Part = TypeVar("Part")


@dataclass(frozen=True, slots=True)
class Failure:
    """`rule`: which rule broke, or the kind and the place of what the core raised."""

    story: Story
    rule: str
    told: str
    log: tuple[Entry, ...]


def failure_of(story: Story) -> Failure | None:
    """Run a story; what went wrong, if anything did."""
    world = UnrulyWorld(story)
    try:
        world.run()
    except Violation as wrong:
        return Failure(story, wrong.rule, wrong.told, tuple(world.truth.log))
    except Exception as wrong:  # whatever the core raises on legal input is a failure of the core
        return Failure(story, f"{type(wrong).__name__} in {_place(wrong)}", str(wrong), tuple(world.truth.log))
    return None


def _place(wrong: Exception) -> str:
    trace = wrong.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace.tb_frame.f_code.co_name if trace is not None else "nowhere"


# -- shrinking ------------------------------------------------------------------------------------


class Shrinker:
    """Takes parts away in ever smaller pieces while the failure stays."""

    def __init__(self, failure: Failure) -> None:
        self.failure = failure
        self.runs_left = RUNS_AT_MOST

    def shrink(self) -> Failure:
        size = -1
        while size != _size(self.failure.story) and self.runs_left > 0:
            size = _size(self.failure.story)
            self._fewer(lambda s: s.faults, lambda s, left: replace(s, faults=left))
            self._fewer(lambda s: s.scenario.events, lambda s, left: _with(s, events=left))
            self._fewer(lambda s: s.scenario.replicas, lambda s, left: _with(s, replicas=left))
            self._fewer(lambda s: s.scenario.models, lambda s, left: _with(s, models=left))
            self._fewer(lambda s: s.scenario.nodes, lambda s, left: _with(s, nodes=left))
            for plainer in ({"batches": False}, {"racy": False}, {"stutters": False}, {"wake_late_ms": 0}):
                self._try(replace(self.failure.story, **plainer))
        return self.failure

    def _try(self, story: Story) -> bool:
        if self.runs_left <= 0 or story == self.failure.story:
            return False
        self.runs_left -= 1
        found = failure_of(story)
        if found is None or found.rule != self.failure.rule:
            return False
        self.failure = found
        return True

    def _fewer(
        self, parts: Callable[[Story], tuple[Part, ...]], with_parts: Callable[[Story, tuple[Part, ...]], Story]
    ) -> None:
        """Without a half, without each quarter, ... without each single part."""
        length = len(parts(self.failure.story))
        while length >= 1:
            at = 0
            while at < len(parts(self.failure.story)):
                left = parts(self.failure.story)
                if not self._try(with_parts(self.failure.story, left[:at] + left[at + length :])):
                    at += length
            length //= 2


def _with(story: Story, **changes: Any) -> Story:
    """The story with a smaller scenario: replicas of what is not there any more go too."""
    scenario = replace(story.scenario, **changes)
    models = {model.name for model in scenario.models}
    nodes = {node.name for node in scenario.nodes}
    kept = tuple(r for r in scenario.replicas if r.model in models and nodes.issuperset(r.placement.nodes))
    return replace(story, scenario=replace(scenario, replicas=kept))


def _size(story: Story) -> int:
    scenario = story.scenario
    return len(story.faults) + sum(map(len, (scenario.events, scenario.replicas, scenario.models, scenario.nodes)))


# -- telling --------------------------------------------------------------------------------------


def report(seed: int) -> str | None:
    """None where the seed passes; else the seed, what broke, the shrunk story and what happened in it."""
    failure = failure_of(story_of(seed))
    return None if failure is None else told(failure)


def told(failure: Failure) -> str:
    """A failure, shrunk, for people."""
    small = Shrinker(failure).shrink()
    lines = [
        f"seed {failure.story.seed} fails: [{failure.rule}] {failure.told}",
        f"shrunk from {_size(failure.story)} parts to {_size(small.story)}: [{small.rule}] {small.told}",
        *_story_lines(small.story),
        "what happened:",
        *(_entry_line(entry) for entry in small.log[-LINES_AT_MOST:]),
    ]
    return "\n".join(lines)


def _story_lines(story: Story) -> list[str]:
    scenario = story.scenario
    lines = [f"  {said(scenario.settings)}"] if scenario.settings != Settings() else []
    lines.extend(f"  {said(node)}" for node in scenario.nodes)
    lines.extend(f"  {said(m)} unload_ms={scenario.unload_ms.get(m.name, 0)}" for m in scenario.models)
    lines.extend(f"  {said(replica)}" for replica in scenario.replicas)
    happenings = [(at.at_ms, 0, said(at.what)) for at in scenario.events]
    happenings.extend((at.at_ms, 1, said(at.what)) for at in story.faults)
    lines.extend(f"  at {at_ms} ms: {what}" for at_ms, _, what in sorted(happenings))
    how = [name for name in ("batches", "racy", "stutters", "wake_late_ms") if getattr(story, name)]
    lines.append(f"  healed at {story.heal_ms} ms; bound {story.bound_ms} ms; {', '.join(how) or 'plain'}")
    return lines


def _entry_line(entry: Entry) -> str:
    events = ", ".join(said(event) for event in entry.events) or "nothing"
    decisions = "; ".join(said(decision) for decision in entry.decisions)
    return f"  {entry.at_ms:>7} ms  {events}  ->  {decisions or '-'}"


def said(value: object) -> str:
    """A value as its name and the fields that are not as usual."""
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1 << 26:
        return f"{value / GIB:.6g}GiB"
    if is_dataclass(value):
        parts = []
        for each in fields(value):
            inner = getattr(value, each.name)
            usual = each.default_factory() if each.default_factory is not MISSING else each.default
            if inner != usual and each.name != "why":
                parts.append(f"{each.name}={said(inner)}")
        return f"{type(value).__name__}({' '.join(parts)})"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{said(key)}: {said(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, (frozenset, set)):
        return "{" + ", ".join(sorted(said(inner) for inner in value)) + "}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "(" + ", ".join(said(inner) for inner in value) + ")"
    return str(value)
