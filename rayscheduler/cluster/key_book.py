"""The allocator's book of API keys: kept in the store, told to the gateways, changed by operators.

Rules of this file: what gateways are told has a version, and is sent whole when it has changed (a second at
most after it did: they ask once a second). Models are told by all their names. `KeyCalls` is the part of the
allocator's calls that is about keys; answers are JSON-able.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from rayscheduler.cluster.catalog import Catalog
from rayscheduler.cluster.keys import Key, key_of, version_of
from rayscheduler.cluster.store import Store
from rayscheduler.errors import RequestRejected

KEYS_MAX = 10_000


class KeyBook:
    def __init__(self, store: Store) -> None:
        self._store = store
        self._keys: dict[str, Key] = {}
        self._changing = asyncio.Lock()  # the store's order is ours

    async def begin(self) -> None:
        """Read what an allocator before this one has kept."""
        kept = await asyncio.to_thread(self._store.keys)
        self._keys = {key.name: key for key in map(key_of, kept)}

    async def create(self, settings: dict[str, Any], replace: bool) -> dict[str, Any]:
        async with self._changing:
            try:
                key = key_of({**settings, "created_s": int(time.time())})
            except RequestRejected as wrong:
                return _refused(wrong.code, wrong.status, wrong.message)
            before = self._keys.get(key.name)
            if before is not None and before.digest != key.digest and not replace:  # asked twice, it is one key
                message = f"there is a key {key.name} already; revoke it first, or use another name"
                return _refused("key_exists", 409, message)
            if any(other.digest == key.digest and other.name != key.name for other in self._keys.values()):
                return _refused("key_exists", 409, "this key is there already, under another name")
            if before is None and len(self._keys) >= KEYS_MAX:
                return _refused("too_many_keys", 409, f"there are {KEYS_MAX} keys; revoke some first")
            await asyncio.to_thread(self._store.write_key, key.name, key.told())
            self._keys[key.name] = key
            return {"ok": True, "message": f"key {key.name} is there", "key": _shown(key)}

    async def revoke(self, name: str) -> dict[str, Any]:
        async with self._changing:
            if name not in self._keys:
                known = ", ".join(sorted(self._keys)[:20]) or "none"
                return _refused("key_not_found", 404, f"there is no key {name!r}; the keys are: {known}")
            await asyncio.to_thread(self._store.delete_key, name)
            del self._keys[name]
            return {"ok": True, "message": f"key {name} is revoked; gateways refuse it within 2 s"}

    def listed(self) -> list[dict[str, Any]]:
        """All but their digests, by name."""
        return [_shown(key) for _, key in sorted(self._keys.items())]

    def told(self, version: str, catalog: Catalog | None) -> dict[str, Any]:
        """`{"version", "keys", "tiers"}`; the version alone if it is the one that is known."""
        keys = [{**key.told(), "models": _all_names(key, catalog)} for _, key in sorted(self._keys.items())]
        tiers = dict(catalog.config.settings().tiers) if catalog is not None else {}
        told = {"keys": keys, "tiers": tiers}
        now = version_of(told)
        return {"version": now} if now == version else {"version": now, **told}


class KeyCalls:
    """What the allocator answers about keys."""

    _keys: KeyBook
    _catalog: Catalog | None

    async def keys(self, version: str = "") -> dict[str, Any]:
        """For gateways. See allocator_port.py."""
        return self._keys.told(version, self._catalog)

    async def create_key(self, settings: dict[str, Any], replace: bool = False) -> dict[str, Any]:
        return await self._keys.create(settings, replace)

    async def revoke_key(self, name: str) -> dict[str, Any]:
        return await self._keys.revoke(name)

    async def listed_keys(self) -> list[dict[str, Any]]:
        return self._keys.listed()


def _all_names(key: Key, catalog: Catalog | None) -> list[str]:
    """A request names a model by any of its names; an adapter is not its base. A name that is in no catalog (yet) is
    left as it is."""
    names = set(key.models)
    if catalog is not None:
        for name in key.models:
            entry = catalog.adapter(name) or catalog.entry(catalog.resolve(name))
            if entry is not None:
                names.update((entry.name, *entry.aliases))
    return sorted(names)


def _shown(key: Key) -> dict[str, Any]:
    return {setting: value for setting, value in key.told().items() if setting != "digest"}


def _refused(code: str, status: int, message: str) -> dict[str, Any]:
    return {"error": {"code": code, "status": status, "message": message, "retry_after_s": None}}
