"""The event log tells all that is needed to decide again, and to ask what another cluster would have done."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rayscheduler.cluster.event_log import EventLog
from rayscheduler.config.scenario import load_scenario, scenario_from_text
from rayscheduler.core import events as ev
from rayscheduler.core.decisions import StartReplica
from rayscheduler.core.scheduler import Scheduler
from rayscheduler.core.types import SleepTraits
from rayscheduler.core.wire import WireError, decode, encode
from rayscheduler.simulation.simulate import simulate
from rayscheduler.simulation.trace import Difference, TraceError, entry, header, replay, restored, scenario_of
from rayscheduler.simulation.world import World

SCENARIOS = Path(__file__).parent / "scenarios"
TWO_TAKE_TURNS = """
nodes: [{name: n1, backend: nvidia, devices: 1x80GiB}]
models:
  - {name: a, memory: 60GiB, simulate: {load: 2s, unload: 1s}}
  - {name: b, memory: 60GiB, simulate: {load: 3s, unload: 1s}}
events:
  - {at: 0s, request: r1, model: a, duration: 5s}
  - {at: 1s, request: r2, model: b, duration: 5s}
  - {at: 2s, request: r3, model: b}
  - {at: 3s, cancel: r3}
"""


class Recorder(Scheduler):
    """A scheduler that writes down what it is told and what it decides, as the allocator does."""

    def __init__(self, scheduler: Scheduler) -> None:
        super().__init__(scheduler.settings)
        self.lines: list[dict[str, Any]] = [header(scheduler.settings), restored(0, [])]

    def handle_batch(self, events: Any, now_ms: int) -> Any:
        batch = list(events)
        decisions = super().handle_batch(batch, now_ms)
        self.lines.append(json.loads(json.dumps(entry(now_ms, batch, decisions))))
        return decisions


def recorded(text: str) -> list[dict[str, Any]]:
    world = World(scenario_from_text(text))
    world.scheduler = recorder = Recorder(world.scheduler)
    for _ in world.run(lambda at_ms, what: None):
        pass
    return recorder.lines


def test_a_log_decides_the_same_again() -> None:
    lines = recorded(TWO_TAKE_TURNS)
    assert list(replay(lines)) == [len(lines) - 2]


def test_a_decision_that_was_another_then_is_found() -> None:
    lines = recorded(TWO_TAKE_TURNS)
    at = next(i for i, line in enumerate(lines) if any(d["is"] == "Grant" for d in line.get("decisions", [])))
    lines[at]["decisions"] = []
    found = list(replay(lines))
    assert isinstance(found[0], Difference)
    assert found[0].line == at + 1
    assert "Grant" in found[0].decided[0]


def test_the_traffic_of_a_log_on_a_larger_cluster() -> None:
    other = scenario_from_text("nodes: [{name: big, backend: nvidia, devices: 2x80GiB}]")
    lines = list(simulate(scenario_of(recorded(TWO_TAKE_TURNS), other)))
    starts = [(line["at_ms"], line["replica"], line["devices"]) for line in lines if line.get("decision") == "start"]
    assert starts == [(0, "a#1", ["big/0"]), (1000, "b#1", ["big/1"])]  # nobody has to make way
    summary = lines[-1]["summary"]
    assert (summary["granted"], summary["rejected"], summary["evictions"]) == (2, 1, 0)


def test_a_log_whose_beginning_is_gone_says_so() -> None:
    lines = recorded(TWO_TAKE_TURNS)
    with pytest.raises(TraceError, match="rotated away"):
        list(replay([lines[0], *lines[2:]]))
    with pytest.raises(TraceError, match="a log begins with"):
        list(replay(lines[1:]))


@pytest.mark.parametrize("name", ["serial-strict-order", "capability-mixed", "plan-explains"])
def test_everything_survives_the_wire(name: str) -> None:
    scenario = load_scenario(SCENARIOS / f"{name}.yaml")
    for value in [*World(scenario).start_state(), scenario.settings]:
        assert decode(json.loads(json.dumps(encode(value)))) == value


@pytest.mark.parametrize(
    "data", [None, [], {"is": "Nothing"}, {"is": "NodeLost", "node": 3}, {"is": "NodeLost", "nodes": "n1"}, {"is": []}]
)
def test_what_is_no_event_is_refused(data: object) -> None:
    with pytest.raises(WireError):
        decode(data)


def test_the_files_rotate_and_each_begins_with_the_header(tmp_path: Path) -> None:
    path = tmp_path / "log" / "events.jsonl"
    scheduler = Scheduler(World(scenario_from_text(TWO_TAKE_TURNS)).scheduler.settings)
    log = EventLog(path, scheduler.settings, bytes_max=2000, keep=50)
    log.restored(0, [])
    for number in range(100):
        events = [ev.RequestArrived(f"r{number}", "nobody")]
        log.handled(number, events, scheduler.handle_batch(events, number))
    log.close()
    parts = [path, *(path.with_name(f"{path.name}.{n}") for n in range(1, 50))]
    there = [part for part in parts if part.exists()]
    assert len(there) > 3
    lines = [json.loads(line) for part in reversed(there) for line in part.read_text().splitlines()]
    assert all(json.loads(part.read_text().splitlines()[0]) == header(scheduler.settings) for part in there)
    assert list(replay(lines)) == [100]
    assert not any(isinstance(decode(d), StartReplica) for line in lines for d in line.get("decisions", []))


TWO_SLEEP_IN_TURNS = """
nodes: [{name: n1, backend: nvidia, devices: 1x80GiB, memory: 200GiB}]
models:
  - {name: a, memory: 60GiB, sleep: {residue: 1GiB}, simulate: {load: 2s, sleep: 1s, wake: 300ms}}
  - {name: b, memory: 60GiB, simulate: {load: 3s, wake: 300ms}}
replicas:
  - {model: a, devices: [n1/0], state: asleep}
events:
  - {at: 0s, request: r1, model: b, duration: 1s}
  - {at: 9s, request: r2, model: a, duration: 1s}
"""


def test_a_log_of_sleepers_decides_the_same_again_and_elsewhere() -> None:
    lines = recorded(TWO_SLEEP_IN_TURNS)
    kinds = {decision["is"] for line in lines for decision in line.get("decisions", [])}
    assert {"SleepReplica", "WakeReplica"} <= kinds
    assert list(replay(lines)) == [len(lines) - 2]
    other = scenario_from_text("nodes: [{name: n1, backend: nvidia, devices: 1x80GiB}]")
    traits = {model.name: model.sleep for model in scenario_of(lines, other).models}
    assert traits == {"a": SleepTraits(1000, 300, 1 << 30), "b": SleepTraits(0, 300)}
