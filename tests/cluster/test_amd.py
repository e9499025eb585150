"""AMD devices, by a stand-in for the package `amdsmi` that comes with ROCm."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from rayscheduler.cluster import amd, drivers, measuring, nvml, resources
from rayscheduler.cluster.measuring import Measuring
from rayscheduler.cluster.resources import detect_devices, resources_json
from rayscheduler.core.types import Backend

GIB = 2**30


class AmdSmiLibraryException(Exception):
    """What the real package raises for whatever it does not know."""


class FakeAmdSmi(ModuleType):
    """`cards` by handle: what is told of each; a missing key is an error, as it is for a real card."""

    AmdSmiMemoryType = SimpleNamespace(VRAM="vram")

    def __init__(self, *cards: dict[str, Any]) -> None:
        super().__init__("amdsmi")
        self.cards = list(cards)
        self.driver = True

    def amdsmi_init(self) -> None:
        if not self.driver:
            raise AmdSmiLibraryException("no driver")

    def amdsmi_get_processor_handles(self) -> list[dict[str, Any]]:
        return self.cards

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("amdsmi_get_gpu_"):
            raise AttributeError(name)

        def answer(handle: dict[str, Any], *_: object) -> Any:
            if name not in handle:
                raise AmdSmiLibraryException(name)
            return handle[name]

        return answer


def card(serial: str = "0x72FF740FAD4B1001", used: int = 0, **more: Any) -> dict[str, Any]:
    asic = {"market_name": "AMD Instinct MI300X", "asic_serial": serial, "target_graphics_version": "gfx942"}
    return {
        "amdsmi_get_gpu_memory_total": 192 * GIB,
        "amdsmi_get_gpu_memory_usage": used,
        "amdsmi_get_gpu_asic_info": asic,
        "amdsmi_get_gpu_process_list": [],
        "amdsmi_get_gpu_driver_info": {"driver_version": "6.12.12"},
        **more,
    }


@pytest.fixture
def smi(monkeypatch: pytest.MonkeyPatch) -> FakeAmdSmi:
    made = FakeAmdSmi(card(), card("0x1", used=20 * GIB))
    monkeypatch.setitem(sys.modules, "amdsmi", made)
    monkeypatch.setattr(amd, "_looked", False)
    monkeypatch.setattr(amd, "_loaded", None)
    monkeypatch.setattr(nvml, "gpus", lambda: ())
    monkeypatch.setattr(nvml, "driver_version", lambda: "")
    return made


def test_what_a_card_is(smi: FakeAmdSmi) -> None:
    first, second = drivers.gpus()
    assert (first.uuid, first.name, first.backend) == ("GPU-72ff740fad4b1001", "AMD Instinct MI300X", Backend.ROCM)
    assert (first.total_bytes, first.compute_capability) == (192 * GIB, "gfx942")
    assert (second.uuid, second.used_bytes) == ("GPU-0000000000000001", 20 * GIB)
    assert drivers.driver_version() == "AMD 6.12.12"
    lent = detect_devices()
    assert (lent.backend, [device.type for device in lent.devices]) == (Backend.ROCM, ["MI300X"] * 2)
    assert resources_json(lent) == {"gpu-0-mib": 192 * 1024, "gpu-1-mib": 192 * 1024}


@pytest.mark.parametrize(
    ("told", "uuid"),
    [
        ({"amdsmi_get_gpu_enumeration_info": {"hip_uuid": "GPU-abc"}}, "GPU-abc"),
        ({"amdsmi_get_gpu_enumeration_info": {"hip_uuid": "N/A"}}, "GPU-72ff740fad4b1001"),
        ({"amdsmi_get_gpu_asic_info": {"asic_serial": "N/A"}}, "0"),
    ],
)
def test_a_card_is_named_as_rocm_takes_it(smi: FakeAmdSmi, told: dict[str, Any], uuid: str) -> None:
    smi.cards[:] = [card(**told)]
    assert drivers.gpus()[0].uuid == uuid


def test_who_holds_what(smi: FakeAmdSmi) -> None:
    listed = [{"pid": 7, "memory_usage": {"vram_mem": GIB}}, {"pid": 8, "mem": 2 * GIB}, {"pid": 9, "mem": "N/A"}]
    smi.cards[0]["amdsmi_get_gpu_process_list"] = listed
    del smi.cards[1]["amdsmi_get_gpu_process_list"]
    first, second = drivers.gpus()
    assert (first.held_bytes, first.tells_processes) == ({7: GIB, 8: 2 * GIB, 9: None}, True)
    assert (second.held_bytes, second.tells_processes) == ({}, False)


def test_a_card_that_vanishes_is_missing(smi: FakeAmdSmi) -> None:
    measures = Measuring({"gpu-0-mib": 1000.0, "gpu-1-mib": 1000.0}, unread_s=0)
    report = measures.take([])
    assert (report.inventory.backend, report.inventory.missing) == (Backend.ROCM, {})
    smi.cards[0].pop("amdsmi_get_gpu_memory_usage")
    assert list(measures.take([]).inventory.missing) == [0]


def test_a_package_without_a_driver_is_no_gpu(smi: FakeAmdSmi) -> None:
    smi.driver = False
    assert drivers.gpus() == ()
    assert drivers.driver_version() == ""


def test_without_the_package_there_is_no_gpu(smi: FakeAmdSmi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "amdsmi", None)
    assert drivers.gpus() == ()


def test_both_sides_ask_the_same_drivers() -> None:
    assert resources.gpus is measuring.gpus is drivers.gpus
