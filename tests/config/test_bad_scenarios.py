"""Every kind of bad scenario: one line that names file, line, what is wrong and what would be right."""

from __future__ import annotations

import pytest

from rayscheduler.config.scenario import scenario_from_text
from rayscheduler.errors import ConfigError


def told(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        scenario_from_text(text, "f.yaml")
    message = str(caught.value)
    assert "\n" not in message
    return message


# Line 1 is the scheduler, 2 to 4 the nodes, 5 to 9 the models, 10 and on the rest.
GOOD = """\
scheduler: {policy: fifo, tiers: {training: 100}}
nodes:
  - {name: n1, backend: nvidia, devices: [80GiB, 80GiB], cpus: 8, memory: 64GiB}
  - {name: c1, backend: cpu, memory: 32GiB}
models:
  - {name: a, memory: 60GiB, concurrency: 2}
  - {name: b, memory_per_device: {1: 50GiB, 2: 30GiB}, cpus: 3, host_memory: 20GiB}
  - {name: etl, memory: 20GiB, gpus: [0], requires: {backend: cpu}}
  - {name: whole, memory: 1GiB, exclusive: true}
"""


def test_the_file_that_the_others_differ_from_is_good() -> None:
    assert len(scenario_from_text(GOOD).models) == 4


KEYS = [
    ("[]", "f.yaml:1: a list is not a mapping; write keys and values, for example "
           "nodes: [{name: n1, backend: nvidia, devices: 2x80GiB}]"),
    ("5", "f.yaml:1: '5' is not a mapping; write keys and values, for example "
          "nodes: [{name: n1, backend: nvidia, devices: 2x80GiB}]"),
    ("nodes: []\nevnts: []\n", "f.yaml:2: evnts: the key 'evnts' is unknown; did you mean events?"),
    ("models:\n", "f.yaml:1: models: is empty; give it a value or remove the key"),
    ("models: a\n", "f.yaml:1: models: 'a' is not a list; write for example [a]"),
    ("models: {a: 1}\n", "f.yaml:1: models: a mapping is not a list; write for example [a, b]"),
    ("models:\n- a\n", "f.yaml:2: models[0]: 'a' is not a mapping; write keys and values, for example name: a"),
    ("models:\n- {memory: 1GiB}\n", "f.yaml:2: models[0]: the key 'name' is missing; add for example name: a"),
    ("models:\n- {name: a, memroy: 1GiB}\n",
     "f.yaml:2: models[0].memroy: the key 'memroy' is unknown; did you mean memory?"),
    ("models:\n- {name: a, zzz: 1}\n",
     "f.yaml:2: models[0].zzz: the key 'zzz' is unknown; the keys here are: across_nodes, aliases, args, "
     "concurrency, container, context_length, cpus, daemon, embedding, engine, env, exclusive, gpus, host_memory, "
     "idle_timeout, kv_cache, kv_type, load_timeout, max_batched_tokens, max_lora_rank, max_loras, memory, "
     "memory_per_device, name, pinned, pipeline, placement, preload, priority, python, ready_path, "
     "replicas, requires, runtime_env, simulate, sleep, source, trust"),
    ("models:\n- {name: a, memory: 1GiB,\n   requires: {device_memry: 1}}\n",
     "f.yaml:3: models[0].requires.device_memry: the key 'device_memry' is unknown; did you mean device_memory?"),
    ("until: never\n", "f.yaml:1: until: 'never' has no meaning here; write a duration, for example 10s"),
]  # fmt: skip

SCHEDULER = [
    ("policy: fifoo", "policy: 'fifoo' is not one of the policies; did you mean fifo?"),
    ("policy: [fifo]", "policy: a list is not one of the policies; write one of fifo, serial, groups"),
    ("placement: best", "placement: 'best' is not one of the placements; the placements are: pack, spread"),
    ("stale_after: never", "stale_after: 'never' has no meaning here; write a duration, for example 10s"),
    ("stale_after: -1s", "stale_after: '-1s' is a negative duration; write for example 1s"),
    ("patience: long", "patience: 'long' is not a duration; write for example 10s or never"),
    ("queue_limit: -1", "queue_limit: '-1' is too small; write 0 or more, for example 0"),
    ("queue_limit: 1.5", "queue_limit: '1.5' is not a whole number; write for example 0"),
    ("tiers: [training]", "tiers: a list is not a mapping; write for example {key: value}"),
    ("tiers: {training: high}", "tiers.training: 'high' is not a whole number; write for example 10"),
    ("cpu_models_on_gpu_nodes: maybe",
     "cpu_models_on_gpu_nodes: 'maybe' is neither true nor false; write true or false"),
    ("cpu_models_on_gpu_nodes: 'true'",
     "cpu_models_on_gpu_nodes: 'true' is neither true nor false; write true or false"),
    ("groups: {g: {}}", "groups.g: the key 'members' is missing; add for example members: [a, b]"),
    ("groups: {g: {members: a}}", "groups.g.members: 'a' is not a list; write for example [a]"),
    ("groups: {g: {members: [a], swp: true}}", "groups.g.swp: the key 'swp' is unknown; did you mean swap?"),
    ("pollicy: fifo", "pollicy: the key 'pollicy' is unknown; did you mean policy?"),
]  # fmt: skip

GROUPS = [
    ("g: {members: [a, c]}", "groups.g.members[1]: there is no model 'c'; the models are: a, b, etl, whole"),
    ("g: {members: [a]}, h: {members: [b, a]}",
     "groups.h.members[1]: the model 'a' is in two groups, 'g' and 'h'; keep it in one of them"),
]  # fmt: skip

NODES = [
    ("{backend: nvidia, devices: 1x1GiB}", ": the key 'name' is missing; add for example name: n1"),
    ("{name: n, devices: 1x1GiB}", ": the key 'backend' is missing; add for example backend: nvidia"),
    ("{name: n, backend: nvida, devices: 1x1GiB}",
     ".backend: 'nvida' is not one of the backends; did you mean nvidia?"),
    ("{name: n, backend: nvidia, devices: [80GB80]}",
     ".devices[0]: '80GB80' is not a size; write for example 80GiB"),
    ("{name: n, backend: nvidia, devices: [1GiB, 0]}",
     ".devices[1]: '0' is no memory; write a size of more than 0, for example 80GiB"),
    ("{name: n, backend: nvidia, devices: [[1GiB]]}", ".devices[0]: a list is not a size; write for example 80GiB"),
    ("{name: n, backend: nvidia, devices: 2x80GB}",
     ".devices: '80GB' is not a size; write for example 2x80GiB"),
    ("{name: n, backend: nvidia, devices: 80GiB}",
     ".devices: '80GiB' is not a list of devices; write for example 2x80GiB or [80GiB, 80GiB]"),
    ("{name: n, backend: nvidia, devices: 0x80GiB}",
     ".devices: 0 devices is out of range; write a count from 1 to 1024, for example 2x80GiB"),
    ("{name: n, backend: nvidia, devices: 999999999x1GiB}",
     ".devices: 999999999 devices is out of range; write a count from 1 to 1024, for example 2x80GiB"),
    ("{name: n, backend: nvidia, devices: [{type: H100}]}",
     ".devices[0]: the key 'memory' is missing; add for example memory: 80GiB"),
    ("{name: n, backend: nvidia, devices: [{memory: 1GiB, kind: H100}]}",
     ".devices[0].kind: the key 'kind' is unknown; the keys here are: memory, type"),
    ("{name: n, backend: nvidia, devices: []}",
     ".devices: node 'n' has no devices, but its backend is nvidia; "
     "write for example devices: 2x80GiB, or backend: cpu"),
    ("{name: n, backend: rocm}",
     ": node 'n' has no devices, but its backend is rocm; write for example devices: 2x80GiB, or backend: cpu"),
    ("{name: n, backend: cpu, cpus: -1}",
     ".cpus: '-1' cpus is out of range; write a number from 0 to 1000000, for example 8"),
    ("{name: n, backend: cpu, cpus: eight}", ".cpus: 'eight' is not a number of cpus; write for example 8 or 0.5"),
    ("{name: n, backend: cpu, memory: 0}", ".memory: '0' is no memory; write a size of more than 0, for example 80GiB"),
    ("{name: n, backend: cpu, labels: [zone]}", ".labels: a list is not a mapping; write for example {key: value}"),
    ("{name: n, backend: cpu, labels: {zone: [a]}}",
     ".labels.zone: a list is not text; write one piece of text, in quotes where in doubt"),
    ("{name: '', backend: cpu}", ".name: '' is not a name; write visible characters without blanks around them"),
    ("{name: ' n', backend: cpu}", ".name: ' n' is not a name; write visible characters without blanks around them"),
    ("{name: [n], backend: cpu}", ".name: a list is not a name; write a name, in quotes where in doubt"),
    ("{name: ~, backend: cpu}", ".name: is empty; give it a value or remove the key"),
    ("{name: n1, backend: cpu}", ".name: the node 'n1' stands twice, first in line 3; give each a name of its own"),
]  # fmt: skip

MODELS = [
    ("{name: x}", ": 'x' says no memory; add what one replica takes, for example memory: 60GiB"),
    ("{name: x, memory: 0}", ".memory: '0' is no memory; write a size of more than 0, for example 80GiB"),
    ("{name: x, memory: -5GiB}", ".memory: '-5GiB' is no memory; write a size of more than 0, for example 5GiB"),
    ("{name: x, memory: [1GiB]}", ".memory: a list is not a size; write for example 80GiB"),
    ("{name: x, memory: true}", ".memory: 'true' is not a size; write for example 80GiB"),
    ("{name: x, memory: 1GiB, memory_per_device: {1: 1GiB}}",
     ".memory_per_device: memory and memory_per_device contradict each other; keep one of them"),
    ("{name: x, memory_per_device: {}}",
     ".memory_per_device: has no entry; write for example {1: 60GiB, 2: 33GiB}"),
    ("{name: x, memory_per_device: {one: 1GiB}}",
     ".memory_per_device.one: 'one' is not a whole number; write for example 1"),
    ("{name: x, memory_per_device: {1: 1GB}}", ".memory_per_device.1: '1GB' is not a size; write for example 1GiB"),
    ("{name: x, memory_per_device: {1: 1GiB}, gpus: [2, 4]}",
     ".gpus: no count of gpus is in memory_per_device, which has 1; write for example gpus: [1]"),
    ("{name: x, memory: 1GiB, gpus: []}",
     ".gpus: allows no device count; write for example [1, 2], or [0] for cpu only"),
    ("{name: x, memory: 1GiB, gpus: 2}", ".gpus: '2' is not a list; write for example [2]"),
    ("{name: x, memory: 1GiB, gpus: [-1]}", ".gpus[0]: '-1' is too small; write 0 or more, for example 1"),
    ("{name: x, memory: 1GiB, concurrency: 0}", ".concurrency: '0' is too small; write 1 or more, for example 1"),
    ("{name: x, memory: 1GiB, replicas: 2}",
     ".replicas: '2' is not a mapping; write keys and values, for example min: 1"),
    ("{name: x, memory: 1GiB, replicas: {min: 3, max: 2}}",
     ".replicas.max: max 2 is less than min 3; write max: 3 or more"),
    ("{name: x, memory: 1GiB, replicas: {max: 0}}", ".replicas.max: '0' is too small; write 1 or more, for example 1"),
    ("{name: x, memory: 1GiB, idle_timeout: soon}",
     ".idle_timeout: 'soon' is not a duration; write for example 10s or never"),
    ("{name: x, memory: 1GiB, pinned: 1}", ".pinned: '1' is neither true nor false; write true or false"),
    ("{name: x, memory: 1GiB, priority: high}", ".priority: 'high' is not a whole number; write for example 10"),
    ("{name: x, memory: 1GiB, placement: n1}",
     ".placement: 'n1' is not a mapping; write keys and values, for example node: n1"),
    ("{name: x, memory: 1GiB, placement: {}}", ".placement: names no node; add for example node: n1"),
    ("{name: x, memory: 1GiB, placement: {node: n1, devices: [n2/0]}}",
     ".placement.devices[0]: the device 'n2/0' is not on node 'n1'; write devices of one node, for example n1/0"),
    ("{name: x, memory: 1GiB, placement: {devices: [n1/0, n1/0]}}",
     ".placement.devices[1]: the device 'n1/0' stands twice; keep one of them"),
    ("{name: x, memory: 1GiB, placement: {node: n1, devices: [0]}}",
     ".placement.devices[0]: '0' is not a device; write node/index, for example n1/0"),
    ("{name: x, memory: 1GiB, requires: {backend: cuda}}",
     ".requires.backend: 'cuda' is not one of the backends; the backends are: cpu, metal, nvidia, rocm, vulkan"),
    ("{name: x, memory: 1GiB, requires: {types: H100}}",
     ".requires.types: 'H100' is not a list; write for example [H100]"),
    ("{name: x, memory: 1GiB, requires: {cpus: 1.0001}}",
     ".requires.cpus: '1.0001' is finer than a thousandth of a cpu; write at most three decimals"),
    ("{name: x, memory: 1GiB, simulate: {load: fast}}",
     ".simulate.load: 'fast' is not a duration; write for example 10s"),
    ("{name: x, memory: 1GiB, simulate: {lod: 1s}}", ".simulate.lod: the key 'lod' is unknown; did you mean load?"),
    ("{name: x, memory: 1GiB, simulate: {fail_after: 1s}}",
     ".simulate.fail_after: is the time of a crash, but no crash is asked for; add fail: crash"),
    ("{name: x, memory: 1GiB, simulate: {fail: always}}",
     ".simulate.fail: 'always' is not one of the failures; the failures are: crash, load, never"),
    ("{name: x, memory: 1GiB, engine: llamacpp}",
     ".engine: 'llamacpp' is not one of the engines; did you mean llama-cpp?"),
    ("{name: x#1, memory: 1GiB}",
     ".name: 'x#1' is not a name for a model: # numbers replicas; use another character than #"),
    ("{name: a, memory: 1GiB}", ".name: the model 'a' stands twice, first in line 6; give each a name of its own"),
    ("{name: x, memory: 1GiB, aliases: [y, a]}",
     ".aliases[1]: the alias 'a' shadows the model of that name; choose another alias or remove it"),
    ("{name: x, memory: 1GiB, aliases: [y, y]}",
     ".aliases[1]: the alias 'y' stands twice, first at the model 'x'; keep one of them"),
]  # fmt: skip

REPLICAS = [
    ("{devices: [n1/0]}", ": the key 'model' is missing; add for example model: a"),
    ("{model: c, devices: [n1/0]}", ".model: there is no model 'c'; the models are: a, b, etl, whole"),
    ("{model: a, devices: [n1/7]}", ".devices[0]: there is no device 'n1/7'; did you mean n1/1?"),
    ("{model: a, devices: [n1/0, n1/0]}", ".devices[1]: the device 'n1/0' stands twice; keep one of them"),
    ("{model: a, devices: n1/0}", ".devices: 'n1/0' is not a list; write for example [n1/0]"),
    ("{model: a}", ": 'a' needs devices; add for example devices: [n1/0]"),
    ("{model: a, devices: []}", ".devices: 'a' needs devices; add for example devices: [n1/0]"),
    ("{model: a, devices: [n1/0, c1/0]}",
     ".devices: 'a' takes devices of one node, not of n1 and c1; "
     "name devices of one node, or write across_nodes: true at the model"),
    ("{model: a, devices: [c1/0]}",
     ".devices: 'a' needs 60GiB, but only 32GiB of device c1/0 are left; "
     "remove a replica, move it, or lower its memory"),
    ("{model: a, devices: [n1/0], memory: 85899345921}",
     ".devices: 'a' needs 85899345921 bytes, but only 85899345920 bytes of device n1/0 are left; "
     "remove a replica, move it, or lower its memory"),
    ("{model: a, devices: [n1/0], memory: 5G}", ".memory: '5G' is not a size; write for example 5GiB"),
    ("{model: a, devices: [n1/0], leases: 3}",
     ".leases: 3 leases are more than the concurrency of 'a', which is 2; "
     "write leases: 2, or concurrency: 3 at the model"),
    ("{model: a, devices: [n1/0], leases: -1}", ".leases: '-1' is too small; write 0 or more, for example 0"),
    ("{model: a, devices: [n1/0], leases: 1, state: starting}",
     ".leases: a starting replica has no leases; remove leases, or write state: running"),
    ("{model: a, devices: [n1/0], idle: 1s, state: starting}",
     ".idle: a starting replica is not idle; remove idle, or write state: running"),
    ("{model: a, devices: [n1/0], idle: 1s, leases: 1}",
     ".idle: a replica with leases is not idle; keep leases or idle"),
    ("{model: a, devices: [n1/0], state: RUNNING}",
     ".state: 'RUNNING' is not one of the states; did you mean running?"),
    ("{model: a, devices: [n1/0], idle: -3s}", ".idle: '-3s' is a negative duration; write for example 3s"),
    ("{model: a, devices: [n1/0], node: c1}",
     ".node: the devices are not on node 'c1'; write node: n1, or leave node out"),
    ("{model: a, devices: [n1/0], node: n9}", ".node: there is no node 'n9'; the nodes are: c1, n1"),
    ("{model: etl, node: n1, devices: [n1/0]}",
     ".devices: 'etl' takes no devices: its gpus are [0]; write devices: [] and node: n1"),
    ("{model: b, devices: [n1/0, n1/1], device: 1}",
     ".device: the key 'device' is unknown; did you mean devices?"),
]  # fmt: skip

OVERCOMMITTED = [
    (["{model: a, devices: [n1/0]}", "{model: whole, devices: [n1/0]}"],
     ".devices: 'whole' needs 80GiB, but only 20GiB of device n1/0 are left; "
     "remove a replica, move it, or lower its memory"),
    (["{model: a, devices: [n1/0]}", "{model: b, devices: [n1/0, n1/1]}"],
     ".devices: 'b' needs 30GiB, but only 20GiB of device n1/0 are left; "
     "remove a replica, move it, or lower its memory"),
    (["{model: b, devices: [n1/0], memory: 1MiB}"] * 3,
     ": 'b' needs 3 cpus, but only 2 of node n1 are left; remove a replica, or give the node more cpus"),
    (["{model: etl, node: c1}", "{model: etl, devices: [c1/0]}"],
     ": 'etl' needs 20GiB, but only 12GiB of node c1 are left; remove a replica, move it, or lower its memory"),
    (["{model: etl}", "{model: a, devices: [c1/0], memory: 13GiB}"],
     ".devices: 'a' needs 13GiB, but only 12GiB of device c1/0 are left; "
     "remove a replica, move it, or lower its memory"),
    (["{model: etl, node: n1, memory: 30GiB}"] * 3,
     ": 'etl' needs 30GiB, but only 4GiB of the host memory of n1 are left; "
     "remove a replica, move it, or lower its memory"),
]  # fmt: skip

VERBS = (
    "request, end, cancel, load, unload, pin, unpin, remove, node_up, node_down, device_down, observe, load_fails, "
    "crash, shutdown"
)
EVENTS = [
    ("{load: a}", ": the key 'at' is missing; add for example at: 0s"),
    ("{at: now, load: a}", ".at: 'now' is not a duration; write for example 10s"),
    ("{at: -1s, load: a}", ".at: '-1s' is a negative duration; write for example 1s"),
    ("{at: 1s}", f": says no verb; add one of {VERBS}, for example load: a"),
    ("{at: 1s, model: a}", f": says no verb; add one of {VERBS}, for example load: a"),
    ("{at: 1s, load: a, unload: a}", ".unload: says both load and unload; write one event for each"),
    ("{at: 1s, laod: a}", ".laod: the key 'laod' is unknown; did you mean load?"),
    ("{at: 1s, load: [a]}", ".load: a list is not a name; write a name, in quotes where in doubt"),
    ("{at: 1s, load: }", ".load: is empty; give it a value or remove the key"),
    ("{at: 1s, request: r}", ": the key 'model' is missing; add for example model: a"),
    ("{at: 1s, request: r, modle: a}", ".modle: the key 'modle' is unknown; did you mean model?"),
    ("{at: 1s, request: r, model: a, duration: long}", ".duration: 'long' is not a duration; write for example 10s"),
    ("{at: 1s, request: r, model: a, priority: 1.5}", ".priority: '1.5' is not a whole number; write for example 10"),
    ("{at: 1s, request: r, model: a, tier: trainin}", ".tier: there is no tier 'trainin'; did you mean training?"),
    ("{at: 1s, request: r, model: a, tier: x, priority: 1}", ".tier: there is no tier 'x'; the tiers are: training"),
    ("{at: 1s, request: r, model: a, deadline: never}",
     ".deadline: 'never' has no meaning here; write a duration, for example 10s"),
    ("{at: 1s, end: r, duration: 1s}", ".duration: the key 'duration' belongs to request, not to end; remove duration"),
    ("{at: 1s, shutdown: false}",
     ".shutdown: a shutdown that is false is no event; write shutdown: true, or remove it"),
    ("{at: 1s, shutdown: now}", ".shutdown: 'now' is neither true nor false; write true or false"),
    ("{at: 1s, observe: n1/0}",
     ".observe: 'n1/0' is not a mapping; write keys and values, for example device: n1/0"),
    ("{at: 1s, observe: {device: n1/0}}",
     ".observe: the key 'used_by_others' is missing; add for example used_by_others: 30GiB"),
    ("{at: 1s, observe: {device: n1/0, used_by_others: 30GB}}",
     ".observe.used_by_others: '30GB' is not a size; write for example 30GiB"),
    ("{at: 1s, node_up: n2}", ".node_up: 'n2' is not a mapping; write keys and values, for example name: n1"),
    ("{at: 1s, node_up: {name: n2, backend: nvidia, devices: []}}",
     ".node_up.devices: node 'n2' has no devices, but its backend is nvidia; "
     "write for example devices: 2x80GiB, or backend: cpu"),
    ("{at: 1s, node_up: {name: n2, backend: nvidia, device: 1x1GiB}}",
     ".node_up.device: the key 'device' is unknown; did you mean devices?"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message"), KEYS)
def test_files_and_their_keys(text: str, message: str) -> None:
    assert told(text) == message


@pytest.mark.parametrize(("entry", "message"), SCHEDULER)
def test_the_scheduler_section(entry: str, message: str) -> None:
    assert told(f"nodes: []\nscheduler:\n  {entry}\n") == f"f.yaml:3: scheduler.{message}"


@pytest.mark.parametrize(("groups", "message"), GROUPS)
def test_groups_and_their_members(groups: str, message: str) -> None:
    policy = f"scheduler: {{policy: groups, groups: {{{groups}}}}}"
    assert told(GOOD.replace("scheduler: {policy: fifo, tiers: {training: 100}}", policy)) == (
        f"f.yaml:1: scheduler.{message}"
    )
    scenario_from_text(GOOD.replace("policy: fifo, ", f"policy: serial, groups: {{{groups}}}, "))  # ignored


@pytest.mark.parametrize(("entry", "message"), NODES)
def test_nodes(entry: str, message: str) -> None:
    text = GOOD.replace("models:\n", f"  - {entry}\nmodels:\n")
    assert told(text) == f"f.yaml:5: nodes[2]{message}"


@pytest.mark.parametrize(("entry", "message"), MODELS)
def test_models(entry: str, message: str) -> None:
    assert told(f"{GOOD}  - {entry}\n") == f"f.yaml:10: models[4]{message}"


@pytest.mark.parametrize(("entry", "message"), REPLICAS)
def test_replicas(entry: str, message: str) -> None:
    assert told(f"{GOOD}replicas:\n- {entry}\n") == f"f.yaml:11: replicas[0]{message}"


@pytest.mark.parametrize(("entries", "message"), OVERCOMMITTED)
def test_a_start_state_that_holds_more_than_there_is(entries: list[str], message: str) -> None:
    lines = "".join(f"- {entry}\n" for entry in entries)
    last = len(entries) - 1
    assert told(f"{GOOD}replicas:\n{lines}") == f"f.yaml:{11 + last}: replicas[{last}]{message}"
    scenario_from_text(
        f"{GOOD}replicas:\n{''.join(f'- {entry}' + chr(10) for entry in entries[:-1])}{'[]' * (last == 0)}"
    )


@pytest.mark.parametrize(("entry", "message"), EVENTS)
def test_events(entry: str, message: str) -> None:
    assert told(f"{GOOD}events:\n- {entry}\n") == f"f.yaml:11: events[0]{message}"


def test_events_out_of_order() -> None:
    assert told(f"{GOOD}events:\n- {{at: 2s, load: a}}\n- {{at: 1999ms, load: b}}\n") == (
        "f.yaml:12: events[1].at: 1999 ms is before the event above it, which is at 2000 ms; "
        "put the events in the order of their times"
    )


def test_a_request_name_used_twice() -> None:
    text = f"{GOOD}events:\n- {{at: 0, request: r, model: a}}\n- {{at: 1, end: r}}\n- {{at: 2, request: r, model: b}}\n"
    assert told(text) == (
        "f.yaml:13: events[2].request: the request 'r' stands twice, first in line 11; "
        "give each request a name of its own"
    )


def test_a_tier_where_there_are_none() -> None:
    assert told("events: [{at: 0, request: r, model: a, tier: t}]") == (
        "f.yaml:1: events[0].tier: there is no tier 't'; add it to scheduler.tiers, or write priority"
    )


def test_a_host_only_replica_must_be_somewhere() -> None:
    nodes = "nodes: [{name: n1, backend: cpu, memory: 9GiB}, {name: n2, backend: cpu, memory: 9GiB}]\n"
    text = f"{nodes}models: [{{name: a, memory: 1GiB, gpus: [0]}}]\nreplicas:\n- {{model: a, devices: []}}\n"
    assert told(text) == (
        "f.yaml:4: replicas[0]: the replica of 'a' names no node, and 2 are possible; add for example node: n1"
    )


def test_a_replica_on_more_devices_than_its_model_has_a_figure_for() -> None:
    nodes = "nodes: [{name: n1, backend: nvidia, devices: 3x80GiB}]\n"
    models = "models: [{name: a, memory: 1GiB, gpus: [1]}]\n"
    assert told(f"{nodes}{models}replicas: [{{model: a, devices: [n1/0, n1/1, n1/2]}}]\n") == (
        "f.yaml:3: replicas[0].devices: 'a' takes 1 devices, not 3; name so many devices, or say the replica's memory"
    )


def test_of_several_mistakes_the_first_in_the_file_is_told() -> None:
    text = "events:\n- {at: x, load: a}\nmodels:\n- {name: a}\nnodes:\n- {name: n}\n"
    assert told(text).startswith("f.yaml:2: events[0].at: ")


def test_a_block_below_its_key_is_told_at_the_key() -> None:
    text = "models:\n  - name: a\n    memory:\n      - 1GiB\n"
    assert told(text) == "f.yaml:3: models[0].memory: a list is not a size; write for example 80GiB"


def test_json_scenarios_are_told_by_line_too() -> None:
    text = '{"nodes": [],\n\t"models": [\n\t\t{"name": "a",\n\t\t "memory": 1.5}]}'
    assert told(text) == "f.yaml:4: models[0].memory: '1.5' is not a size; write for example 1.5GiB"
    assert told('{"models": [{"name": true, "memory": 1}]}') == (
        "f.yaml:1: models[0].name: true is not a name; write a name, in quotes where in doubt"
    )
