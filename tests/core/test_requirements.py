"""`requires`: what a node must be, and what it refuses."""

from __future__ import annotations

import pytest

from tests.core.story import Story


@pytest.mark.parametrize(
    ("needs", "wrong", "right"),
    [
        ("backend=nvidia", "backend=rocm", "backend=nvidia"),
        ("backend=cpu", "backend=nvidia", "backend=cpu"),
        ("types=H100,A100", "type=L4", "type=A100"),
        ("types=H100", "", "type=H100"),
        ("labels=zone:a", "labels=zone:b", "labels=zone:a,rack:7"),
        ("labels=zone:a", "", "labels=zone:a"),
        ("node_cpus=8", "cpus=7", "cpus=8"),
        ("node_cpus=8", "cpus=7", ""),
        ("cpus=8", "cpus=7", "cpus=8"),
        ("host_memory=50GiB", "memory=49GiB", "memory=50GiB"),
    ],
)
def test_a_node_that_does_not_offer_it_is_refused(needs: str, wrong: str, right: str) -> None:
    Story().tell(
        f"""
        node  n1  80GiB {wrong}
        model a   10GiB {needs}
        > request a r1            -> reject r1 never_fits
        > joined n2 80GiB {right} ->
        > request a r2            -> start a#1 n2/0
        """
    )


@pytest.mark.parametrize(
    ("needs", "wrong", "right", "devices"),
    [
        ("device_memory=40GiB", "4x24GiB", "40GiB", "n2/0"),
        ("device_memory=40GiB gpus=2", "80GiB,24GiB", "2x40GiB", "n2/0,n2/1"),
        ("total_device_memory=48GiB", "24GiB", "2x24GiB", "n2/0,n2/1"),
        ("total_device_memory=48GiB", "24GiB", "48GiB", "n2/0"),
        ("gpus=2", "80GiB", "2x80GiB", "n2/0,n2/1"),
    ],
)
def test_devices_that_do_not_offer_it_are_refused(needs: str, wrong: str, right: str, devices: str) -> None:
    Story().tell(
        f"""
        node  n1  {wrong}
        model a   10GiB {needs}
        > request a r1       -> reject r1 never_fits
        > joined n2 {right}  ->
        > request a r2       -> start a#1 {devices}
        """
    )


def test_an_empty_backend_is_any() -> None:
    Story().tell(
        """
        node  n1  80GiB backend=metal
        model a   10GiB
        > request a r1  -> start a#1 n1/0
        """
    )


def test_device_memory_is_the_size_not_what_is_free() -> None:
    Story().tell(
        """
        node  n1  80GiB
        model f   60GiB
        model a   10GiB device_memory=40GiB
        > load f        -> start f#1 n1/0
        > request a r1  -> start a#1 n1/0
        """
    )


def test_headroom_is_never_promised() -> None:
    """DESIGN 3: capacity - headroom - reserved."""
    Story().tell(
        """
        node  n1  80GiB headroom=4GiB
        model a   77GiB gpus=1
        model b   76GiB gpus=1
        > request a r1  -> reject r1 never_fits
        > request b r2  -> start b#1 n1/0
        """
    )


def test_a_name_that_is_not_in_the_catalog() -> None:
    """404, with or without nodes."""
    story = Story().tell("> request nobody r1 -> reject r1 model_not_found")
    assert story.decided[0].status == 404  # type: ignore[union-attr]


def test_never_says_the_numbers_and_what_to_do() -> None:
    """STYLE, "Errors for people": what happened, the numbers, what to do."""
    story = Story().tell(
        """
        node  n1  80GiB
        node  n2  24GiB
        model a   400GiB gpus=1,2
        > request a r1  -> reject r1 never_fits
        """
    )
    (reject,) = story.decided
    assert reject.status == 422  # type: ignore[union-attr]
    message = reject.message  # type: ignore[union-attr]
    for part in ("a needs", "400.0 GiB", "200.0 GiB", "n1/0", "80.0 GiB", "Add a node"):
        assert part in message, message
