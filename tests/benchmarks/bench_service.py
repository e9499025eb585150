"""What the service costs, measured on a real local cluster: `python tests/benchmarks/bench_service.py [--json]`.

- cold: a request for a model that is not loaded, beyond the engine's own load time (simulated: 0 s and 1 s).
- swap: the same where another model has to make way first; rested, and one right after the other.
- warm: milliseconds added to a request that is not streamed, and to each chunk of a stream.
- throughput: requests/s with 1 and 16 clients: the engine alone, the gateway, and the plain Ray Serve way
  (an ingress deployment that calls a deployment handle, which answers the same bytes).
- memory: of each process, resident and by its share of shared pages.

All in one run, on one machine that also runs the clients: read them beside each other. Takes some four minutes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import ray
from http_load import Target, chunk_delays_s, latencies_s, requests_per_second
from ray import serve
from starlette.requests import Request
from starlette.responses import Response

from rayscheduler.cluster.names import ALLOCATOR, NAMESPACE
from rayscheduler.cluster.ray_head import STATE_FOLDER_ENV
from rayscheduler.cluster.running import Service
from rayscheduler.cluster.start import start_service, stop_service
from rayscheduler.config.service import config_from_text

CHAT = "/v1/chat/completions"
LENT_MIB = 1000
RESTED_S = 3.0
WITHIN_S = 60.0
CATALOG = f"""
models:
- {{name: warm, engine: simulated, memory: 100MiB, concurrency: 256, simulate: {{load: 0s}}}}
- {{name: stamps, engine: command, memory: 50MiB, concurrency: 256,
   args: [{sys.executable}, {Path(__file__).with_name("stamping_server.py")}, "${{HOST}}", "${{PORT}}"]}}
- {{name: a0, engine: simulated, memory: 600MiB, simulate: {{load: 0s}}}}
- {{name: b0, engine: simulated, memory: 600MiB, simulate: {{load: 0s}}}}
- {{name: a1, engine: simulated, memory: 600MiB, simulate: {{load: 1s}}}}
- {{name: b1, engine: simulated, memory: 600MiB, simulate: {{load: 1s}}}}
"""
Figures = dict[str, Any]


@contextmanager
def running() -> Iterator[Service]:
    """The service on a Ray head of its own, with its own state."""
    with tempfile.TemporaryDirectory(prefix="rs-bench-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        os.environ[STATE_FOLDER_ENV] = f"{folder}/state"
        service = start_service(
            config_from_text(CATALOG),
            port=free_port(),
            host="127.0.0.1",
            lend_bytes=LENT_MIB << 20,
            temp_folder=f"{folder}/ray",
            dashboard_port=free_port(),
        )
        try:
            yield service
        finally:
            stop_service(service)


class Bench:
    def __init__(self, service: Service, quick: bool) -> None:
        self.service = service
        self.http = httpx.Client(base_url=service.http_url, timeout=WITHIN_S, trust_env=False)
        self.loads = 2 if quick else 8
        self.requests = 50 if quick else 200
        self.rounds = 2 if quick else 5
        self.seconds = 1.0 if quick else 4.0

    # -- loads ----------------------------------------------------------------------------------------

    def cold(self, model: str, load_ms: int) -> Figures:
        """Nothing has to make way; a little while after the last load."""
        times = []
        for _ in range(self.loads):
            self.unload_all()
            times.append(self.first_answer(model))
        return beyond(times, load_ms)

    def swaps(self, models: tuple[str, str], load_ms: int, rested: bool) -> Figures:
        self.unload_all()
        self.first_answer(models[0])
        times = []
        for turn in range(self.loads):
            if rested:
                self.rest()
            times.append(self.first_answer(models[(turn + 1) % 2]))
        return beyond(times, load_ms)

    def first_answer(self, model: str) -> tuple[float, float]:
        """Milliseconds until its answer was here, and what the runner says that the engine's load took of it."""
        began_s = time.perf_counter()
        self.http.post(CHAT, json=question(model)).raise_for_status()
        took_ms = (time.perf_counter() - began_s) * 1000
        (replica,) = [found for found in self.http.get("/api/v1/replicas").json() if found["model"] == model]
        return took_ms, replica["load_ms"]

    def unload_all(self) -> None:
        for model in ("a0", "b0", "a1", "b1"):
            self.http.post(f"/api/v1/models/{model}/unload").raise_for_status()
        self.until(lambda: {found["model"] for found in self.http.get("/api/v1/replicas").json()} <= {"warm", "stamps"})
        self.rest()

    def rest(self) -> None:
        """A cluster has time between two loads: for a worker to be kept ready, as it is outside of benchmarks."""
        time.sleep(RESTED_S)

    def until(self, holds: Callable[[], bool]) -> None:
        deadline_s = time.monotonic() + WITHIN_S
        while not holds():
            assert time.monotonic() < deadline_s
            time.sleep(0.02)

    # -- warm -----------------------------------------------------------------------------------------

    def lease(self, model: str) -> tuple[str, str]:
        """Endpoint and key of its engine."""
        allocator = ray.get_actor(ALLOCATOR, namespace=NAMESPACE)
        lease = ray.get(allocator.lease.remote(model, f"bench-{time.monotonic_ns()}", ""))
        return lease["endpoint"], lease["api_key"]

    def targets(self) -> dict[str, Target]:
        """The ways to the same answer."""
        endpoint, key = self.lease("warm")
        answer = httpx.post(
            endpoint + CHAT, json=question("warm"), headers={"authorization": f"Bearer {key}"}, trust_env=False
        ).content
        serve.run(Ingress.bind(Answerer.bind(answer)), name="plain", route_prefix="/plain")  # type: ignore[attr-defined]
        self.until(lambda: self.http.post("/plain", json=question("warm")).status_code == 200)
        targets = {
            "engine alone": Target.of(endpoint + CHAT, question("warm"), key),
            "gateway": Target.of(self.service.http_url + CHAT, question("warm")),
            "plain Serve": Target.of(f"{self.service.http_url}/plain", question("warm")),
        }
        if port := self.python_proxy():
            targets["plain Serve, its own proxy"] = Target.of(f"http://127.0.0.1:{port}/plain", question("warm"))
        return targets

    def python_proxy(self) -> str | None:
        """Where Serve's proxy in Python listens: without HAProxy it is the front door."""
        assert self.service.head is not None
        environment = psutil.Process(self.service.head.pid).environ()
        return environment.get("RAY_SERVE_FALLBACK_PROXY_HTTP_PORT")

    def latency(self, targets: dict[str, Target]) -> Figures:
        """Taken in turns, so that what else the machine does hits all alike."""
        times: dict[str, list[float]] = {name: [] for name in targets}
        for _ in range(self.rounds):
            for name, target in targets.items():
                times[name] += asyncio.run(latencies_s(target, self.requests))
        figures = {name: percentiles(taken) for name, taken in times.items()}
        alone = figures["engine alone"]
        for name in targets.keys() - {"engine alone"}:
            figures[name] |= {f"added_{key}": round(figures[name][key] - alone[key], 3) for key in alone}
        return figures

    def throughput(self, targets: dict[str, Target]) -> Figures:
        return {
            name: {
                f"{clients}_clients": round(asyncio.run(requests_per_second(target, clients, self.seconds)))
                for clients in (1, 16)
            }
            for name, target in targets.items()
        }

    def chunks(self, streams: int) -> Figures:
        """Delays of chunks that come every 20 ms, past the gateway and through it."""
        endpoint, _ = self.lease("stamps")
        body = {"model": "stamps", "chunks": 50 if self.rounds < 5 else 200, "every_ms": 20}
        times: dict[str, list[float]] = {"engine alone": [], "gateway": []}
        for _ in range(min(3, self.rounds)):
            for name, url in (("engine alone", endpoint), ("gateway", self.service.http_url)):
                times[name] += asyncio.run(chunk_delays_s(Target.of(url + CHAT, body), streams))
        figures = {name: percentiles(taken) for name, taken in times.items()}
        alone = figures["engine alone"]
        figures["gateway"] |= {f"added_{key}": round(figures["gateway"][key] - alone[key], 3) for key in alone}
        return figures

    def lease_and_release(self) -> Figures:
        """The two calls that a request makes to the allocator; the gateway waits for the first only."""
        allocator = ray.get_actor(ALLOCATOR, namespace=NAMESPACE)
        leased, released = [], []
        for index in range(self.requests):
            began_s = time.perf_counter()
            ray.get(allocator.lease.remote("warm", f"bench-{index}", ""))
            between_s = time.perf_counter()
            ray.get(allocator.exchange.remote("", [f"bench-{index}"], []))
            leased.append(between_s - began_s)
            released.append(time.perf_counter() - between_s)
        return {"lease": percentiles(leased), "release": percentiles(released)}

    # -- memory ---------------------------------------------------------------------------------------

    def memory(self) -> Figures:
        """MiB of each kind of process of this service, those of Ray included; engines are simulated ones."""
        kinds: dict[str, list[tuple[int, int]]] = {}
        for process, kind in self.processes():
            try:
                info = process.memory_full_info()
            except psutil.Error:
                continue
            kinds.setdefault(kind, []).append((info.rss, getattr(info, "pss", info.rss)))
        return {
            kind: {
                "processes": len(sizes),
                "rss_mib": round(sum(rss for rss, _ in sizes) / 2**20),
                "pss_mib": round(sum(pss for _, pss in sizes) / 2**20),
            }
            for kind, sizes in sorted(kinds.items())
        }

    def processes(self) -> Iterator[tuple[psutil.Process, str]]:
        assert self.service.head is not None
        engines = {found["engine_pid"] for found in self.http.get("/api/v1/replicas").json()}
        supervisors = {psutil.Process(pid).ppid() for pid in engines if pid}
        for process in psutil.process_iter():
            try:
                if process.pid in engines:
                    yield process, "engine (simulated)"
                elif process.pid in supervisors:
                    yield process, "engine's supervisor"
                elif os.getsid(process.pid) == self.service.head.pid or process.pid == self.service.head.pid:
                    yield process, kind_of(process)
            except (psutil.Error, ProcessLookupError):
                continue


@serve.deployment(max_ongoing_requests=1000, ray_actor_options={"num_cpus": 0})
class Answerer:
    """What a model would be in the plain way."""

    def __init__(self, answer: bytes) -> None:
        self._answer = answer

    async def __call__(self, asked: object) -> bytes:
        return self._answer


@serve.deployment(max_ongoing_requests=1000, ray_actor_options={"num_cpus": 0})
class Ingress:
    def __init__(self, model: Any) -> None:
        self._model = model

    async def __call__(self, request: Request) -> Response:
        return Response(await self._model.remote(await request.json()), media_type="application/json")


def kind_of(process: psutil.Process) -> str:
    command = process.cmdline()
    title = command[0] if command else process.name()
    names = {
        "ray::Allocator": "allocator",
        "ray::NodeAgent": "node agent",
        "ray::ServeReplica:rayscheduler:": "gateway",
        "ray::ServeReplica:rs-replica:": "runner",
        "ray::ServeReplica:plain:": "(plain Serve's replicas)",
        "ray::ServeController": "Serve controller",
        "ray::ProxyActor": "Serve's own proxy",
        "ray::HAProxyManager": "HAProxy's manager",
        "ray::IDLE": "worker kept ready",
    }
    known = next((kind for start, kind in names.items() if title.startswith(start)), None)
    if known is None and "haproxy" in title:
        known = "HAProxy"
    return known or ("Ray: raylet" if title.endswith("/raylet") else "Ray: head (GCS, dashboard, agents)")


def question(model: str) -> Figures:
    return {"model": model, "messages": [{"role": "user", "content": "hello"}]}


def percentiles(seconds: list[float]) -> dict[str, float]:
    """In ms, nearest rank."""
    ordered = sorted(seconds)
    return {
        "p50_ms": round(ordered[(len(ordered) - 1) // 2] * 1e3, 3),
        "p99_ms": round(ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))] * 1e3, 3),
    }


def beyond(times: list[tuple[float, float]], load_ms: int) -> Figures:
    """What the loads took beyond what the engine pretends to need, and beyond what its whole start took."""
    ours = sorted(took_ms - load_ms for took_ms, _ in times)
    around = [took_ms - measured_ms for took_ms, measured_ms in times]
    return {
        "loads": len(times),
        "median_ms": round(statistics.median(ours)),
        "best_ms": round(ours[0]),
        "worst_ms": round(ours[-1]),
        "beyond_engine_start_median_ms": round(statistics.median(around)),
    }


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def measure(quick: bool, say: Callable[[str], None]) -> Figures:
    figures: Figures = {"machine": {"cpus": os.cpu_count(), "ray": ray.__version__, "load_average": os.getloadavg()}}
    with running() as service:
        bench = Bench(service, quick)
        say("loads")
        figures["cold_load_0s"] = bench.cold("a0", 0)
        figures["cold_load_1s"] = bench.cold("a1", 1000)
        figures["swap_load_0s"] = bench.swaps(("a0", "b0"), 0, rested=True)
        figures["swap_load_1s"] = bench.swaps(("a1", "b1"), 1000, rested=True)
        figures["swap_load_0s_at_once"] = bench.swaps(("a0", "b0"), 0, rested=False)
        bench.first_answer("warm")
        figures["memory"] = bench.memory()
        say("warm requests")
        targets = bench.targets()
        figures["latency"] = bench.latency(targets)
        figures["allocator_calls"] = bench.lease_and_release()
        say("streams")
        figures["chunk_1_stream"] = bench.chunks(1)
        figures["chunk_16_streams"] = bench.chunks(16)
        say("throughput")
        figures["requests_per_second"] = bench.throughput(targets)
        bench.http.close()
    figures["machine"]["load_average_after"] = os.getloadavg()
    return figures


def show(figures: Figures) -> None:
    for name, figure in figures.items():
        print(f"\n{name}")
        for key, value in figure.items():
            told = "  ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value
            print(f"  {key:32} {told}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument("--quick", action="store_true", help="few of each: whether it works, not how fast it is")
    options = parser.parse_args()
    figures = measure(options.quick, lambda line: print(f"... {line}", file=sys.stderr, flush=True))
    if options.json:
        print(json.dumps(figures, indent=1))
    else:
        show(figures)


if __name__ == "__main__":
    main()
