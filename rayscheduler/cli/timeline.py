"""A simulated run for people: a table of decisions, and a picture of each device over time.

Rules of this file: it draws what the lines of `simulate` say and computes nothing that they do not.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from rayscheduler.simulation.scenario import Scenario

GIB = 1 << 30
COLUMNS = 72  # of time, in a picture
AWAKE, ASLEEP, GONE = "█", "·", " "
TURNS = {"wake": AWAKE, "sleep": ASLEEP, "stop": GONE}
COLOURS = ("cyan", "magenta", "green", "yellow", "blue", "red")

Turn = tuple[int, str]  # from when on (ms), and how it is drawn from then on


def decisions_table(lines: Iterable[Mapping[str, Any]]) -> Table:
    table = Table("time", "decision", "what", "details", box=None, header_style="bold")
    for line in lines:
        what, details = _told(line)
        table.add_row(f"{line['at_ms'] / 1000:g} s", line["decision"], Text(what), Text(details))
    return table


def _told(line: Mapping[str, Any]) -> tuple[str, str]:
    match line["decision"]:
        case "start" | "wake":
            where = ", ".join(line["devices"]) or str(line["node"])
            each = " each" if len(line["bytes"]) > 1 else ""
            size = f" ({line['bytes'][0] / GIB:.1f} GiB{each})" if line["bytes"] else ""
            evicts = f", in place of {', '.join(line['evicts'])}" if line["evicts"] else ""
            return line["replica"], f"on {where}{size}{evicts}"
        case "stop":
            way = f" for {line['for']}" if "for" in line else ""
            return line["replica"], f"{line['reason']}{way}"
        case "sleep":
            return line["replica"], f"evicted for {line['for']}" if "for" in line else "evicted"
        case "grant":
            return line["request"], f"by {line['replica']}"
        case _:
            return line["request"], f"{line['code']} ({line['status']}): {line['message']}"


def timelines(scenario: Scenario, lines: Sequence[Mapping[str, Any]]) -> Iterator[Panel]:
    """One picture per device: a row per replica that was on it, from its start to its stop; dotted while it slept."""
    end_ms = max([line["at_ms"] for line in lines] + [at.at_ms for at in scenario.events] + [1])
    rows: dict[str, dict[str, list[Turn]]] = {}  # device -> replica -> its turns
    for replica in scenario.replicas:
        for taken in replica.placement.devices:
            turn = AWAKE if replica.keeps is None else ASLEEP
            rows.setdefault(taken, {})[replica.id] = [(0, turn)]
    for line in lines:
        if line["decision"] == "start":
            for device in line["devices"]:
                rows.setdefault(device, {})[line["replica"]] = [(line["at_ms"], AWAKE)]
        elif line["decision"] in TURNS:
            for replicas in rows.values():
                if line["replica"] in replicas:
                    replicas[line["replica"]].append((line["at_ms"], TURNS[line["decision"]]))
    for device in sorted(rows):
        yield Panel(_picture(rows[device], end_ms), title=device, title_align="left", width=COLUMNS + 30)


def _picture(rows: Mapping[str, Sequence[Turn]], end_ms: int) -> Text:
    picture = Text()
    width = max(len(name) for name in rows)
    for at, (name, turns) in enumerate(rows.items()):
        picture.append(f"{name:<{width}} ", style="bold")
        drawn = 0
        for (begin_ms, mark), (stop_ms, _) in pairwise([(0, GONE), *turns, (end_ms + 1, GONE)]):
            last = stop_ms * COLUMNS // (end_ms + 1)
            if mark != GONE and stop_ms > begin_ms:
                last = max(drawn + 1, last)
            picture.append(mark * (last - drawn), style=COLOURS[at % len(COLOURS)])
            drawn = max(drawn, last)
        picture.append("\n")
    picture.append(f"{'':<{width}} 0 s{end_ms / 1000:>{COLUMNS - 5}g} s", style="dim")
    return picture


def summary_table(summary: Mapping[str, Any]) -> Table:
    table = Table(box=None, show_header=False)
    for key in ("requests", "granted", "rejected", "waiting", "loads", "evictions", "sleeps", "wakes"):
        if key in summary:
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
