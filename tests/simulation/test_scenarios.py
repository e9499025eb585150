"""Every scenario in `scenarios/` is decided as the file beside it says.

NAME.expect.jsonl: lines that `simulate` must print, in this order, others may stand between; `{"never": …}` and
`{"count": N, "of": …}` speak of all lines. NAME.plan.json: what `plan --model` must answer. NAME.error.txt:
what the one-line error must hold. An expectation names only the keys that it cares about.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rayscheduler.config.scenario import load_scenario
from rayscheduler.errors import ConfigError
from rayscheduler.simulation.simulate import plan, plan_object, simulate

SCENARIOS = Path(__file__).parent / "scenarios"


def named(suffix: str) -> list[str]:
    return sorted(path.name.removesuffix(suffix) for path in SCENARIOS.glob(f"*{suffix}"))


def matches(expected: object, actual: object) -> bool:
    if isinstance(expected, dict):
        return isinstance(actual, dict) and all(k in actual and matches(v, actual[k]) for k, v in expected.items())
    if isinstance(expected, list):
        return isinstance(actual, list) and len(expected) == len(actual) and all(map(matches, expected, actual))
    return expected == actual


@pytest.mark.parametrize("name", named(".expect.jsonl"))
def test_decisions(name: str) -> None:
    printed = [json.loads(json.dumps(line)) for line in simulate(load_scenario(SCENARIOS / f"{name}.yaml"), True)]
    told = "\n".join(map(json.dumps, printed))
    position = 0
    for text in (SCENARIOS / f"{name}.expect.jsonl").read_text().splitlines():
        expected = json.loads(text)
        if "never" in expected:
            assert not any(matches(expected["never"], line) for line in printed), f"{text}\nin\n{told}"
        elif "count" in expected:
            found = sum(matches(expected["of"], line) for line in printed)
            assert found == expected["count"], f"{text}: {found}\nin\n{told}"
        else:
            rest = [i for i in range(position, len(printed)) if matches(expected, printed[i])]
            assert rest, f"{text}\nis not (in this order) in\n{told}"
            position = rest[0] + 1


@pytest.mark.parametrize("name", named(".plan.json"))
def test_plans(name: str) -> None:
    scenario = load_scenario(SCENARIOS / f"{name}.yaml")
    for model, expected in json.loads((SCENARIOS / f"{name}.plan.json").read_text()).items():
        answer = plan(scenario, model)
        assert answer is not None
        told = json.loads(json.dumps(plan_object(answer)))
        assert matches(expected, told), f"plan {model}: {json.dumps(told)}"


@pytest.mark.parametrize("name", named(".error.txt"))
def test_bad_files(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_scenario(SCENARIOS / f"{name}.yaml")
    message = str(caught.value)
    assert "\n" not in message
    for part in (SCENARIOS / f"{name}.error.txt").read_text().splitlines():
        assert part in message
