"""`explain`: why here, why these victims, why not elsewhere, and what something waits for now."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from rayscheduler.cli.control import connected
from rayscheduler.cli.options import Address, AsJson
from rayscheduler.cli.output import show, show_json

GIB = 1 << 30


def explain(
    subject: Annotated[str, typer.Argument(metavar="MODEL|REPLICA|REQUEST", help="As `status` or an answer names it.")],
    address: Address = None,
    as_json: AsJson = False,
) -> None:
    """Say what was last decided about a model, a replica or a request, and why."""
    with connected(address) as client:
        answer = client.explain(subject)
    if as_json:
        show_json(answer)
        return
    show(Text.assemble((answer["subject"], "bold"), f" ({answer['kind']}): {answer['state']}"))
    if answer["plan"]:
        show(Text(f"one more replica: {answer['plan']['message']}"))
        show(Text(answer["plan"]["summary"]))
        if answer["plan"]["refusals"]:
            show(refusals_table(answer["plan"]["refusals"]))
    for entry in answer["decisions"]:
        when = time.strftime("%H:%M:%S", time.localtime(entry["at"]))
        what = entry.get("replica") if entry["decision"] in ("start", "stop") else entry.get("request")
        show(Text.assemble(f"{when} ", (f"{entry['decision']} {what}", "bold"), f": {entry['why']}"))
        if entry.get("refusals"):
            show(refusals_table(entry["refusals"]))


def refusals_table(refusals: list[dict[str, Any]]) -> Table:
    """Why each node was not chosen; bytes where bytes were the reason."""
    table = Table("node", "refused for", "needed", "free", box=None, header_style="bold")
    for refusal in refusals:
        sizes = [refusal.get(key) for key in ("needed_bytes", "free_bytes")]
        table.add_row(
            Text(refusal["node"]), refusal["reason"], *("" if s is None else f"{s / GIB:.1f} GiB" for s in sizes)
        )
    return table
