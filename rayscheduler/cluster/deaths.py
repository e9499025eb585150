"""Sees processes die that are not its children, within a millisecond.

Rules of this file: asyncio; Linux (pidfd). Each key is told of once.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Hashable, Set
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)


class Deaths(Generic[Key]):
    """`saw` is called on the loop with the key of a process that has ended, which is then forgotten."""

    def __init__(self, saw: Callable[[Key], object]) -> None:
        self._saw = saw
        self._pidfds: dict[Key, int] = {}

    @property
    def watched(self) -> Set[Key]:
        return self._pidfds.keys()

    def watch(self, key: Key, pid: int) -> None:
        """From now on; told soon if it has ended already."""
        loop = asyncio.get_running_loop()
        try:
            self._pidfds[key] = os.pidfd_open(pid)
        except ProcessLookupError:
            loop.call_soon(self._saw, key)
        else:
            loop.add_reader(self._pidfds[key], self._ended, key)

    def forget(self, key: Key) -> None:
        pidfd = self._pidfds.pop(key, None)
        if pidfd is not None:
            asyncio.get_running_loop().remove_reader(pidfd)
            os.close(pidfd)

    def _ended(self, key: Key) -> None:
        self.forget(key)
        self._saw(key)
