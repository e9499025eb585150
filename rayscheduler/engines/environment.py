"""The environment of an engine: what it needs of the runner's, and nothing that is not its business.

Rules of this file: a list of what is passed on, not of what is withheld, so that a secret that nobody
thought of stays here. What a model needs beyond that, its catalog entry says in `env`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from rayscheduler.engines.protocol import DEVICE_ENVS, EngineRequest
from rayscheduler.engines.python_package import python_environment

_PASSED_ON = frozenset(
    {
        *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "TMPDIR"),
        *("LD_LIBRARY_PATH", "LD_PRELOAD", "PYTHONPATH", "VIRTUAL_ENV", "CONDA_PREFIX", "CC", "CXX"),
        *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"),
    }
)
_PASSED_ON_LOWER = frozenset({"http_proxy", "https_proxy", "no_proxy", "all_proxy"})
_PASSED_ON_PREFIXES = (
    *("LC_", "XDG_", "CUDA_", "NVIDIA_", "NCCL_", "HIP_", "HSA_", "ROCM_", "MIOPEN_", "VK_"),
    *("DOCKER_", "CONTAINER_", "CONTAINERS_"),
    *("GGML_", "LLAMA_", "HF_", "TRANSFORMERS_", "TORCH_", "PYTORCH_", "TRITON_", "VLLM_", "SGLANG_"),
    "OLLAMA_",
)
_SECRET = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|API_KEY|ACCESS_KEY|PRIVATE_KEY")


def engine_environment(inherited: Mapping[str, str], request: EngineRequest, own: Mapping[str, str]) -> dict[str, str]:
    """The whole environment: inherited in part, its own Python's, the request's `env`, then `own`, the devices."""
    environment = {key: value for key, value in inherited.items() if _passes(key)}
    environment.update(python_environment(request, environment))
    environment["PYTHONUNBUFFERED"] = "1"  # the last line before a crash belongs in the log
    environment.update(request.env)
    python_path = environment.get("PYTHONPATH", "")
    environment.update(own)
    if "PYTHONPATH" in own and python_path and python_path != own["PYTHONPATH"]:
        environment["PYTHONPATH"] = own["PYTHONPATH"] + os.pathsep + python_path  # an engine's folder comes first
    environment.update(_devices(request))
    return environment


def _passes(key: str) -> bool:
    if key in DEVICE_ENVS or _SECRET.search(key.upper()):
        return False
    return key in _PASSED_ON or key.lower() in _PASSED_ON_LOWER or key.startswith(_PASSED_ON_PREFIXES)


def _devices(request: EngineRequest) -> dict[str, str]:
    """An engine sees the devices that were reserved for it. Empty means: none, not all."""
    visible = ",".join(request.visible_devices)
    if request.backend == "rocm":
        return {"ROCR_VISIBLE_DEVICES": visible}
    return {"CUDA_VISIBLE_DEVICES": visible}
