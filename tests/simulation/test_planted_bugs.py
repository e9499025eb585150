"""Test the tests: known mistakes are planted in the real core, one at a time, and the seeds must catch each.

Rules of this file: a mistake is one that somebody could make, and its name says which. It counts as caught
when one of the first fifty seeds fails; that all of them pass without it is the business of `test_seeds.py`.
"""

from __future__ import annotations

import pytest

from rayscheduler.simulation.seeds import story_of
from rayscheduler.simulation.shrink import failure_of
from tests.simulation import mistakes_of_memory, mistakes_of_service, mistakes_of_sleep
from tests.simulation.planting import MISTAKES

SEEDS = 50
MISTAKES_AT_LEAST = 40


@pytest.mark.parametrize("name", sorted(MISTAKES))
def test_a_planted_mistake_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    MISTAKES[name](monkeypatch)
    caught = next((seed for seed in range(SEEDS) if failure_of(story_of(seed)) is not None), None)
    assert caught is not None, f"{name}: none of {SEEDS} seeds fails"


def test_there_are_mistakes_of_each_kind() -> None:
    """Importing a module of mistakes is what registers them; one that is not imported would test nothing."""
    homes = {plant.__module__ for plant in MISTAKES.values()}
    assert homes == {kind.__name__ for kind in (mistakes_of_memory, mistakes_of_service, mistakes_of_sleep)}
    assert len(MISTAKES) >= MISTAKES_AT_LEAST
