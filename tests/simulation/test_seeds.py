"""Three hundred seeds: clusters, models, traffic and faults that nobody would think of, and nothing goes wrong.

Each seed is a story (`rayscheduler/simulation/seeds.py`). While faults are on, the core's own `validate()`
and the checkers outside it look on at every event; when they are healed, everything that waits must end.
A seed that fails prints itself and the least part of its story that still fails. `python -m
tests.simulation.soak --seed N` runs one again, `make soak` runs as many as there is time for.
"""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from typing import get_args

import pytest

from rayscheduler.core import events as ev
from rayscheduler.core.decisions import Reject, StopReplica
from rayscheduler.core.types import PolicyName, RejectCode, StopReason
from rayscheduler.simulation import faults as ft
from rayscheduler.simulation.seeds import story_of
from rayscheduler.simulation.shrink import Shrinker, failure_of, report, said
from rayscheduler.simulation.truth import Entry
from rayscheduler.simulation.unruly import run

SEEDS = 300
A_GROUP = 25


@pytest.mark.parametrize("first", range(0, SEEDS, A_GROUP))
def test_nothing_goes_wrong(first: int) -> None:
    for seed in range(first, first + A_GROUP):
        wrong = report(seed)
        if wrong is not None:
            pytest.fail(wrong, pytrace=False)


def in_words(log: list[Entry]) -> list[str]:
    return [f"{entry.at_ms} {said(entry.events)} {said(entry.decisions)}" for entry in log]


def test_a_seed_is_the_same_story_each_time() -> None:
    for seed in range(11):
        assert story_of(seed) == story_of(seed)
        assert in_words(run(story_of(seed)).truth.log) == in_words(run(story_of(seed)).truth.log)


def test_equal_events_give_equal_decisions_in_every_process() -> None:
    """Also where strings hash to other numbers, so that no order of a set can be seen from outside."""
    program = (
        "import hashlib\n"
        "from rayscheduler.simulation.seeds import story_of\n"
        "from rayscheduler.simulation.unruly import run\n"
        "logs = [run(story_of(seed)).truth.log for seed in range(15)]\n"
        "told = [(e.at_ms, [repr(d) for d in e.decisions]) for log in logs for e in log]\n"
        "print(hashlib.sha256(repr(told).encode()).hexdigest())\n"
    )
    digests = set()
    for hash_seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", program], env={"PYTHONHASHSEED": hash_seed}, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        digests.add(done.stdout)
    assert len(digests) == 1


def test_the_seeds_go_everywhere() -> None:
    """A simulation in which little happens finds little: every fault, verb, answer and reason must occur."""
    kinds: Counter[str] = Counter()
    for seed in range(SEEDS // 2):
        story = story_of(seed)
        kinds[f"policy {story.scenario.settings.policy}"] += 1
        kinds.update({type(at.what).__name__ for at in (*story.faults, *story.scenario.events)})
        for entry in run(story).truth.log:
            kinds.update(type(event).__name__ for event in entry.events)
            for decision in entry.decisions:
                kinds[type(decision).__name__] += 1
                if isinstance(decision, StopReplica):
                    kinds[f"stop {decision.reason}"] += 1
                if isinstance(decision, Reject):
                    kinds[f"reject {decision.code}"] += 1
    wanted = {f"policy {policy}" for policy in PolicyName}
    wanted |= {f"stop {reason}" for reason in StopReason}
    wanted |= {f"reject {code}" for code in RejectCode if code is not RejectCode.REPLICA_LOST}  # the gateway's own
    wanted |= {kind.__name__ for kind in (*get_args(ev.Event), *get_args(ft.Fault))}
    wanted.discard("ReplicaFound")  # told to `restore`, not to `handle`: `Restart` stands for it
    assert wanted - kinds.keys() == set()
    seldom = {kind: count for kind, count in kinds.items() if kind in wanted and count < 2}
    assert seldom == {}


def test_a_failing_seed_is_shrunk_to_its_point(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a scheduler that never wakes a waiting load, a handful of events tells the story."""
    monkeypatch.setattr("rayscheduler.core.fleet.Fleet.start_ready", lambda self, now_ms: True)
    failure = next(found for seed in range(50) if (found := failure_of(story_of(seed))) is not None)
    small = Shrinker(failure).shrink()
    assert small.rule == failure.rule
    assert len(small.story.scenario.events) <= 6
    assert len(small.story.scenario.models) <= 3
    text = report(failure.story.seed)
    assert text is not None
    assert text.startswith(f"seed {failure.story.seed} fails: [{failure.rule}]")
    assert "what happened:" in text
