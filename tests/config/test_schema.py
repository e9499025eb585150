"""The JSON schemas: published as they are drawn, and right about files that are right."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from rayscheduler.config.schema import json_schema, schema_text
from tests.config.test_scenario import EVERYTHING, EXAMPLES
from tests.config.test_service import FILE

ROOT = Path(__file__).parent.parent.parent
PUBLISHED = {"service": "config.schema.json", "scenario": "scenario.schema.json"}


@pytest.mark.parametrize("kind", PUBLISHED)
def test_the_published_copy_is_current(kind: str) -> None:
    published = ROOT / "deployments" / PUBLISHED[kind]
    again = f"python -m rayscheduler.config.schema {kind} > deployments/{PUBLISHED[kind]}"
    assert published.read_text() == schema_text(kind), f"renew it: {again}"


@cache
def validator(kind: str) -> jsonschema.Draft202012Validator:
    schema = json_schema(kind)
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def accepts(kind: str, data: Any) -> bool:
    return bool(validator(kind).is_valid(data))


def as_json(text: str) -> Any:
    """YAML as editors read it; JSON's keys are text."""

    def keyed(value: Any) -> Any:
        if isinstance(value, dict):
            return {str(key): keyed(each) for key, each in value.items()}
        return [keyed(each) for each in value] if isinstance(value, list) else value

    return keyed(yaml.safe_load(text))


@pytest.mark.parametrize(
    "path", [path for path in EXAMPLES if not path.with_suffix(".error.txt").exists()], ids=lambda path: path.stem
)
def test_the_published_examples_are_right(path: Path) -> None:
    assert accepts("scenario", as_json(path.read_text()))


def test_every_key_is_known() -> None:
    # Schemas want names in quotes; readers do not mind.
    text = EVERYTHING.replace("request: 17", "request: '17'").replace("rack: 7", "rack: '7'")
    assert accepts("scenario", as_json(text))
    text = (
        FILE.replace("--seed, 7", "--seed, '7'").replace("_OFFLINE: 1", "_OFFLINE: '1'").replace("DEBUG: on", "D: 'on'")
    )
    assert accepts("service", as_json(text.replace("backend: ,", "")))


@pytest.mark.parametrize(
    "bad",
    [
        {"models": [{"name": "a", "engine": "vlm", "memory": "1GiB"}]},
        {"models": [{"name": "a", "engine": "simulated", "memory": "1GB"}]},
        {"models": [{"name": "a", "engine": "simulated", "memory": 0}]},
        {"models": [{"name": "a#1", "engine": "simulated", "memory": 1}]},
        {"models": [{"name": "a", "engine": "simulated", "memory": 1, "load_timeout": "5 min"}]},
        {"models": [{"name": "a", "engine": "simulated", "memory": 1, "concurrency": 0}]},
        {"models": [], "scheduler": {"policy": "lifo"}},
        {"models": [], "extra": 1},
        {},
    ],
)
def test_what_is_wrong(bad: Any) -> None:
    assert accepts("service", {"models": [{"name": "a", "engine": "simulated", "memory": "1GiB"}]})
    assert not accepts("service", bad)


def test_editors_are_told_what_keys_mean_and_what_is_the_default() -> None:
    properties = json_schema()["$defs"]["SchedulerSection"]["properties"]
    assert properties["patience"]["default"] == "60s"
    assert json_schema()["$defs"]["ModelEntry"]["properties"]["idle_timeout"]["default"] == "never"
    assert all("description" in each for each in properties.values())
