"""Slices of GPUs (MIG devices): each is a device, and never one of several."""

from __future__ import annotations

from tests.core.story import Story


def test_a_slice_takes_what_fits_it() -> None:
    Story().tell(
        """
        node  n1  2x10GiB slices=yes
        model a   8GiB
        model b   12GiB
        > request a r1  -> start a#1 n1/0
        > request b r2  -> reject r2 never_fits
        """
    )


def test_no_replica_is_put_over_several_slices() -> None:
    """CUDA: "a process can use one MIG device only"."""
    Story().tell(
        """
        node  n1  4x10GiB slices=yes
        model w   8GiB  gpus=2
        > request w r1     -> reject r1 never_fits
        > joined n2 2x10GiB  ->
        > request w r2     -> start w#1 n2/0,n2/1
        """
    )
