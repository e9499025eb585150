"""What a good scenario file says, as the core's values."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from rayscheduler.config.scenario import load_scenario, node_from_mapping, scenario_from_text
from rayscheduler.core.types import (
    Backend,
    Device,
    DeviceId,
    Group,
    Node,
    NodeName,
    Pin,
    Placement,
    PolicyName,
    Requirement,
    Settings,
    Strategy,
)
from rayscheduler.errors import ConfigError
from rayscheduler.simulation import scenario as sim

GIB = 2**30
EXAMPLES = sorted((Path(__file__).parent.parent / "simulation" / "scenarios").glob("*.yaml"))

# Every key of the format, as its description shows them (but that names are known and times in order).
EVERYTHING = """
scheduler:
  policy: groups
  placement: pack
  stale_after: 5s
  patience: never
  queue_limit: 7
  tiers: {training: 100, data: 10}
  cpu_models_on_gpu_nodes: false
  groups:
    chat: {members: [a, b], swap: false, exclusive: false, persistent: true}
    rest: {members: [c]}
nodes:
  - name: n1
    backend: nvidia
    type: H100
    devices: [80GiB, {memory: 40GiB, type: A100}]
    cpus: 64
    memory: 512GiB
    labels: {zone: a, rack: 7}
  - {name: n2, backend: rocm, devices: 2x24GiB}
  - {name: c1, backend: cpu, memory: 64GiB, cpus: 0.5}
  - {name: c2, backend: cpu, devices: [64GiB]}
  - {name: c3, backend: cpu}
models:
  - name: a
    memory: 60GiB
    gpus: [1, 2, 4, 8]
    across_nodes: true
    concurrency: 2
    replicas: {min: 2, max: 3}
    idle_timeout: 10m
    pinned: true
    placement: {node: n1, devices: [n1/0]}
    preload: true
    priority: -3
    exclusive: true
    cpus: 1.5
    host_memory: 2GiB
    requires:
      backend: nvidia
      types: [H100, A100]
      device_memory: 40GiB
      total_device_memory: 48GiB
      cpus: 8
      labels: {zone: a, rack: 7}
    simulate: {load: 3s, unload: 200ms}
  - {name: b, memory_per_device: {1: 60GiB, 2: 33GiB, 3: 25GiB}, gpus: [1, 2, 8], aliases: [bee]}
  - {name: c, memory_per_device: {1: 10GiB, 3: 4GiB}}
  - {name: d, memory: 10}
  - {name: etl, memory: 4GiB, gpus: [0], host_memory: 1GiB, replicas: {min: 4}}
replicas:
  - {model: bee, devices: [n2/0], memory: 5GiB, idle: 60s}
  - {model: d, devices: [n2/1], state: starting}
  - {model: b, devices: [n2/0], memory: 5GiB, leases: 1}
  - {model: etl, node: c1}
  - {model: d, devices: [n2/0, n2/1]}
events:
  - {at: 0s, request: r1, model: a, duration: 3s}
  - {at: 0s, request: r2, model: bee, priority: 5}
  - {at: 0s, request: r3, model: a, tier: training}
  - {at: 0s, request: r4, model: a, tier: training, priority: 1, deadline: 5s}
  - {at: 0s, request: 17, model: unheard-of}
  - {at: 1s, cancel: r2}
  - {at: 1s, end: r1}
  - {at: 2s, load: a}
  - {at: 2s, unload: bee}
  - {at: 2s, pin: a}
  - {at: 2s, unpin: nobody}
  - {at: 2s, remove: a}
  - {at: 3s, node_up: {name: n9, backend: nvidia, devices: 1x24GiB}}
  - {at: 3s, node_down: n1}
  - {at: 3s, device_down: n1/0}
  - {at: 3s, observe: {device: n1/0, used_by_others: 30GiB}}
  - {at: 3.5, load_fails: a}
  - {at: 4, crash: a}
  - {at: 9s, shutdown: true}
until: 1h
"""


@pytest.fixture(scope="module")
def everything() -> sim.Scenario:
    return scenario_from_text(EVERYTHING)


def test_settings(everything: sim.Scenario) -> None:
    assert everything.until_ms == 3_600_000
    assert everything.settings == Settings(
        policy=PolicyName.GROUPS,
        strategy=Strategy.PACK,
        stale_after_ms=5000,
        patience_ms=None,
        queue_limit=7,
        tiers={"training": 100, "data": 10},
        cpu_models_on_gpu_nodes=False,
        groups=(
            Group("chat", frozenset({"a", "b"}), swap=False, exclusive=False, persistent=True),
            Group("rest", frozenset({"c"}), swap=True, exclusive=True, persistent=False),
        ),
    )


def test_what_is_left_out_has_the_defaults_of_the_description() -> None:
    scenario = scenario_from_text("models: [{name: a, memory: 8GiB}]")
    assert scenario.settings == Settings()
    assert (scenario.settings.patience_ms, scenario.settings.queue_limit) == (60_000, 1000)
    model = scenario.models[0]
    assert model.requirement == Requirement(bytes_by_count={1: 8 * GIB, 2: 4 * GIB, 4: 2 * GIB, 8: GIB})
    assert (model.concurrency, model.replicas_min, model.replicas_max, model.load_ms) == (1, 0, 1, 1000)
    assert (model.idle_timeout_ms, model.pinned, model.pin, model.preload, model.priority) == (
        None,
        False,
        None,
        False,
        0,
    )
    assert scenario.unload_ms == {"a": 0}
    assert (scenario.nodes, scenario.replicas, scenario.events, scenario.until_ms) == ((), (), (), None)


def test_nodes(everything: sim.Scenario) -> None:
    n1, n2, c1, c2, c3 = everything.nodes
    assert n1 == Node(
        name=NodeName("n1"),
        backend=Backend.NVIDIA,
        devices=(
            Device(DeviceId("n1/0"), 80 * GIB, type="H100"),
            Device(DeviceId("n1/1"), 40 * GIB, type="A100"),
        ),
        millicpus=64_000,
        memory_bytes=512 * GIB,
        labels={"zone": "a", "rack": "7"},
    )
    assert [device.capacity_bytes for device in n2.devices] == [24 * GIB] * 2
    assert (n2.millicpus, n2.memory_bytes, n2.devices[0].type) == (None, None, "")
    assert (c1.devices, c1.device_is_host_memory) == ((Device(DeviceId("c1/0"), 64 * GIB),), True)
    assert (c1.memory_bytes, c1.millicpus) == (64 * GIB, 500)
    assert (len(c2.devices), c2.device_is_host_memory, c2.memory_bytes) == (1, False, None)
    assert (c3.devices, c3.device_is_host_memory) == ((), False)


def test_models(everything: sim.Scenario) -> None:
    a, b, c, d, etl = everything.models
    assert a.requirement == Requirement(
        bytes_by_count={1: 60 * GIB, 2: 30 * GIB, 4: 15 * GIB, 8: 15 * GIB // 2},
        across_nodes=True,
        exclusive=True,
        backend=Backend.NVIDIA,
        types=("H100", "A100"),
        device_memory_bytes=40 * GIB,
        total_device_memory_bytes=48 * GIB,
        node_millicpus=8000,
        labels={"zone": "a", "rack": "7"},
        millicpus=1500,
        host_memory_bytes=2 * GIB,
    )
    assert (a.concurrency, a.replicas_min, a.replicas_max, a.idle_timeout_ms) == (2, 2, 3, 600_000)
    assert (a.pinned, a.pin, a.preload, a.priority) == (True, Pin(NodeName("n1"), (DeviceId("n1/0"),)), True, -3)
    assert (a.load_ms, everything.unload_ms["a"]) == (3000, 200)
    assert b.requirement.bytes_by_count == {1: 60 * GIB, 2: 33 * GIB}  # counts that both name
    assert c.requirement.bytes_by_count == {1: 10 * GIB, 3: 4 * GIB}
    assert d.requirement.bytes_by_count == {1: 10, 2: 5, 4: 3, 8: 2}  # rounded up
    assert etl.requirement.bytes_by_count == {0: 4 * GIB}
    assert (etl.replicas_min, etl.replicas_max) == (4, 4)


def test_start_state(everything: sim.Scenario) -> None:
    assert everything.replicas == (
        sim.ScenarioReplica("b#1", "b", Placement(("n2",), ("n2/0",), (5 * GIB,)), idle_ms=60_000),
        sim.ScenarioReplica("d#1", "d", Placement(("n2",), ("n2/1",), (10,)), running=False),
        sim.ScenarioReplica("b#2", "b", Placement(("n2",), ("n2/0",), (5 * GIB,)), leases=1),
        sim.ScenarioReplica("etl#1", "etl", Placement(("c1",), (), (), host_bytes=5 * GIB)),
        sim.ScenarioReplica("d#2", "d", Placement(("n2",), ("n2/0", "n2/1"), (5, 5))),
    )


def test_events(everything: sim.Scenario) -> None:
    node = Node(NodeName("n9"), Backend.NVIDIA, (Device(DeviceId("n9/0"), 24 * GIB),))
    assert [(at.at_ms, at.what) for at in everything.events] == [
        (0, sim.Request("r1", "a", duration_ms=3000)),
        (0, sim.Request("r2", "b", priority=5)),
        (0, sim.Request("r3", "a", priority=100)),
        (0, sim.Request("r4", "a", priority=1, deadline_ms=5000)),
        (0, sim.Request("17", "unheard-of")),
        (1000, sim.Cancel("r2")),
        (1000, sim.End("r1")),
        (2000, sim.Load("a")),
        (2000, sim.Unload("b")),
        (2000, sim.Pin("a")),
        (2000, sim.Unpin("nobody")),
        (2000, sim.Remove("a")),
        (3000, sim.NodeUp(node)),
        (3000, sim.NodeDown("n1")),
        (3000, sim.DeviceDown("n1/0")),
        (3000, sim.Observe("n1/0", 30 * GIB)),
        (3500, sim.LoadFails("a")),
        (4000, sim.Crash("a")),
        (9000, sim.Shutdown()),
    ]


def test_no_text_of_the_parser_reaches_the_core(everything: sim.Scenario) -> None:
    names = [everything.nodes[0].name, everything.models[0].name, everything.replicas[0].id, *everything.settings.tiers]
    names += [at.what.request for at in everything.events if isinstance(at.what, sim.Request)]
    names += [*everything.nodes[0].labels, *everything.nodes[0].labels.values(), everything.nodes[0].devices[0].type]
    assert {type(name) for name in names} == {str}


def test_names_that_yaml_takes_for_something_else() -> None:
    scenario = scenario_from_text(
        "nodes: [{name: 1, backend: cpu, memory: 8GiB, labels: {spot: yes, 5: 0x1F}}]\n"
        "models: [{name: 1.50, memory: 1}, {name: on, memory: 1, requires: {labels: {spot: yes}}}]\n"
        "replicas: [{model: on, devices: [1/0]}]\n"
        "events: [{at: 0, request: no, model: 1.50}, {at: 1, end: no}]\n"
    )
    assert [model.name for model in scenario.models] == ["1.50", "on"]
    assert scenario.nodes[0].labels == {"spot": "yes", "5": "0x1F"}
    assert scenario.models[1].requirement.labels == {"spot": "yes"}
    assert scenario.replicas[0].id == "on#1"
    assert scenario.events[0].what == sim.Request("no", "1.50")


@pytest.mark.parametrize("written", ["true", "True", "yes", "on", "ON"])
def test_flags_as_yaml_knows_them(written: str) -> None:
    assert scenario_from_text(f"models: [{{name: a, memory: 1, pinned: {written}}}]").models[0].pinned


def test_an_empty_backend_is_any() -> None:
    for written in ("", "''", "~"):
        scenario = scenario_from_text(f"models: [{{name: a, memory: 1, requires: {{backend: {written}}}}}]")
        assert scenario.models[0].requirement.backend is None


def test_a_catalog_with_engines_can_be_rehearsed() -> None:
    model = scenario_from_text(
        "models: [{name: a, memory: 1, engine: llama-cpp, source: a.gguf, context_length: 4096, env: {A: 1}, "
        "args: [--x], load_timeout: 1m, ready_path: /, embedding: true, simulate: {reply: hi, tokens_per_second: 9}}]"
    ).models[0]
    assert model.concurrency == 1  # the default of scenarios, whatever the engine


def test_exclusive_replicas_hold_whole_devices() -> None:
    scenario = scenario_from_text(
        "nodes: [{name: n, backend: nvidia, devices: [80GiB, 40GiB]}]\n"
        "models: [{name: a, memory: 2GiB, exclusive: true}]\n"
        "replicas: [{model: a, devices: [n/0, n/1]}]\n"
    )
    assert scenario.replicas[0].placement.device_bytes == (80 * GIB, 40 * GIB)


def test_replicas_across_nodes_are_charged_on_each() -> None:
    nodes = (
        "nodes: [{name: n, backend: nvidia, devices: 2x8GiB, cpus: 4}, {name: m, backend: nvidia, devices: 2x8GiB}]\n"
    )
    models = "models: [{name: a, memory: 4GiB, across_nodes: true, cpus: CPUS, host_memory: 1GiB}]\n"
    replicas = "replicas: [{model: a, devices: [n/0, n/1, m/0, m/1]}]\n"
    placement = scenario_from_text(nodes + models.replace("CPUS", "4") + replicas).replicas[0].placement
    assert placement == Placement(("n", "m"), ("n/0", "n/1", "m/0", "m/1"), (GIB,) * 4, host_bytes=GIB, millicpus=4000)
    with pytest.raises(ConfigError, match="needs 5 cpus, but only 4 of node n are left"):
        scenario_from_text(nodes + models.replace("CPUS", "5") + replicas)


def test_a_replica_on_a_number_of_devices_that_nobody_ruled_out() -> None:
    scenario = scenario_from_text(
        "nodes: [{name: n, backend: nvidia, devices: 3x80GiB}]\n"
        "models: [{name: a, memory: 10}]\n"
        "replicas: [{model: a, devices: [n/0, n/1, n/2]}]\n"
    )
    assert scenario.replicas[0].placement.device_bytes == (4, 4, 4)


def test_where_a_host_only_replica_is_without_being_told() -> None:
    models = "models: [{name: a, memory: 1GiB, gpus: [0], requires: {backend: cpu}}]\n"
    replicas = "replicas: [{model: a, devices: []}]\n"
    gpu = "{name: n, backend: nvidia, devices: 1x8GiB}"
    for nodes in (f"{gpu}, {{name: c, backend: cpu, memory: 9GiB}}", "{name: c, backend: cpu, devices: []}"):
        assert scenario_from_text(f"nodes: [{nodes}]\n{models}{replicas}").replicas[0].placement.nodes == ("c",)


def test_a_pinned_place_may_be_of_a_node_that_has_not_joined() -> None:
    model = scenario_from_text(
        "models: [{name: a, memory: 1, pinned: true, placement: {devices: [later/3]}}, "
        "{name: b, memory: 1, placement: {node: later}}]"
    )
    assert [m.pin for m in model.models] == [Pin(NodeName("later"), (DeviceId("later/3"),)), Pin(NodeName("later"))]


def test_one_node_alone() -> None:
    node = node_from_mapping({"name": "n", "backend": "nvidia", "devices": "4x80GiB", "cpus": 8})
    assert (len(node.devices), node.millicpus) == (4, 8000)
    with pytest.raises(ConfigError, match=r"^--node:1: the key 'backend' is missing; add for example backend: nvidia$"):
        node_from_mapping({"name": "n"}, "--node")
    with pytest.raises(ConfigError, match=r"^<node>:1: a list is not a mapping; "):
        node_from_mapping([])


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_published_examples(path: Path) -> None:
    expected = path.with_suffix(".error.txt")
    if not expected.exists():
        scenario = load_scenario(path)
        assert scenario.nodes or scenario.events
        return
    with pytest.raises(ConfigError) as caught:
        load_scenario(str(path))
    for piece in expected.read_text().splitlines():
        assert piece in str(caught.value)


def test_a_long_day_is_read_in_time() -> None:
    """4,000 requests: nothing in here may grow with the square of the file."""
    head = "nodes: [{name: n, backend: nvidia, devices: 1x80GiB}]\nmodels: [{name: a, memory: 1}]\nevents:\n"
    day = "".join(f"  - {{at: {n}ms, request: r{n}, model: a, duration: 3s}}\n" for n in range(4000))
    before = time.process_time()
    assert len(scenario_from_text(head + day).events) == 4000
    assert time.process_time() - before < 3
    before = time.process_time()
    with pytest.raises(ConfigError, match=r"^<scenario>:4: events\[0\]\.modle: .* did you mean model\?$"):
        scenario_from_text(head + day.replace("model", "modle"))
    assert time.process_time() - before < 3
