"""What a model needs on the devices of one node, looked up in its files before the engine starts.

Rules of this file: it asks `rayscheduler.memory` with what the request says, and takes this node's part of
the answer. A model that is not on this machine has no answer.
"""

from __future__ import annotations

import os
from dataclasses import replace

from rayscheduler.engines.kv_cache import Needs
from rayscheduler.engines.lora import highest_rank
from rayscheduler.engines.protocol import EngineRequest
from rayscheduler.engines.sources import model_folder
from rayscheduler.errors import SourceError
from rayscheduler.memory.estimate import Ask, estimate


def ask_of(request: EngineRequest, engine: str) -> Ask:
    """The request in the terms of `rayscheduler.memory`, but for its devices."""
    return Ask(
        engine=engine,
        context_length=request.context_length,
        concurrency=request.concurrency,
        pipeline=request.pipeline,
        kv_type=request.kv_type or "auto",
        max_batched_tokens=request.max_batched_tokens,
        embedding=request.embedding,
        max_loras=request.max_loras,
        max_lora_rank=highest_rank(request),
    )


def model_needs(request: EngineRequest, engine: str) -> Needs | None:
    """None: the source is a hub id that is not on this machine. SourceError: it is no model that can be estimated."""
    folder = model_folder(request, {**os.environ, **request.env})
    if folder is None:
        return None
    try:
        found = estimate(folder, replace(ask_of(request, engine), gpus=request.devices_total))
    except SourceError as problem:
        raise SourceError(f"model {request.model}: {problem.message}") from problem
    # Ranks are dealt to the nodes in order, as many to each.
    here = len(request.device_bytes)
    first = request.node_rank * here
    return Needs(found.parts[first : first + here], found.kv_bytes_per_token)
