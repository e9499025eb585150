"""`up` and `down` without Ray: in which order things are done, and that all is taken down however it ends."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from rayscheduler.cli import live
from rayscheduler.cli import service as commands
from rayscheduler.cluster import running, start
from rayscheduler.cluster.ray_head import STATE_FOLDER_ENV, Head
from rayscheduler.cluster.running import Service
from rayscheduler.errors import AllocatorUnavailable, VersionMismatch
from tests.cli.conftest import Run
from tests.cli.doubles import FakeService, model, node, replica, status

GOOD = "models:\n  - {name: a, engine: simulated, memory: 60GiB}\n"
REAL_START = start.start_service
UP = Service("10.0.0.1:6379", "http://127.0.0.1:8123", None, owns_serve=True)


class Stage:
    """Where `up` and `down` play: the service is in memory, and what is asked of Ray is written down."""

    def __init__(self) -> None:
        self.fake = FakeService()
        self.started: list[dict[str, Any]] = []
        self.stopped: list[Service] = []
        self.start_fails: BaseException | None = None
        self.follow: Callable[[FakeService, str], None] = lambda service, title: None

    def start_service(self, config: object, **options: Any) -> Service:
        self.started.append(options)
        if self.start_fails is not None:
            raise self.start_fails
        return UP

    def stop_service(self, service: Service, **options: Any) -> bool:
        self.stopped.append(service)
        running.forget(service)
        return service.address != "10.0.0.9:1"

    @contextmanager
    def client(self) -> Iterator[FakeService]:
        yield self.fake


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Stage]:
    stage = Stage()
    stage.fake.now = status(nodes=[node(simulated=True)])
    monkeypatch.setenv(STATE_FOLDER_ENV, str(tmp_path / "state"))
    monkeypatch.setattr(start, "start_service", stage.start_service)
    monkeypatch.setattr(start, "stop_service", stage.stop_service)
    monkeypatch.setattr(commands, "_client", stage.client)
    monkeypatch.setattr(live, "follow", lambda service, title: stage.follow(service, title))
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield stage
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def catalog(tmp_path: Path) -> Path:
    file = tmp_path / "models.yaml"
    file.write_text(GOOD)
    return file


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_any_signal_takes_down_what_was_started(stage: Stage, run: Run, catalog: Path, number: int) -> None:
    def follow(service: FakeService, title: str) -> None:
        assert title == "rayscheduler at http://127.0.0.1:8123"
        os.kill(os.getpid(), number)
        signal.pause()

    stage.follow = follow
    ran = run("up", "--config", catalog, "--simulate-devices", "2x80GiB")
    assert ran.code == 130
    assert ran.out == "up: ask http://127.0.0.1:8123/v1\n"
    assert stage.started[0]["simulate"] == "2x80GiB"
    assert stage.stopped == [UP]


def test_a_signal_while_it_starts_is_left_to_the_start(stage: Stage, run: Run, catalog: Path) -> None:
    """`start_service` takes down what it has started, whatever ends it."""
    stage.start_fails = KeyboardInterrupt()
    assert run("up", "--config", catalog).code == 130
    assert stage.stopped == []


def test_a_service_that_is_gone_ends_up_with_a_problem(stage: Stage, run: Run, catalog: Path) -> None:
    def follow(service: FakeService, title: str) -> None:
        raise AllocatorUnavailable("gone")

    stage.follow = follow
    ran = run("up", "--config", catalog)
    assert ran.code == 1
    assert "the service was taken down, or has failed" in ran.err
    assert stage.stopped == [UP]


def test_detached_it_is_left_running(stage: Stage, run: Run, catalog: Path) -> None:
    ran = run("up", "--config", catalog, "--detach", "--json", "--lend", "1GiB")
    assert json.loads(ran.out) == {"url": UP.http_url, "address": UP.address, "dashboard": ""}
    assert ran.code == 0
    assert stage.started[0]["lend_bytes"] == 2**30
    assert stage.stopped == []


def test_models_that_fit_nowhere_and_nodes_that_lend_nothing_are_warned_of(
    stage: Stage, run: Run, catalog: Path
) -> None:
    bare = node("n2", devices=[], lends=False, mend="it lends nothing; restart it")
    stage.fake.now = status(nodes=[node(simulated=True), bare])
    catalog.write_text(GOOD.replace("60GiB", "1000GiB"))
    warned = run("up", "--config", catalog, "--detach").err.splitlines()
    assert warned[0] == "warning: n2: it lends nothing; restart it"
    assert warned[1].startswith("warning: a needs 1 x 1000.0 GiB or ")


def test_weights_may_be_elsewhere_in_a_cluster_that_is_joined(stage: Stage, run: Run, catalog: Path) -> None:
    catalog.write_text("models:\n  - {name: a, engine: llama-cpp, source: /nowhere/a.gguf, memory: 1GiB}\n")
    assert run("up", "--config", catalog).code == 2
    assert stage.started == []
    ran = run("up", "--config", catalog, "--address", "10.0.0.1:6379", "--detach")
    assert ran.code == 0
    assert ran.err.startswith(f"warning: {catalog}:2: ")
    assert "(on this machine; others of the cluster may have it)" in ran.err


def test_other_machines_are_not_answered_without_a_key(
    stage: Stage, run: Run, catalog: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(start, "start_service", REAL_START)
    ran = run("up", "--config", catalog, "--host", "0.0.0.0", "--simulate-devices", "1x80GiB")
    assert ran.code == 2
    assert "--host 0.0.0.0 answers other machines" in ran.one_line
    assert "--admin-key-file" in ran.one_line


def test_the_first_key_comes_from_a_file_or_the_environment(
    stage: Stage, run: Run, catalog: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "admin.key"
    file.write_text("f" * 64 + "\n")
    file.chmod(0o600)
    ran = run("up", "--config", catalog, "--detach", "--host", "0.0.0.0", "--admin-key-file", file)
    assert (ran.code, ran.err) == (0, "")
    assert (stage.started[-1]["admin_key"], stage.started[-1]["host"]) == ("f" * 64, "0.0.0.0")
    monkeypatch.setenv(commands.ADMIN_KEY_ENV, "e" * 64)
    assert run("up", "--config", catalog, "--detach").code == 0
    assert stage.started[-1]["admin_key"] == "e" * 64
    assert commands.ADMIN_KEY_ENV not in os.environ, "engines inherit it"


def test_a_key_file_that_is_none(stage: Stage, run: Run, catalog: Path, tmp_path: Path) -> None:
    file = tmp_path / "admin.key"
    ran = run("up", "--config", catalog, "--admin-key-file", file)
    assert (ran.code, "No such file" in ran.one_line) == (2, True)
    file.write_text("secret\n")
    ran = run("up", "--config", catalog, "--admin-key-file", file)
    assert (ran.code, "openssl rand -hex 32" in ran.one_line) == (2, True)
    assert "secret" not in ran.one_line.replace(str(file), "")
    file.write_text("f" * 64)
    file.chmod(0o644)
    assert "chmod 600" in run("up", "--config", catalog, "--detach", "--admin-key-file", file).err
    assert len(stage.started) == 1


@pytest.mark.parametrize("option", ["--lend=1GiB", "--simulate-devices=1x1GiB"])
def test_a_cluster_that_is_joined_lends_what_it_lends(stage: Stage, run: Run, catalog: Path, option: str) -> None:
    ran = run("up", "--config", catalog, "--address", "auto", option)
    assert ran.code == 2
    assert f"{option.partition('=')[0]} is for a cluster that is started here" in ran.one_line
    assert stage.started == []


def test_another_ray_is_said_in_one_line(stage: Stage, run: Run, catalog: Path) -> None:
    stage.start_fails = VersionMismatch("This Python or Ray is not the cluster's: Ray: 2.59.0")
    ran = run("up", "--config", catalog, "--address", "10.0.0.1:6379")
    assert (ran.code, ran.one_line) == (1, f"rayscheduler: {stage.start_fails}")


def test_what_nobody_thought_of_is_no_traceback_unless_asked_for(
    stage: Stage, run: Run, catalog: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.start_fails = RuntimeError("HAProxy crashed:\nsome\nlines\nsocket path too long")
    ran = run("up", "--config", catalog)
    assert ran.code == 1
    assert ran.err.splitlines() == [
        "rayscheduler: RuntimeError: HAProxy crashed: socket path too long",
        "This should not happen. RAYSCHEDULER_TRACEBACK=1 shows where it did.",
    ]
    monkeypatch.setenv("RAYSCHEDULER_TRACEBACK", "1")
    with pytest.raises(RuntimeError):
        run("up", "--config", catalog)


def head(pid: int, created_s: float) -> Head:
    return Head("10.0.0.1:6379", pid, created_s, "http://127.0.0.1:8265", "/dev/null", "")


def test_down_takes_the_one_that_was_started_here(stage: Stage, run: Run) -> None:
    assert run("down").one_line.startswith("rayscheduler: no service that was started here is running; ")
    running.remember(UP)
    assert run("down").code == 0
    assert stage.stopped == [UP]
    assert run("down").code == 1


def test_down_asks_which_of_several(stage: Stage, run: Run) -> None:
    other = Service("10.0.0.2:6379", "http://127.0.0.1:8124", None, owns_serve=True)
    running.remember(UP)
    running.remember(other)
    ran = run("down")
    assert ran.code == 2
    assert "10.0.0.1:6379 (http://127.0.0.1:8123), 10.0.0.2:6379 (http://127.0.0.1:8124)" in ran.one_line
    assert run("down", "--port", "8124").code == 0
    assert stage.stopped == [other]
    assert run("down").code == 0
    assert stage.stopped == [other, UP]


def test_down_at_an_address_where_nothing_is(stage: Stage, run: Run) -> None:
    ran = run("down", "--address", "10.0.0.9:1")
    assert ran.code == 1
    assert ran.one_line == "rayscheduler: there is no service at 10.0.0.9:1; nothing was taken down"


def test_a_head_that_is_gone_is_forgotten(stage: Stage) -> None:
    me = psutil.Process()
    alive = Service("10.0.0.1:6379", "http://127.0.0.1:8123", head(me.pid, me.create_time()), owns_serve=True)
    running.remember(alive)
    assert running.running() == [alive]
    gone = Service("10.0.0.1:6379", "http://127.0.0.1:8123", head(me.pid, me.create_time() - 100), owns_serve=True)
    running.remember(gone)
    assert running.running() == []
    assert list((running.state_folder()).glob("service-*")) == []


def test_brought_up_again_it_owns_what_it_owned(stage: Stage) -> None:
    running.remember(UP)
    running.remember(Service(UP.address, UP.http_url, None, owns_serve=False))
    assert running.running() == [UP]


def test_the_view_shows_the_service_until_it_is_gone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Ending(FakeService):
        def status(self) -> Any:
            if not self.stories:
                raise AllocatorUnavailable("gone")
            return super().status()

    monkeypatch.setattr(live, "LOOK_EVERY_S", 0.0)
    story = [
        status(),
        status(replicas=[replica("a#1", "STARTING")]),
        status(replicas=[replica("a#1")], models=[model(state="loaded")]),
    ]
    service = Ending()
    service.stories = list(story)
    with pytest.raises(AllocatorUnavailable):
        live.follow(service, "title")  # type: ignore[arg-type]
    lines = [line.partition(" ")[2] for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        "node n1 lends 80.0 GiB on 1 device(s)",
        "a#1 STARTING on n1/0 (60.0 GiB reserved)",
        "a#1 RUNNING on n1/0 (60.0 GiB reserved)",
    ]

    service.stories = list(story)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    with pytest.raises(AllocatorUnavailable):
        live.follow(service, "title")  # type: ignore[arg-type]
    drawn = capsys.readouterr().out
    assert "title" in drawn
    assert "a#1" in drawn
