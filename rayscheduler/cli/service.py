"""`up` and `down`: the service as a whole.

Rules of this file: everything that can be wrong is looked for before anything is started. What `up` started
it takes down again, however it ends; `--detach` leaves it for `down`.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rayscheduler.cli.options import Address, AsJson, Lend, SimulateDevices
from rayscheduler.cli.output import EXIT_INTERRUPTED, EXIT_PROBLEM, say, show_json, show_line, warn
from rayscheduler.errors import AllocatorUnavailable, RayschedulerError

if TYPE_CHECKING:
    from types import FrameType

    from rayscheduler.client import AllocatorClient
    from rayscheduler.cluster.running import Service
    from rayscheduler.config.service import ServiceConfig

PORT = 8000
ADMIN_KEY_ENV = "RAYSCHEDULER_ADMIN_KEY"
Host = Annotated[
    str, typer.Option("--host", help="Whom it answers: this machine only, or, as 0.0.0.0, all who show an API key.")
]
AdminKeyFile = Annotated[
    Path | None,
    typer.Option(
        "--admin-key-file",
        metavar="FILE",
        help=f"A file that holds the first API key, which may do all; or {ADMIN_KEY_ENV} in the environment.",
    ),
]
Port = Annotated[int, typer.Option("--port", min=1, max=65535, help="Where clients ask: http://HOST:PORT/v1.")]
NODES_WITHIN_S = 10.0


def up(
    config: Annotated[Path, typer.Option("--config", "-c", metavar="FILE", help="The models, and how to schedule.")],
    port: Port = PORT,
    host: Host = "127.0.0.1",
    address: Address = None,
    admin_key_file: AdminKeyFile = None,
    detach: Annotated[bool, typer.Option("--detach", help="Return when it is up, and leave it running.")] = False,
    lend: Lend = None,
    simulate_devices: SimulateDevices = None,
    as_json: AsJson = False,
) -> None:
    """Start the service: on a Ray cluster that is started here, or on the one at --address.

    Stays in front and shows what happens, until Ctrl-C takes down what was started, and nothing else.
    """
    admin_key = _admin_key(admin_key_file)
    catalog, lend_bytes = _checked(config, port, address, lend, simulate_devices)
    from rayscheduler.cluster.start import start_service

    with _interrupted_by_signals():
        _quiet_serve()
        service = start_service(
            catalog,
            port=port,
            host=host,
            address=address,
            lend_bytes=lend_bytes,
            simulate=simulate_devices,
            admin_key=admin_key,
            say=say,
        )
        if detach:
            with _client() as client:
                _first_words(service, catalog, client, as_json)
            return
        _in_front(service, catalog, as_json)


def down(
    address: Address = None,
    port: Annotated[int | None, typer.Option("--port", help="The service on this port, where several run.")] = None,
) -> None:
    """Take down what `up` started, and nothing else. A cluster that was there before goes on."""
    from rayscheduler.cli.ray_version import require_ray
    from rayscheduler.cluster.running import Service

    require_ray()
    service = the_running_one(address, port)
    if service is None and address is not None:
        service = Service(address, "", None, owns_serve=False)
    if service is None:
        raise AllocatorUnavailable("no service that was started here is running; --address names one elsewhere")
    from rayscheduler.cluster.start import stop_service

    with _interrupted_by_signals():
        _quiet_serve()
        if not stop_service(service, say=say):
            raise AllocatorUnavailable(f"there is no service at {service.address}; nothing was taken down")
    say("taken down")


def the_running_one(address: str | None, port: int | None = None) -> Service | None:
    """The service that was brought up from here, at that address or port if one is named; None: there is none."""
    from rayscheduler.cluster.running import running

    found = [
        service
        for service in running()
        if address in (None, service.address) and (port is None or service.http_url.endswith(f":{port}"))
    ]
    if len(found) > 1:
        which = ", ".join(f"{service.address} ({service.http_url})" for service in found)
        raise RayschedulerError(f"several services run here: {which}; say which with --address", http_status=400)
    return found[0] if found else None


def _checked(
    file: Path, port: int, address: str | None, lend: str | None, simulate: str | None
) -> tuple[ServiceConfig, int | None]:
    """The catalog and the bytes to lend, when nothing is known to be wrong."""
    from rayscheduler.cli.files import engine_problems, size
    from rayscheduler.cli.ray_version import require_ray
    from rayscheduler.config.service import load_config

    if address is not None and (lend or simulate):
        option = "--lend" if lend else "--simulate-devices"
        raise typer.BadParameter(f"{option} is for a cluster that is started here; nodes that run already lend what "
                                 "they were started with (`rayscheduler resources`)")  # fmt: skip
    lend_bytes = size("--lend", lend)
    catalog = load_config(file)
    for problem in engine_problems(catalog, here=False):
        raise problem
    for problem in engine_problems(catalog, here=True):
        if address is None:
            raise problem
        warn(f"{problem} (on this machine; others of the cluster may have it)")
    require_ray()
    if address is None:
        from rayscheduler.cluster.ports import require_free_port
        from rayscheduler.cluster.resources import detect_devices

        detect_devices(lend_bytes, simulate)
        require_free_port(port)  # before Ray is imported, which takes a second
    return catalog, lend_bytes


def _admin_key(file: Path | None) -> str | None:
    """The first key, of its file or of the environment; None: none was given."""
    from rayscheduler.cluster.keys import given_token

    # What is started from here, engines too, inherits the environment.
    told = os.environ.pop(ADMIN_KEY_ENV, None)
    if file is None:
        return None if told is None else given_token(told, ADMIN_KEY_ENV)
    try:
        told = file.expanduser().read_text(errors="replace")
        others_read = file.expanduser().stat().st_mode & 0o077
    except OSError as problem:
        raise typer.BadParameter(f"--admin-key-file {file}: {problem.strerror}") from None
    token = given_token(told, str(file))
    if others_read:
        warn(f"{file} can be read by others on this machine; run: chmod 600 {file}")
    return token


def _in_front(service: Service, catalog: ServiceConfig, as_json: bool) -> None:
    from rayscheduler.cli.live import follow
    from rayscheduler.cluster.start import stop_service

    try:
        with _client() as client:
            _first_words(service, catalog, client, as_json)
            follow(client, f"rayscheduler at {service.http_url}")
    except KeyboardInterrupt:
        raise typer.Exit(EXIT_INTERRUPTED) from None
    except AllocatorUnavailable:
        say("the service was taken down, or has failed")
        raise typer.Exit(EXIT_PROBLEM) from None
    finally:
        _deaf_to_interrupts()
        stop_service(service, say=say)
        say("taken down")


def _first_words(service: Service, catalog: ServiceConfig, client: AllocatorClient, as_json: bool) -> None:
    """Where it is, and what about it is not as its operator will want it."""
    from rayscheduler.cli.misfits import misfits

    now = _with_nodes(client)
    for node in now["nodes"]:
        if node["mend"]:
            warn(f"{node['name']}: {node['mend']}")
    for line in misfits(catalog, now):
        warn(line)
    for model in now["models"]:
        if model["state"] in ("refused", "unsized"):
            warn(model["last_error"])
    facts = {"url": service.http_url, "address": service.address, "dashboard": service.dashboard_url}
    if as_json:
        show_json(facts)
    else:
        dashboard = f", Ray's dashboard at {service.dashboard_url}" if service.dashboard_url else ""
        show_line(f"up: ask {service.http_url}/v1{dashboard}")


def _with_nodes(client: AllocatorClient) -> dict[str, Any]:
    """The status, once every node that lends has reported; they do so within a second or two."""
    import time

    deadline_s = time.monotonic() + NODES_WITHIN_S
    while True:
        now = client.status()
        lending = [node for node in now["nodes"] if node["alive"] and node["lends"]]
        if (now["nodes"] and all(node["devices"] for node in lending)) or time.monotonic() > deadline_s:
            return now
        time.sleep(0.05)


@contextmanager
def _client() -> Iterator[AllocatorClient]:
    from rayscheduler.client import AllocatorClient

    with AllocatorClient.connect() as client:
        yield client


@contextmanager
def _interrupted_by_signals() -> Iterator[None]:
    """`kill` and a closed terminal take the service down as Ctrl-C does, also in the middle of its start."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)
    yield


def _deaf_to_interrupts() -> None:
    """A second Ctrl-C must not leave half of it running."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def _quiet_serve() -> None:
    """Serve tells its own story on stderr; ours says what matters of it."""
    import logging

    # A filter and not a level, which Serve sets anew when it is imported and when it is started.
    logging.getLogger("ray.serve").addFilter(lambda record: record.levelno >= logging.WARNING)


__all__ = ["down", "up"]
