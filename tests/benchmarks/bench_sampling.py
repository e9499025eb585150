"""What the agent of a node costs: one round of sampling, and the memory of its process.

    python tests/benchmarks/bench_sampling.py [--gpus 8] [--processes 100] [--rounds 200] [--json]

Eight pretended GPUs, a hundred real processes on them: half of them of engines (trees below supervisors), the
others foreign. The library is the tests' stand-in, read through the real pynvml: what a real driver takes for
its answers comes on top. On a cpu node the same engines are measured by their PSS.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.fake_nvml.driver import COMPILER, GIB, NO_COMPILER, Card, FakeDriver

ENGINE = "import subprocess,sys\np=[subprocess.Popen(['sleep','600']) for _ in range(int(sys.argv[1]))]\n"
ENGINE += "print(*(q.pid for q in p), flush=True)\np[0].wait()"
ENGINES = 10


@contextmanager
def processes(count: int) -> Iterator[tuple[list[list[int]], list[int]]]:
    """`ENGINES` trees, with half of the processes among them; and the other half on their own."""
    each = max(1, count // 2 // ENGINES)
    trees = [
        subprocess.Popen(
            [sys.executable, "-S", "-c", ENGINE, str(each)], stdout=subprocess.PIPE, start_new_session=True
        )
        for _ in range(ENGINES)
    ]
    others = [subprocess.Popen(["sleep", "600"]) for _ in range(count - each * ENGINES)]
    try:
        ours = [[int(pid) for pid in tree.stdout.readline().split()] for tree in trees if tree.stdout]
        yield ours, [other.pid for other in others]
    finally:
        for tree in trees:
            os.killpg(tree.pid, signal.SIGKILL)
            tree.wait()
        for other in others:
            other.kill()
            other.wait()


def observed(args: argparse.Namespace, ours: list[list[int]]) -> dict[str, float]:
    """In the process that has the pretended GPUs: what the node agent does each second."""
    bare_mib = resident_mib()
    from rayscheduler.cluster.measuring import Measuring
    from rayscheduler.cluster.reports import Watched
    from rayscheduler.cluster.resources import detect_devices, resources_json
    from rayscheduler.core.types import ReplicaId

    watched = [
        Watched(ReplicaId(f"m#{n}"), "x", os.getpid(), pids[0], {n % args.gpus: GIB}) for n, pids in enumerate(ours)
    ]
    on_gpus = Measuring(resources_json(detect_devices()))
    gpu = timed(lambda: on_gpus.take(watched), args.rounds)
    report = on_gpus.take(watched)
    assert len(report.readings) == args.gpus
    assert all(measured.device_bytes for measured in report.measured.values())
    after_mib = resident_mib()
    cpu = timed(lambda: Measuring({"cpu-0-mib": 1000.0}).take(watched), max(1, args.rounds // 10))
    return {
        "gpu_wall_ms": gpu[0], "gpu_cpu_ms": gpu[1], "ram_wall_ms": cpu[0], "ram_cpu_ms": cpu[1],
        "measuring_mib": after_mib - bare_mib, "process_mib": after_mib, "foreign": len(report.foreign),
    }  # fmt: skip


def agent_mib() -> float:
    """Resident memory of a process that has imported what the node agent needs, Ray included."""
    program = "import ray, rayscheduler.cluster.node_agent; print(open('/proc/self/statm').read())"
    told = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    return int(told.split()[1]) * resource.getpagesize() / 2**20


def ray_mib() -> float:
    """Of one that has imported Ray alone: every worker process of Ray has."""
    program = "import ray; print(open('/proc/self/statm').read())"
    told = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    return int(told.split()[1]) * resource.getpagesize() / 2**20


def timed(call: Callable[[], object], rounds: int) -> tuple[float, float]:
    """Wall and CPU milliseconds of one round, after a first one that does not count."""
    call()
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    for _ in range(rounds):
        call()
    return (time.perf_counter() - wall_s) * 1000 / rounds, (time.process_time() - cpu_s) * 1000 / rounds


def resident_mib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gpus", type=int, default=8)
    parser.add_argument("--processes", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--observe", help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.observe:
        print(json.dumps(observed(args, json.loads(args.observe))))
        return
    if COMPILER is None:
        print(NO_COMPILER)
        return
    with tempfile.TemporaryDirectory() as folder, processes(args.processes) as (ours, others):
        driver = FakeDriver(Path(folder), *(Card(f"GPU-{n}") for n in range(args.gpus)))
        for n, pids in enumerate(ours):
            for pid in pids:
                driver.cards[n % args.gpus].hold(pid, GIB // 8)
        for n, pid in enumerate(others):
            driver.cards[n % args.gpus].hold(pid, GIB // 8)
        driver.write()
        command = [sys.executable, __file__, "--observe", json.dumps(ours), "--gpus", str(args.gpus)]
        command += ["--rounds", str(args.rounds)]
        told = subprocess.run(command, env=driver.environment(), check=True, capture_output=True, text=True).stdout
    figures = {**json.loads(told), "ray_import_mib": ray_mib(), "agent_import_mib": agent_mib()}
    if args.json:
        print(json.dumps(figures))
        return
    print(f"{args.gpus} GPUs, {args.processes} processes, {figures['foreign']} of them foreign")
    print(f"one round, GPUs      {figures['gpu_wall_ms']:7.2f} ms wall, {figures['gpu_cpu_ms']:.2f} ms CPU")
    print(f"one round, RAM (PSS) {figures['ram_wall_ms']:7.2f} ms wall, {figures['ram_cpu_ms']:.2f} ms CPU")
    gpu_share, ram_share = figures["gpu_cpu_ms"] / 1000, figures["ram_cpu_ms"] / 1000
    print(f"at one round a second: {gpu_share:.2%} of a core on GPUs, {ram_share:.2%} on RAM")
    print(
        f"measuring alone, resident: {figures['process_mib']:.0f} MiB, {figures['measuring_mib']:.0f} of them its own"
    )
    print(f"node agent's process: {figures['agent_import_mib']:.0f} MiB, {figures['ray_import_mib']:.0f} of them Ray's")


if __name__ == "__main__":
    main()
