"""`ModelDeployed`: entries that are new, and entries that change while replicas run."""

from __future__ import annotations

from tests.core.story import Story


def test_more_concurrency_serves_who_waits() -> None:
    """Order: "Running replicas are granted first"."""
    Story().tell(
        """
        node  n1  80GiB
        model a   60GiB
        > request a r1  -> start a#1 n1/0
        > started a#1   -> grant r1 a#1
        > request a r2  ->
        > deploy a 60GiB concurrency=2  -> grant r2 a#1
        """
    )


def test_less_concurrency_lets_the_granted_ones_finish() -> None:
    Story().tell(
        """
        node  n1  80GiB
        model a   60GiB  concurrency=2
        > request a r1  -> start a#1 n1/0
        > request a r2  ->
        > started a#1   -> grant r1 a#1; grant r2 a#1
        > deploy a 60GiB concurrency=1  ->
        > request a r3  ->
        > ended r1      ->
        > ended r2      -> grant r3 a#1
        """
    )


def test_more_replicas_scale_out_for_who_waits() -> None:
    Story().tell(
        """
        node  n1  2x80GiB
        model a   60GiB  gpus=1
        > request a r1  -> start a#1 n1/0
        > request a r2  ->
        > deploy a 60GiB gpus=1 replicas_max=2  -> start a#2 n1/1
        """
    )


def test_a_new_figure_counts_from_the_next_load() -> None:
    """The reservation of what runs is the vector that it was started with."""
    Story().tell(
        """
        node  n1  80GiB
        model a   60GiB
        model b   60GiB
        model c   20GiB
        > load a              -> start a#1 n1/0
        > started a#1         ->
        > deploy a 10GiB      ->
        > load c              -> start c#1 n1/0
        > started c#1         ->
        > request a r0        -> grant r0 a#1
        > request b r1        ->
        """
    )


def test_a_new_figure_may_let_a_waiting_request_in() -> None:
    Story().tell(
        """
        node  n1  80GiB
        model a   60GiB
        model b   60GiB
        > found a#1 n1/0 60GiB leases=q1  ->
        > request b r1     ->
        > deploy b 20GiB   -> start b#1 n1/0
        """
    )


def test_never_fits_is_judged_anew_after_a_change() -> None:
    Story().tell(
        """
        node  n1  80GiB
        model a   600GiB
        > request a r1    -> reject r1 never_fits
        > deploy a 60GiB  ->
        > request a r2    -> start a#1 n1/0
        """
    )


def test_a_new_minimum_is_started() -> None:
    Story().tell(
        """
        node  n1  80GiB
        model a   60GiB
        > deploy a 60GiB replicas_min=1  -> start a#1 n1/0
        """
    )
