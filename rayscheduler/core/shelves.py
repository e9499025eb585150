"""Nodes in the order in which they would be chosen, so that a plan looks at a few of them and not at all.

Rules of this file: it only orders. Nodes that differ in nothing but their names share a shelf; for each
device count a shelf keeps its nodes sorted by the best rank they could get (the load of the devices that
would be taken, then of the node, then its name). `walk` yields them in that order and stops early only
where no later node can fit. Whether a node does fit is `fit.choose`'s to say.

Nodes on which other programs hold memory, or whose devices differ in size or are lost, stand apart
(`odd`): nothing can be concluded from their neighbours, so each of them is looked at.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator

from rayscheduler.core.ledger import Ledger, NodeAccount
from rayscheduler.core.types import NodeName, Strategy

Entry = tuple[int, int, NodeName, int]  # load taken, node load, name, device index (`pack` only)


class Row:
    """The regular nodes of a shelf, sorted for one device count."""

    __slots__ = ("entries", "highest", "of_node")

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.highest: list[tuple[int, NodeName]] = []  # the fullest of the `count` emptiest devices
        self.of_node: dict[NodeName, tuple[list[Entry], tuple[int, NodeName]]] = {}

    def put(self, name: NodeName, entries: list[Entry], highest: int) -> None:
        top = (highest, name)
        for entry in entries:
            insort(self.entries, entry)
        insort(self.highest, top)
        self.of_node[name] = (entries, top)

    def take_out(self, name: NodeName) -> None:
        known = self.of_node.pop(name, None)
        if known is None:
            return
        for entry in known[0]:
            del self.entries[bisect_left(self.entries, entry)]
        del self.highest[bisect_left(self.highest, known[1])]


class Shelf:
    """All nodes of one shape."""

    def __init__(self, account: NodeAccount, strategy: Strategy) -> None:
        self.accounts: dict[NodeName, NodeAccount] = {}
        self.odd: dict[NodeName, NodeAccount] = {}
        self._pack = strategy is Strategy.PACK
        self._rows: dict[int, Row] = {}
        sizes = {d.capacity_bytes - d.headroom_bytes for d in account.node.devices}
        kinds = {d.type for d in account.node.devices}
        self._uniform = len(sizes) <= 1 and len(kinds) <= 1 and not account.node.device_is_host_memory
        self._lendable = sizes.pop() if sizes else 0

    def put(self, account: NodeAccount) -> None:
        """Sort a new or changed node in."""
        name = account.node.name
        self.accounts[name] = account
        if not self._uniform or any(account.others) or any(account.lost):
            for row in self._rows.values():
                row.take_out(name)
            self.odd[name] = account
            return
        self.odd.pop(name, None)
        for count, row in self._rows.items():
            row.take_out(name)
            self._put_in_row(row, count, account)

    def take_out(self, name: NodeName) -> None:
        self.accounts.pop(name, None)
        self.odd.pop(name, None)
        for row in self._rows.values():
            row.take_out(name)

    def _put_in_row(self, row: Row, count: int, account: NodeAccount) -> None:
        room = account.room()
        name = account.node.name
        if count > len(room.load):
            return
        loads = sorted(room.load)
        if self._pack and count == 1:
            entries = [(-load, -room.device_load, name, at) for at, load in enumerate(room.load)]
        elif self._pack:
            entries = [(0, 0, name, 0)]  # which devices are the fullest that fit depends on the model
        else:
            entries = [(sum(loads[:count]), room.device_load, name, 0)]
        row.put(name, entries, loads[count - 1] if count else 0)

    def _row(self, count: int) -> Row:
        row = self._rows.get(count)
        if row is None:
            row = self._rows[count] = Row()
            for name, account in self.accounts.items():
                if name not in self.odd:
                    self._put_in_row(row, count, account)
        return row

    def walk(self, count: int, each_bytes: int) -> Iterator[tuple[Entry | None, NodeAccount]]:
        """Nodes that may hold `count` devices of `each_bytes`, best possible rank first, each with the entry
        that bounds its rank from below; then the odd ones, unbounded (None)."""
        row = self._row(count)
        most_load = self._lendable - each_bytes
        if count == 0 or (row.highest and row.highest[0][0] <= most_load):
            first = bisect_left(row.entries, (-most_load,)) if self._pack and count == 1 else 0
            for at in range(first, len(row.entries)):
                entry = row.entries[at]
                if count == 1 and not self._pack and entry[0] > most_load:
                    break
                yield (None if self._pack and count != 1 else entry), self.accounts[entry[2]]
        for account in self.odd.values():
            yield None, account


class Shelves:
    """The ledger's nodes on their shelves, brought up to date whenever they are looked at."""

    def __init__(self, ledger: Ledger, strategy: Strategy) -> None:
        self._ledger = ledger
        self._strategy = strategy
        self._shelves: dict[int, Shelf] = {}
        self._home: dict[NodeName, int] = {}

    def current(self) -> dict[int, Shelf]:
        """Shelves by the shape of their nodes."""
        for name in self._ledger.take_dirty():
            account = self._ledger.accounts.get(name)
            known = self._home.get(name)
            if known is not None and (account is None or account.shape != known):
                self._shelves[known].take_out(name)
                del self._home[name]
            if account is not None:
                shelf = self._shelves.get(account.shape)
                if shelf is None:
                    shelf = self._shelves[account.shape] = Shelf(account, self._strategy)
                shelf.put(account)
                self._home[name] = account.shape
        return self._shelves
