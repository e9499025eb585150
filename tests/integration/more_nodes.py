"""More nodes for the service under test: raylets on this machine, each under a name of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.integration.world import World


@contextmanager
def a_node(
    world: World, name: str, resources: Mapping[str, int], log: Path, environment: Mapping[str, str] = os.environ
) -> Iterator[subprocess.Popen[bytes]]:
    """One more raylet, which dies with the block. It has the label `zone: there`."""
    labels = {"rayscheduler.io/name": name, "zone": "there"}
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--address", world.service.address, "--block"]
    command += ["--resources", json.dumps(dict(resources)), "--num-cpus", "2", "--disable-usage-stats"]
    command += ["--labels", ",".join(f"{key}={value}" for key, value in labels.items())]
    with open(log, "wb") as output:
        raylet = subprocess.Popen(command, env=environment, stdout=output, stderr=output, start_new_session=True)
    try:
        yield raylet
    finally:
        os.kill(raylet.pid, signal.SIGTERM)
        raylet.wait(timeout=60)
