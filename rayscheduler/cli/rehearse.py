"""`simulate` and `plan`: the real scheduler on a cluster that is only a file.

Rules of this file: JSON lines are the public format of scenarios; tables say the same to people. Neither
needs Ray. Both exit 0 when they could answer.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from rayscheduler.cli.options import AsJson
from rayscheduler.cli.output import show

if TYPE_CHECKING:
    from rayscheduler.simulation.scenario import Scenario

ScenarioFile = Annotated[Path, typer.Argument(metavar="FILE", help="A scenario: a cluster and a day of traffic.")]
Trace = Annotated[
    Path | None,
    typer.Option("--trace", metavar="LOG", help="Take the traffic from an event log that an allocator wrote."),
]
Nodes = Annotated[
    Path | None,
    typer.Option("--nodes", metavar="FILE", help="With --trace: the cluster and settings to try, as a scenario."),
]


def simulate(
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="A scenario: a cluster and a day of traffic.")
    ] = None,
    trace: Trace = None,
    nodes: Nodes = None,
    as_json: AsJson = False,
) -> None:
    """Run a scenario, or yesterday's traffic on another cluster, in virtual time; print every decision."""
    from rayscheduler.simulation.simulate import simulate as run

    scenario = _scenario(file, trace, nodes)
    if as_json:
        write = sys.stdout.write
        for line in run(scenario):
            write(json.dumps(line, separators=(",", ":"), ensure_ascii=False) + "\n")
        return
    from rayscheduler.cli.timeline import decisions_table, summary_table, timelines

    lines = list(run(scenario))
    summary = lines.pop()["summary"]
    show(decisions_table(lines))
    for picture in timelines(scenario, lines):
        show(picture)
    show(summary_table(summary))


def _scenario(file: Path | None, trace: Path | None, nodes: Path | None) -> Scenario:
    from rayscheduler.config.scenario import load_scenario
    from rayscheduler.errors import ConfigError
    from rayscheduler.simulation.trace import TraceError, scenario_of

    if trace is None and nodes is None and file is not None:
        return load_scenario(file)
    if file is not None or trace is None or nodes is None:
        raise typer.BadParameter("give a scenario FILE, or both --trace LOG and --nodes FILE")
    try:
        return scenario_of(_log(trace), load_scenario(nodes))
    except TraceError as problem:
        raise ConfigError(str(trace), problem.line, problem.problem, "give a log that the allocator wrote") from None


def _log(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a log: of the rotated files before it (`LOG.2`, `LOG.1`), oldest first, then its own."""
    from rayscheduler.errors import ConfigError

    older = [Path(f"{path}.{n}") for n in range(1, 1000) if Path(f"{path}.{n}").exists()]
    for part in [*reversed(older), path]:
        try:
            with part.open(encoding="utf-8") as lines:
                for number, line in enumerate(lines, 1):
                    try:
                        yield json.loads(line)
                    except json.JSONDecodeError:
                        raise ConfigError(str(part), number, "not a line of JSON", "was the log cut?") from None
        except OSError as problem:
            fix = "give the log's path"
            raise ConfigError(str(part), None, problem.strerror or str(problem), fix) from None


def replay(
    file: Annotated[Path, typer.Argument(metavar="LOG", help="An event log that an allocator wrote.")],
    as_json: AsJson = False,
) -> None:
    """Run an event log again and say where, if anywhere, the decisions differ; exit 1 if they do."""
    from rayscheduler.errors import ConfigError
    from rayscheduler.simulation.trace import Difference, TraceError
    from rayscheduler.simulation.trace import replay as again

    try:
        found = list(again(_log(file)))
    except TraceError as problem:
        raise ConfigError(str(file), problem.line, problem.problem, "give a log that the allocator wrote") from None
    differences = [each for each in found if isinstance(each, Difference)]
    count = next(each for each in found if isinstance(each, int))
    if as_json:
        told = [
            {"line": d.line, "at_ms": d.at_ms, "logged": list(d.logged), "decided": list(d.decided)}
            for d in differences
        ]
        sys.stdout.write(json.dumps({"batches": count, "differences": told}) + "\n")
    else:
        for each in differences:
            logged, decided = "; ".join(each.logged) or "nothing", "; ".join(each.decided) or "nothing"
            show(Text(f"line {each.line}, at {each.at_ms} ms: logged {logged}\n  now decided: {decided}"))
        show(f"{count} batches, {len(differences)} decided differently")
    if differences:
        raise typer.Exit(1)


def plan(
    file: ScenarioFile,
    model: Annotated[str, typer.Option("--model", metavar="NAME", help="The model to place once more.")],
    as_json: AsJson = False,
) -> None:
    """Say where one more replica of a model would go in the file's start state, and if nowhere, why."""
    from rayscheduler.cli.output import nearest
    from rayscheduler.config.scenario import load_scenario
    from rayscheduler.core.types import ModelName
    from rayscheduler.errors import ConfigError
    from rayscheduler.simulation.simulate import plan as ask
    from rayscheduler.simulation.simulate import plan_object

    scenario = load_scenario(file)
    answer = ask(scenario, ModelName(model))
    if answer is None:
        known = [m.name for m in scenario.models]
        raise ConfigError(str(file), 1, f"there is no model {model!r} in it{nearest(model, known)}", _choices(known))
    told = plan_object(answer)
    if as_json:
        sys.stdout.write(json.dumps(told, separators=(",", ":"), ensure_ascii=False) + "\n")
        return
    show(Text.assemble((told["verdict"], "bold"), ": ", told["message"]))
    show(Text(told["summary"]))
    if told["refusals"]:
        from rayscheduler.cli.explain import refusals_table

        show(refusals_table(told["refusals"]))


def _choices(known: Iterable[str]) -> str:
    return f"take one of {', '.join(sorted(known)) or 'none: the file has no models'}"
