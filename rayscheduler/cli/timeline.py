"""A simulated run for people: a table of decisions, and a picture of each device over time.

Rules of this file: it draws what the lines of `simulate` say and computes nothing that they do not.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from rayscheduler.simulation.scenario import Scenario

GIB = 1 << 30
COLUMNS = 72  # of time, in a picture
COLOURS = ("cyan", "magenta", "green", "yellow", "blue", "red")


def decisions_table(lines: Iterable[Mapping[str, Any]]) -> Table:
    table = Table("time", "decision", "what", "details", box=None, header_style="bold")
    for line in lines:
        what, details = _told(line)
        table.add_row(f"{line['at_ms'] / 1000:g} s", line["decision"], Text(what), Text(details))
    return table


def _told(line: Mapping[str, Any]) -> tuple[str, str]:
    match line["decision"]:
        case "start":
            where = ", ".join(line["devices"]) or str(line["node"])
            each = " each" if len(line["bytes"]) > 1 else ""
            size = f" ({line['bytes'][0] / GIB:.1f} GiB{each})" if line["bytes"] else ""
            evicts = f", in place of {', '.join(line['evicts'])}" if line["evicts"] else ""
            return line["replica"], f"on {where}{size}{evicts}"
        case "stop":
            way = f" for {line['for']}" if "for" in line else ""
            return line["replica"], f"{line['reason']}{way}"
        case "grant":
            return line["request"], f"by {line['replica']}"
        case _:
            return line["request"], f"{line['code']} ({line['status']}): {line['message']}"


def timelines(scenario: Scenario, lines: Sequence[Mapping[str, Any]]) -> Iterator[Panel]:
    """One picture per device: a row per replica that was on it, from its start to its stop."""
    end_ms = max([line["at_ms"] for line in lines] + [at.at_ms for at in scenario.events] + [1])
    spans: dict[str, list[tuple[str, int, int | None]]] = {}
    for replica in scenario.replicas:
        for taken in replica.placement.devices:
            spans.setdefault(taken, []).append((replica.id, 0, None))
    for line in lines:
        if line["decision"] == "start":
            for device in line["devices"]:
                spans.setdefault(device, []).append((line["replica"], line["at_ms"], None))
        elif line["decision"] == "stop":
            for rows in spans.values():
                for at, (name, start_ms, _) in enumerate(rows):
                    if name == line["replica"]:
                        rows[at] = (name, start_ms, line["at_ms"])
    for device in sorted(spans):
        yield Panel(_picture(spans[device], end_ms), title=device, title_align="left", width=COLUMNS + 30)


def _picture(rows: Sequence[tuple[str, int, int | None]], end_ms: int) -> Text:
    picture = Text()
    width = max(len(name) for name, _, _ in rows)
    for at, (name, start_ms, stop_ms) in enumerate(rows):
        first = start_ms * COLUMNS // (end_ms + 1)
        last = COLUMNS if stop_ms is None else max(first + 1, stop_ms * COLUMNS // (end_ms + 1))
        picture.append(f"{name:<{width}} ", style="bold")
        picture.append(" " * first)
        picture.append("█" * (last - first), style=COLOURS[at % len(COLOURS)])
        picture.append("\n")
    picture.append(f"{'':<{width}} 0 s{end_ms / 1000:>{COLUMNS - 5}g} s", style="dim")
    return picture


def summary_table(summary: Mapping[str, Any]) -> Table:
    table = Table(box=None, show_header=False)
    for key in ("requests", "granted", "rejected", "waiting", "loads", "evictions"):
        table.add_row(key, str(summary[key]))
    waits = summary["wait_ms"]
    if waits["p50"] is not None:
        table.add_row("wait", f"p50 {waits['p50'] / 1000:g} s, p99 {waits['p99'] / 1000:g} s")
    over = summary["overcommitted"]
    table.add_row("over-committed", Text("yes" if over else "never", style="bold red" if over else "green"))
    for name, device in summary["devices"].items():
        peak, capacity = device["peak_bytes"], device["capacity_bytes"]
        table.add_row(name, f"peak {peak / GIB:.1f} of {capacity / GIB:.1f} GiB")
    return table
