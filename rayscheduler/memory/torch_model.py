"""What the engines on PyTorch have in common: a checkpoint's geometry, weights and types, split over devices.

Rules of this file: everything that depends on the checkpoint and the question, nothing that depends on the engine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from rayscheduler.errors import SourceError
from rayscheduler.memory.geometry import Geometry
from rayscheduler.memory.hf_config import DTYPE_BYTES, BadConfig, config_geometry, quantization
from rayscheduler.memory.kv_types import AUTO, kv_type_bytes
from rayscheduler.memory.safetensors import Checkpoint, SafetensorsError, read_checkpoint
from rayscheduler.memory.values import Ask
from rayscheduler.memory.weights import Weights, read_weights, stage_bytes, stage_layers

FLOAT32_BYTES = 4
CONTEXT_UNKNOWN = 4096  # tokens, where neither the question nor the config says


@dataclass(frozen=True, slots=True)
class TorchModel:
    """A checkpoint and the question, resolved. `tensor` devices share each of the stages."""

    geometry: Geometry
    weights: Weights
    tensor: int
    stages: tuple[range, ...]
    context_tokens: int
    compute_bytes: float  # of an element of activations
    kv_bytes: Fraction  # of an element of the cache
    state_bytes: Fraction  # of an element of a recurrent state
    notes: tuple[str, ...]

    def stage_weights(self, stage: range) -> int:
        return stage_bytes(self.weights, self.geometry, stage, self.tensor)


def torch_model(source: Path, ask: Ask, *, downcasts: bool) -> TorchModel:
    """The model at `source`. `downcasts`: the engine runs checkpoints of float32 in bfloat16 unless told otherwise."""
    try:
        checkpoint = read_checkpoint(source)
        geometry = config_geometry(checkpoint.config)
    except SafetensorsError as error:
        raise SourceError(f"{source} cannot be used: {error}; give a whole checkpoint") from error
    except BadConfig as error:
        raise SourceError(f"the config.json of {source} cannot be used: {error}; give a model's directory") from error
    except OSError as error:
        raise SourceError(
            f"{source} cannot be read: {error.filename or ''} {error.strerror}; "
            "give a directory with config.json and, best, the index or headers of its weights"
        ) from error
    if geometry.layer_count < ask.pipeline:
        raise SourceError(f"{source} has {geometry.layer_count} layers, too few for {ask.pipeline} stages")
    weights, geometry, notes = _weights(checkpoint, geometry, ask, downcasts)
    wanted = ask.context_length or geometry.context_length or CONTEXT_UNKNOWN
    ssm_type = checkpoint.config.get("mamba_ssm_dtype")
    return TorchModel(
        geometry=geometry,
        weights=weights,
        tensor=max(1, ask.gpus // ask.pipeline),
        stages=tuple(stage_layers(geometry.layer_count, ask.pipeline)),
        context_tokens=wanted,
        compute_bytes=geometry.dtype_bytes,
        kv_bytes=kv_type_bytes(ask.kv_type, _kv_auto(checkpoint, geometry)),
        state_bytes=Fraction(DTYPE_BYTES.get(str(ssm_type), geometry.dtype_bytes)),
        notes=tuple(notes),
    )


def _weights(
    checkpoint: Checkpoint, geometry: Geometry, ask: Ask, downcasts: bool
) -> tuple[Weights, Geometry, list[str]]:
    """The weights as they lie on the devices, in the type that they are run in."""
    quantised = quantization(checkpoint.config)
    weights, notes = read_weights(checkpoint, geometry, quantised), []
    if not checkpoint.tensors:
        notes.append(
            "weights from the index's total, spread by the geometry"
            if checkpoint.total_bytes
            else "weights computed from config.json alone: no index and no files"
        )
    stored = geometry.dtype_bytes
    run = _run_bytes(stored, ask, downcasts)
    if run != stored:
        geometry = replace(geometry, dtype_bytes=run)
        if not quantised:
            weights = weights.times(run / stored)
            notes.append(f"stored with {stored:g} bytes per parameter, run with {run:g}")
    return weights, geometry, notes


def _run_bytes(stored: float, ask: Ask, downcasts: bool) -> float:
    """vllm/config/model.py, _resolve_auto_dtype: float32 is run as bfloat16 unless told otherwise."""
    if ask.dtype.lower() != AUTO:
        if ask.dtype.lower() not in DTYPE_BYTES:
            raise SourceError(f"there is no type {ask.dtype!r}; give one of auto, bfloat16, float16, float32")
        return DTYPE_BYTES[ask.dtype.lower()]
    asked_kv = kv_type_bytes(ask.kv_type, 0)
    if stored == FLOAT32_BYTES and downcasts and asked_kv != FLOAT32_BYTES:  # float32 caches go with float32 models
        return 2.0
    return stored if stored >= 2 else 2.0


def _kv_auto(checkpoint: Checkpoint, geometry: Geometry) -> float:
    """The model's type, unless the checkpoint brings scales for a cache of 8 bits."""
    quantised: Mapping[str, Any] = quantization(checkpoint.config)
    scheme = quantised.get("kv_cache_scheme")
    if isinstance(scheme, Mapping) and scheme.get("num_bits") == 8:
        return 1.0
    return 1.0 if str(quantised.get("kv_cache_quant_algo", "")).upper() == "FP8" else geometry.dtype_bytes
