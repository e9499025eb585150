"""What makes a model in the operator's daemon ours, from its load to its unload.

    a claim    an abstract socket named after the daemon and the model: one replica of it at a time
    a note     a file, touched whenever the daemon is asked to keep the model: what a replica that was killed
               has left loaded is ours to unload as long as the daemon keeps it, and not longer

A claim is gone with its process, in the network namespace that the daemon's loopback address belongs to. And a
model whose replica was killed is unloaded by the daemon itself when `keep_alive_s` is over.

Rules of this file: Linux (abstract sockets). A model that is loaded and not ours is never unloaded.
"""

from __future__ import annotations

import asyncio
import os
import socket
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

from rayscheduler.engines.ollama import Plan
from rayscheduler.engines.ollama_daemon import Daemon, DaemonBusy
from rayscheduler.errors import EngineError

LOOK_PAUSE_S = 0.05
RENEWAL_TIMEOUT_S = 10.0
CLOCK_SLACK_S = 5.0  # between our note and the daemon's timer


class Loan:
    """The right to have one model loaded in a daemon that others use. EngineError: another replica has it."""

    def __init__(self, plan: Plan, daemon: Daemon, digest: str) -> None:
        self._plan, self._daemon, self._digest = plan, daemon, digest
        name = f"{urlsplit(daemon.url).port}-{digest.removeprefix('sha256:')}"
        self._claim = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._claim.bind(f"\0rayscheduler/ollama/{name}"[:100])
        except OSError:
            self._claim.close()
            raise EngineError(
                f"another replica has it loaded in the daemon at {daemon.url}, which holds a model once; "
                "leave out `daemon` for several replicas, or set `replicas: {max: 1}`"
            ) from None
        self._note = _notes_folder() / name
        self._renewed_s = 0.0

    async def load(self) -> None:
        """Load it, after what a killed replica has left of it is gone. EngineError: somebody else has it loaded."""
        if await self._daemon.loaded(self._digest) is not None:
            if not self._is_left_over():
                raise EngineError(
                    f"it is loaded in the daemon at {self._daemon.url} already, and not by us; "
                    f"run `ollama stop {self._plan.tag}`, or leave out `daemon`"
                )
            await self._unload()
        await self._keep(None)

    async def renew(self) -> None:
        """Begin its time anew, if a while has passed. A daemon too busy for that is asked again later."""
        if time.monotonic() - self._renewed_s >= self._plan.renew_s:
            with suppress(DaemonBusy):
                await self._keep(RENEWAL_TIMEOUT_S)

    async def give_back(self, timeout_s: float) -> bool:
        """Unload it if it was loaded; whether it is gone. After `timeout_s` the daemon is left to do it."""
        try:
            if self._renewed_s:
                await asyncio.wait_for(self._unload(), timeout_s)
            self._note.unlink(missing_ok=True)
        except (EngineError, asyncio.TimeoutError):
            return False
        finally:
            self._claim.close()
        return True

    async def _keep(self, timeout_s: float | None) -> None:
        self._renewed_s = time.monotonic()
        self._note.touch(mode=0o600)
        await self._daemon.load(self._plan, self._plan.keep_alive_s, timeout_s)
        self._note.touch(mode=0o600)  # its time began when the load was done

    async def _unload(self) -> None:
        await self._daemon.unload(self._plan.tag)
        while True:
            if await self._daemon.loaded(self._digest) is None:
                return
            await asyncio.sleep(LOOK_PAUSE_S)

    def _is_left_over(self) -> bool:
        try:
            age_s = time.time() - self._note.stat().st_mtime
        except FileNotFoundError:
            return False
        return age_s <= self._plan.keep_alive_s + CLOCK_SLACK_S


def _notes_folder() -> Path:
    """A folder of this user's only. EngineError: somebody else has made it."""
    folder = Path(tempfile.gettempdir()) / f"rayscheduler-ollama-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise EngineError(f"{folder} belongs to another user; remove it")
    return folder
