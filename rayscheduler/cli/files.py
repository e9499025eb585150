"""Commands that start nothing and ask no cluster: `config check`, `config schema`, `resources`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rayscheduler.cli.options import AsJson, Lend, SimulateDevices
from rayscheduler.cli.output import show_json, show_line
from rayscheduler.errors import ConfigError, EngineError, SourceError

if TYPE_CHECKING:
    from rayscheduler.config.service import ServiceConfig

config_app = typer.Typer(help="Check a configuration, or print its schema.", no_args_is_help=True)

ConfigFile = Annotated[Path, typer.Argument(metavar="FILE", help="The YAML file that `up --config` reads.")]


@config_app.command("check")
def check(
    file: ConfigFile,
    elsewhere: Annotated[
        bool,
        typer.Option("--elsewhere", help="Engines and weights are on other machines: check the file alone."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Say whether a configuration would start: its keys and values, engines, and models' files. Where a model's file
    can be read here, also what memory it will be estimated to take, and whether what its entry says can be true.

    Exits with 0, or with 2 and one line that names the file, the line and what to do.
    """
    from rayscheduler.config.service import load_config

    config = load_config(file)
    for problem in engine_problems(config, here=not elsewhere):
        raise problem
    from rayscheduler.cli.memory_check import contradiction, sized_here

    known = list(sized_here(config))
    for model in known:
        if (refused := contradiction(config, model)) is not None:
            raise refused
    names, adapters = [model.name for model in config.models], [adapter.name for adapter in config.adapters]
    if as_json:
        estimates = {model.entry.name: model.figures.bytes_by_count() for model in known if not model.entry.says_memory}
        told = {"file": str(file), "valid": True, "models": names, "adapters": adapters}
        show_json({**told, "estimated_bytes_by_count": estimates})
    else:
        for model in known:
            if not model.entry.says_memory:
                show_line(model.words)
        further = f" and {_several(adapters, 'adapter')}" if adapters else ""
        show_line(f"{file}: {_several(names, 'model')}{further}, nothing wrong")


def _several(names: Sequence[str], word: str) -> str:
    return f"{len(names)} {word}{'' if len(names) == 1 else 's'}"


@config_app.command("schema")
def schema(as_json: AsJson = True) -> None:
    """Print the JSON schema of the configuration, for editors that complete and check YAML."""
    from rayscheduler.config.schema import schema_text

    del as_json  # it is JSON always; the option is there because every command that prints has it
    sys.stdout.write(schema_text())


def resources(lend: Lend = None, simulate_devices: SimulateDevices = None, as_json: AsJson = True) -> None:
    """Print what this node lends, for `ray start --resources="$(rayscheduler resources)"`.

    One resource per device, in MiB: NVIDIA devices where there are any, else half of this machine's memory.
    """
    from rayscheduler.cluster.resources import detect_devices, resources_json

    del as_json
    inventory = detect_devices(lend_bytes=size("--lend", lend), simulate=simulate_devices)
    sys.stdout.write(json.dumps(resources_json(inventory), separators=(",", ":")) + "\n")


def size(option: str, text: str | None) -> int | None:
    """Bytes of `400MiB`, None of None; a usage error that names the option for anything else."""
    from rayscheduler.config.units import size_bytes
    from rayscheduler.config.values import Wrong

    try:
        return None if text is None else size_bytes(text)
    except Wrong as wrong:
        raise typer.BadParameter(f"{option}: {wrong}") from None


def engine_problems(config: ServiceConfig, here: bool) -> Iterator[ConfigError]:
    """What the engines say against the models. `here`: programs and weights must be on this machine."""
    from rayscheduler.config.yaml_lines import load_file
    from rayscheduler.engines import EngineRequest, by_name

    for index, entry in enumerate(config.models):
        engine = by_name(entry.engine.value)
        nodes = 2 if entry.across_nodes else 1  # or more: an engine can span nodes or it cannot
        request = EngineRequest(replica=f"{entry.name}#0", node_count=nodes, **entry.engine_fields())
        try:
            if here:
                engine.check(request)
            else:
                engine.validate(request)
        except EngineError as problem:
            key = "source" if isinstance(problem, SourceError) else "engine"
            line = load_file(config.path).line(("models", index, key))
            yield ConfigError(config.path, line, problem.message, "")
