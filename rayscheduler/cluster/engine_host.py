"""What a runner and its followers do for the engine on their node: start it, and end it for good.

Rules of this file: `start_engine` blocks; an engine has ended when its processes are gone and its memory is back.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import ray

from rayscheduler.cluster.names import NAMESPACE, agent_name
from rayscheduler.engines import EngineRequest, by_name
from rayscheduler.engines.process import EngineProcess, log_file_name

LOG_LINES = 20
MEMORY_BACK_S = 10.0

logger = logging.getLogger(__name__)


def start_engine(name: str, request: EngineRequest) -> EngineProcess:
    """Start an engine on this node. EngineError: it is not installed, or cannot serve this."""
    engine = by_name(name)
    engine.check(request)
    return EngineProcess.start(engine, request, ray.util.get_node_ip_address(), _log_path(request))


async def end_engine(engine: EngineProcess, grace_s: float) -> None:
    """End it, unless it has ended; returns when it is gone and its memory is back."""
    pids = engine.pids()
    await engine.stop(grace_s)
    if engine.request.visible_devices:
        await _memory_back(engine.request.replica, pids)


async def end_in_words(engine: EngineProcess) -> str:
    """Waits for the end of an engine; how it ended, and the last lines that it wrote."""
    ended = await engine.wait_exit()
    return f"{ended.words}\n{engine.log_tail(LOG_LINES)}".strip()


async def _memory_back(replica: str, pids: list[int]) -> None:
    """A driver may take a moment to take back what a dead process held."""
    try:
        agent = ray.get_actor(agent_name(ray.get_runtime_context().get_node_id()), namespace=NAMESPACE)
        await asyncio.wait_for(agent.memory_back.remote(pids, MEMORY_BACK_S), MEMORY_BACK_S + 1)
    except Exception as problem:
        logger.warning("nobody confirms that the memory of %s is back: %s", replica, problem)


def _log_path(request: EngineRequest) -> Path:
    """Among Ray's own logs of this session, so that the dashboard shows it."""
    node = ray._private.worker._global_node
    name = log_file_name(request.replica, request.node_rank)
    return Path(node.get_logs_dir_path()) / "rayscheduler" / name
