"""The names of KV cache types, of every engine, and what an element of each takes.

Rules of this file: one table. A name is looked up without case; an unknown one is an error that lists the known.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

from rayscheduler.errors import SourceError

AUTO = "auto"
_BLOCKS = {"q8_0": (34, 32), "q5_1": (24, 32), "q5_0": (22, 32), "q4_1": (20, 32), "q4_0": (18, 32), "iq4_nl": (18, 32)}
KV_TYPE_BYTES: Mapping[str, Fraction] = {
    **{name: Fraction(4) for name in ("f32", "fp32", "float32", "float")},
    **{name: Fraction(2) for name in ("f16", "fp16", "float16", "half", "bf16", "bfloat16")},
    **{name: Fraction(1) for name in ("fp8", "fp8_e4m3", "fp8_e5m2", "fp8_inc", "int8", "fp8_ds_mla")},
    **{name: Fraction(*block) for name, block in _BLOCKS.items()},
    **{name: Fraction(9, 16) for name in ("fp4", "nvfp4", "fp4_e2m1")},
}


def kv_type_bytes(name: str, auto: float) -> Fraction:
    """Bytes of one element; of `auto` where nothing is said. SourceError: no such type."""
    plain = name.strip().lower() or AUTO
    if plain == AUTO:
        return Fraction(auto)
    if plain not in KV_TYPE_BYTES:
        raise SourceError(f"there is no KV cache type {name!r}; give one of auto, {', '.join(KV_TYPE_BYTES)}")
    return KV_TYPE_BYTES[plain]
