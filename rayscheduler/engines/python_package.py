"""The Python environment that an engine runs in: its interpreter, its PATH, and what is installed there.

    python: /opt/vllm          a virtual environment; its bin comes first on PATH
    (left out)                 the runner's own, which a `runtime_env` may have made

Rules of this file: nothing is imported and no program is run, as importing an engine takes many seconds: a
version is read from the folder that the installer left behind. In a container only the image knows.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rayscheduler.engines.protocol import EngineRequest
from rayscheduler.errors import EngineMissing

IN_CONTAINER = "python3"


@dataclass(frozen=True, slots=True)
class Package:
    """What an engine needs: a distribution, its oldest version that has the flags used here, its program.

    `extra`: of rayscheduler, for the runner's own environment; `install`: for one of the engine's own.
    """

    name: str
    version_min: tuple[int, ...]
    extra: str
    install: str
    program: str = ""


def interpreter(request: EngineRequest) -> str:
    """The Python program that runs the engine."""
    if request.container_image:
        return IN_CONTAINER
    return str(_environment(request) / "bin" / "python") if request.python else sys.executable


def program_path(package: Package, request: EngineRequest) -> str:
    """The program of the package, as the first word of a command."""
    if request.container_image:
        return package.program
    if request.python:
        return str(_environment(request) / "bin" / package.program)
    return _program(package.program, request) or package.program


def python_environment(request: EngineRequest, inherited: Mapping[str, str]) -> dict[str, str]:
    """What an engine's own Python environment changes in the common one; {} if it has none."""
    if not request.python or request.container_image:
        return {}
    home = _environment(request)
    path = inherited.get("PATH", os.defpath)
    return {"PATH": f"{home / 'bin'}{os.pathsep}{path}", "VIRTUAL_ENV": str(home), "PYTHONPATH": "", "PYTHONHOME": ""}


def require(package: Package, request: EngineRequest) -> None:
    """EngineMissing: the package is not there, is too old, or its Python environment is none."""
    if request.container_image:
        return
    where = ""
    if request.python:
        if not os.access(interpreter(request), os.X_OK):
            raise EngineMissing(
                f"model {request.model}: {request.python} is no Python environment on this machine: it has no "
                f"bin/python; make it with: python -m venv {request.python}"
            )
        where = f" in {request.python}"
    told = f'run: pip install "rayscheduler[{package.extra}]"'
    if request.python:
        told = f"run: {interpreter(request)} -m pip install {package.install}"
    version = installed_version(package, request)
    if version is None:
        raise EngineMissing(f"model {request.model} needs {package.name}, which is not installed{where}; {told}")
    if _numbers(version) < package.version_min:
        least = ".".join(map(str, package.version_min))
        raise EngineMissing(
            f"model {request.model} needs {package.name} {least} or newer, but {version} is installed{where}; {told}"
        )
    if package.program and _program(package.program, request) is None:
        raise EngineMissing(
            f"model {request.model} needs the program {package.program}, which {package.name} {version}{where} "
            f"does not have on PATH; {told}"
        )


def installed_version(package: Package, request: EngineRequest) -> str | None:
    """The version in the engine's Python environment, or None."""
    if not request.python:
        try:
            return importlib.metadata.version(package.name)
        except importlib.metadata.PackageNotFoundError:
            return None
    found = _environment(request).glob(f"lib/python3*/site-packages/{package.name.replace('-', '_')}-*.dist-info")
    versions = sorted((path.name.removesuffix(".dist-info").rpartition("-")[2] for path in found), key=_numbers)
    return versions[-1] if versions else None


def _program(name: str, request: EngineRequest) -> str | None:
    if request.python:
        return shutil.which(name, path=str(_environment(request) / "bin"))
    beside = str(Path(sys.executable).parent)
    return shutil.which(name, path=os.pathsep.join((beside, os.environ.get("PATH", os.defpath))))


def _environment(request: EngineRequest) -> Path:
    return Path(os.path.expanduser(request.python or ""))


def _numbers(version: str) -> tuple[int, ...]:
    """`0.33.0rc1` -> (0, 33, 0): enough to tell old from new."""
    return tuple(int(part) for part in re.findall(r"\d+", version.split("+")[0])[:3])
