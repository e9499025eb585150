"""Is a port free here, and if not, who has it? Does somebody listen at an endpoint?"""

from __future__ import annotations

import asyncio
import errno
import socket

import psutil

from rayscheduler.errors import RayschedulerError

CONNECT_WITHIN_S = 2.0


class PortInUse(RayschedulerError):
    """Something else listens on the port that the service was told to use."""


def require_free_port(port: int) -> None:
    """Raises PortInUse, naming the process that has the port where the system tells."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("0.0.0.0", port))
        except OSError as problem:
            raise PortInUse(_message(port, problem), code="port_in_use") from None


def _message(port: int, problem: OSError) -> str:
    if problem.errno == errno.EACCES:
        return f"port {port} may not be used by this user; choose one above 1023 with --port"
    if problem.errno != errno.EADDRINUSE:
        return f"port {port} cannot be used ({problem.strerror}); choose another with --port"
    holder = _holder(port)
    return f"port {port} is in use{f' by {holder}' if holder else ''}; stop that or choose another with --port"


def _holder(port: int) -> str | None:
    """`name (pid 12)`, or None where the system does not tell us."""
    try:
        for connection in psutil.net_connections(kind="tcp"):
            listens = connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr.port == port
            if listens and connection.pid:
                return f"{psutil.Process(connection.pid).name()} (pid {connection.pid})"
    except psutil.Error:
        pass  # macOS tells only root
    return None


async def accepts(endpoint: str) -> bool:
    """Whether something listens at `http://host:port`."""
    host, _, port = endpoint.removeprefix("http://").rpartition(":")
    try:
        connecting = asyncio.open_connection(host.strip("[]"), int(port))
        _, writer = await asyncio.wait_for(connecting, CONNECT_WITHIN_S)
    except (OSError, asyncio.TimeoutError):
        return False
    writer.close()
    return True
