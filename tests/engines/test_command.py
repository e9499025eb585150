"""The engine `command`: any server, by its command line; what it may say and what it may not."""

from __future__ import annotations

import shutil
from pathlib import Path

import httpx
import pytest

from rayscheduler.engines import EngineRequest, by_name
from rayscheduler.engines.command import VARIABLES
from rayscheduler.errors import EngineError, EngineMissing
from tests.engines.conftest import Start, command
from tests.engines.pids import BOUND_S, argv_of, environment_of, python

# A server as anybody would write one: it knows nothing of us but its port and its key.
SOMEBODYS_SERVER = """
import http.server, os, sys

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        known = self.headers["Authorization"] == "Bearer " + os.environ["MY_KEY"]
        self.send_response(200 if known and self.path == "/ready?deep=1" else 403)
        self.send_header("Content-Length", "0")
        self.end_headers()

http.server.HTTPServer((sys.argv[1], int(sys.argv[2])), Handler).serve_forever()
"""
FULL = EngineRequest(
    "org/model",
    "org/model#1",
    source="~/model.bin",
    context_length=2048,
    concurrency=3,
    device_bytes=(5_000, 5_000),
)


def filled(*args: str, request: EngineRequest = FULL) -> tuple[str, ...]:
    asked = command("serve", *args)
    whole = EngineRequest(
        request.model,
        request.replica,
        source=request.source,
        args=asked.args,
        context_length=request.context_length,
        concurrency=request.concurrency,
        device_bytes=request.device_bytes,
    )
    return by_name("command").command(whole, 1234, "key", "10.0.0.1").argv[1:]


async def test_a_server_of_somebody_else_becomes_ready(start: Start) -> None:
    request = command(
        *python(SOMEBODYS_SERVER, "${HOST}", "${PORT}"), env={"MY_KEY": "${API_KEY}"}, ready_path="/ready?deep=1"
    )
    engine = start("command", request)
    await engine.wait_ready(BOUND_S)
    assert environment_of(engine.pid)["MY_KEY"] == engine.api_key
    assert argv_of(engine.pid)[-3:] == ["127.0.0.1", str(engine.port), ""]
    async with httpx.AsyncClient() as client:
        assert (await client.get(engine.endpoint + "/ready?deep=1")).status_code == 403


def test_every_variable_has_its_value() -> None:
    values = dict(zip(VARIABLES, filled(*(f"${{{name}}}" for name in VARIABLES)), strict=True))
    assert values.pop("SOURCE") == str(Path.home() / "model.bin")
    assert values == {
        "PORT": "1234",
        "HOST": "10.0.0.1",
        "MODEL": "org/model",
        "API_KEY": "key",
        "CONTEXT_LENGTH": "2048",
        "CONCURRENCY": "3",
        "DEVICE_BYTES": "5000",
        "NODE_RANK": "0",
        "NODE_COUNT": "1",
        "LEADER_HOST": "10.0.0.1",
        "LEADER_PORT": "0",
    }


def test_no_shell_and_no_second_round() -> None:
    tricky = EngineRequest("${PORT}", "m#1", source="x")
    assert filled("--at=${HOST}:${PORT}", "$PORT ; `id` $(id) *", "$${PORT}", "${MODEL}", request=tricky) == (
        "--at=10.0.0.1:1234",
        "$PORT ; `id` $(id) *",
        "${PORT}",
        "${PORT}",
    )


@pytest.mark.parametrize(
    ("args", "told"),
    [
        ((), r"model c has no command; give it as `args`"),
        (("",), r"model c has no command"),
        (("serve", "${port}"), r"uses \$\{port\}, which does not exist; known are \$\{PORT\}, \$\{HOST\}, \$\{MODEL\}"),
        (("serve", "${}"), r"uses \$\{\}, which does not exist"),
        (("serve", "${SOURCE}"), r"uses \$\{SOURCE\} \(the model's `source`\), but has none"),
        (("serve", "${CONTEXT_LENGTH}"), r"uses \$\{CONTEXT_LENGTH\} .* but has none"),
    ],
)
def test_a_wrong_command_line_is_named(args: tuple[str, ...], told: str) -> None:
    with pytest.raises(EngineError, match=told):
        by_name("command").validate(command(*args))


def test_variables_in_env_are_checked_too() -> None:
    with pytest.raises(EngineError, match=r"uses \$\{KEY\}"):
        by_name("command").validate(command("true", env={"A": "${KEY}"}))


def test_reserved_bytes_are_known_only_once_it_is_placed() -> None:
    request = command("true", "${DEVICE_BYTES}")
    by_name("command").check(request)
    with pytest.raises(EngineError, match="DEVICE_BYTES"):
        by_name("command").command(request, 1, "", "")


@pytest.mark.parametrize("path", ["health", "", "/a b", "/a\r\nX: y"])
def test_a_readiness_path_that_is_none(path: str) -> None:
    with pytest.raises(EngineError, match="ready_path"):
        by_name("command").validate(command("true", ready_path=path))


def test_a_program_that_is_not_installed() -> None:
    with pytest.raises(EngineMissing, match="served by 'no-such-server', which is no program on this machine"):
        by_name("command").check(command("no-such-server"))
    by_name("command").check(command(shutil.which("true") or ""))
    with pytest.raises(EngineMissing, match="'true'"):
        by_name("command").check(command("true", env={"PATH": "/nowhere"}))
