"""The commands that engines are started with, written down: one file per situation in golden/.

A file holds a request and the command that follows from it. `python -m tests.engines.golden` writes the
commands anew; what changed is then read by a person. Sizes are written as in a catalog.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from rayscheduler.config.units import size_bytes
from rayscheduler.engines import EngineRequest, by_name
from rayscheduler.engines.inside import INSIDE_FOLDER
from rayscheduler.engines.protocol import Command

FOLDER = Path(__file__).with_name("golden")
MODELS = FOLDER / "models"
FILES = sorted(FOLDER.glob("*.json"))
HOST, PORT, KEY = "10.0.0.1", 20001, "the-key"
_SIZES = ("device_bytes", "device_capacity_bytes")


def request_of(situation: dict[str, Any]) -> EngineRequest:
    """The request that a file describes; its tuples are lists there."""
    fields = dict(situation["request"])
    for key in _SIZES:
        fields[key] = [size_bytes(text) for text in fields.get(key, [])]
    if "kv_cache_bytes" in fields:
        fields["kv_cache_bytes"] = size_bytes(fields["kv_cache_bytes"])
    source = fields.get("source", "")
    if source.startswith("./"):
        fields["source"] = str(MODELS / source[2:])
    fields["adapters"] = [source.replace("./", f"{MODELS}/") for source in fields.get("adapters", [])]
    fields = {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}
    return EngineRequest(**{"model": "org/m", "replica": "org/m#1", **fields})


def command_of(situation: dict[str, Any]) -> dict[str, Any]:
    """The command that follows, with this machine's folders by name."""
    request = request_of(situation)
    engine = by_name(situation["engine"])
    engine.validate(request)
    command = engine.command(request, PORT, KEY, HOST)
    return {"argv": _lines(command), "env": {k: _shown(v) for k, v in command.env.items()}, "ready": command.ready_path}


def written(situation: dict[str, Any]) -> str:
    return json.dumps(situation, indent=2) + "\n"


def _lines(command: Command) -> list[str]:
    """A flag and its value on one line."""
    lines: list[str] = []
    for word in map(_shown, command.argv):
        if lines and lines[-1].startswith("-") and " " not in lines[-1] and not word.startswith("-"):
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def _shown(text: str) -> str:
    return text.replace(INSIDE_FOLDER, "${INSIDE}").replace(str(MODELS), "${MODELS}").replace(sys.executable, "python")


if __name__ == "__main__":
    for file in FILES:
        known = json.loads(file.read_text())
        file.write_text(written({**known, "command": command_of(known)}))
