"""The JSON schemas of the service file and of scenarios, for editors; `python -m rayscheduler.config.schema`.

Rules of this file: a schema is drawn from the sections that read the files, so it cannot fall behind
them. It says less than the reader checks (what entries must agree on) and never forbids what is right,
but for names such as `1.5`, which editors should see in quotes.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from rayscheduler.config.fields import Section
from rayscheduler.config.scenario import ScenarioFile
from rayscheduler.config.service import ServiceFile

_KINDS: dict[str, tuple[type[Section], str]] = {
    "service": (ServiceFile, "rayscheduler: the file that `rayscheduler up` reads"),
    "scenario": (ScenarioFile, "rayscheduler: a cluster and a day of traffic, for `rayscheduler simulate`"),
}


class _Drawing(GenerateJsonSchema):
    """Defaults as a file would say them: `60s`, not 60000."""

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        drawn = super().default_schema(schema)
        written: Any = schema["schema"].get("serialization", {})
        if "default" in drawn and written.get("type") == "function-plain":
            drawn["default"] = written["function"](schema["default"])
        return drawn


def json_schema(kind: str = "service") -> dict[str, Any]:
    """The schema of `service` or `scenario` files."""
    section, title = _KINDS[kind]
    drawn = _tidied(section.model_json_schema(mode="validation", schema_generator=_Drawing))
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": title, **drawn}


def schema_text(kind: str = "service") -> str:
    """As it is published: indented; the keys of a section in its order."""
    return json.dumps(json_schema(kind), indent=2, ensure_ascii=False) + "\n"


def _tidied(drawn: Any) -> Any:
    """Without titles that repeat keys, examples made for messages, and the nulls by which pydantic says "left out"."""
    if isinstance(drawn, list):
        return [_tidied(item) for item in drawn]
    if not isinstance(drawn, dict):
        return drawn
    kept: dict[str, Any] = {}
    for key, value in drawn.items():
        if key in ("properties", "$defs"):  # keys in here are names
            kept[key] = {name: _tidied(each) for name, each in value.items()}
        elif key in ("title", "examples") or (key == "default" and (value is None or isinstance(value, dict))):
            continue
        else:
            kept[key] = _tidied(value)
    kept.pop("propertyNames", None)  # not every pydantic draws them
    if "anyOf" in kept:
        kept["anyOf"] = [choice for choice in kept["anyOf"] if choice != {"type": "null"}]
    for key in ("anyOf", "allOf"):
        if len(kept.get(key, ())) == 1:
            kept = {**kept.pop(key)[0], **kept}
    return dict(sorted(kept.items()))


if __name__ == "__main__":
    sys.stdout.write(schema_text(*sys.argv[1:2]))
