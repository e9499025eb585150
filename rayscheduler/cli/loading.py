"""A load, watched: a spinner with what it waits for on a terminal, a line per change elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, wait
from contextlib import contextmanager
from threading import Thread
from typing import TYPE_CHECKING, Any, Protocol

from rayscheduler.cli.output import say
from rayscheduler.status import duration, place

if TYPE_CHECKING:
    from rayscheduler.client import AllocatorClient

LOOK_AGAIN_S = 0.2


class Shown(Protocol):
    def __call__(self, phase: str) -> None: ...


def load_and_watch(service: AllocatorClient, entry: Mapping[str, Any]) -> dict[str, Any]:
    """Asks for the load of a model, or adapter, of the status, and returns when it runs; raises what the allocator
    says if it does not.

    Interrupted, the load goes on: the model stays wanted.
    """
    model, base = entry["name"], entry.get("base")
    began = time.monotonic()
    asked = _in_background(service, model)
    try:
        with _progress(model) as shown:
            while not wait([asked], LOOK_AGAIN_S).done:
                if phase := phase_of(service.status(), base or model):
                    shown(phase)
    except KeyboardInterrupt:
        say(f"{model} goes on loading; `rayscheduler unload {model}` gives it up")
        raise
    answer = dict(asked.result())
    after = service.status()
    running = [r for r in after["replicas"] if r["model"] == (base or model) and r["state"] == "RUNNING"]
    seconds = time.monotonic() - began
    where = f": {running[0]['id']} on {place(running[0])}" if running else ""
    answer["message"] = (
        f"{answer['message']}, after {duration(seconds)}" if base else f"{model} runs{where}, after {duration(seconds)}"
    )
    answer["model"], answer["waited_s"] = model, round(seconds, 3)
    answer["replica"] = running[0]["id"] if running else None
    return answer


def _in_background(service: AllocatorClient, model: str) -> Future[Mapping[str, Any]]:
    """The call that lasts as long as the load; its thread does not keep the program from ending."""
    asked: Future[Mapping[str, Any]] = Future()

    def ask() -> None:
        try:
            asked.set_result(service.load(model, wait=True))
        except BaseException as problem:
            asked.set_exception(problem)

    Thread(target=ask, name=f"load {model}", daemon=True).start()
    return asked


def phase_of(now: Mapping[str, Any], model: str) -> str:
    """What a model that is not loaded yet is waiting for, in a few words; "" once it runs."""
    replicas = [r for r in now["replicas"] if r["model"] == model]
    by_state = {r["state"]: r for r in replicas}
    if "STARTING" in by_state:
        return f"starts on {place(by_state['STARTING'])}"
    if "PENDING" in by_state:
        return f"waits for {', '.join(by_state['PENDING']['waits_for']) or 'others'} to make way"
    entry = next((m for m in now["models"] if m["name"] == model), None)
    if entry is not None and entry["state"] == "backing_off":
        return f"failed, is tried again in {duration(entry['backoff_s'])}"
    return "" if "RUNNING" in by_state else "waits for room"


@contextmanager
def _progress(model: str) -> Iterator[Shown]:
    if not sys.stderr.isatty():
        told: list[str] = []

        def line(phase: str) -> None:
            # Seconds count down within a phase; only a new phase is worth a line.
            if not told or told[-1].split(" in ")[0] != phase.split(" in ")[0]:
                told.append(phase)
                say(f"{model} {phase}")

        yield line
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(model, total=None)

        def spin(phase: str) -> None:
            progress.update(task, description=f"{model} {phase}")

        yield spin
