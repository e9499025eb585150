"""The demo: two real models in a space that holds one of them, asked through the `openai` client.

    python -m deployments.demo [--port 8000]        DEMO_ONCE=1 ends it after the answers

Rules of this file: it does what a user would do and knows no more than one: the command line starts the
service, HTTP asks it. Whatever ends it, the service that it started is taken down.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openai import OpenAI, OpenAIError
from rich.console import Console
from rich.markup import escape
from rich.table import Table

HERE = Path(__file__).resolve().parent
CATALOG = HERE / "demo.yaml"
LOGS = HERE.parent / ".cache"
PROGRAM = Path(sys.executable).parent / "rayscheduler"
LENT = "480MiB"
START_S_MAX = 180.0
STOP_S_MAX = 120.0

console = Console(highlight=False)


class DemoFailed(Exception):
    """Something did not work; the message is for the person in front of the terminal."""


@dataclass(frozen=True)
class Question:
    title: str
    model: str
    text: str
    chat: bool


QUESTIONS = (
    Question("A model that is not loaded", "smollm2", "What is a GPU? Answer in one short sentence.", True),
    Question("The same model, now warm", "smollm2", "What is the capital of France? Answer with one sentence.", True),
    Question("Another model: the first has to make way", "gemma", "Water boils at", False),
    Question("And back", "smollm2", "Give me one fact about the Moon.", True),
)


@dataclass(frozen=True)
class Event:
    """A load or an exit that a question caused. `took_s`: until it was ready, or until its memory was back."""

    replica: str
    loaded: bool
    took_s: float | None
    words: str


@dataclass(frozen=True)
class Answer:
    question: Question
    first_s: float  # until the first piece of text arrived: waiting, loading and reading the prompt
    whole_s: float
    events: list[Event]


def main() -> int:
    parser = argparse.ArgumentParser(prog="demo", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--port", type=int, default=8000, help="of the service (default 8000)")
    port = parser.parse_args().port
    for number in (signal.SIGTERM, signal.SIGHUP):  # they take the service down as Ctrl-C does
        signal.signal(number, signal.default_int_handler)
    try:
        with service(port) as process:
            show(port, tour(port))
            if os.environ.get("DEMO_ONCE", "") in ("", "0"):
                serve_on(process)
    except DemoFailed as problem:
        console.print(f"[red]{escape(str(problem))}[/]", soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


@contextmanager
def service(port: int) -> Iterator[subprocess.Popen[bytes]]:
    """The service as `rayscheduler up` runs it, from the moment it says that it is up until the block ends."""
    command = [str(PROGRAM), "up", "--config", os.path.relpath(CATALOG), "--lend", LENT, "--port", str(port)]
    console.print(f"[bold]$ {escape(' '.join(['rayscheduler', *command[1:]]))}[/]")
    log_path = LOGS / f"demo-{port}.log"
    LOGS.mkdir(exist_ok=True)
    began = time.monotonic()
    # In a session of its own: Ctrl-C in the terminal comes to us, and we pass it on when we are done.
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    try:
        with console.status("starting Ray, the allocator and the gateway"):
            while not says_up(log_path):
                check_alive(process, log_path)
                if time.monotonic() - began > START_S_MAX:
                    raise DemoFailed(f"not up after {START_S_MAX:.0f} s; see {os.path.relpath(log_path)}")
                time.sleep(0.05)
        console.print(f"[green]up[/] after {time.monotonic() - began:.1f} s\n")
        yield process
        check_alive(process, log_path)
    finally:
        take_down(process)


def says_up(log_path: Path) -> bool:
    """The line that ends the start; an answer at the port may be another service's."""
    return any(line.startswith("up: ") for line in log_path.read_text(errors="replace").splitlines())


def check_alive(process: subprocess.Popen[bytes], log_path: Path) -> None:
    if process.poll() is not None:
        said = [line for line in log_path.read_text(errors="replace").splitlines() if line.strip()]
        hint = ", for example: make demo PORT=8001" if "--port" in said[-1] else ""
        raise DemoFailed("\n".join(said[-15:]) + hint)


def take_down(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is not None:
        return
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # a second Ctrl-C must not leave half of it running
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    with console.status("taking it down"):
        try:
            process.wait(STOP_S_MAX)
        except subprocess.TimeoutExpired:
            process.kill()
            raise DemoFailed(
                f"the service did not end in {STOP_S_MAX:.0f} s and was killed; `rayscheduler down` removes the rest"
            ) from None
    console.print(f"[green]taken down[/] in {time.monotonic() - began:.1f} s")


def get(port: int, path: str) -> Any:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            return json.load(answer)
    except OSError as problem:
        raise DemoFailed(f"the service does not answer at {path}: {problem}") from None


def tour(port: int) -> list[Answer]:
    """Ask all questions, one after the other, and print what happens as it happens."""
    client = OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="not needed", max_retries=0, timeout=180)
    answers = []
    for number, question in enumerate(QUESTIONS, 1):
        console.print(f"[bold]{number}. {question.title}[/]")
        console.print(f"   [cyan]{question.model}[/] ← {escape(question.text)}")
        try:
            answers.append(ask(client, port, question))
        except OpenAIError as problem:
            raise DemoFailed(f"{question.model} did not answer: {problem}") from None
    return answers


def ask(client: OpenAI, port: int, question: Question) -> Answer:
    before = get(port, "/api/v1/decisions?limit=1")
    began = time.monotonic()
    first_s = None
    console.print(f"   [cyan]{question.model}[/] → ", end="")
    for piece in pieces(client, question):
        first_s = first_s or time.monotonic() - began
        console.print(escape(piece.replace("\n", " ")), end="", soft_wrap=True, style="green")
    whole_s = time.monotonic() - began
    console.print()
    if first_s is None:
        raise DemoFailed(f"{question.model} answered nothing")
    answer = Answer(question, first_s, whole_s, caused(port, before[0]["serial"] if before else 0))
    for event in answer.events:
        console.print(f"   [dim]{escape(event.words)}[/]", soft_wrap=True)
    console.print(f"   [dim]first word after {first_s:.2f} s, the whole answer after {whole_s:.2f} s[/]\n")
    return answer


def pieces(client: OpenAI, question: Question) -> Iterator[str]:
    if question.chat:
        for chunk in client.chat.completions.create(
            model=question.model,
            messages=[{"role": "user", "content": question.text}],
            max_tokens=40,
            temperature=0,
            stream=True,
        ):
            if chunk.choices and (text := chunk.choices[0].delta.content):
                yield text
    else:
        for part in client.completions.create(
            model=question.model, prompt=question.text, max_tokens=24, temperature=0, stop="\n", stream=True
        ):
            if part.choices and (text := part.choices[0].text):
                yield text


def caused(port: int, serial: int) -> list[Event]:
    """What was evicted and loaded after that serial, oldest first."""
    made = [entry for entry in reversed(get(port, "/api/v1/decisions")) if entry["serial"] > serial]
    replicas = {replica["id"]: replica for replica in get(port, "/api/v1/replicas")}
    started = {entry["replica"]: entry for entry in made if entry["decision"] == "start"}
    events = []
    for entry in made:
        name = entry["replica"] if entry["decision"] in ("start", "stop") else ""
        if entry["decision"] == "stop":
            follower = started.get(entry.get("for", ""))
            took_s = follower["at"] - entry["at"] if follower else None
            back = f"; its memory was back {took_s:.2f} s later" if took_s is not None else ""
            events.append(Event(name, False, took_s, f"{entry['reason']} {name}, which {entry['why']}{back}"))
        elif entry["decision"] == "start":
            load_ms = replicas.get(name, {}).get("load_ms")
            took = f", loaded in {load_ms / 1000:.2f} s" if load_ms is not None else ""
            size = f"{sum(entry['bytes']) >> 20} MiB on {', '.join(entry['devices'])}"
            events.append(Event(name, True, load_ms and load_ms / 1000, f"started {name}, {size}{took}"))
    return events


def show(port: int, answers: list[Answer]) -> None:
    """One table of what it all cost, and what to try next."""
    table = Table(title=f"Two models in {LENT}", title_style="bold", title_justify="left")
    for title in ("asked", "evicted", "gone in", "loaded", "ready in", "first word", "answer"):
        figure = title in ("gone in", "ready in", "first word", "answer")
        table.add_column(title, justify="right" if figure else "left", no_wrap=True)
    for answer in answers:
        cells = [answer.question.model]
        for loaded in (False, True):
            events = [event for event in answer.events if event.loaded is loaded]
            cells.append(", ".join(event.replica for event in events))
            cells.append(", ".join(f"{event.took_s:.2f} s" for event in events if event.took_s is not None))
        table.add_row(*cells, f"{answer.first_s:.2f} s", f"{answer.whole_s:.2f} s")
    console.print(table)
    here = f"http://127.0.0.1:{port}"
    body = '{"model": "smollm2", "messages": [{"role": "user", "content": "Hello!"}]}'
    console.print(f"\nThe cluster, live:  [link={here}/]{here}/[/link]\nAsk it yourself:")
    for line in (
        f"curl {here}/v1/chat/completions -H 'content-type: application/json' -d '{body}'",
        f"curl {here}/v1/models",
        f"curl {here}/api/v1/decisions",
        f"{os.path.relpath(PROGRAM)} status",
    ):
        console.print(f"  {escape(line)}", soft_wrap=True)


def serve_on(process: subprocess.Popen[bytes]) -> None:
    """Until Ctrl-C, or until the service ends by itself."""
    console.print("\n[bold]Serving until Ctrl-C.[/]")
    try:
        process.wait()
    except KeyboardInterrupt:
        console.print()


if __name__ == "__main__":
    sys.exit(main())
