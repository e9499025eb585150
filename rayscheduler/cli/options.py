"""The options that several commands share, each written once."""

from __future__ import annotations

import re
from typing import Annotated

import typer


def _address(given: str | None) -> str | None:
    if given is not None and given != "auto" and not re.fullmatch(r"[^\s/]+:[0-9]{1,5}", given):
        raise typer.BadParameter(f"{given!r} is neither host:port nor auto")
    return given


AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
Address = Annotated[
    str | None,
    typer.Option(
        "--address",
        metavar="HOST:PORT",
        envvar="RAYSCHEDULER_ADDRESS",
        callback=_address,
        help="The Ray cluster: `host:port` of its head, or `auto` for the one that this machine is in.",
    ),
]
ModelName = Annotated[str, typer.Argument(metavar="MODEL", help="Name or alias of a model in the catalog.")]
Lend = Annotated[
    str | None,
    typer.Option("--lend", metavar="SIZE", help="Memory that this node lends, as 400MiB; on a GPU node per GPU."),
]
SimulateDevices = Annotated[
    str | None,
    typer.Option(
        "--simulate-devices",
        metavar="COUNTxSIZE",
        help="Pretend to have these devices, as 4x80GiB. They take models of the `simulated` engine only.",
    ),
]
