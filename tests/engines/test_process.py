"""An engine's process as the runner sees it: readiness, failures in words, log, environment, port, memory."""

from __future__ import annotations

import asyncio
import os
import pickle
import re
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from rayscheduler.engines import NAMES, EngineRequest, by_name, supervisor
from rayscheduler.engines.environment import engine_environment
from rayscheduler.engines.ports import PORTS, claim_port
from rayscheduler.engines.process import EngineProcess, Exit, log_file_name
from rayscheduler.errors import EngineError, EngineFailed
from tests.engines.conftest import Start, command, refusal_of, simulated
from tests.engines.pids import BOUND_S, NamedPipe, argv_of, environment_of, python

MIB = 1 << 20


# readiness and failure


async def test_an_engine_becomes_ready_and_says_where_it_is(start: Start) -> None:
    engine = start("simulated", simulated())
    await engine.wait_ready(BOUND_S)
    await engine.wait_ready(BOUND_S)
    assert engine.endpoint == f"http://127.0.0.1:{engine.port}"
    assert engine.exit is None
    assert engine.pids() == [engine.pid] == [engine.pgid]


async def test_an_engine_that_exits_while_loading_fails_with_its_last_lines(start: Start) -> None:
    engine = start("command", command(*python("import sys; print('\\n'.join('abc')); sys.exit('no memory for d')")))
    with pytest.raises(EngineFailed) as failed:
        await engine.wait_ready(BOUND_S)
    assert re.fullmatch(
        r"the engine of c#1 exited with status 1 before it was ready, \d+\.\d s after its start", failed.value.message
    )
    assert failed.value.log_tail == "a\nb\nc\nno memory for d"
    assert str(pickle.loads(pickle.dumps(failed.value))) == str(failed.value)


@pytest.mark.parametrize(
    ("signal_name", "told"),
    [("SIGKILL", "was killed by SIGKILL"), ("SIGABRT", "was killed by SIGABRT"), ("SIGILL", "lacks an instruction")],
)
async def test_a_signal_has_its_name_in_the_failure(start: Start, signal_name: str, told: str) -> None:
    engine = start("command", command(*python(f"import os, signal; os.kill(os.getpid(), signal.{signal_name})")))
    with pytest.raises(EngineFailed, match=told):
        await engine.wait_ready(BOUND_S)


def test_ends_in_words() -> None:
    assert Exit(0).words == "exited with status 0"
    assert Exit(3 << 8).words == "exited with status 3"
    assert Exit(9).words == "was killed by SIGKILL"
    assert Exit(50).words == "was killed by signal 50"
    assert Exit(None).words == "was ended because its supervisor was killed"


async def test_a_program_that_does_not_exist(start: Start) -> None:
    told = "the engine of c#1 cannot be started: cannot run /no/such/server: No such file or directory"
    with pytest.raises(EngineError, match=told):
        start("command", command("/no/such/server", "--port", "${PORT}"))


async def test_an_engine_that_never_answers_is_given_up_in_time(start: Start) -> None:
    engine = start("command", command(*python("import signal; print('deaf'); signal.pause()")))
    with pytest.raises(EngineFailed, match=r"was not ready after 0\.1 s: it did not answer /health"):
        await engine.wait_ready(0.1)
    assert engine.exit is None, "to stop it is the caller's decision"


async def test_the_request_says_how_long_a_load_may_take(start: Start) -> None:
    engine = start("simulated", simulated(simulate={"load": 3_600_000}, load_timeout_ms=100))
    with pytest.raises(EngineFailed, match=r"was not ready after 0\.1 s: "):
        await engine.wait_ready()
    assert "HTTP 503 from /health" in await refusal_of(engine)


async def test_a_wrong_readiness_path_is_named(start: Start) -> None:
    """/v1/models wants the key and has it; a path that is not there never becomes ready."""
    ready = start("command", command(*_simulated_argv(), ready_path="/v1/models"))
    await ready.wait_ready(BOUND_S)
    engine = start("command", command(*_simulated_argv(), ready_path="/nope"))
    assert "HTTP 404 from /nope" in await refusal_of(engine)


def _simulated_argv() -> tuple[str, ...]:
    """The simulated server as anybody's server: with its port in argv."""
    argv = by_name("simulated").command(simulated(), 4711, "", "127.0.0.1").argv
    return tuple(arg.replace("4711", "${PORT}") for arg in argv)


async def test_waiting_for_readiness_may_be_cancelled(start: Start) -> None:
    engine = start("simulated", simulated(simulate={"load": 3_600_000}))
    waiting = asyncio.create_task(engine.wait_ready())
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await engine.stop()
    assert engine.exit is not None, "the wait was cancelled, not the news that it waited for"


def test_an_engine_may_be_awaited_on_several_loops(tmp_path: Path) -> None:
    engine = EngineProcess.start(by_name("simulated"), simulated(), "127.0.0.1", tmp_path / "a.log")
    asyncio.run(engine.wait_ready(BOUND_S))
    assert asyncio.run(engine.stop()) == asyncio.run(engine.wait_exit()) == Exit(0)


# the log


async def test_the_log_is_bounded_private_and_complete(start: Start) -> None:
    lines = 60_000
    engine = start("command", command(*python(f"for i in range({lines}): print('line', i, 'x' * 40)")))
    await asyncio.wait_for(engine.wait_exit(), BOUND_S)
    assert engine.log_tail(2) == "\n".join(f"line {lines - n} " + "x" * 40 for n in (2, 1))
    files = sorted(engine.log_path.parent.iterdir())
    assert [file.name for file in files] == ["c#1.log", "c#1.log.1"]
    assert all(file.stat().st_size <= supervisor.LOG_BYTES_MAX for file in files)
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    assert stat.S_IMODE(engine.log_path.parent.stat().st_mode) == 0o700


async def test_a_restart_in_place_keeps_the_log_before_it_apart(start: Start) -> None:
    for text in ("first", "second"):
        engine = start("command", command(*python(f"print('{text}')")))
        await asyncio.wait_for(engine.wait_exit(), BOUND_S)
    assert engine.log_tail() == "second"
    before = engine.log_path.with_suffix(".log.before")
    assert _text_of(before) == "first\n"


def _text_of(path: Path) -> str:
    return path.read_text()


async def test_a_log_drives_no_terminal(start: Start) -> None:
    engine = start("command", command(*python("print('\\x1b[31mred\\x07 \\u00fc'.encode().decode())")))
    await asyncio.wait_for(engine.wait_exit(), BOUND_S)
    assert engine.log_tail() == "�[31mred� ü"


async def test_a_log_in_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    with pytest.raises(EngineError, match=r"the engine of a#1 cannot be started: .*Is a directory"):
        EngineProcess.start(by_name("simulated"), simulated(), "127.0.0.1", tmp_path / "target")


def test_log_names_of_models_with_slashes() -> None:
    assert log_file_name("org/model:7b#12") == "org%2Fmodel:7b#12.log"


# the environment and the key


async def test_an_engine_gets_its_key_and_its_devices_and_no_secret_of_others(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key in ("RAY_ADDRESS", "AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "VLLM_API_KEY", "OMP_NUM_THREADS"):
        monkeypatch.setenv(key, "inherited")
    monkeypatch.setenv("HF_HOME", "/models")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    request = simulated(env={"HF_TOKEN": "given", "ANY": "thing"})
    engine = start("simulated", request)
    await engine.wait_ready(BOUND_S)
    seen = environment_of(engine.pid)
    assert seen["RAYSCHEDULER_API_KEY"] == engine.api_key
    assert seen["HF_TOKEN"] == "given"
    assert seen["ANY"] == "thing"
    assert seen["HF_HOME"] == "/models"
    assert seen["CUDA_VISIBLE_DEVICES"] == ""
    assert not {"RAY_ADDRESS", "AWS_SECRET_ACCESS_KEY", "VLLM_API_KEY", "OMP_NUM_THREADS"} & seen.keys()
    assert not any(engine.api_key in arg for arg in argv_of(engine.pid))
    assert len(engine.api_key) >= 32


def test_visible_devices_by_backend() -> None:
    gpus = EngineRequest("a", "a#1", backend="nvidia", visible_devices=("GPU-1", "GPU-2"))
    assert _devices_of(engine_environment({}, gpus, {})) == {"CUDA_VISIBLE_DEVICES": "GPU-1,GPU-2"}
    rocm = EngineRequest("a", "a#1", backend="rocm", visible_devices=("GPU-1",))
    seen = engine_environment({"CUDA_VISIBLE_DEVICES": "7"}, rocm, {})
    assert _devices_of(seen) == {"ROCR_VISIBLE_DEVICES": "GPU-1"}


def _devices_of(environment: dict[str, str]) -> dict[str, str]:
    return {key: value for key, value in environment.items() if "DEVICES" in key}


@pytest.mark.parametrize("engine", NAMES)
@pytest.mark.parametrize("key", ["CUDA_VISIBLE_DEVICES", "RAYSCHEDULER_API_KEY", "A=B"])
def test_env_that_contradicts_the_scheduler_is_an_error(engine: str, key: str) -> None:
    request = EngineRequest("a", "a#1", source="a", args=("true",), env={key: "0"})
    with pytest.raises(EngineError, match=key):
        by_name(engine).validate(request)


def test_an_unknown_engine_is_named_with_those_that_exist() -> None:
    with pytest.raises(
        EngineError, match="no engine 'vlm'; known are vllm, sglang, llama-cpp, ollama, transformers, command"
    ):
        by_name("vlm")


def test_a_request_survives_the_way_through_ray() -> None:
    request = simulated(visible_devices=("GPU-1",), env={"A": "b"})
    assert pickle.loads(pickle.dumps(request)) == request


# the port


def test_a_claimed_port_is_not_given_again() -> None:
    first = claim_port("127.0.0.1")
    assert first.number in PORTS
    with pytest.raises(EngineError, match=f"port {first.number} of 127.0.0.1 is in use"):
        claim_port("127.0.0.1", first.number)
    first.release()
    claim_port("127.0.0.1", first.number).release()


async def test_a_port_in_use_is_an_error_before_anything_starts(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(EngineError, match=f"port {port} of 127.0.0.1 is in use"):
            start("simulated", simulated(), port)


def test_an_address_of_another_machine_is_named() -> None:
    with pytest.raises(EngineError, match=r"no engine can listen on 192\.0\.2\.1"):
        claim_port("192.0.2.1")


async def test_a_port_is_free_again_once_the_engine_is_gone(start: Start) -> None:
    first = start("simulated", simulated("a"))
    await first.wait_ready(BOUND_S)
    await first.stop()
    again = start("simulated", simulated("b"), first.port)
    await again.wait_ready(BOUND_S)


# memory


async def test_memory_is_measured_over_the_whole_family(start: Start, pipe: NamedPipe) -> None:
    program = (
        "import os, signal, sys\n"
        "os.fork()\n"
        "held = bytearray(b'x') * (20 << 20)\n"
        "os.write(os.open(sys.argv[1], os.O_WRONLY), b'held\\n')\n"
        "signal.pause()\n"
    )
    engine = start("command", command(*python(program, pipe.path)))
    assert [pipe.line(), pipe.line()] == ["held", "held"]
    assert 40 * MIB <= engine.measured_bytes() <= 60 * MIB
    await engine.stop()
    assert engine.measured_bytes() == 0


async def test_a_simulated_model_really_takes_what_is_reserved(start: Start) -> None:
    reserved = simulated("reserved", {"allocate": True}, device_bytes=(100 * MIB,))
    extra = simulated("extra", {"allocate": 50 * MIB})
    plain = simulated("plain")
    engines = [start("simulated", request) for request in (reserved, extra, plain)]
    for engine in engines:
        await engine.wait_ready(BOUND_S)
    held, extra_held, plain_held = (engine.measured_bytes() for engine in engines)
    assert 80 * MIB <= held <= 100 * MIB, "all it has, its own size included"
    assert 49 * MIB <= extra_held - plain_held <= 52 * MIB
    assert plain_held <= 25 * MIB


def test_the_tests_run_where_engines_run() -> None:
    assert sys.platform == "linux"
    assert os.path.exists(f"/proc/self/task/{os.getpid()}/children")


def test_children_are_found_without_the_kernels_list_too() -> None:
    with subprocess.Popen(python("import sys; sys.stdin.read()"), stdin=subprocess.PIPE) as child:
        assert child.pid in supervisor.descendants(os.getpid())
        assert child.pid in supervisor._children_by_parent(os.getpid())
