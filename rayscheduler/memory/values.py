"""What is asked of an estimate and what it answers; the interface of this package.

Rules of this file: values only. An estimate is what one replica takes on each of its devices, in whole bytes;
the parts of a device sum to what the device is charged, so a table of them is never off by a rounding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

GIB = 1 << 30
MIB = 1 << 20

WEIGHTS = "weights"
KV_CACHE = "kv_cache"


@dataclass(frozen=True, slots=True)
class Ask:
    """How a model would be run. What is None or empty is what the engine does when nothing is said.

    `gpus` is all devices of one replica, `pipeline` of which are stages: each stage's layers are split over
    gpus / pipeline devices. `gpus` 0: the host's memory only, as in a catalog's `gpus: [0]`.
    """

    engine: str = ""  # "": by the source, llama-cpp for GGUF and vllm for the rest
    context_length: int | None = None  # tokens of one request
    concurrency: int = 1  # requests at a time
    gpus: int = 1
    pipeline: int = 1
    kv_type: str = "auto"  # f16, bf16, f32, fp8, q8_0, q4_0, ...; llama.cpp also "q8_0,q4_0" for keys, values
    max_batched_tokens: int | None = None  # of one step: vLLM's --max-num-batched-tokens, llama.cpp's --ubatch-size
    dtype: str = "auto"  # of weights and activations that are not quantised
    flash_attention: bool = True
    kv_unified: bool = False  # llama.cpp: one cache for all slots
    embedding: bool = False
    projector: str = ""  # llama.cpp: path of the multimodal projector
    max_loras: int = 0  # LoRA adapters that the engine has room for
    max_lora_rank: int = 16  # of each
    draft: str = ""  # path of the draft model for speculative decoding


@dataclass(frozen=True, slots=True)
class Estimate:
    """What one replica takes. `parts[i]` are the parts of device i and sum to `device_bytes[i]`.

    With `gpus` 0 the one device is the host. `kv_bytes_per_token` is what one token takes on the device where it
    takes most, in all layers, while it is inside every attention window; `kv_tokens` the tokens there is room for.
    """

    engine: str
    device_bytes: tuple[int, ...]
    parts: tuple[Mapping[str, int], ...]
    kv_bytes_per_token: int
    kv_tokens: int
    notes: tuple[str, ...] = ()
    host_bytes: int = 0  # beside the devices, in the host's memory, where the formula knows it

    @property
    def per_device_bytes(self) -> int:
        """What the fullest device takes: what each must have, when all are promised the same."""
        return max(self.device_bytes)

    @property
    def fullest(self) -> Mapping[str, int]:
        """The parts of the fullest device."""
        return self.parts[self.device_bytes.index(self.per_device_bytes)]

    @property
    def fixed_bytes(self) -> tuple[int, ...]:
        """Per device, everything but the KV cache: what an engine must subtract from its share of the ledger."""
        return tuple(total - parts.get(KV_CACHE, 0) for total, parts in zip(self.device_bytes, self.parts, strict=True))


def built(
    engine: str,
    parts: list[dict[str, int]],
    kv_bytes_per_token: int,
    kv_tokens: int,
    notes: list[str],
    host_bytes: int = 0,
) -> Estimate:
    """The estimate of these parts, its totals summed from them."""
    return Estimate(
        engine=engine,
        device_bytes=tuple(sum(device.values()) for device in parts),
        parts=tuple(parts),
        kv_bytes_per_token=kv_bytes_per_token,
        kv_tokens=kv_tokens,
        notes=tuple(notes),
        host_bytes=host_bytes,
    )


def rounded_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
