"""More Ray nodes on this machine, each a raylet under a name of its own, and how to lose one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psutil

from tests.integration.world import World


@contextmanager
def a_node(
    world: World, name: str, resources: Mapping[str, int], log: Path, environment: Mapping[str, str] = os.environ
) -> Iterator[subprocess.Popen[bytes]]:
    """One more raylet on this machine, which dies with the block; it has the label `zone: there`."""
    labels = {"rayscheduler.io/name": name, "zone": "there"}
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--address", world.service.address, "--block"]
    command += ["--resources", json.dumps(dict(resources)), "--num-cpus", "2", "--disable-usage-stats"]
    command += ["--labels", ",".join(f"{key}={value}" for key, value in labels.items())]
    # Its agent is always there: a node that waits until it is idle before it ends would wait in vain.
    environment = {**environment, "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0"}
    with open(log, "wb") as output:
        raylet = subprocess.Popen(command, stdout=output, stderr=output, env=environment, start_new_session=True)
    try:
        yield raylet
    finally:
        raylet.terminate()
        raylet.wait(timeout=60)


def kill_raylet(node: subprocess.Popen[bytes]) -> None:
    """End a node as a power cut would: nobody there says goodbye."""
    for process in psutil.Process(node.pid).children():
        if process.name() == "raylet":
            process.kill()
