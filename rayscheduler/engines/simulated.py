"""The engine `simulated`: a real small HTTP server that answers like a model, for tests, demos and rehearsals.

Rules of this file: the keys of the catalog's `simulate:` section are read here, durations as milliseconds.
The server (simulated_server.py) is a program of its own under the same rules as any engine. Over several
nodes the followers (simulated_follower.py) hold memory and a connection to it; it alone fails when told to.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from rayscheduler.engines.containers import check_container
from rayscheduler.engines.protocol import (
    AdapterCalls,
    Command,
    Engine,
    EngineRequest,
    InFlight,
    check_environment,
)
from rayscheduler.engines.python_package import interpreter
from rayscheduler.errors import EngineError

NAME = "simulated"
_SERVER = Path(__file__).with_name("simulated_server.py")
_FOLLOWER = Path(__file__).with_name("simulated_follower.py")


@dataclass(frozen=True, slots=True)
class Simulation:
    """What to simulate. Durations in milliseconds; the names are those of the catalog.

    `reply`: the answer, by default the model's name in a sentence. `tokens_per_second`: None, at once.
    `fail`: `load`, when the load time is up; or `crash`, `fail_after` ms after it was ready, or with None
    before the first byte of its first answer. `fail_status`: the exit status then. `allocate`: True, hold
    as much real memory in all as is reserved on the devices; a number, so many bytes more than the server.
    """

    load: int = 1000
    unload: int = 0
    tokens_per_second: float | None = None
    reply: str | None = None
    fail: str = "never"
    fail_after: int | None = None
    fail_status: int = 1
    allocate: bool | int = False


class Simulated(Engine):
    """Needs no source; `args` are not used."""

    name = NAME
    profiles_memory = False

    def validate(self, request: EngineRequest) -> None:
        check_environment(request)
        check_container(request)
        simulation_of(request)

    def check(self, request: EngineRequest) -> None:
        self.validate(request)

    def command(self, request: EngineRequest, port: int, api_key: str, host: str) -> Command:
        simulation = simulation_of(request)
        all_reserved = simulation.allocate is True
        plan = {
            "model": request.model,
            "host": host,
            "port": port,
            "concurrency": max(1, request.concurrency),
            "load_ms": simulation.load,
            "unload_ms": simulation.unload,
            "tokens_per_second": simulation.tokens_per_second,
            "reply": simulation.reply,
            "fail": simulation.fail,
            "fail_after_ms": simulation.fail_after,
            "fail_status": simulation.fail_status,
            "allocate_bytes": sum(request.device_bytes) if all_reserved else int(simulation.allocate),
            "allocate_counts_all": all_reserved,
            "node_count": request.node_count,
            "node_rank": request.node_rank,
            "leader_host": request.leader_host,
            "leader_port": request.leader_port,
            "max_loras": request.max_loras,
        }
        program, ready_path = (_FOLLOWER, "") if request.node_rank else (_SERVER, "/health")
        argv = (interpreter(request), "-I", "-S", str(program), json.dumps(plan))
        return Command(argv, dict(request.env), ready_path, mounts=(str(program.parent),))

    def in_flight(self) -> InFlight:
        return InFlight("/stats", lambda page: int(json.loads(page)["in_flight"]))

    def adapter_calls(self, request: EngineRequest) -> AdapterCalls | None:
        """As vLLM has it."""
        return AdapterCalls("/v1/load_lora_adapter", "/v1/unload_lora_adapter") if request.max_loras else None


def simulation_of(request: EngineRequest) -> Simulation:
    """The request's `simulate` mapping, checked. EngineError names the key that is wrong."""
    given: Mapping[str, object] = request.simulate
    known = [field.name for field in fields(Simulation)]
    for key in given:
        if key not in known:
            raise EngineError(f"model {request.model}: simulate has no {key!r}; known are {', '.join(known)}")
    simulation = Simulation(**given)  # type: ignore[arg-type]
    if simulation.fail not in ("never", "load", "crash"):
        raise EngineError(f"model {request.model}: simulate.fail is {simulation.fail!r}; it is never, load or crash")
    for key in ("load", "unload", "fail_after", "tokens_per_second", "allocate", "fail_status"):
        value = getattr(simulation, key)
        if value is not None and not (isinstance(value, (int, float)) and value >= 0):
            raise EngineError(f"model {request.model}: simulate.{key} is {value!r}; give a number of at least 0")
    return simulation
