"""How much memory ggml's graph allocator takes for a graph: a model of ggml/src/ggml-alloc.c, sizes only.

Rules of this file: the same decisions in the same order as ggml_gallocr and ggml_dyn_tallocr take them: inputs
first, then the nodes in the order in which they were expanded; best fit among the free blocks; the last block
grows. Fragmentation is so part of the answer, as it is part of what llama.cpp prints.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field

ALIGNMENT_BYTES = 32
ENDLESS_BYTES = 1 << 60


@dataclass(eq=False, slots=True)
class Node:
    """A tensor of the graph. `size_bytes` 0: a weight or a cache, which has memory elsewhere."""

    size_bytes: int
    sources: tuple[Node, ...] = ()
    in_place: bool = False  # it takes the memory of its first source, if nobody else needs that
    view_of: Node | None = None  # never itself a view
    is_input: bool = False
    stays: bool = False  # it is never given back
    children: int = 0
    views: int = 0
    offset: int = -1  # in the buffer; -1: it has no memory there (any more)


@dataclass(slots=True)
class Graph:
    """Tensors in the order of their computation. The methods make nodes; `expand` decides the order."""

    nodes: list[Node] = field(default_factory=list)
    seen: set[int] = field(default_factory=set)

    def input(self, size_bytes: int, *, stays: bool = False) -> Node:
        return Node(size_bytes, is_input=True, stays=stays)

    def compute(self, size_bytes: int, *sources: Node) -> Node:
        return Node(size_bytes, sources)

    def in_place(self, source: Node, *others: Node) -> Node:
        """A tensor like its first source, computed in its memory."""
        return Node(source.size_bytes, (source, *others), in_place=True)

    def view(self, source: Node, *written: Node) -> Node:
        """A reshaped or permuted look at a tensor, or the tensor after others were `written` into it."""
        return Node(source.size_bytes, (*written, source), view_of=source.view_of or source)

    def store(self, *sources: Node) -> Node:
        """Writes into a cache: it has no memory of its own."""
        return Node(0, sources)

    def expand(self, node: Node) -> None:
        """Append what `node` needs and is not there yet, depth first, then the node (ggml_build_forward_expand)."""
        if id(node) in self.seen:
            return
        self.seen.add(id(node))
        for source in node.sources:
            self.expand(source)
        self.nodes.append(node)


def graph_bytes(graph: Graph) -> int:
    """The size of the buffer that holds the graph's tensors."""
    memory = _Memory()
    for node in graph.nodes:
        if node.view_of is not None:
            node.view_of.views += 1
        for source in node.sources:
            source.children += 1
    for node in graph.nodes:
        if node.is_input:
            memory.take(node)
    for node in graph.nodes:
        if node.size_bytes and node.offset < 0 and node.view_of is None and not _taken_over(node):
            memory.take(node)
        for source in node.sources:
            _release(source, memory)
    return memory.highest


def _taken_over(node: Node) -> bool:
    if not node.in_place:
        return False
    parent = node.sources[0]
    owner = parent.view_of or parent
    alone = parent.children == 1 and not parent.views
    if parent.view_of is not None:
        alone = alone and owner.views == 1 and not owner.children
    if not alone or owner.offset < 0 or owner.stays:
        return False
    node.offset, owner.offset = owner.offset, -1
    return True


def _release(parent: Node, memory: _Memory) -> None:
    parent.children -= 1
    if parent.children or parent.views:
        return
    if parent.view_of is None:
        memory.give_back(parent)
        return
    parent.view_of.views -= 1
    if not parent.view_of.views and not parent.view_of.children:
        memory.give_back(parent.view_of)


class _Memory:
    """The buffer: free blocks by offset, the last of them endless."""

    def __init__(self) -> None:
        self._offsets = [0]
        self._sizes = [ENDLESS_BYTES]
        self.highest = 0

    def take(self, node: Node) -> None:
        size = _aligned(node.size_bytes)
        best = -1
        for index in range(len(self._sizes) - 1):
            if self._sizes[index] >= size and (best < 0 or self._sizes[index] <= self._sizes[best]):
                best = index
        node.offset = self._offsets[best]  # -1: the last
        self._offsets[best] += size
        self._sizes[best] -= size
        if not self._sizes[best]:
            del self._offsets[best], self._sizes[best]
        self.highest = max(self.highest, node.offset + size)

    def give_back(self, node: Node) -> None:
        if node.offset < 0 or node.stays:
            return
        offset, size = node.offset, _aligned(node.size_bytes)
        node.offset = -1
        at = bisect_left(self._offsets, offset)
        self._offsets.insert(at, offset)
        self._sizes.insert(at, size)
        for left in (at, at - 1):  # merge with the next, then with the one before
            if not 0 <= left < len(self._offsets) - 1:
                continue
            if self._offsets[left] + self._sizes[left] == self._offsets[left + 1]:
                self._sizes[left] += self._sizes[left + 1]
                del self._offsets[left + 1], self._sizes[left + 1]


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
