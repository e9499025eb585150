"""What a world does that a scenario file cannot say: slow, late, repeated, lost, restarted.

Rules of this file: values only. A `Story` is a scenario with the faults that strike it; the world in
`unruly.py` lets both happen. Any event or fault may be taken out of a story and the rest still makes
sense, so that a failing one can be shrunk.
"""

from __future__ import annotations

from dataclasses import dataclass

from rayscheduler.core.types import HolderId, Model, ModelName, RequestId
from rayscheduler.simulation.scenario import Scenario

HOLDERS = 3  # gateways


@dataclass(frozen=True, slots=True)
class SlowLoad:
    """The next load of the model takes this much longer."""

    model: ModelName
    extra_ms: int


@dataclass(frozen=True, slots=True)
class SlowExit:
    """The next replica of the model that is stopped holds its memory this much longer."""

    model: ModelName
    extra_ms: int


@dataclass(frozen=True, slots=True)
class SlowSleep:
    """The model's next way to sleep or back takes this much longer."""

    model: ModelName
    extra_ms: int


@dataclass(frozen=True, slots=True)
class SleepFails:
    """The model's next way to sleep or back ends in a crash."""

    model: ModelName


@dataclass(frozen=True, slots=True)
class ExitsUnasked:
    """The model's oldest process ends, politely: it is told as stopped, and nobody had sent a stop."""

    model: ModelName


@dataclass(frozen=True, slots=True)
class LateNews:
    """The next `count` pieces of news from replicas and clients are told that much later."""

    delay_ms: int
    count: int


@dataclass(frozen=True, slots=True)
class Echo:
    """Something that was told `back` pieces of news ago is told again. `of_replicas`: counting theirs alone."""

    back: int
    of_replicas: bool = False


@dataclass(frozen=True, slots=True)
class Restart:
    """The allocator dies and is back, with what it finds, `down_ms` later.

    `loses_decisions`: it dies at the next decisions it makes, before anybody acts on them.
    """

    down_ms: int
    loses_decisions: bool = False


@dataclass(frozen=True, slots=True)
class HolderDies:
    """A gateway dies with all its requests; another takes its place. `index` counts gateways from 0."""

    index: int


@dataclass(frozen=True, slots=True)
class Redeploy:
    """A catalog entry is new, again there, or has changed."""

    model: Model


@dataclass(frozen=True, slots=True)
class Nudge:
    """`Woken`, though nothing is due."""


Fault = (
    SlowLoad
    | SlowExit
    | SlowSleep
    | SleepFails
    | ExitsUnasked
    | LateNews
    | Echo
    | Restart
    | HolderDies
    | Redeploy
    | Nudge
)


@dataclass(frozen=True, slots=True)
class FaultAt:
    at_ms: int
    what: Fault


@dataclass(frozen=True, slots=True)
class Story:
    """One run: what happens until `heal_ms`, and how the messenger is.

    `batches`: all that is told at one instant is told in one call. `racy`: a replica that is stopped while
    it loads, goes to sleep or wakes says that it is done all the same. `stutters`: while a replica loads, its
    predecessor's "ready" is told again; while it goes to sleep or wakes, the news of its last nap.
    `wake_late_ms`: how late the scheduler is woken. `bound_ms`: how long after `heal_ms` the last request may wait.
    """

    seed: int
    scenario: Scenario
    faults: tuple[FaultAt, ...] = ()
    heal_ms: int = 0
    bound_ms: int = 600_000
    batches: bool = False
    racy: bool = False
    stutters: bool = False
    wake_late_ms: int = 0


def holder_index(request: RequestId) -> int:
    """Through which gateway a request came."""
    return sum(request.encode()) % HOLDERS


def holder_name(index: int, generation: int) -> HolderId:
    return HolderId(f"gateway-{index}.{generation}")
