"""Whatever a file holds, reading it ends with a value or with a ConfigError of one line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from rayscheduler.config.fields import Section
from rayscheduler.config.scenario import ScenarioFile, node_from_mapping, scenario_from_text
from rayscheduler.config.service import ServiceFile, config_from_json, config_from_text
from rayscheduler.errors import ConfigError


def _keys_of(section: type[Section], known: set[str]) -> set[str]:
    for name, field in section.model_fields.items():
        known.add(name)
        for inner in _sections_in(field.annotation):
            _keys_of(inner, known)
    return known


def _sections_in(annotation: Any) -> set[type[Section]]:
    inner = get_args(annotation)
    if inner:
        return {found for argument in inner for found in _sections_in(argument)}
    return {annotation} if isinstance(annotation, type) and issubclass(annotation, Section) else set()


KEYS = sorted(_keys_of(ScenarioFile, set()) | _keys_of(ServiceFile, set()))
WORDS = [
    "a",
    "b",
    "n1",
    "n1/0",
    "80GiB",
    "80GB80",
    "2x80GiB",
    "10s",
    "never",
    "nvidia",
    "cpu",
    "fifo",
    "groups",
    "true",
]
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-3, 9)
    | st.integers()
    | st.floats()
    | st.sampled_from(WORDS)
    | st.text(max_size=8)
)
keys = st.sampled_from(KEYS) | st.sampled_from(WORDS)
structures = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=20,
)
FILE_KEYS = ["scheduler", "nodes", "models", "replicas", "events", "until"]
files = st.dictionaries(
    st.sampled_from(FILE_KEYS), structures | st.lists(st.dictionaries(keys, structures)), max_size=4
)

# Entries that are nearly right reach what is checked last.
names = st.sampled_from(["a", "b", "c"])
sizes = st.sampled_from(["10GiB", "60GiB", "1KiB"])
devices = st.lists(st.sampled_from(["n1/0", "n1/1", "c1/0"]), max_size=3)
nearly_models = st.fixed_dictionaries(
    {"name": names},
    optional={
        "memory": sizes,
        "memory_per_device": st.dictionaries(st.sampled_from(["0", "1", "2"]), sizes),
        "gpus": st.lists(st.integers(0, 3), max_size=2),
        "exclusive": st.booleans(),
        "aliases": st.lists(names, max_size=2),
        "host_memory": sizes,
        "cpus": st.integers(0, 3),
        "placement": st.fixed_dictionaries({}, optional={"node": names, "devices": devices}),
    },
)
nearly_replicas = st.fixed_dictionaries(
    {"model": names}, optional={"devices": devices, "node": st.sampled_from(["n1", "c1"]), "leases": st.integers(0, 2)}
)
nearly_events = st.fixed_dictionaries(
    {"at": st.integers(0, 3)},
    optional={"request": names, "model": names, "load": names, "tier": names, "end": names, "shutdown": st.booleans()},
)
nearly = st.fixed_dictionaries(
    {
        "nodes": st.just(
            [
                {"name": "n1", "backend": "nvidia", "devices": ["80GiB", "40GiB"], "cpus": 4, "memory": "64GiB"},
                {"name": "c1", "backend": "cpu", "memory": "32GiB"},
            ]
        ),
        "models": st.lists(nearly_models, max_size=3),
        "replicas": st.lists(nearly_replicas, max_size=3),
        "events": st.lists(nearly_events, max_size=3),
    }
)


def complaint(read: Callable[[Any], object], what: Any) -> ConfigError | None:
    try:
        read(what)
    except ConfigError as error:
        return error
    return None


def survives(text: str) -> None:
    for read in (scenario_from_text, config_from_text, config_from_json):
        error = complaint(read, text)
        if error is not None:
            assert str(error).isprintable(), error
            assert error.line is None or 1 <= error.line <= text.count("\n") + 1
            assert error.what, error
            assert error.fix, error


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=200))
def test_any_text(text: str) -> None:
    survives(text)


@settings(max_examples=50, deadline=None)
@given(st.text(alphabet="{}[]:,-&*!|>'\"%@#?~ \n\tab1<", max_size=60))
def test_any_text_of_yaml_signs(text: str) -> None:
    survives(text)


@settings(max_examples=50, deadline=None)
@given(st.one_of(structures, files), st.booleans())
def test_any_structure(structure: Any, flow: bool) -> None:
    survives(yaml.safe_dump(structure, default_flow_style=flow, allow_unicode=True))


@settings(max_examples=50, deadline=None)
@given(nearly)
def test_files_that_are_nearly_right(structure: Any) -> None:
    survives(yaml.safe_dump(structure))


@settings(max_examples=40, deadline=None)
@given(structures)
def test_any_node(structure: Any) -> None:
    assert str(complaint(node_from_mapping, structure)).isprintable()
