"""The picture of a simulated run, for people."""

from __future__ import annotations

from rayscheduler.cli.timeline import timelines
from rayscheduler.config.scenario import scenario_from_text
from rayscheduler.simulation.simulate import simulate


def test_a_picture_shows_who_slept_and_when() -> None:
    text = """
nodes: [{name: n1, backend: nvidia, devices: 1x80GiB, memory: 200GiB}]
models:
  - {name: a, memory: 60GiB, simulate: {load: 10s, wake: 1s}}
  - {name: b, memory: 60GiB, simulate: {load: 10s, wake: 1s}}
events:
  - {at: 0s, request: r1, model: a, duration: 1s}
  - {at: 30s, request: r2, model: b, duration: 1s}
  - {at: 60s, request: r3, model: a, duration: 1s}
"""
    scenario = scenario_from_text(text)
    lines = list(simulate(scenario))
    (panel,) = timelines(scenario, lines[:-1])
    first, second, _ = str(panel.renderable).splitlines()
    asleep = first.count("·")
    assert first.strip("a#1 ").replace("█", "").replace("·", "") == ""
    assert first.index("·") < first.rindex("█")  # it slept, and woke
    assert 0 < asleep < first.count("█")
    assert "█" in second
