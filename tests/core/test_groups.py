"""Policy `groups`: what may live together, said by hand; memory still decides whether it can."""

from __future__ import annotations

from rayscheduler.core.types import Group, PolicyName
from tests.core.story import Story


def groups(*made: Group, **settings: object) -> Story:
    return Story(policy=PolicyName.GROUPS, groups=made, **settings)


def group(name: str, members: str, **options: bool) -> Group:
    return Group(name, frozenset(members.split()), **{"swap": False, "exclusive": False, **options})


def test_swap_evicts_the_other_members_of_its_group() -> None:
    """"loading a model evicts the other members of its group if `swap`", whatever would fit."""
    groups(group("chat", "a b", swap=True)).tell(
        """
        node  n1  80GiB
        model a   10GiB
        model b   10GiB
        model c   10GiB
        > load a        -> start a#1 n1/0
        > started a#1   ->
        > load c        -> start c#1 n1/0
        > started c#1   ->
        > request b r1  -> stop a#1 evicted for b#1
        > stopped a#1   -> start b#1 n1/0
        """
    )


def test_without_swap_members_live_together() -> None:
    groups(group("chat", "a b")).tell(
        """
        node  n1  80GiB
        model a   10GiB
        model b   10GiB
        > load a        -> start a#1 n1/0
        > started a#1   ->
        > request b r1  -> start b#1 n1/0
        """
    )


def test_exclusive_evicts_the_members_of_other_groups() -> None:
    """"and the members of other groups if its own group is `exclusive` and the other is not `persistent`"."""
    groups(
        group("big", "x", exclusive=True), group("chat", "a b"), group("keep", "k", persistent=True)
    ).tell(
        """
        node  n1  80GiB
        model x   10GiB
        model a   10GiB
        model k   10GiB
        model u   10GiB
        > found a#1 n1/0 10GiB  ->
        > found k#1 n1/0 10GiB  ->
        > found u#1 n1/0 10GiB  ->
        > request x r1  -> stop a#1 evicted for x#1; stop u#1 evicted for x#1
        > stopped a#1   ->
        > stopped u#1   -> start x#1 n1/0
        """
    )


def test_exclusive_is_about_loading_not_about_being_there() -> None:
    """A model of another group loads beside an exclusive one that is there already."""
    groups(group("big", "x", exclusive=True), group("chat", "a")).tell(
        """
        node  n1  80GiB
        model x   10GiB
        model a   10GiB
        > found x#1 n1/0 10GiB  ->
        > request a r1  -> start a#1 n1/0
        """
    )


def test_models_in_no_group_form_one_that_does_neither() -> None:
    """"models in no group form one with `swap: false, exclusive: false`"."""
    groups(group("chat", "a", swap=True)).tell(
        """
        node  n1  80GiB
        model a   10GiB
        model u   10GiB
        model v   10GiB
        > load a  -> start a#1 n1/0
        > load u  -> start u#1 n1/0
        > load v  -> start v#1 n1/0
        """
    )


def test_persistent_is_no_protection_where_memory_is_short() -> None:
    """"`persistent` is no protection where memory is short"."""
    groups(group("keep", "k", persistent=True)).tell(
        """
        node  n1  80GiB
        model k   60GiB
        model a   60GiB
        > found k#1 n1/0 60GiB  ->
        > request a r1  -> stop k#1 evicted for a#1
        """
    )


def test_a_swap_obeys_stale_after() -> None:
    """"In `groups` a swap obeys `stale_after`"."""
    groups(group("chat", "a b", swap=True), stale_after_ms=10_000).tell(
        """
        node  n1  80GiB
        model a   10GiB
        model b   10GiB
        > found a#1 n1/0 10GiB  ->
        > request b r1  ->
        +10000
        > wake          -> stop a#1 evicted for b#1
        """
    )


def test_a_swap_waits_for_a_busy_sibling() -> None:
    groups(group("chat", "a b", swap=True)).tell(
        """
        node  n1  80GiB
        model a   10GiB
        model b   10GiB
        > found a#1 n1/0 10GiB leases=q1  ->
        > request b r1  ->
        > ended q1      -> stop a#1 evicted for b#1
        """
    )


def test_a_swap_drains_past_patience() -> None:
    groups(group("chat", "a b", swap=True), patience_ms=1000).tell(
        """
        node  n1  80GiB
        model a   10GiB
        model b   10GiB
        > found a#1 n1/0 10GiB leases=q1  ->
        > request b r1  ->
        +1000
        > wake          ->
        > request a r2  ->
        > ended q1      -> stop a#1 evicted for b#1
        """
    )


def test_a_swap_waits_for_a_starting_sibling() -> None:
    groups(group("chat", "a b", swap=True)).tell(
        """
        node  n1  80GiB
        model a   10GiB
        model b   10GiB
        > request a r1  -> start a#1 n1/0
        > request b r2  ->
        > started a#1   -> grant r1 a#1
        > ended r1      -> stop a#1 evicted for b#1
        """
    )


def test_a_swap_waits_for_siblings_that_are_leaving_already() -> None:
    """"waits for siblings that are leaving already (they are not in `evicts`)"."""
    story = groups(group("chat", "a b c", swap=True)).tell(
        """
        node  n1  80GiB
        model a   10GiB
        model b   10GiB
        model c   10GiB
        > found a#1 n1/0 10GiB  ->
        > found c#1 n1/0 10GiB  ->
        > unload a      -> stop a#1 unloaded
        > request b r1  -> stop c#1 evicted for b#1
        > stopped c#1   ->
        > stopped a#1   -> start b#1 n1/0
        """
    )
    assert story.decided[0].evicts == ("c#1",)  # type: ignore[union-attr]


def test_a_swap_leaves_pinned_members_in_place() -> None:
    """"leaves pinned members in place"."""
    groups(group("chat", "a b", swap=True)).tell(
        """
        node  n1  80GiB
        model a   10GiB  pinned=yes
        model b   10GiB
        > found a#1 n1/0 10GiB  ->
        > request b r1  -> start b#1 n1/0
        """
    )


def test_a_swap_may_need_more_room_than_the_swap_gives() -> None:
    groups(group("chat", "a b", swap=True)).tell(
        """
        node  n1  80GiB
        model a   10GiB
        model b   60GiB
        model c   30GiB
        > found a#1 n1/0 10GiB  ->
        > found c#1 n1/0 30GiB  ->
        > request b r1  -> stop a#1 evicted for b#1; stop c#1 evicted for b#1
        """
    )


def test_a_swap_keeps_the_minimum_of_a_sibling() -> None:
    """"No victim set leaves fewer than `replicas.min`": one of two leaves, the idle one."""
    groups(group("chat", "a b", swap=True)).tell(
        """
        model a   10GiB  replicas_min=1 replicas_max=2
        model b   10GiB
        > joined n1 80GiB & found a#1 n1/0 10GiB leases=q1 idle_ms=9000 & found a#2 n1/0 10GiB  ->
        > request b r1  -> stop a#2 evicted for b#1
        > stopped a#2   -> start b#1 n1/0
        """
    )


def test_preload_swaps_nobody_out() -> None:
    """Standing wishes fill free memory only."""
    groups(group("chat", "a b", swap=True)).tell(
        """
        node  n1  80GiB
        model a   10GiB
        > found a#1 n1/0 10GiB  ->
        > deploy b 10GiB preload=yes  ->
        > unload a      -> stop a#1 unloaded
        > stopped a#1   -> start b#1 n1/0
        """
    )


def test_other_policies_ignore_groups() -> None:
    """"`groups` under another policy is ignored"."""
    Story(groups=(group("chat", "a b", swap=True),)).tell(
        """
        node  n1  80GiB
        model a   10GiB
        model b   10GiB
        > found a#1 n1/0 10GiB  ->
        > request b r1  -> start b#1 n1/0
        """
    )
