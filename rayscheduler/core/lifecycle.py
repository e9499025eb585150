"""The states of a replica, and the one table of transitions between them.

    PENDING ──► STARTING ──► RUNNING ──► DRAINING ──► STOPPING ──► STOPPED
       │            │           │  └────────────────────▲   ▲          ▲
       │            └───────────┼────────────────────────────┘          │
       └────────────────────────┴──────(given up, failed, node lost)────┘

and, where a model can sleep, a place between loaded and gone (whatever is there may also stop, or end):

    RUNNING, DRAINING ──► SUSPENDING ──► ASLEEP ◄──► ROUSED ──► WAKING ──► RUNNING

A failure is a reason with a back-off, not a state.
"""

from __future__ import annotations

from collections.abc import Mapping

from rayscheduler.core.types import Word


class State(Word):
    PENDING = "PENDING"  # room is promised, victims are still leaving
    STARTING = "STARTING"
    RUNNING = "RUNNING"
    DRAINING = "DRAINING"  # serves what it has, takes nothing new
    SUSPENDING = "SUSPENDING"  # it was told to sleep, and has not confirmed it
    ASLEEP = "ASLEEP"  # its weights rest in host memory
    ROUSED = "ROUSED"  # asleep, and promised room to wake: victims are still leaving
    WAKING = "WAKING"  # it was told to wake
    STOPPING = "STOPPING"  # the stop is sent, the exit is not confirmed
    STOPPED = "STOPPED"


PROMISED = (State.PENDING, State.ROUSED)  # room is promised, and nothing was told to anybody yet
COMING = (State.PENDING, State.STARTING, State.ROUSED, State.WAKING)  # on the way to RUNNING
LEAVING = (State.DRAINING, State.SUSPENDING, State.STOPPING)  # on the way out of its devices

TRANSITIONS: Mapping[State, frozenset[State]] = {
    State.PENDING: frozenset({State.STARTING, State.STOPPED}),
    State.STARTING: frozenset({State.RUNNING, State.STOPPING, State.STOPPED}),
    State.RUNNING: frozenset({State.DRAINING, State.SUSPENDING, State.STOPPING, State.STOPPED}),
    State.DRAINING: frozenset({State.SUSPENDING, State.STOPPING, State.STOPPED}),
    State.SUSPENDING: frozenset({State.ASLEEP, State.STOPPING, State.STOPPED}),
    State.ASLEEP: frozenset({State.ROUSED, State.STOPPING, State.STOPPED}),
    State.ROUSED: frozenset({State.WAKING, State.ASLEEP}),
    State.WAKING: frozenset({State.RUNNING, State.STOPPING, State.STOPPED}),
    State.STOPPING: frozenset({State.STOPPED}),
    State.STOPPED: frozenset(),
}


class InvalidTransition(AssertionError):
    """The scheduler tried a transition that is not in the table: a bug in the core, never in its input."""

    def __init__(self, replica: str, before: State, after: State, story: tuple[str, ...]) -> None:
        told = "; ".join(story) or "no story"
        super().__init__(f"{replica}: {before} -> {after} is not a transition; what happened to it: {told}")


def checked(replica: str, before: State, after: State, story: tuple[str, ...] = ()) -> State:
    """`after`, if the table allows it from `before`; else InvalidTransition with the replica's story."""
    if after not in TRANSITIONS[before]:
        raise InvalidTransition(replica, before, after, story)
    return after
