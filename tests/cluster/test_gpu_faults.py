"""When a card is of no use, and what shows that it was reset."""

from __future__ import annotations

import pytest

from rayscheduler.cluster.gpu import Gpu
from rayscheduler.cluster.gpu_faults import FATAL_XIDS, GpuFaults

WHY = {"GPU-a": "Xid 95, uncontained memory error"}


def seen(faults: GpuFaults, **cards: str | None) -> dict[str, str]:
    """`a="a reset"`: card `GPU-a` can be read, and its driver asks for that; None: it does not say."""
    return faults.seen([Gpu(0, f"GPU-{name}", "H100", 80, 0, recovery=asks) for name, asks in cards.items()])


@pytest.mark.parametrize("asks", [None, ""])
def test_a_fault_lasts_until_the_card_could_not_be_read(asks: str | None) -> None:
    faults = GpuFaults()
    assert seen(faults, a=asks, b=asks) == {}
    faults.note("GPU-a", 95)
    assert seen(faults, a=asks, b=asks) == WHY
    assert seen(faults, b=asks) == WHY
    assert seen(faults, a=asks, b=asks) == {}


def test_or_until_the_driver_does_not_ask_any_more() -> None:
    faults = GpuFaults()
    faults.note("GPU-a", 95)
    assert seen(faults, a="") == WHY, "the driver may say it a moment later"
    assert seen(faults, a="a reset of the GPU") == WHY
    assert seen(faults, a="") == {}


def test_a_new_fault_after_the_reset_counts() -> None:
    faults = GpuFaults()
    faults.note("GPU-a", 95)
    seen(faults)
    faults.note("GPU-a", 95)
    assert seen(faults, a=None) == WHY


@pytest.mark.parametrize("xid", [13, 31, 43, 45, 63, 68, 69, 92, 94, 109, 154])
def test_what_applications_cause_or_the_driver_mends_is_no_fault(xid: int) -> None:
    faults = GpuFaults()
    faults.note("GPU-a", xid)
    assert seen(faults, a=None) == {}
    assert xid not in FATAL_XIDS


def test_the_driver_may_ask_without_an_xid() -> None:
    faults = GpuFaults()
    assert seen(faults, a="a reboot of the machine") == {"GPU-a": "its driver asks for a reboot of the machine"}
    assert seen(faults, a="") == {}


def test_a_slice_fails_with_its_card() -> None:
    faults = GpuFaults()
    faults.note("GPU-a", 79)
    part = Gpu(0, "MIG-1", "H100 MIG 1g.10gb", 10, 0, slice_of="GPU-a")
    assert list(faults.seen([part])) == ["GPU-a"]
