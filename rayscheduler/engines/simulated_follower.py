"""The program of the engine `simulated` on the further nodes of a replica: it joins the leader, and stays.

It holds the memory that it is told to hold, and ends when it loses the leader, which may start after it.

Rules of this file: as of simulated_server.py: run by its path with `python -I -S`, the standard library only.
"""

from __future__ import annotations

import json
import mmap
import os
import signal
import socket
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

JOIN_PAUSE_S = 0.05


def main(plan: Mapping[str, Any]) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: leave(plan["unload_ms"] / 1000))
    left_bytes = plan["allocate_bytes"] - (resident_bytes() if plan["allocate_counts_all"] else 0)
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_POPULATE", 0)
    memory = mmap.mmap(-1, left_bytes, flags=flags) if left_bytes > 0 else None
    with joined(plan["leader_host"], plan["leader_port"]) as leader:
        leader.sendall(b"%d\n" % plan["node_rank"])
        with suppress(OSError):  # a reset is an end, too
            leader.recv(1)  # it never says anything
    del memory
    sys.exit(f"{plan['model']}: the connection to its leader was lost")


def joined(host: str, port: int) -> socket.socket:
    """A connection to the leader, as soon as it listens."""
    while True:
        try:
            return socket.create_connection((host, port))
        except OSError:
            time.sleep(JOIN_PAUSE_S)


def leave(after_s: float) -> None:
    time.sleep(after_s)
    os._exit(0)


def resident_bytes() -> int:
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[1]) * mmap.PAGESIZE


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
