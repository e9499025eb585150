"""What a runner is told of its devices and its environment, from the catalog and what the node lends."""

from __future__ import annotations

from rayscheduler.cluster.catalog import Catalog
from rayscheduler.cluster.inventory import LentDevice, NodeInventory
from rayscheduler.cluster.reports import Launch
from rayscheduler.config.service import config_from_text
from rayscheduler.core.types import Backend, DeviceId, ModelName, NodeName, Placement, ReplicaId
from rayscheduler.engines import by_name

GIB_MIB = 1024
GIB = 1 << 30
CONFIG = """
models:
- {name: v, engine: vllm, source: org/v, memory: 80GiB, kv_cache: 8GiB, gpus: [2], kv_type: fp8,
   max_batched_tokens: 2048, context_length: 4096, concurrency: 8, runtime_env: {pip: ["vllm==0.33.0"]}}
- {name: p, engine: vllm, source: org/p, memory: 80GiB, gpus: [2], pipeline: 2, container: {image: vllm/vllm-openai}}
"""
PLACE = Placement((NodeName("n1"),), (DeviceId("n1/0"), DeviceId("n1/2")), (40 * GIB, 40 * GIB))


def launch(model: str, *devices: LentDevice) -> Launch:
    node = NodeInventory("n1", Backend.NVIDIA, devices)
    return Catalog(config_from_text(CONFIG)).launch(ReplicaId(f"{model}#1"), ModelName(model), PLACE, [node])


def gpu(index: int, lent_gib: int, whole_gib: int) -> LentDevice:
    return LentDevice(index, lent_gib * GIB_MIB, f"GPU-{index}", whole_mib=whole_gib * GIB_MIB)


def test_a_share_is_of_the_whole_device_also_where_less_is_lent() -> None:
    """Of 141 GiB, 60 GiB are lent: 40 GiB of a device are a third of it, not two thirds."""
    request = launch("v", gpu(0, 80, 80), gpu(1, 80, 80), gpu(2, 60, 141)).request
    assert request.device_capacity_bytes == (80 * GIB, 141 * GIB)
    assert request.device_bytes == (40 * GIB, 40 * GIB)
    argv = by_name("vllm").command(request, 1, "key", "10.0.0.1").argv
    utilization = float(argv[argv.index("--gpu-memory-utilization") + 1])
    assert utilization * 141 * GIB <= 40 * GIB


def test_pretended_devices_have_what_they_lend() -> None:
    devices = [LentDevice(index, 80 * GIB_MIB, f"simulated-{index}") for index in range(3)]
    assert launch("v", *devices).request.device_capacity_bytes == (80 * GIB, 80 * GIB)


def test_the_catalogs_words_reach_the_engine() -> None:
    devices = [gpu(index, 80, 80) for index in range(3)]
    request = launch("v", *devices).request
    assert (request.kv_cache_bytes, request.kv_type, request.max_batched_tokens) == (8 * GIB, "fp8", 2048)
    second = launch("p", *devices).request
    assert (second.pipeline, second.container_image) == (2, "vllm/vllm-openai")


def test_ray_makes_the_environment_of_the_runner() -> None:
    devices = [gpu(index, 80, 80) for index in range(3)]
    assert launch("v", *devices).actor_options == {"num_cpus": 0, "runtime_env": {"pip": ["vllm==0.33.0"]}}
    assert launch("p", *devices).actor_options == {"num_cpus": 0}
