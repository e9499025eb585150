"""Where an engine runs, as a catalog says it: in a Python environment, a `runtime_env` of Ray, or a container.

Rules of this file: sections and their checks. Nobody looks here whether a folder or an image is there: only
the machine that runs the engine can know.
"""

from __future__ import annotations

import json
from enum import Enum
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from rayscheduler.config.fields import Drawn, Section, Text, word, word_schema
from rayscheduler.config.values import Plain, Wrong, one_of_these, shown

# Keys of Ray's runtime_env -> what to use instead.
NOT_OURS = {
    "env_vars": "write them into env",
    "container": "use the model's own container key",
    "image_uri": "use the model's own container key",
    "nsight": "profile the engine by its own flags",
}
RUNTIME_ENV_KEYS = ("pip", "uv", "conda", "working_dir", "py_modules", "excludes", "config")
INSTALLERS = ("pip", "uv", "conda")


class ContainerProgram(str, Enum):
    """What runs containers."""

    DOCKER = "docker"
    PODMAN = "podman"

    __str__ = str.__str__


ContainerWord = Annotated[
    ContainerProgram, BeforeValidator(word(ContainerProgram, "programs for containers")), word_schema(ContainerProgram)
]


class ContainerSection(Section):
    """An image that the engine runs in. The engine's flags, devices, port and key are the same as outside."""

    image: Text = Field(examples=["vllm/vllm-openai:v0.33.0"])
    """The image, by its name and tag."""
    program: ContainerWord | None = None
    """What runs it; if left out docker, or podman where there is no docker."""
    run_options: list[Text] = Field(default_factory=list, examples=["[--shm-size=8g]"])
    """Further options of `docker run`."""

    def engine_fields(self) -> dict[str, Any]:
        """The fields of an `EngineRequest` that say this."""
        return {
            "container_image": self.image,
            "container_program": "" if self.program is None else self.program.value,
            "container_options": tuple(self.run_options),
        }

    @model_validator(mode="after")
    def _named(self) -> ContainerSection:
        if not self.image or self.image != self.image.strip() or self.image.startswith("-"):
            what = f"{shown(self.image)} is not the name of an image"
            raise Wrong(what, "write for example vllm/vllm-openai:v0.33.0", ("image",))
        return self


def runtime_env(value: object) -> dict[str, Any]:
    """A mapping that Ray understands; the text of unquoted scalars is read as YAML does."""
    if not isinstance(value, dict):
        raise Wrong(f"{shown(value)} is not a mapping", "write for example runtime_env: {pip: [vllm]}")
    for key in value:
        if key in NOT_OURS:
            raise Wrong(f"the key {shown(key)} of a runtime_env is not taken here", NOT_OURS[str(key)], (key,))
        if key not in RUNTIME_ENV_KEYS:
            fix = one_of_these(str(key), RUNTIME_ENV_KEYS, "keys here")
            raise Wrong(f"the key {shown(key)} is unknown", fix, (key,))
        if value[key] is None:
            raise Wrong("is empty", "give it a value or remove the key", (key,))
    several = [key for key in INSTALLERS if key in value]
    if len(several) > 1:
        raise Wrong(f"{several[0]} and {several[1]} contradict each other", "keep one of them", (several[1],))
    return {str(key): _as_yaml(each) for key, each in value.items()}


def python_folder(value: object) -> str:
    """The folder of a Python environment: an absolute path, one from the home folder, or relative to the file."""
    if not isinstance(value, str) or not value.startswith(("/", "~", "./", "../")):
        what = f"{shown(value)} is not the path of a Python environment"
        raise Wrong(what, "write for example /opt/vllm or ./venv, the folder that has bin/python in it")
    return str(value)


def check_one_place(python: str | None, runtime: dict[str, Any], container: ContainerSection | None) -> None:
    """Wrong at the second of two places that an engine cannot both run in."""
    given = {"python": bool(python), "runtime_env": bool(runtime), "container": container is not None}
    several = [key for key, is_there in given.items() if is_there]
    if len(several) > 1:
        raise Wrong(f"{several[0]} and {several[1]} contradict each other", "keep one of them", (several[1],))


def _as_yaml(value: object) -> object:
    if isinstance(value, dict):
        return {str(key): _as_yaml(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_as_yaml(each) for each in value]
    if isinstance(value, Plain):
        try:
            read = json.loads(value)
        except ValueError:
            return str(value)
        return read if isinstance(read, (bool, int, float)) else str(value)
    return str(value) if isinstance(value, str) else value


PythonFolder = Annotated[str, BeforeValidator(python_folder), Drawn({"type": "string", "pattern": r"^(/|~|\.\.?/)"})]
RuntimeEnv = Annotated[
    "dict[str, Any]",
    BeforeValidator(runtime_env),
    Drawn(
        {
            "type": "object",
            "properties": {key: {} for key in RUNTIME_ENV_KEYS},
            "additionalProperties": False,
        }
    ),
]
