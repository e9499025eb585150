"""What a service in the foreground shows: a view that keeps itself current, or a line per change.

Rules of this file: it reads and prints, and ends only by an exception: Ctrl-C, SIGTERM, or the service's end.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.text import Text

from rayscheduler.status import changes, render

if TYPE_CHECKING:
    from rayscheduler.client import AllocatorClient

LOOK_EVERY_S = 0.5


def follow(service: AllocatorClient, title: str) -> None:
    """Shows the service until something raises."""
    if sys.stdout.isatty():
        _view(service, title)
    else:
        _lines(service)


def _view(service: AllocatorClient, title: str) -> None:
    from rich.console import Console
    from rich.live import Live

    console = Console(highlight=False)
    # Without the alternate screen: what stood there last is still there after the end.
    with Live(Text(title), console=console, auto_refresh=False, transient=False) as live:
        while True:
            live.update(_page(title, service.status()), refresh=True)
            time.sleep(LOOK_EVERY_S)


def _page(title: str, now: Mapping[str, Any]) -> RenderableType:
    return Group(Text(title, style="bold"), Text("Ctrl-C takes it down.", style="dim"), Text(), render(now))


def _lines(service: AllocatorClient) -> None:
    before: Mapping[str, Any] | None = None
    while True:
        now = service.status()
        for line in changes(before, now):
            print(time.strftime("%H:%M:%S"), line, flush=True)
        before = now
        time.sleep(LOOK_EVERY_S)
