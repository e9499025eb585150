"""Bad files, bad command lines and a bad installation: one line that says what to do, and the right exit code."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from rayscheduler.cli import ray_version
from rayscheduler.cli.misfits import misfits
from rayscheduler.cluster.ports import PortInUse, require_free_port
from rayscheduler.config.service import config_from_text
from rayscheduler.core.types import ModelName
from tests.cli.conftest import Run
from tests.cli.doubles import GIB, device, node, status
from tests.tiny_gguf import write_tiny_gguf

GOOD = "models:\n  - {name: a, engine: simulated, memory: 1GiB}\n"
Complaint = Callable[[str], str]
COMMANDS = ("config check {file}", "up --config {file}")


@pytest.fixture(params=COMMANDS)
def complaint(request: pytest.FixtureRequest, run: Run, tmp_path: Path) -> Complaint:
    """What is said about a file of this text, where `FILE` stands for the file's path; always exit code 2."""

    def complaint(text: str) -> str:
        file = tmp_path / "models.yaml"
        file.write_text(text)
        ran = run(*request.param.format(file=file).split())
        assert ran.code == 2
        return ran.one_line.replace(str(tmp_path), "DIR").replace("DIR/models.yaml", "FILE")

    return complaint


def test_a_good_file(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "models.yaml"
    file.write_text(GOOD)
    ran = run("config", "check", file)
    assert (ran.code, ran.out, ran.err) == (0, f"{file}: 1 model, nothing wrong\n", "")
    assert '"valid": true' in run("config", "check", file, "--json").out


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("models:\n  - name: a\n   engine: b\n", "FILE:3: broken YAML: "),
        ("models: [\n", "FILE:1: broken YAML: "),
        ("- a\n- b\n", "FILE:1: a list is not a mapping; write keys and values, for example models: "),
        (GOOD.replace("simulated", "tgi"), "FILE:2: models[0].engine: 'tgi' is not one of the engines; the engines"),
        (GOOD + GOOD.split("\n")[1] + "\n", "FILE:3: models[1].name: the model 'a' stands twice, first in line 2; "),
        (GOOD + "  - {name: b, aliases: [a], engine: simulated, memory: 1GiB}\n", "FILE:3: models[1].aliases[0]: the "),
        (GOOD.replace("1GiB", "0GiB"), "FILE:2: models[0].memory: '0GiB' is no memory; write a size of more than 0"),
        (GOOD.replace("1GiB", "-1GiB"), "FILE:2: models[0].memory: '-1GiB' is no memory; write a size of more than 0"),
        (GOOD.replace("memory", "memroy"), "FILE:2: models[0].memroy: the key 'memroy' is unknown; did you mean"),
    ],
)
def test_broken_catalogs(complaint: Complaint, text: str, said: str) -> None:
    assert complaint(text).startswith(said)


def llama(source: str) -> str:
    return f"models:\n  - name: a\n    engine: llama-cpp\n    memory: 1GiB\n    source: {source}\n"


def test_a_gguf_that_is_missing(complaint: Complaint) -> None:
    said = complaint(llama("nope.gguf"))
    assert said.startswith("FILE:5: ")
    assert "DIR/nope.gguf" in said


def test_a_gguf_that_is_none(complaint: Complaint, tmp_path: Path) -> None:
    (tmp_path / "notes.gguf").write_text("these are notes, and they are long enough to hold a header" * 10)
    said = complaint(llama("notes.gguf"))
    assert said.startswith("FILE:5: ")
    assert "DIR/notes.gguf" in said


def test_a_gguf_that_is_cut_short(complaint: Complaint, tmp_path: Path) -> None:
    whole = write_tiny_gguf(tmp_path / "whole.gguf")
    (tmp_path / "short.gguf").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    said = complaint(llama("short.gguf"))
    assert said.startswith("FILE:5: ")
    assert "it is cut short: " in said


def test_weights_that_are_elsewhere_can_be_left_out_of_the_check(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "models.yaml"
    file.write_text(llama("/data/a.gguf"))
    assert run("config", "check", file, "--elsewhere").code == 0


def test_a_file_that_is_missing(run: Run) -> None:
    assert run("up", "--config", "nope.yaml").one_line == "nope.yaml: there is no such file; check the path"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("up", "rayscheduler up: Missing option '--config' / '-c'. Try 'rayscheduler up --help'."),
        ("upp", "rayscheduler: No such command 'upp'. "),
        ("load", "rayscheduler load: Missing argument 'MODEL'. Try 'rayscheduler load --help'."),
        ("resources --lend 0", "rayscheduler resources: Invalid value: --lend: '0' is no memory; write a size of"),
        ("resources --lend -5MiB", "rayscheduler resources: Invalid value: --lend: '-5MiB' is no memory; write a size"),
        ("resources --lend 4GB", "rayscheduler resources: Invalid value: --lend: '4GB' is not a size; write for examp"),
        ("resources --lend 1024TiB", "rayscheduler: 1073741824 MiB cannot be lent of "),
        ("resources --simulate-devices 80GiB", "rayscheduler: '80GiB' is no description of simulated devices; write "),
        ("resources --simulate-devices 4x80GB", "rayscheduler: '4x80GB': '80GB' is not a size; write "),
        ("decisions --limit 0", "rayscheduler decisions: Invalid value for '--limit' / '-n': "),
    ],
)
def test_bad_command_lines(run: Run, arguments: str, said: str) -> None:
    ran = run(*arguments.split())
    assert ran.code == 2
    assert ran.one_line.startswith(said)


def test_no_command_prints_the_help(run: Run) -> None:
    ran = run()
    assert ran.code in (0, 2)  # older versions of Typer: 0
    assert "Usage: rayscheduler" in ran.out
    assert ran.err == ""


def test_ray_is_missing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(ray_version, "version", version)
    ran = run("status")
    assert ran.code == 1
    said = "rayscheduler: Ray is not installed in this Python; run: pip install 'ray[serve]>=2.60'"
    assert ran.one_line == said


@pytest.mark.parametrize(("found", "good"), [("2.60.0", True), ("3.0.0.dev0", True), ("2.61", True), ("2.9.3", False)])
def test_ray_is_too_old(run: Run, monkeypatch: pytest.MonkeyPatch, found: str, good: bool) -> None:
    monkeypatch.setattr(ray_version, "version", lambda name: found)
    if good:
        ray_version.require_ray()
        return
    ran = run("unload", "a")
    assert ran.code == 1
    assert "this Python has Ray 2.9.3, and 2.60 or newer is needed; run: pip install" in ran.one_line


def test_a_port_in_use_names_who_has_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(PortInUse) as refused:
            require_free_port(port)
    assert f"port {port} is in use by " in str(refused.value)
    assert f"(pid {os.getpid()}); stop that or choose another with --port" in str(refused.value)
    require_free_port(port)


def test_a_port_in_use_is_said_before_anything_starts(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "models.yaml"
    file.write_text(GOOD)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        ran = run("up", "--config", file, "--port", port)
    assert ran.code == 1
    assert ran.one_line.startswith(f"rayscheduler: port {port} is in use by ")


def test_a_model_bigger_than_every_device_is_told_with_numbers() -> None:
    config = config_from_text(
        GOOD + "  - {name: big, engine: simulated, memory: 300GiB, gpus: [1, 2]}\n"
        "  - {name: zoned, engine: simulated, memory: 1GiB, requires: {labels: {zone: a}}}\n"
        "  - {name: real, engine: command, args: [sh], memory: 1GiB}\n"
    )
    simulated = node(devices=[device("n1/0"), device("n1/1")], simulated=True)
    big, real = misfits(config, status(nodes=[simulated]))
    assert big.startswith("big needs 1 x 300.0 GiB or 2 x 150.0 GiB and fits no node")
    assert "the largest device, n1/1, has 80.0 GiB" in big
    assert real.startswith("real needs ")
    assert misfits(config, status(nodes=[node(devices=[])])) == []


def test_a_cpu_node_is_judged_by_the_memory_that_it_lends() -> None:
    text = "models: [{name: a, engine: command, args: [sh], memory: 2GiB, gpus: [0]}]"
    lent = node(backend="cpu", devices=[device(capacity_bytes=GIB, type="x86_64")])
    (said,) = misfits(config_from_text(text), status(nodes=[lent]))
    assert said.startswith(f"{ModelName('a')} needs 2.0 GiB of host memory")


def test_help_imports_neither_ray_nor_pydantic() -> None:
    """What makes `--help` take seconds; the limit in time is in the benchmarks."""
    program = (
        "import sys; from rayscheduler.cli import app; import typer.main; typer.main.get_command(app); "
        "print([name for name in ('ray', 'pydantic', 'aiohttp', 'numpy', 'psutil') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
