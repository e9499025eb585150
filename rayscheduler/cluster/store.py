"""What must outlive the allocator's process: in the key-value store of Ray's head.

Rules of this file: every call blocks for about a millisecond; call it from a thread. Nothing else is kept:
what runs is asked of those who run it.
"""

from __future__ import annotations

import json

from ray.experimental import internal_kv

from rayscheduler.cluster.names import KV_NAMESPACE

_CONFIG, _PINS, _SERIAL = b"config", b"pins", b"serial:"


class Store:
    def write_config(self, config_json: str) -> None:
        """The whole service file. What its operator pinned by hand is forgotten with the one before it."""
        _put(_CONFIG, config_json)

    def config(self) -> str | None:
        return _get(_CONFIG)

    def write_pins(self, pins: dict[str, bool]) -> None:
        """The models that an operator has pinned (True) or let go (False)."""
        _put(_PINS, json.dumps(pins, sort_keys=True))

    def pins(self) -> dict[str, bool]:
        kept = _get(_PINS)
        return dict(json.loads(kept)) if kept else {}

    def write_serial(self, model: str, serial: int) -> None:
        """The last serial of a model's replicas that may have been seen by anybody."""
        _put(_SERIAL + model.encode(), str(serial))

    def serials(self) -> dict[str, int]:
        keys = internal_kv._internal_kv_list(_SERIAL, namespace=KV_NAMESPACE)
        return {key[len(_SERIAL) :].decode(): int(_get(key) or "0") for key in keys}

    def clear(self) -> None:
        """Forget everything: the service is taken down."""
        for key in internal_kv._internal_kv_list(b"", namespace=KV_NAMESPACE):
            internal_kv._internal_kv_del(key, namespace=KV_NAMESPACE)


def _put(key: bytes, value: str) -> None:
    internal_kv._internal_kv_put(key, value.encode(), overwrite=True, namespace=KV_NAMESPACE)


def _get(key: bytes) -> str | None:
    value = internal_kv._internal_kv_get(key, namespace=KV_NAMESPACE)
    return None if value is None else value.decode()
