"""A machine with pretended NVIDIA GPUs: the stand-in library, built once, and the file that says what it answers.

Rules of this file: what is written is there at once for whoever has the library loaded (fake_nvml.c says how).
The real `pynvml` is what reads it, in a process of its own, which finds the library by `environment()`.
"""

from __future__ import annotations

import atexit
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

GIB = 2**30
SOURCE = Path(__file__).with_name("fake_nvml.c")
COMPILER = shutil.which("gcc") or shutil.which("cc")
NO_COMPILER = "the stand-in for NVIDIA's library is built from C, and there is no gcc and no cc here"


@dataclass
class Card:
    """A card, or a slice of one (`instance`: GPU instance and compute instance). `None` bytes: not told."""

    uuid: str
    name: str = "NVIDIA H100 80GB HBM3"
    total: int = 80 * GIB
    used: int = 0
    reserved: int = 0
    capability: str = "9.0"
    processes: dict[int, int | None] = field(default_factory=dict)
    drawing: dict[int, int] = field(default_factory=dict)
    slices: list[Card] = field(default_factory=list)
    instance: tuple[int, int] | None = None
    mig: bool = False
    recovery: int = -1
    error: int = 0
    xid: int = 0
    xids: int = 0  # how many were reported

    def hold(self, pid: int, held: int | None) -> None:
        """A process takes memory."""
        self.processes[pid] = held
        self.used += held or 0

    def report(self, xid: int) -> None:
        self.xid, self.xids = xid, self.xids + 1

    def lines(self) -> list[str]:
        begin = f"gpu {self.uuid}" if self.instance is None else "slice {} {} {}".format(self.uuid, *self.instance)
        told = [f"process {pid} {'N/A' if held is None else held}" for pid, held in self.processes.items()]
        told += [f"process {pid} {held} graphics" for pid, held in self.drawing.items()]
        facts = [
            f"{key} {getattr(self, key)}" for key in ("name", "total", "used", "reserved", "capability", "recovery")
        ]
        state = [f"mig {int(self.mig)}", f"error {self.error}", f"xid {self.xid} {self.xids}"]
        return [begin, *facts, *state, *told, *(line for each in self.slices for line in each.lines())]


class FakeDriver:
    """`cards` are what the machine has; `write` makes it so."""

    def __init__(self, folder: Path, *cards: Card) -> None:
        self.library = library()
        self.state = folder / "state"
        self.cards = list(cards)
        self.system: list[str] = []  # more lines, such as `lacks nvmlDeviceGetMemoryInfo_v2`
        self.write()

    def write(self) -> None:
        scratch = self.state.with_suffix(".new")
        scratch.write_text("\n".join([*self.system, *(line for card in self.cards for line in card.lines())]) + "\n")
        os.replace(scratch, self.state)

    def environment(self) -> Mapping[str, str]:
        """For the processes that are to have these GPUs."""
        path = os.environ.get("LD_LIBRARY_PATH", "")
        folders = f"{self.library.parent}:{path}" if path else str(self.library.parent)
        return {**os.environ, "LD_LIBRARY_PATH": folders, "FAKE_NVML_STATE": str(self.state)}


@cache
def library() -> Path:
    """Built once for all that this process tests; half a second."""
    assert COMPILER is not None, NO_COMPILER
    folder = Path(tempfile.mkdtemp(prefix="fake-nvml-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    built = folder / "libnvidia-ml.so.1"
    flags = ("-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-pthread")
    subprocess.run([COMPILER, *flags, "-o", str(built), str(SOURCE)], check=True)
    return built
