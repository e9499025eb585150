"""The ledger: what is free is recomputed from what is held."""

from __future__ import annotations

from rayscheduler.core.ledger import LOST, Ledger
from rayscheduler.core.types import DeviceId, NodeName, Placement, ReplicaId
from tests.core.story import GIB, node


def ledger(*devices: str, **options: str) -> Ledger:
    made = Ledger()
    for number, each in enumerate(devices, start=1):
        made.add_node(node(f"n{number}", each, **options))
    return made


def on(*devices: str, gib: int, host_gib: int = 0, cpus: int = 0) -> Placement:
    nodes = tuple(dict.fromkeys(NodeName(device.split("/")[0]) for device in devices))
    ids = tuple(DeviceId(device) for device in devices)
    return Placement(nodes, ids, (gib * GIB,) * len(ids), host_gib * GIB, cpus * 1000)


A, B, C = ReplicaId("a#1"), ReplicaId("b#1"), ReplicaId("c#1")
HERE = DeviceId("n1/0")
N1 = NodeName("n1")


def test_reservations_take_and_releases_give_back() -> None:
    book = ledger("80GiB")
    book.reserve(A, on("n1/0", gib=60))
    assert book.free_bytes(HERE) == 20 * GIB
    book.release(A, on("n1/0", gib=60))
    assert book.free_bytes(HERE) == 80 * GIB


def test_a_double_release_creates_no_memory() -> None:
    """DESIGN 3: "never incremented, so a double release cannot create memory"."""
    book = ledger("80GiB")
    book.reserve(A, on("n1/0", gib=60))
    for _ in range(3):
        book.release(A, on("n1/0", gib=60))
    assert book.free_bytes(HERE) == 80 * GIB


def test_reserving_again_replaces_and_does_not_add() -> None:
    book = ledger("80GiB")
    book.reserve(A, on("n1/0", gib=60))
    book.reserve(A, on("n1/0", gib=30))
    assert book.free_bytes(HERE) == 50 * GIB


def test_free_is_what_capacity_headroom_others_and_reservations_leave() -> None:
    book = ledger("80GiB", headroom="4GiB")
    book.reserve(A, on("n1/0", gib=60))
    assert book.observe(HERE, 5 * GIB) == 0
    assert book.free_bytes(HERE) == 11 * GIB
    assert book.observe(HERE, 20 * GIB) == 5 * GIB
    assert book.free_bytes(HERE) == -4 * GIB


def test_a_promise_lies_over_its_victims_and_counts_the_larger() -> None:
    """DESIGN 3: "A PENDING replica may overlap only the victims it waits for"."""
    book = ledger("80GiB")
    book.reserve(A, on("n1/0", gib=60))
    book.reserve(B, on("n1/0", gib=70), overlaps=frozenset({A}))
    assert book.free_bytes(HERE) == 10 * GIB
    book.reserve(C, on("n1/0", gib=5))
    assert book.free_bytes(HERE) == 5 * GIB
    book.release(A, on("n1/0", gib=60))
    assert book.free_bytes(HERE) == 5 * GIB


def test_a_promise_smaller_than_its_victim_holds_the_victims_bytes() -> None:
    book = ledger("80GiB")
    book.reserve(A, on("n1/0", gib=60))
    book.reserve(B, on("n1/0", gib=10), overlaps=frozenset({A}))
    assert book.free_bytes(HERE) == 20 * GIB
    book.release(A, on("n1/0", gib=60))
    assert book.free_bytes(HERE) == 70 * GIB


def test_the_overlap_is_per_device() -> None:
    book = ledger("2x80GiB")
    wide = on("n1/0", "n1/1", gib=60)
    book.reserve(A, wide)
    book.reserve(B, on("n1/1", gib=80), overlaps=frozenset({A}))
    assert book.free_bytes(HERE) == 20 * GIB
    assert book.free_bytes(DeviceId("n1/1")) == 0


def test_several_victims_under_one_promise() -> None:
    book = ledger("80GiB")
    book.reserve(A, on("n1/0", gib=30))
    book.reserve(B, on("n1/0", gib=30))
    book.reserve(C, on("n1/0", gib=70), overlaps=frozenset({A, B}))
    assert book.free_bytes(HERE) == 10 * GIB
    book.release(A, on("n1/0", gib=30))
    assert book.free_bytes(HERE) == 10 * GIB


def test_host_memory_and_cpus_are_charged_on_each_node() -> None:
    book = ledger("80GiB", "80GiB", memory="100GiB", cpus="8")
    book.reserve(A, on("n1/0", "n2/0", gib=10, host_gib=60, cpus=6))
    for account in book.accounts.values():
        room = account.room()
        assert (room.free_host, room.free_millicpus) == (40 * GIB, 2000)


def test_a_node_that_lends_its_ram_has_one_pot() -> None:
    book = ledger("64GiB", backend="cpu", ram="yes")
    book.reserve(A, on("n1/0", gib=20, host_gib=10))
    room = book.accounts[N1].room()
    assert (room.free, room.free_host, room.load) == ([34 * GIB], 34 * GIB, [30 * GIB])


def test_the_overlap_in_the_one_pot_is_of_the_sum() -> None:
    book = ledger("64GiB", backend="cpu", ram="yes")
    book.reserve(A, on("n1/0", gib=40))
    book.reserve(B, Placement((N1,), (), (), 50 * GIB), overlaps=frozenset({A}))
    assert book.free_bytes(HERE) == 14 * GIB


def test_a_lost_device_has_nothing() -> None:
    book = ledger("2x80GiB")
    book.lose_device(HERE)
    assert book.free_bytes(HERE) == LOST
    assert book.free_bytes(DeviceId("n1/1")) == 80 * GIB


def test_what_the_node_held_is_gone_with_it() -> None:
    book = ledger("80GiB")
    book.reserve(A, on("n1/0", gib=60))
    book.remove_node(N1)
    assert book.account_of(HERE) is None
    assert not book.holds(A, on("n1/0", gib=60))
    book.release(A, on("n1/0", gib=60))
    book.add_node(node("n1", "80GiB"))
    assert book.free_bytes(HERE) == 80 * GIB


def test_a_placement_fits_while_the_present_nodes_hold_all_that_is_reserved() -> None:
    book = ledger("80GiB")
    place = on("n1/0", gib=60)
    book.reserve(A, place)
    assert book.fits_now(place)
    book.observe(HERE, 21 * GIB)
    assert not book.fits_now(place)
    book.remove_node(N1)
    assert not book.fits_now(place)


def test_what_would_be_left_if_only_some_were_here() -> None:
    book = ledger("80GiB")
    book.reserve(A, on("n1/0", gib=60))
    book.reserve(B, on("n1/0", gib=10))
    book.observe(HERE, 5 * GIB)
    assert book.accounts[N1].room_with_only([B]).free == [70 * GIB]
    assert book.free_bytes(HERE) == 5 * GIB
