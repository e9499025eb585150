"""What operators ask of a running service: how it is, why it is so, and the verbs load, unload, pin, unpin."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rayscheduler.cli.options import Address, AsJson, ModelName
from rayscheduler.cli.output import nearest, show, show_json, show_line
from rayscheduler.errors import RequestRejected

if TYPE_CHECKING:
    from rayscheduler.client import AllocatorClient

DECISIONS_SHOWN = 30


@contextmanager
def connected(address: str | None) -> Iterator[AllocatorClient]:
    """A client of the service at `address`, or of the one on this machine."""
    from rayscheduler.cli.ray_version import require_ray
    from rayscheduler.cli.service import the_running_one

    require_ray()
    if address is None:
        service = the_running_one(address)
        address = service.address if service is not None else None
    from rayscheduler.client import AllocatorClient

    with AllocatorClient.connect(address) as client:
        yield client


def status(address: Address = None, as_json: AsJson = False) -> None:
    """Show devices and what is on them, replicas, models and the queue."""
    from rayscheduler.status import render

    with connected(address) as service:
        now = service.status()
    if as_json:
        show_json(now)
    else:
        show(render(now))


def load(
    model: ModelName,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Stay until it runs, or has failed.")] = True,
    address: Address = None,
    as_json: AsJson = False,
) -> None:
    """Load a model, and keep wanting it until it runs or is unloaded. Other models may have to make way.

    A LoRA adapter is loaded into the replicas of its base, and that before it.
    """
    from rayscheduler.cli.loading import load_and_watch

    with connected(address) as service:
        entry = known_model(service.status(), model)
        answer = load_and_watch(service, entry) if wait else service.load(entry["name"], wait=False)
    _tell(answer, as_json)


def unload(model: ModelName, address: Address = None, as_json: AsJson = False) -> None:
    """Stop all replicas of a model at once, serving or not. Requests that wait for it are rejected.

    A LoRA adapter leaves the replicas of its base, with its last request there.
    """
    with connected(address) as service:
        entry = known_model(service.status(), model)
        answer = service.unload(entry["name"])
    _tell(answer, as_json)


def pin(model: ModelName, address: Address = None, as_json: AsJson = False) -> None:
    """Keep a model: from now on its replicas make way for nobody."""
    with connected(address) as service:
        entry = known_model(service.status(), model)
        answer = service.pin(entry["name"])
    _tell(answer, as_json)


def unpin(model: ModelName, address: Address = None, as_json: AsJson = False) -> None:
    """Let a pinned model go: its replicas may make way again."""
    with connected(address) as service:
        entry = known_model(service.status(), model)
        answer = service.unpin(entry["name"])
    _tell(answer, as_json)


def decisions(
    subject: Annotated[
        str | None, typer.Argument(metavar="[SUBJECT]", help="Only those about this model, replica or request.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=1000, help="The last so many.")] = DECISIONS_SHOWN,
    address: Address = None,
    as_json: AsJson = False,
) -> None:
    """Show what was decided last, and why. The newest is at the end; with --json it comes first."""
    from rayscheduler.status import render_decisions

    with connected(address) as service:
        taken = list(service.decisions(limit, subject))
    if as_json:
        show_json(taken)
    elif taken:
        show(render_decisions(taken[::-1]))
    else:
        show_line(f"nothing was decided about {subject}" if subject else "nothing was decided yet")


def known_model(now: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The entry of a model, an adapter or an alias. RequestRejected, with the nearest name, if there is none."""
    names = []
    for entry in (*now["models"], *now["adapters"]):
        if name == entry["name"] or name in entry["aliases"]:
            return dict(entry)
        names += [entry["name"], *entry["aliases"]]
    fix = nearest(name, names) or f"; the models are: {', '.join(sorted(names)) or 'none'}"
    raise RequestRejected("model_not_found", 404, f"there is no model {name!r}{fix}")


def _tell(answer: Mapping[str, Any], as_json: bool) -> None:
    if as_json:
        show_json(dict(answer))
    else:
        show_line(answer["message"])
