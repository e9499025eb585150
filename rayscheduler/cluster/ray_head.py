"""A Ray head of our own on this machine: started, remembered in a file, and ended without touching any other.

`ray stop` ends every Ray on the machine, so it is not used: `ray start --block` stays in front of its
processes, in a session of its own, and whatever is in that session belongs to this head.

Rules of this file: blocking; Linux and macOS. Ports that the user did not name are taken free ones, so that
two heads on one machine do not meet.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from rayscheduler.cluster.warm_workers import import_ahead_environment
from rayscheduler.errors import RayschedulerError

STATE_FOLDER_ENV = "RAYSCHEDULER_STATE_DIR"
UP_WITHIN_S = 90.0
TERM_WITHIN_S = 15.0
LOOK_EVERY_S = 0.05
LOG_LINES = 15
DASHBOARD_PORT, RAY_PORT = 8265, 6379


_children: dict[int, subprocess.Popen[bytes]] = {}  # heads that this process has started, to be reaped


class HeadFailed(RayschedulerError):
    """Ray did not start here."""

    def __init__(self, message: str) -> None:
        super().__init__(message, http_status=503, code="ray_failed")


@dataclass(frozen=True, slots=True)
class Head:
    """A head that `start_head` has started. `pid`: of `ray start`, which leads a session of its own;
    `created_s` tells it from a later process of that number.
    `scratch`: the folder of its HAProxy, "" if Serve's own proxy is the front door."""

    address: str
    pid: int
    created_s: float
    dashboard_url: str
    log_path: str
    scratch: str

    @property
    def haproxy(self) -> bool:
        return bool(self.scratch)

    @property
    def alive(self) -> bool:
        try:
            process = psutil.Process(self.pid)
            return process.status() != psutil.STATUS_ZOMBIE and abs(process.create_time() - self.created_s) < 1
        except psutil.NoSuchProcess:
            return False


def start_head(
    resources: Mapping[str, int],
    *,
    cpus: int | None = None,
    temp_folder: str | None = None,
    port: int | None = None,
    dashboard: bool = True,
    dashboard_port: int | None = None,
    haproxy: bool | None = None,
) -> Head:
    """Start Ray's head with these custom resources, and wait until it listens. HeadFailed says why not.

    `haproxy` None: where the package is installed. Ports None: Ray's usual ones, or free ones if those are taken.
    """
    with_haproxy = haproxy_works() if haproxy is None else haproxy
    options = ["--temp-dir", temp_folder] if temp_folder else []
    options += ["--num-cpus", str(cpus)] if cpus is not None else []
    options += ["--include-dashboard", str(dashboard).lower(), "--dashboard-host", "127.0.0.1"]
    options += ["--resources", json.dumps(dict(resources))]
    try:
        ports = (port or _free_port(RAY_PORT), dashboard_port or _free_port(DASHBOARD_PORT))
        head = _launch(options, *ports, with_haproxy)
    except HeadFailed:
        if port is not None and dashboard_port is not None:
            raise
        # A port that was free when we looked may have been taken before Ray got to it.
        head = _launch(options, port or _free_port(), dashboard_port or _free_port(), with_haproxy)
    return head if dashboard else replace(head, dashboard_url="")


def _launch(options: Sequence[str], ray_port: int, web_port: int, with_haproxy: bool) -> Head:
    folder = state_folder()
    folder.mkdir(parents=True, exist_ok=True)
    log_path = folder / "ray-head.log"
    arguments = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"]
    arguments += ["--port", str(ray_port), "--dashboard-port", str(web_port), *options]
    arguments += ["--ray-client-server-port", str(_free_port()), "--dashboard-agent-listen-port", str(_free_port())]
    # Unix sockets have short names; Ray adds the node's id to this folder's.
    scratch = tempfile.mkdtemp(prefix="rs-", dir="/tmp") if with_haproxy else ""
    with open(log_path, "wb") as log:
        process = subprocess.Popen(
            arguments,
            env={**os.environ, **_head_environment(scratch)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        address = _wait_listening(process, ray_port, log_path)
        created_s = psutil.Process(process.pid).create_time()
    except BaseException:
        _end_session(process.pid)
        process.wait()
        if scratch:
            shutil.rmtree(scratch, ignore_errors=True)
        raise
    _children[process.pid] = process
    return Head(address, process.pid, created_s, f"http://127.0.0.1:{web_port}", str(log_path), scratch)


def stop_head(head: Head) -> None:
    """End it with everything of its session; returns when all is gone. One that is gone already is no error."""
    if head.alive or not psutil.pid_exists(head.pid):  # a later process of its number is not ours
        ours = list(_session(head.pid))
        if head.alive:
            os.kill(head.pid, signal.SIGTERM)
            _, ours = psutil.wait_procs(ours, timeout=TERM_WITHIN_S)
        _end_session(head.pid, ours)
    if (child := _children.pop(head.pid, None)) is not None:
        child.wait()
    if head.scratch:
        shutil.rmtree(head.scratch, ignore_errors=True)


def state_folder() -> Path:
    """Where this user's state is kept: RAYSCHEDULER_STATE_DIR, else below XDG_STATE_HOME or ~/.local/state."""
    own = os.environ.get(STATE_FOLDER_ENV)
    if own:
        return Path(own)
    shared = os.environ.get("XDG_STATE_HOME")
    return (Path(shared) if shared else Path.home() / ".local" / "state") / "rayscheduler"


def haproxy_works() -> bool:
    """Whether the HAProxy that comes with Ray Serve runs on this machine."""
    try:
        from ray.serve._private.haproxy import get_haproxy_binary

        done = subprocess.run([get_haproxy_binary(), "-v"], capture_output=True, timeout=10, check=False)
    except (ImportError, OSError, RuntimeError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def serve_environment(haproxy: bool) -> dict[str, str]:
    """What a process that starts Serve must agree on with the head."""
    return {"RAY_SERVE_ENABLE_HA_PROXY": "1" if haproxy else "0"}


def _head_environment(scratch: str) -> dict[str, str]:
    """For the head and everything that Ray starts on it."""
    environment = {
        **serve_environment(bool(scratch)),
        # Nothing is sent to a runner through Serve, so nobody has to be told before it goes; a gateway that
        # goes refuses connections, and HAProxy then asks another one.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0",
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
        # On a busy machine the front door needs more than the five seconds after which Serve kills it.
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
        **import_ahead_environment(),
    }
    if scratch:
        environment |= {
            "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": f"{scratch}/haproxy.cfg",
            "RAY_SERVE_HAPROXY_SOCKET_PATH": f"{scratch}/admin.sock",
            "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": scratch,
            "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": f"{scratch}/server-state",
            "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": f"{scratch}/metrics.sock",
            "RAY_SERVE_HAPROXY_METRICS_PORT": str(_free_port()),
            "RAY_SERVE_HAPROXY_STATS_PORT": str(_free_port()),
            "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(_free_port()),
            "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(_free_port()),
        }
    return environment


def _wait_listening(process: subprocess.Popen[bytes], port: int, log_path: Path) -> str:
    from ray.util import get_node_ip_address

    host = get_node_ip_address()
    deadline_s = time.monotonic() + UP_WITHIN_S
    while b"Ray runtime started" not in log_path.read_bytes():
        if process.poll() is not None or time.monotonic() > deadline_s:
            lines = log_path.read_text(errors="replace").strip().splitlines()[-LOG_LINES:]
            why = "ended" if process.poll() is not None else f"was not up after {UP_WITHIN_S:g} s"
            raise HeadFailed(f"Ray's head {why}; its last words:\n" + "\n".join(lines))
        time.sleep(LOOK_EVERY_S)
    return f"{host}:{port}"


def _end_session(leader_pid: int, known: Iterable[psutil.Process] = ()) -> None:
    ours = {*known, *_session(leader_pid)}
    for process in ours:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(ours, timeout=TERM_WITHIN_S)


def _session(leader_pid: int) -> Iterator[psutil.Process]:
    """All processes of the session that a process leads, or led."""
    for process in psutil.process_iter():
        with suppress(ProcessLookupError, PermissionError):
            if os.getsid(process.pid) == leader_pid:
                yield process


def _free_port(wished: int = 0) -> int:
    """That port if nobody has it, else a free one."""
    for candidate in (wished, 0):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with suppress(OSError):
                probe.bind(("", candidate))
                return int(probe.getsockname()[1])
    raise HeadFailed("no TCP port is free on this machine")
