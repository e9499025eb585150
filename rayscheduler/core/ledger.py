"""The one ledger: who holds which bytes of which device, and what is left.

Rules of this file: it is the only place that adds and subtracts memory. Nothing is incremented when
something is freed: what is left is *recomputed* from the reservations that are held, so a double
release cannot create memory. A reservation that waits for others to leave (`overlaps`) may lie over
their bytes and nobody else's: while they are there a device counts the larger of the two. What a sleeper
`keeps` in any case, before it wakes or once it sleeps, lies under nobody.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from rayscheduler.core.types import DeviceId, Node, NodeName, Placement, ReplicaId

UNLIMITED = 1 << 62  # of bytes or millicpus, where a node names no limit
LOST = -(1 << 62)  # what is free on a device that is gone
NOBODY: frozenset[ReplicaId] = frozenset()  # one for all reservations: thousands of empty sets take room


class NodeRoom:
    """What is left on one node right now. Lists run in the order of the node's devices.

    `free` in bytes may be negative (others took memory). `load` is the bytes reserved by our replicas.
    """

    __slots__ = ("device_load", "free", "free_host", "free_millicpus", "load", "node")

    def __init__(self, node: Node, load: list[int], free: list[int], host: int, millicpus: int) -> None:
        self.node = node
        self.load = load
        self.free = free
        self.free_host = host
        self.free_millicpus = millicpus
        self.device_load = sum(load)

    def is_whole(self, at: int) -> bool:
        """Whether nobody holds a byte of that device."""
        device = self.node.devices[at]
        return self.free[at] == device.capacity_bytes - device.headroom_bytes


@dataclass(frozen=True, slots=True)
class Reservation:
    placement: Placement
    overlaps: frozenset[ReplicaId]
    keeps: Placement | None = None


class NodeAccount:
    """The reservations on one node, and what other programs use there."""

    __slots__ = ("_bare", "_dirty", "_room", "index", "lost", "node", "others", "reservations", "shape")

    def __init__(self, node: Node, shape: int, dirty: dict[NodeName, None]) -> None:
        self._dirty = dirty
        self.node = node
        self.shape = shape  # equal for nodes that differ only in their names
        self.index = {device.id: i for i, device in enumerate(node.devices)}
        self.others = [0] * len(node.devices)
        self.lost = [False] * len(node.devices)
        self.reservations: dict[ReplicaId, Reservation] = {}
        self._room: NodeRoom | None = None
        self._bare: NodeRoom | None = None

    def changed(self) -> None:
        self._room = None
        self._dirty[self.node.name] = None

    def set_lost(self, at: int, lost: bool) -> None:
        self.lost[at] = lost
        self._bare = None
        self.changed()

    def room(self) -> NodeRoom:
        """What is left, recomputed from the reservations when they have changed."""
        if self._room is None:
            self._room = self._recomputed(self.reservations)
        return self._room

    def room_with_only(self, replicas: Iterable[ReplicaId]) -> NodeRoom:
        """What would be left if only these replicas were here, and no other program."""
        kept = {name: self.reservations[name] for name in replicas if name in self.reservations}
        if kept:
            return self._recomputed(kept, count_others=False)
        if self._bare is None:
            self._bare = self._recomputed(kept, count_others=False)
        return self._bare

    def _recomputed(self, held: Mapping[ReplicaId, Reservation], count_others: bool = True) -> NodeRoom:
        node, index, shared = self.node, self.index, self.node.device_is_host_memory
        load = [0] * len(node.devices)
        host = millicpus = 0
        for reservation in held.values():
            place = reservation.placement
            charge = load if not reservation.overlaps else [0] * len(load)
            for device, size in zip(place.devices, place.device_bytes, strict=True):
                at = index.get(device)
                if at is not None:
                    charge[at] += size
            if shared:
                charge[0] += place.host_bytes
            under_host = under_millicpus = least_host = least_millicpus = 0
            if reservation.overlaps:
                under, under_host, under_millicpus = self._overlapped(held, reservation.overlaps)
                if shared:
                    under[0] += under_host
                least = [0] * len(load)
                if reservation.keeps is not None:
                    least, least_host, least_millicpus = self._on_this_node(reservation.keeps)
                for at, theirs in enumerate(under):
                    load[at] += max(least[at], charge[at] - theirs)
            if not shared:
                host += max(least_host, place.host_bytes - under_host)
            millicpus += max(least_millicpus, place.millicpus - under_millicpus)
        free = [
            LOST if lost else device.capacity_bytes - device.headroom_bytes - size - (others if count_others else 0)
            for device, size, others, lost in zip(node.devices, load, self.others, self.lost, strict=True)
        ]
        free_host = (UNLIMITED if node.memory_bytes is None else node.memory_bytes) - host
        if shared:
            free_host = free[0]
        free_millicpus = (UNLIMITED if node.millicpus is None else node.millicpus) - millicpus
        return NodeRoom(node, load, free, free_host, free_millicpus)

    def _overlapped(
        self, held: Mapping[ReplicaId, Reservation], names: frozenset[ReplicaId]
    ) -> tuple[list[int], int, int]:
        """Bytes per device, host bytes and millicpus that those of `names` still hold here, and will give back."""
        sizes = [0] * len(self.node.devices)
        host = millicpus = 0
        for name in names:
            other = held.get(name)
            if other is None:
                continue
            for place, sign in ((other.placement, 1), (other.keeps, -1)):
                if place is not None:
                    more, more_host, more_millicpus = self._on_this_node(place)
                    sizes = [size + sign * each for size, each in zip(sizes, more, strict=True)]
                    host += sign * more_host
                    millicpus += sign * more_millicpus
        return sizes, host, millicpus

    def _on_this_node(self, place: Placement) -> tuple[list[int], int, int]:
        sizes = [0] * len(self.node.devices)
        for device, size in zip(place.devices, place.device_bytes, strict=True):
            at = self.index.get(device)
            if at is not None:
                sizes[at] += size
        return sizes, place.host_bytes, place.millicpus


class Ledger:
    """All nodes and all reservations. A replica holds at most one reservation, on one or more nodes."""

    def __init__(self) -> None:
        self.accounts: dict[NodeName, NodeAccount] = {}
        self._home: dict[DeviceId, NodeAccount] = {}
        self._shapes: dict[object, int] = {}
        self._dirty: dict[NodeName, None] = {}  # nodes that came, went or changed since they were last asked for

    def add_node(self, node: Node) -> None:
        account = NodeAccount(node, self._shape_of(node), self._dirty)
        self.accounts[node.name] = account
        account.changed()
        for device in node.devices:
            self._home[device.id] = account

    def _shape_of(self, node: Node) -> int:
        devices = tuple((d.capacity_bytes, d.headroom_bytes, d.type, d.is_slice) for d in node.devices)
        labels = tuple(sorted(node.labels.items()))
        signature = (node.backend, devices, labels, node.millicpus, node.memory_bytes, node.device_is_host_memory)
        return self._shapes.setdefault(signature, len(self._shapes))

    def remove_node(self, name: NodeName) -> None:
        account = self.accounts.pop(name)
        account.changed()
        for device in account.node.devices:
            del self._home[device.id]

    def take_dirty(self) -> list[NodeName]:
        """The nodes that came, went or changed since the last call."""
        names = list(self._dirty)
        self._dirty.clear()
        return names

    def account_of(self, device: DeviceId) -> NodeAccount | None:
        return self._home.get(device)

    def lose_device(self, device: DeviceId) -> None:
        account = self._home[device]
        account.set_lost(account.index[device], True)

    def regain_device(self, device: DeviceId) -> None:
        """It is offered again. Whoever still holds a reservation there keeps it until its exit is confirmed."""
        account = self._home[device]
        account.set_lost(account.index[device], False)

    def observe(self, device: DeviceId, used_by_others_bytes: int) -> int:
        """Note a reading; the bytes that others used there before it."""
        account = self._home[device]
        at = account.index[device]
        before = account.others[at]
        account.others[at] = used_by_others_bytes
        account.changed()
        return before

    def reserve(
        self,
        replica: ReplicaId,
        placement: Placement,
        overlaps: frozenset[ReplicaId] = NOBODY,
        keeps: Placement | None = None,
    ) -> None:
        """Hold `placement` for `replica`, over the bytes of `overlaps` while those are there, instead of what it
        held. `keeps`: what it really holds before it wakes, or will go on holding once it sleeps."""
        reservation = Reservation(placement, overlaps, keeps)
        for name in placement.nodes:
            account = self.accounts.get(name)
            if account is not None:
                account.reservations[replica] = reservation
                account.changed()

    def release(self, replica: ReplicaId, placement: Placement) -> None:
        """Let go of what `replica` holds; nothing happens when it holds nothing."""
        for name in placement.nodes:
            account = self.accounts.get(name)
            if account is not None and account.reservations.pop(replica, None) is not None:
                account.changed()

    def holds(self, replica: ReplicaId, placement: Placement) -> bool:
        return any(name in self.accounts and replica in self.accounts[name].reservations for name in placement.nodes)

    def free_bytes(self, device: DeviceId) -> int:
        account = self._home[device]
        return account.room().free[account.index[device]]

    def fits_now(self, placement: Placement) -> bool:
        """Whether the present nodes hold all that is reserved there, this placement being reserved already."""
        for name in placement.nodes:
            account = self.accounts.get(name)
            if account is None:
                return False
            room = account.room()
            if room.free_host < 0 or room.free_millicpus < 0:
                return False
            if any(room.free[account.index[d]] < 0 for d in placement.devices if d in account.index):
                return False
        return True
