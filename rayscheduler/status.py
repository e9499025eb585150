"""The allocator's `status` dictionary, drawn for people: bars, tables, and lines that say what changed.

Rules of this file: dictionaries in, Rich renderables or plain lines out. Nothing is asked of the cluster,
and nothing here is needed by `--json`, which prints the dictionary as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from rayscheduler import memory_view

Json = Mapping[str, Any]

MIB = 2**20
GIB = 2**30
BAR_CELLS_MIN, BAR_CELLS_MAX = 8, 32

# In the order in which they fill a bar. They differ without colour too.
MEASURED, RESERVED, OTHERS, FREE = "█", "▒", "╳", "·"
LEGEND = (
    (MEASURED, "green", "measured"),
    (RESERVED, "yellow", "reserved"),
    (OTHERS, "magenta", "other programs"),
    (FREE, "dim", "free"),
)
STATE_STYLE = {
    "PENDING": "yellow",
    "STARTING": "cyan",
    "RUNNING": "green",
    "DRAINING": "yellow",
    "STOPPING": "yellow",
    "STOPPED": "dim",
    "loaded": "green",
    "loading": "cyan",
    "unloaded": "dim",
    "backing_off": "red",
    "sizing": "cyan",
    "refused": "red",
    "unsized": "red",
}


def memory(size_bytes: int | None) -> str:
    """`1.5 GiB`, `180 MiB`; `-` where nothing is known."""
    if size_bytes is None:
        return "-"
    if abs(size_bytes) >= GIB:
        return f"{size_bytes / GIB:.1f} GiB"
    return f"{size_bytes / MIB:.0f} MiB"


def duration(seconds: float | None) -> str:
    """`0.4 s`, `12 s`, `3 m 05 s`, `2 h 10 m`; `-` where nothing is known."""
    if seconds is None:
        return "-"
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} m {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} m"


def render(status: Json) -> RenderableType:
    """All of it: devices, replicas, models, and the queue where somebody waits."""
    parts: list[RenderableType] = [_devices(status["nodes"])]
    parts += list(_mending(status["nodes"]))
    parts += list(_foreign(status["nodes"]))
    if status["replicas"]:
        parts.append(_replicas(status["replicas"]))
    if status["models"]:
        parts.append(_models(status["models"]))
    if known := memory_view.rows(status):
        parts.append(memory_view.table(known))
    if status["queue"]:
        parts.append(_queue(status["queue"]))
    return Group(*parts)


class DeviceBar:
    """What we measured, what else is reserved, what other programs hold, what is free; as wide as there is room."""

    def __init__(self, device: Json) -> None:
        measured = device["measured_bytes"] or 0
        ours = max(measured, device["reserved_bytes"])
        self._capacity = max(1, device["capacity_bytes"])
        self._ends = (measured, ours, ours + device["used_by_others_bytes"])

    def text(self, cells: int) -> Text:
        # Rounded up: what is there shows.
        filled = [min(cells, -(-end * cells // self._capacity)) for end in self._ends]
        bar, before = Text(), 0
        for (cell, style, _), end in zip(LEGEND, [*filled, cells], strict=True):
            bar.append(cell * (end - before), style=style)
            before = end
        return bar

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self.text(min(options.max_width, BAR_CELLS_MAX))

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(min(options.max_width, BAR_CELLS_MIN), min(options.max_width, BAR_CELLS_MAX))


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for column in columns:
        name, right = (column[1:], True) if column.startswith(">") else (column, False)
        table.add_column(name, justify="right" if right else "left", header_style="dim", no_wrap=right)
    return table


def _row(table: Table, *cells: str | Text | DeviceBar) -> None:
    # Names and logs come from elsewhere: a plain `str` would be read as Rich's markup.
    table.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in cells))


def _devices(nodes: Sequence[Json]) -> RenderableType:
    table = _table("Devices", "device", "type", "memory", ">reserved", ">measured", ">others", ">free", ">total")
    for node in nodes:
        for device in node["devices"]:
            _row(
                table,
                device["id"] if device["offered"] else Text(f"{device['id']} (lost)", style="red"),
                device["type"] or node["backend"],
                DeviceBar(device),
                memory(device["reserved_bytes"]),
                memory(device["measured_bytes"]),
                memory(device["used_by_others_bytes"]),
                memory(device["free_bytes"]),
                memory(device["capacity_bytes"]),
            )
    if not table.row_count:
        return Text("No device is lent to the service yet.", style="yellow")
    legend = Text()
    for cell, style, meaning in LEGEND:
        legend.append(f"{cell} {meaning}  ", style=style)
    return Group(table, legend, Text())


def _mending(nodes: Sequence[Json]) -> Iterator[Text]:
    for node in nodes:
        if node["mend"]:
            yield Text(f"{node['name']}: {node['mend']}", style="yellow")


def _foreign(nodes: Sequence[Json]) -> Iterator[RenderableType]:
    """The programs on the devices that are none of our engines', those that hold most first."""
    table = _table("Other programs", "device", ">pid", "program", "user", ">holds", "")
    found = [(device["id"], each) for node in nodes for device in node["devices"] for each in device["foreign"]]
    for device, process in sorted(found, key=lambda one: (-(one[1]["held_bytes"] or 0), one[0], one[1]["pid"])):
        left_by = f"left by {process['left_by']}" if process["left_by"] else ""
        held = memory(process["held_bytes"])
        _row(table, device, str(process["pid"]), process["name"] or "?", process["user"] or "?", held, left_by)
    if table.row_count:
        yield table


def _replicas(replicas: Sequence[Json]) -> Table:
    table = _table("Replicas", "replica", "state", "on", ">reserved", ">measured", ">leases", ">for", ">idle", "")
    for replica in replicas:
        notes = ["pinned"] if replica["pinned"] else []
        if replica["adapters"]:
            notes.append(f"with {', '.join(replica['adapters'])}")
        if replica["makes_way_for"]:
            notes.append(f"makes way for {replica['makes_way_for']}")
        _row(
            table,
            replica["id"],
            _state(replica["state"]),
            place(replica),
            memory(_held(replica)),
            memory(replica["measured_bytes"]),
            str(replica["leases"]),
            duration(replica["since_s"]),
            duration(replica["idle_s"]) if replica["state"] == "RUNNING" and not replica["leases"] else "-",
            ", ".join(notes),
        )
    return table


def _models(models: Sequence[Json]) -> Table:
    table = _table("Models", "model", "engine", "state", ">needs", ">waiting", "")
    for model in models:
        notes = ["pinned"] if model["pinned"] else []
        if model["aliases"]:
            notes.append(f"also {', '.join(model['aliases'])}")
        if model["state"] == "backing_off" and model["backoff_s"] is not None:
            notes.append(f"tried again in {duration(model['backoff_s'])}")
        if model["last_error"]:
            notes.append(first_line(model["last_error"]))
        _row(
            table,
            model["name"],
            model["engine"],
            _state(model["state"]),
            memory(model["memory_bytes"]),
            str(model["waiting"]),
            "; ".join(notes),
        )
    return table


def _queue(queue: Sequence[Json]) -> Table:
    table = _table("Queue", ">place", "request", "model", ">priority", ">waits")
    for waiting in queue:
        _row(
            table,
            str(waiting["position"]),
            waiting["request"],
            waiting["model"],
            str(waiting["priority"]),
            duration(waiting["waited_s"]),
        )
    return table


def _state(state: str) -> Text:
    return Text(state, style=STATE_STYLE.get(state, ""))


def place(replica: Json) -> str:
    """The devices of a replica, or its nodes where it takes none."""
    return " ".join(replica["devices"]) or " ".join(replica["nodes"])


def _held(replica: Json) -> int:
    return sum(replica["device_bytes"]) + int(replica["host_bytes"]) * len(replica["nodes"])


def first_line(text: str) -> str:
    """The first line that says something; the rest of an engine's log is for `decisions`."""
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


def render_decisions(decisions: Sequence[Json]) -> Table:
    """Oldest first, as they were taken."""
    table = _table("", "when", "decision", "what", "why")
    table.title = None
    for decision in decisions:
        at = datetime.fromtimestamp(decision["at"]).strftime("%H:%M:%S")
        _row(table, at, decision["decision"], _what(decision), decision.get("why") or decision.get("message") or "")
    return table


def _what(decision: Json) -> str:
    if decision["decision"] == "start":
        size = sum(decision["bytes"])
        place = " ".join(decision["devices"]) or str(decision["node"])
        evicts = f", evicting {', '.join(decision['evicts'])}" if decision["evicts"] else ""
        return f"{decision['replica']} on {place}, {memory(size)}{evicts}"
    if decision["decision"] == "stop":
        way = f" for {decision['for']}" if decision.get("for") else ""
        return f"{decision['replica']} {decision['reason']}{way}"
    if decision["decision"] == "grant":
        return f"{decision['request']} to {decision['replica']}"
    return f"{decision['request']} {decision['status']} {decision['code']}"


def changes(before: Json | None, after: Json) -> list[str]:
    """One line for each replica, node and failure that differs: the live view where there is no terminal."""
    known = {} if before is None else {replica["id"]: replica for replica in before["replicas"]}
    lines = []
    for replica in after["replicas"]:
        was = known.pop(replica["id"], None)
        if was is None or was["state"] != replica["state"]:
            lines.append(_replica_line(replica))
    lines += [f"{gone} is gone" for gone in known]
    lines += list(_failure_lines(before, after))
    lines += list(_node_lines(before, after))
    return lines


def _replica_line(replica: Json) -> str:
    line = f"{replica['id']} {replica['state']} on {place(replica)} ({memory(_held(replica))} reserved)"
    if replica["makes_way_for"]:
        line += f", makes way for {replica['makes_way_for']}"
    return line


def _failure_lines(before: Json | None, after: Json) -> Iterator[str]:
    known = {} if before is None else {model["name"]: model["last_error"] for model in before["models"]}
    for model in after["models"]:
        if model["last_error"] and model["last_error"] != known.get(model["name"]):
            yield f"{model['name']} failed: {first_line(model['last_error'])}"


def _node_lines(before: Json | None, after: Json) -> Iterator[str]:
    known = {} if before is None else {node["node_id"]: node for node in before["nodes"]}
    for node in after["nodes"]:
        was = known.pop(node["node_id"], None)
        if was is not None and was["alive"] == node["alive"] and was["lends"] == node["lends"]:
            continue
        if not node["alive"]:
            yield f"node {node['name']} is lost"
        elif node["lends"]:
            lent = sum(device["capacity_bytes"] for device in node["devices"])
            yield f"node {node['name']} lends {memory(lent)} on {len(node['devices'])} device(s)"
        else:
            yield f"node {node['name']}: {node['mend']}"
    yield from (f"node {gone['name']} left" for gone in known.values())
