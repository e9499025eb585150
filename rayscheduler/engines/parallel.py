"""How one replica is spread over its devices: stages of layers, and in each stage equal parts of every layer.

    8 devices, pipeline 2:  stage 0 on devices 0 to 3, stage 1 on devices 4 to 7; tensor parallel 4

Rules of this file: pure.
"""

from __future__ import annotations

from rayscheduler.engines.protocol import EngineRequest
from rayscheduler.errors import EngineError


def tensor_parallel(request: EngineRequest) -> int:
    """Devices that share each layer."""
    return request.devices_total // request.pipeline


def check_parallel(request: EngineRequest) -> None:
    """EngineError: the devices cannot be dealt to the stages evenly. (Before it is placed, nobody knows them.)"""
    if request.pipeline < 1:
        raise EngineError(f"model {request.model} has a pipeline of {request.pipeline}; give 1 or more")
    total = request.devices_total
    if total % request.pipeline:
        raise EngineError(
            f"model {request.model} takes {total} devices, which cannot form {request.pipeline} equal stages; "
            f"let gpus be multiples of pipeline"
        )
