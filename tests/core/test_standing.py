"""Standing wishes: `replicas.min` and `preload`."""

from __future__ import annotations

from tests.core.story import Story


def test_minimum_and_preload_come_by_priority_then_name() -> None:
    """Order: "Preload and `replicas.min` come before the events at 0, by priority, then name"."""
    Story().tell(
        """
        model b   80GiB  preload=yes
        model a   80GiB  replicas_min=2 replicas_max=2
        model c   80GiB  preload=yes priority=1
        > joined n1 4x80GiB -> start c#1 n1/0; start a#1 n1/1; start a#2 n1/2; start b#1 n1/3
        """
    )


def test_they_fill_free_memory_only() -> None:
    """DESIGN 3: "Prewarm (`preload: true`) fills free memory only"."""
    Story().tell(
        """
        node  n1  80GiB
        model a   60GiB
        > found a#1 n1/0 60GiB idle_ms=900000  ->
        > deploy b 60GiB preload=yes    ->
        > deploy c 60GiB replicas_min=1 ->
        > deploy d 20GiB preload=yes    -> start d#1 n1/0
        """
    )


def test_they_are_tried_again_whenever_memory_becomes_free() -> None:
    """"and are tried again whenever memory becomes free"."""
    Story().tell(
        """
        node  n1  80GiB
        model a   60GiB
        > found a#1 n1/0 60GiB ->
        > deploy b 60GiB preload=yes    ->
        > deploy c 60GiB replicas_min=1 ->
        > unload a             -> stop a#1 unloaded
        > stopped a#1          -> start b#1 n1/0
        > joined n2 60GiB      -> start c#1 n2/0
        """
    )


def test_requests_come_before_standing_wishes() -> None:
    Story().tell(
        """
        node  n1  80GiB
        model a   60GiB
        > found a#1 n1/0 60GiB          ->
        > deploy b 60GiB preload=yes    ->
        > unload a                      -> stop a#1 unloaded
        > deploy c 60GiB                ->
        > request c r1                  ->
        > stopped a#1                   -> start c#1 n1/0
        """
    )


def test_preload_may_be_evicted_and_returns_into_free_memory() -> None:
    """"Preload returns into free memory after an eviction, a crash or a failure"."""
    Story().tell(
        """
        node  n1  80GiB
        model b   60GiB
        > deploy a 60GiB preload=yes  -> start a#1 n1/0
        > started a#1   ->
        > request b r1  -> stop a#1 evicted for b#1
        > stopped a#1   -> start b#1 n1/0
        > started b#1   -> grant r1 b#1
        > ended r1      ->
        > unload b      -> stop b#1 unloaded
        > stopped b#1   -> start a#2 n1/0
        > started a#2   ->
        > crashed a#2   -> stop a#2 crashed
        +1000
        > wake          -> start a#3 n1/0
        > failed a#3    -> stop a#3 load_failed
        +1999
        > wake          ->
        +1
        > wake          -> start a#4 n1/0
        """
    )


def test_preload_after_unload_returns_only_when_load_asks() -> None:
    """"and after `unload` only when `load` asks"."""
    Story().tell(
        """
        node  n1  80GiB
        model b   60GiB
        > deploy a 60GiB preload=yes  -> start a#1 n1/0
        > started a#1      ->
        > unload a         -> stop a#1 unloaded
        > stopped a#1      ->
        > joined n2 80GiB  ->
        > load a           -> start a#2 n1/0
        > started a#2      ->
        > load b           -> start b#1 n2/0
        > crashed a#2      -> stop a#2 crashed
        +1000
        > wake             -> start a#3 n1/0
        """
    )


def test_a_minimum_is_never_a_victim() -> None:
    """"`min` are started at 0 and are never victims"."""
    Story(patience_ms=1000).tell(
        """
        node  n1  80GiB
        model b   60GiB
        > deploy a 60GiB replicas_min=1  -> start a#1 n1/0
        > started a#1   ->
        > request b r1  ->
        +1000
        > wake          ->
        """
    )


def test_above_the_minimum_they_are_victims() -> None:
    """"No victim set leaves fewer than `replicas.min` pending, starting or running": of two, one may go."""
    Story().tell(
        """
        node  n1  60GiB
        model a   60GiB  replicas_max=2
        model b   60GiB
        model c   60GiB
        > found a#1 n1/0 60GiB idle_ms=1000  ->
        > joined n2 60GiB & found a#2 n2/0 60GiB idle_ms=2000  ->
        > deploy a 60GiB replicas_min=1 replicas_max=2  ->
        > request b r1  -> stop a#2 evicted for b#1
        > request c r2  ->
        """
    )


def test_one_set_of_victims_may_not_take_both() -> None:
    Story().tell(
        """
        model a   60GiB  gpus=1 replicas_min=1 replicas_max=2
        model b   120GiB  gpus=2
        > joined n1 2x60GiB & found a#1 n1/0 60GiB & found a#2 n1/1 60GiB  ->
        > request b r1  ->
        """
    )


def test_a_minimum_is_no_pin_for_never_fits() -> None:
    """"they are no pins (a request that needs their room waits)"."""
    Story().tell(
        """
        node  n1  80GiB
        model b   60GiB
        > deploy a 60GiB replicas_min=1  -> start a#1 n1/0
        > request b r1  ->
        > deploy a 60GiB  ->
        > started a#1   -> stop a#1 evicted for b#1
        """
    )


def test_the_minimum_protects_after_unload_too() -> None:
    """"No victim set leaves fewer than `replicas.min`", however the replica came to run again."""
    Story().tell(
        """
        node  n1  80GiB
        model b   60GiB
        > deploy a 60GiB replicas_min=1  -> start a#1 n1/0
        > started a#1   ->
        > unload a      -> stop a#1 unloaded
        > stopped a#1   ->
        > request a r1  -> start a#2 n1/0
        > started a#2   -> grant r1 a#2
        > ended r1      ->
        > request b r2  ->
        """
    )


def test_a_lost_minimum_is_started_elsewhere() -> None:
    Story().tell(
        """
        node  n1  80GiB
        node  n2  80GiB
        > deploy a 60GiB replicas_min=1  -> start a#1 n1/0
        > lost n1       -> stop a#1 node_lost; start a#2 n2/0
        """
    )


def test_a_minimum_backs_off_when_it_fails() -> None:
    Story().tell(
        """
        node  n1  80GiB
        > deploy a 60GiB replicas_min=1  -> start a#1 n1/0
        > failed a#1    -> stop a#1 load_failed
        +999
        > wake          ->
        +1
        > wake          -> start a#2 n1/0
        """
    )


def test_a_second_replica_on_its_way_frees_the_first_for_others() -> None:
    """"fewer than `replicas.min` pending, starting or running": the one that starts counts."""
    Story(patience_ms=1000).tell(
        """
        model a   60GiB  gpus=1 replicas_min=1 replicas_max=2
        model b   60GiB  gpus=1
        > joined n1 60GiB & found a#1 n1/0 60GiB leases=q1  ->
        > request b r1  ->
        +1000
        > wake          ->
        > observed n1/0 0GiB  ->
        > joined n2 60GiB & request a r2 priority=1 -> start a#2 n2/0
        > ended q1      -> stop a#1 evicted for b#1
        """
    )
