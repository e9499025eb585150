"""What must outlive the allocator's process: in the key-value store of Ray's head.

Rules of this file: every call blocks for about a millisecond; call it from a thread. Nothing else is kept:
what runs is asked of those who run it.
"""

from __future__ import annotations

import json
from typing import Any

from ray.experimental import internal_kv

from rayscheduler.cluster.names import KV_NAMESPACE

_CONFIG, _PINS, _SERIAL = b"config", b"pins", b"serial:"
_SIZE, _LEARNED, _KEY = b"size:", b"learned:", b"key:"


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
        return {model: int(serial or "0") for model, serial in _all(_SERIAL).items()}

    def write_size(self, model: str, told: str) -> None:
        """What a model's files say that it takes: a model that runs must not be unknown after a restart."""
        _put(_SIZE + model.encode(), told)

    def sizes(self) -> dict[str, str]:
        return _all(_SIZE)

    def write_learned(self, key: str, told: str) -> None:
        """What a run has taken, under its `memory_key`."""
        _put(_LEARNED + key.encode(), told)

    def learned(self) -> dict[str, str]:
        return _all(_LEARNED)

    def write_key(self, name: str, told: dict[str, Any]) -> None:
        """An API key: its digest and what it may do."""
        _put(_KEY + name.encode(), json.dumps(told, sort_keys=True))

    def delete_key(self, name: str) -> None:
        internal_kv._internal_kv_del(_KEY + name.encode(), namespace=KV_NAMESPACE)

    def keys(self) -> list[dict[str, Any]]:
        return [json.loads(told) for _, told in sorted(_all(_KEY).items())]

    def clear(self) -> None:
        """The service is taken down: forget it. What was learned of models is true of the next one, too, and
        whom it answers is not changed by taking it down."""
        for key in internal_kv._internal_kv_list(b"", namespace=KV_NAMESPACE):
            if not key.startswith((_LEARNED, _KEY)):
                internal_kv._internal_kv_del(key, namespace=KV_NAMESPACE)


def _put(key: bytes, value: str) -> None:
    internal_kv._internal_kv_put(key, value.encode(), overwrite=True, namespace=KV_NAMESPACE)


def _get(key: bytes) -> str | None:
    value = internal_kv._internal_kv_get(key, namespace=KV_NAMESPACE)
    return None if value is None else value.decode()


def _all(prefix: bytes) -> dict[str, str]:
    keys = internal_kv._internal_kv_list(prefix, namespace=KV_NAMESPACE)
    return {key[len(prefix) :].decode(): _get(key) or "" for key in keys}
