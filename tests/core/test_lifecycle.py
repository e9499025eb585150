"""The lifecycle: the transition table is the machine."""

from __future__ import annotations

from collections import deque
from itertools import product

import pytest

from rayscheduler.core.lifecycle import TRANSITIONS, InvalidTransition, State, checked

ALLOWED = {
    (State.PENDING, State.STARTING),
    (State.PENDING, State.STOPPED),
    (State.STARTING, State.RUNNING),
    (State.STARTING, State.STOPPING),
    (State.STARTING, State.STOPPED),
    (State.RUNNING, State.DRAINING),
    (State.RUNNING, State.STOPPING),
    (State.RUNNING, State.STOPPED),
    (State.RUNNING, State.SUSPENDING),
    (State.DRAINING, State.SUSPENDING),
    (State.DRAINING, State.STOPPING),
    (State.DRAINING, State.STOPPED),
    (State.SUSPENDING, State.ASLEEP),
    (State.SUSPENDING, State.STOPPING),
    (State.SUSPENDING, State.STOPPED),
    (State.ASLEEP, State.ROUSED),
    (State.ASLEEP, State.STOPPING),
    (State.ASLEEP, State.STOPPED),
    (State.ROUSED, State.ASLEEP),
    (State.ROUSED, State.WAKING),
    (State.WAKING, State.RUNNING),
    (State.WAKING, State.STOPPING),
    (State.WAKING, State.STOPPED),
    (State.STOPPING, State.STOPPED),
}


def test_every_state_has_its_row() -> None:
    assert set(TRANSITIONS) == set(State)


@pytest.mark.parametrize(("before", "after"), list(product(State, State)))
def test_the_table(before: State, after: State) -> None:
    """DESIGN 3: "Replica states, one table, no transition outside it"."""
    if (before, after) in ALLOWED:
        assert checked("a#1", before, after) is after
    else:
        with pytest.raises(InvalidTransition):
            checked("a#1", before, after)


def test_every_state_leads_to_the_end() -> None:
    for state in State:
        reached, todo = set(), deque([state])
        while todo:
            here = todo.popleft()
            if here not in reached:
                reached.add(here)
                todo.extend(TRANSITIONS[here])
        assert State.STOPPED in reached


def test_an_invalid_transition_carries_the_story_of_the_replica() -> None:
    with pytest.raises(InvalidTransition, match=r"a#1: STOPPED -> RUNNING .*0 ms STARTING; 5 ms STOPPED"):
        checked("a#1", State.STOPPED, State.RUNNING, ("0 ms STARTING", "5 ms STOPPED"))
