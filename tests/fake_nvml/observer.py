"""A process that has pretended GPUs, and the measuring code in it, asked from a test.

    test ──pickled (method, arguments)──► stdin of the observer         observer ──pickled answer──► stdout

Rules of this file: it runs what the node agent runs, and adds nothing to it.
"""

from __future__ import annotations

import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from rayscheduler.cluster import drivers
from rayscheduler.cluster import measuring as measuring_code
from rayscheduler.cluster.gpu import Gpu
from rayscheduler.cluster.inventory import NodeInventory
from rayscheduler.cluster.measuring import Measuring
from rayscheduler.cluster.reports import AgentReport, Watched
from rayscheduler.cluster.resources import detect_devices, resources_json
from tests.fake_nvml.driver import FakeDriver

WITHIN_S = 20.0


class Observer:
    """Ends with the `with` block."""

    def __init__(self, driver: FakeDriver, alike: bool = True) -> None:
        """`alike`: whether the driver and the observer number processes alike."""
        command = [sys.executable, "-m", "tests.fake_nvml.observer", "alike" if alike else "apart"]
        self._process = subprocess.Popen(
            command, env=driver.environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def __enter__(self) -> Observer:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(WITHIN_S)
        self._process.kill()
        self._process.wait()

    def gpus(self) -> tuple[Gpu, ...]:
        return tuple(self._ask("gpus"))

    def version(self) -> str:
        return str(self._ask("version"))

    def inventory(self) -> NodeInventory:
        """What `rayscheduler resources` would lend of this machine."""
        found = self._ask("inventory")
        assert isinstance(found, NodeInventory)
        return found

    def take(self, watched: Sequence[Watched] = ()) -> AgentReport:
        """The report of an agent that was started at the first of these calls, on a node that lends all."""
        report = self._ask("take", list(watched))
        assert isinstance(report, AgentReport)
        return report

    def take_until(self, holds: Callable[[AgentReport], object]) -> AgentReport:
        """Reports until one of them says so: events take a moment to come."""
        deadline_s, pause = time.monotonic() + WITHIN_S, threading.Event()
        while not holds(report := self.take()):
            assert time.monotonic() < deadline_s, f"it is not so after {WITHIN_S:g} s: {report}"
            pause.wait(0.02)
        return report

    def _ask(self, method: str, *args: object) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        pickle.dump((method, args), self._process.stdin)
        self._process.stdin.flush()
        return pickle.load(self._process.stdout)


def main(alike: bool) -> None:
    measuring_code.in_first_pid_namespace = lambda: alike  # type: ignore[assignment]  # wherever the tests run
    measuring: Measuring | None = None
    while True:
        try:
            method, args = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        answer: object
        if method == "gpus":
            answer = drivers.gpus()
        elif method == "version":
            answer = drivers.driver_version()
        elif method == "inventory":
            answer = detect_devices()
        else:
            if measuring is None:
                measuring = Measuring(resources_json(detect_devices()), unread_s=0)
            answer = measuring.take(*args)
        pickle.dump(answer, sys.stdout.buffer)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main(alike=sys.argv[1] == "alike")
