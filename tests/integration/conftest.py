"""One Ray cluster with the whole service, for all integration tests of a run; an empty catalog before each.

world      the service on a head that lends LENT of its RAM
quick      simulated models `a` and `b` of which one fits beside the small `c`
"""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from rayscheduler.cluster.ray_head import STATE_FOLDER_ENV
from rayscheduler.cluster.start import start_service, stop_service
from rayscheduler.config.service import config_from_text
from tests.integration.world import LENT_MIB, QUICK, World


@pytest.fixture(scope="session")
def service_world() -> Iterator[World]:
    # Ray's sockets need a short path; a state of our own hides whatever else this user has running.
    folder = Path(tempfile.mkdtemp(prefix="rs-test-", dir="/tmp"))
    before = os.environ.get(STATE_FOLDER_ENV)
    os.environ[STATE_FOLDER_ENV] = str(folder / "state")
    try:
        service = start_service(
            config_from_text("models: []"),
            port=free_port(),
            host="127.0.0.1",
            lend_bytes=LENT_MIB * 2**20,
            checked=True,
            temp_folder=str(folder / "ray"),
            dashboard_port=free_port(),
        )
        try:
            yield World(service)
        finally:
            stop_service(service)
    finally:
        os.environ.pop(STATE_FOLDER_ENV)
        if before is not None:
            os.environ[STATE_FOLDER_ENV] = before
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def world(service_world: World) -> Iterator[World]:
    """The service with nothing deployed; at the end everything leaves, and Ray and the ledger agree on that."""
    yield service_world
    service_world.heartbeats.clear()
    service_world.deploy("models: []")
    status = service_world.until_quiet()
    assert status["replicas"] == []
    assert status["queue"] == []


@pytest.fixture
def quick(world: World) -> World:
    world.deploy(QUICK)
    return world


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
