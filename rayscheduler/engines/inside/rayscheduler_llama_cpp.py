"""The program of the engine `llama-cpp`: one llama.cpp server, started by llama_cpp.py with one JSON argument.

Rules of this file: SIGTERM and SIGINT keep their default action, which ends the process at once, also
in the middle of a load, and gives its memory back. (Waiting requests have been drained before; a graceful
stop of the native server would wait for the longest generation.) The key comes by the environment.
"""

from __future__ import annotations

import enum
import json
import os
import signal
import sys
from typing import Any

KEY_ENV = "RAYSCHEDULER_API_KEY"


def main(plan: dict[str, Any]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = plan["path"]
    parameters.model_alias = {plan["model"]}
    parameters.hostnames = [plan["host"]]
    parameters.port = plan["port"]
    parameters.api_keys = [os.environ.pop(KEY_ENV)]
    for field, value in plan["settings"].items():
        assign(parameters, field, value)
    try:
        server = xllamacpp.Server(parameters)
    except Exception as error:
        sys.exit(f"llama.cpp cannot serve {plan['path']}: {error}")
    while server is not None:  # a reference, for as long as the process lives
        signal.pause()


def assign(parameters: Any, field: str, value: Any) -> None:
    """Set the field at that path; an enumeration is given by its member's name."""
    *owners, name = field.split(".")
    for owner in owners:
        parameters = getattr(parameters, owner)
    present = getattr(parameters, name)
    if isinstance(present, enum.Enum):
        value = type(present)[value]
    elif name == "tensor_split":
        value = [*value, *present[len(value) :]]  # a list of fixed length
    setattr(parameters, name, value)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
