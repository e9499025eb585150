"""`estimate --compare`: estimates beside what a running service reserves and has measured."""

from __future__ import annotations

from rayscheduler import memory_view
from rayscheduler.cli import control
from rayscheduler.cli.output import show, show_json, show_line


def compare(model: str | None, address: str | None, as_json: bool) -> None:
    """A table of every model with a measurement, or of one model; as JSON, a list of rows.

    AllocatorUnavailable: there is no service to ask. RequestRejected: it has no such model.
    """
    with control.connected(address) as service:
        now = service.status()
    name = control.known_model(now, model)["name"] if model is not None else None
    found = [row for row in memory_view.rows(now, measured_only=True) if name in (None, row["model"])]
    if as_json:
        show_json(found)
    elif found:
        show(memory_view.table(found, "Estimated, reserved and measured, of one replica on each device"))
    else:
        show_line(f"nothing was measured yet{f' of {name}' if name else ''}: a model has to be loaded for that")
