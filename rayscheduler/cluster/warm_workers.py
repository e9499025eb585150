"""Keeps one idle Ray worker on a node, so that the next runner there does not wait for a Python to start.

Most of a cold start beyond the engine's own is Ray starting a worker process (0.5 s of CPU) and the import of
Ray Serve (0.6 s). Ray can be asked to start a worker ahead of time (`keep_one`), and its raylets to let their
workers import modules as soon as they run (on heads that we start). Neither interface is documented: where it is
not there, or not as it was in Ray 2.60, nothing is kept warm and nothing else changes.

Rules of this file: it never raises.
"""

from __future__ import annotations

import logging
import os

import psutil

KEEP_S = 24 * 3600
CALL_WITHIN_S = 5.0
IMPORTED_AHEAD = ("ray.serve._private.replica", "rayscheduler.cluster.runner")

logger = logging.getLogger(__name__)


def keep_one(raylet_address: str) -> None:
    """Ask this node's raylet, the parent of this process, for a worker of no particular job, unless one is idle."""
    try:
        if not _one_is_idle(os.getppid()):
            _prestart(raylet_address)
    except Exception as problem:
        logger.info("no worker is kept warm: %s", problem)


def import_ahead_environment() -> dict[str, str]:
    """For a raylet: what its workers import when they start."""
    return {"RAY_preload_python_modules": ",".join(IMPORTED_AHEAD)}


def _one_is_idle(raylet_pid: int) -> bool:
    """Idle, or just starting: before it has a name of its own, a worker is called by its program."""
    for process in psutil.Process(raylet_pid).children():
        try:
            command = " ".join(process.cmdline())
        except psutil.Error:
            continue
        if command.startswith("ray::IDLE") or "default_worker.py" in command:
            return True
    return False


def _prestart(raylet_address: str) -> None:
    from ray._private.grpc_utils import init_grpc_channel
    from ray.core.generated import common_pb2, node_manager_pb2, node_manager_pb2_grpc

    request = node_manager_pb2.PrestartWorkersRequest(
        language=common_pb2.PYTHON, num_workers=1, keep_alive_duration_secs=KEEP_S
    )
    request.runtime_env_info.serialized_runtime_env = "{}"
    with init_grpc_channel(raylet_address, asynchronous=False) as channel:
        node_manager_pb2_grpc.NodeManagerServiceStub(channel).PrestartWorkers(request, timeout=CALL_WITHIN_S)
