"""`groups`: the operator says by hand what may live together; memory still decides whether it can.

Loading a model sends away the other members of its group if the group swaps, and, if the group is
exclusive, the members of every other group that is not persistent. Models in no group form one that
does neither and is not persistent.
"""

from __future__ import annotations

from collections.abc import Sequence

from rayscheduler.core.types import Group, ModelName

UNGROUPED = Group("", frozenset(), swap=False, exclusive=False, persistent=False)


class Groups:
    strict = False
    has_rivals = True

    def __init__(self, groups: Sequence[Group]) -> None:
        self._group_of = {member: group for group in groups for member in group.members}

    def rivals(self, loading: ModelName, other: ModelName) -> bool:
        if loading == other:
            return False
        mine = self._group_of.get(loading, UNGROUPED)
        theirs = self._group_of.get(other, UNGROUPED)
        if mine.name == theirs.name:
            return mine.swap
        return mine.exclusive and not theirs.persistent
