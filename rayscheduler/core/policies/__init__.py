"""Queue policies: who is next, and who must be gone before a model loads. One module each.

A policy answers two questions and holds no state:

- `strict`: is only the oldest request of all ever served or loaded for, one at a time?
- `rivals(loading, other)`: must the replicas of `other` be gone before `loading` loads, whatever would fit?

Priorities, joining, patience and memory are the scheduler's and the same for all.
"""

from __future__ import annotations

from typing import Protocol

from rayscheduler.core.policies.fifo import Fifo
from rayscheduler.core.policies.groups import Groups
from rayscheduler.core.policies.serial import Serial
from rayscheduler.core.types import ModelName, PolicyName, Settings


class Policy(Protocol):
    @property
    def strict(self) -> bool: ...

    @property
    def has_rivals(self) -> bool: ...

    def rivals(self, loading: ModelName, other: ModelName) -> bool: ...


def policy_of(settings: Settings) -> Policy:
    """The policy that the settings name."""
    if settings.policy is PolicyName.SERIAL:
        return Serial()
    if settings.policy is PolicyName.GROUPS:
        return Groups(settings.groups)
    return Fifo()
