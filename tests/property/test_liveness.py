"""Promises 3 and 4: after the trouble, everything finishes.

First anything may happen; then all is healed, loads become ready, requests end and time passes. Nobody may
be left waiting whose model fits the cluster beside what is pinned.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayscheduler.core.types import PolicyName
from tests.property.clusters import Cluster, clusters
from tests.property.dice import dice
from tests.property.oracle import Picture, fits
from tests.property.traffic import Traffic


def without_minimum(cluster: Cluster) -> Cluster:
    """A request that needs the room of `replicas.min` waits for ever, by the rules."""
    return replace(cluster, models=tuple(replace(model, replicas_min=0) for model in cluster.models))


@pytest.mark.parametrize("policy", list(PolicyName))
@settings(max_examples=60)
@given(st.data())
def test_a_request_that_can_be_served_some_day_is(policy: PolicyName, data: st.DataObject) -> None:
    traffic = Traffic(without_minimum(data.draw(clusters(policy))))
    traffic.run(data.draw(dice(60, 300)))
    traffic.heal()
    traffic.come_to_rest()
    seen = traffic.scheduler.snapshot(traffic.now_ms)
    emptied = Picture(seen, seen.replicas, traffic.cluster.settings).emptied()
    for request in traffic.books.waiting():
        name = traffic.books.requests[request].model
        pinned = any(r.model == name and r.pinned for r in seen.replicas)
        assert not fits(emptied, traffic.books.models[name], ()), f"{request} waits for {name} for ever"
        assert not pinned, f"{request} waits for {name}, which runs"
    assert traffic.books.granted() == []
    assert {r.state for r in seen.replicas} <= {"RUNNING"}
