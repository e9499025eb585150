"""`keys create`, `list` and `revoke`: who may ask the service over HTTP, and what.

Rules of this file: a key is made here and shown here, once; what goes to the service is its digest.
"""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from rayscheduler.cli import control
from rayscheduler.cli.options import Address, AsJson
from rayscheduler.cli.output import say, show, show_json, show_line

keys_app = typer.Typer(help="API keys: make one, list them, revoke one.", no_args_is_help=True)

KeyName = Annotated[str, typer.Argument(metavar="NAME", help="Whose key it is, as audit log and errors call it.")]


@keys_app.command("create")
def create(
    name: KeyName,
    scope: Annotated[
        list[str] | None,
        typer.Option("--scope", help="inference (the default): ask models. admin: load, unload, pin. May be repeated."),
    ] = None,
    models: Annotated[str | None, typer.Option("--models", metavar="A,B", help="The only ones it may ask.")] = None,
    requests_per_minute: Annotated[
        int | None, typer.Option("--requests-per-minute", metavar="N", help="That it may begin.")
    ] = None,
    concurrency: Annotated[int | None, typer.Option("--concurrency", metavar="N", help="Requests at a time.")] = None,
    priority: Annotated[
        int | None, typer.Option("--priority", metavar="N", help="Of its requests, and the most that they may say.")
    ] = None,
    address: Address = None,
    as_json: AsJson = False,
) -> None:
    """Make a key and show it, once: only its digest is kept. Gateways know it within 2 s."""
    from rayscheduler.cluster.keys import digest_of, new_token

    token = new_token()
    settings: dict[str, Any] = {
        "name": name,
        "digest": digest_of(token),
        "models": [each.strip() for each in (models or "").split(",") if each.strip()],
        "requests_per_minute": requests_per_minute,
        "concurrency": concurrency,
        "priority": priority,
    }
    if scope:
        settings["scopes"] = scope
    with control.connected(address) as service:
        answer = service.create_key(settings)
    if as_json:
        show_json({**answer["key"], "api_key": token})
    else:
        say(f"{answer['message']}; this is the only time that it is shown")
        show_line(token)


@keys_app.command("list")
def list_keys(address: Address = None, as_json: AsJson = False) -> None:
    """Show which keys there are and what they may do. The keys themselves are not kept."""
    with control.connected(address) as service:
        keys = service.api_keys()
    if as_json:
        show_json(keys)
    elif keys:
        show(_table(keys))
    else:
        show_line("there are no keys: the service answers its own machine only")


@keys_app.command("revoke")
def revoke(name: KeyName, address: Address = None, as_json: AsJson = False) -> None:
    """Refuse a key from now on. What it has begun is answered to its end."""
    with control.connected(address) as service:
        answer = service.revoke_key(name)
    if as_json:
        show_json(answer)
    else:
        show_line(answer["message"])


def _table(keys: list[dict[str, Any]]) -> Table:
    table = Table("key", "scopes", "models", "per minute", "at a time", "priority", "made", box=None)
    for key in keys:
        limits = (key[setting] for setting in ("requests_per_minute", "concurrency", "priority"))
        table.add_row(
            Text(key["name"]),
            Text(", ".join(key["scopes"])),
            Text(", ".join(key["models"]) or "all"),
            *("–" if limit is None else str(limit) for limit in limits),
            time.strftime("%Y-%m-%d %H:%M", time.localtime(key["created_s"])),
        )
    return table
