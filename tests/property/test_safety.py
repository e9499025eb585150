"""Promises 1, 2, 3 and 5 under random trouble, judged by books that see events and decisions only."""

from __future__ import annotations

from hypothesis import given, settings

from rayscheduler.core.types import PolicyName
from tests.property.clusters import Cluster, clusters
from tests.property.dice import Dice, dice
from tests.property.traffic import Traffic


@settings(max_examples=300)
@given(clusters(PolicyName.FIFO), dice(100, 400))
def test_nothing_bad_happens_under_fifo(cluster: Cluster, program: Dice) -> None:
    Traffic(cluster).run(program)
