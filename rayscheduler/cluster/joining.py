"""Connects this process to the Ray cluster that the service is on.

Rules of this file: blocking; safe to call again. Ray lets a process that joins a cluster with token
authentication in only if it was told to use the token, also where one lies in its usual place.
"""

from __future__ import annotations

import logging
import os
import queue
import socket
import threading
from collections.abc import Callable

import ray

from rayscheduler.cluster.names import NAMESPACE
from rayscheduler.errors import AllocatorUnavailable, VersionMismatch

AUTH_MODE_ENV = "RAY_AUTH_MODE"
REACHED_WITHIN_S = 5.0
JOINED_WITHIN_S = 20.0


def join(address: str) -> None:
    """Connect to the cluster at `host:port` (or `auto`), if this process is in none yet.

    AllocatorUnavailable: nothing answers there. VersionMismatch: this Ray or Python is not the cluster's.
    """
    if ray.is_initialized():
        return
    _require_listener(address)
    use_token()
    try:
        _bounded(lambda: ray.init(address=address, namespace=NAMESPACE, log_to_driver=False, logging_level="warning"))
    except RuntimeError as problem:
        if "ersion mismatch" in str(problem):
            raise VersionMismatch(
                f"This Python or Ray is not the cluster's: {' '.join(str(problem).split())}"
            ) from problem
        raise
    except (ConnectionError, TimeoutError) as problem:
        raise AllocatorUnavailable(
            f"No Ray cluster answers at {address}; start the service with `rayscheduler up`. ({problem})"
        ) from problem


def _bounded(connect: Callable[[], object]) -> None:
    """Ray waits for ever where something listens that is no Ray head, or one that is dying."""
    outcome: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()

    def run() -> None:
        logging.getLogger("ray._private.worker").setLevel(logging.ERROR)  # signals are not this thread's to handle
        try:
            connect()
            outcome.put(None)
        except BaseException as problem:
            outcome.put(problem)

    threading.Thread(target=run, name="join", daemon=True).start()
    try:
        problem = outcome.get(timeout=JOINED_WITHIN_S)
    except queue.Empty:
        raise TimeoutError(f"not within {JOINED_WITHIN_S:g} s: is that the address of a Ray head?") from None
    if problem is not None:
        raise problem


def _require_listener(address: str) -> None:
    """Ray tries for 20 s to reach a head that is not there."""
    host, _, port = address.rpartition(":")
    if not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), REACHED_WITHIN_S).close()
    except (OSError, OverflowError) as problem:
        raise AllocatorUnavailable(
            f"No Ray cluster answers at {address}; start the service with `rayscheduler up`. ({problem})"
        ) from problem


def use_token() -> None:
    """Show Ray's token to clusters from now on, if there is one and nobody has said otherwise."""
    from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

    if AUTH_MODE_ENV in os.environ or not AuthenticationTokenLoader.instance().has_token(ignore_auth_mode=True):
        return
    os.environ[AUTH_MODE_ENV] = "token"
    Config.initialize("")  # Ray has read its environment when it was imported
