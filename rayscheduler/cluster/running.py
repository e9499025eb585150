"""The services that were brought up from this account on this machine, as `down` and clients find them.

Rules of this file: one small file per cluster, written when Ray's head runs, so that also a start that was
killed half-way can be taken down. A file whose head is gone means nothing and is removed when it is seen.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from rayscheduler.cluster.ray_head import Head, state_folder

PREFIX = "service-"


@dataclass(frozen=True)
class Service:
    """A service that answers. `head`: Ray's, if it was started for it; `owns_serve`: Serve was, too."""

    address: str
    http_url: str
    head: Head | None
    owns_serve: bool

    @property
    def dashboard_url(self) -> str:
        return self.head.dashboard_url if self.head else ""


def remember(service: Service) -> None:
    """Write it down. Brought up again on a cluster where it was, it still owns what it owned."""
    path = _path(service.address)
    before = _read(path)
    if before is not None and before.head == service.head:
        service = replace(service, owns_serve=service.owns_serve or before.owns_serve)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(".new")
    scratch.write_text(json.dumps(asdict(service)))
    scratch.replace(path)


def forget(service: Service) -> None:
    _path(service.address).unlink(missing_ok=True)


def running() -> list[Service]:
    """Those that are up as far as this machine can tell, by address: a joined cluster may be gone unseen."""
    found = []
    for path in sorted(state_folder().glob(f"{PREFIX}*.json")):
        service = _read(path)
        if service is None:
            path.unlink(missing_ok=True)
        else:
            found.append(service)
    return found


def running_at(address: str) -> Service | None:
    return next((service for service in running() if service.address == address), None)


def _read(path: Path) -> Service | None:
    try:
        fields = json.loads(path.read_text())
        head = Head(**fields.pop("head")) if fields["head"] else fields.pop("head")
        service = Service(head=head, **fields)
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return service if service.head is None or service.head.alive else None


def _path(address: str) -> Path:
    return state_folder() / f"{PREFIX}{re.sub(r'[^0-9A-Za-z.]+', '-', address)}.json"
