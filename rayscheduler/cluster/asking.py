"""Asks the machines what a model's files say: the head need not have them.

Rules of this file: only nodes are asked that the model could run on, and of each kind (its own RAM, or GPUs)
one answer is enough: the first that comes. Nodes are asked in waves, so that a file which lies on one node
of a hundred is found, and one that lies nowhere does not busy all of them at once. Nothing raises.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence

from rayscheduler.cluster.membership import KnownNode
from rayscheduler.cluster.reports import SizeAnswer, SizeQuestion
from rayscheduler.config.service import ModelEntry
from rayscheduler.core.types import Backend
from rayscheduler.engines import EngineRequest

WAVE = 8  # nodes asked at once about one model
MODELS_AT_ONCE = 8
NAMED_MAX = 3

AskNode = Callable[[str, SizeQuestion], Awaitable[SizeAnswer]]


class Asking:
    """`ask`: what one node says (`Agents.size_up`)."""

    def __init__(self, ask: AskNode) -> None:
        self._ask = ask
        self._turns = asyncio.Semaphore(MODELS_AT_ONCE)

    async def of(self, entry: ModelEntry, nodes: Sequence[KnownNode], on_host: bool) -> SizeAnswer:
        """The first answer of these nodes that has estimates; else one with the problem, in words."""
        question = SizeQuestion(entry.engine.value, request_of(entry, nodes), tuple(entry.device_counts), on_host)
        problems: dict[str, list[str]] = {}
        async with self._turns:
            for begin in range(0, len(nodes), WAVE):
                answer = await self._first(nodes[begin : begin + WAVE], question, problems)
                if answer is not None:
                    return answer
        return SizeAnswer(problem=_in_words(problems))

    async def _first(
        self, nodes: Sequence[KnownNode], question: SizeQuestion, problems: dict[str, list[str]]
    ) -> SizeAnswer | None:
        asked = {asyncio.ensure_future(self._ask(node.node_id, question)): node.name for node in nodes}
        waiting = set(asked)
        while waiting:
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                answer = task.result()
                if not answer.problem:
                    return answer
                problems.setdefault(answer.problem, []).append(asked[task])
        return None


def request_of(entry: ModelEntry, nodes: Sequence[KnownNode] = ()) -> EngineRequest:
    """The entry as its engine is told of it, without a place."""
    backends = {node.inventory.backend for node in nodes if node.inventory is not None}
    backend = min(backends, default=Backend.CPU)
    return EngineRequest(**entry.engine_fields(), replica=f"{entry.name}#0", backend=backend.value)


def candidates(entry: ModelEntry, nodes: Iterable[KnownNode]) -> list[KnownNode]:
    """The nodes whose devices the entry's `requires` would take, in the order of their names. What is free, and
    whether there are enough, is the scheduler's affair."""
    return sorted((node for node in nodes if _offers(node, entry)), key=lambda node: node.name)


def _offers(node: KnownNode, entry: ModelEntry) -> bool:
    inventory, want = node.inventory, entry.requires
    if not node.joined or inventory is None or inventory.simulated:
        return False
    if want.backend is not None and inventory.backend is not want.backend:
        return False
    if want.types and not {device.type for device in inventory.devices}.intersection(want.types):
        return False
    return all(node.labels.get(key) == value for key, value in want.labels.items())


def on_host(node: KnownNode) -> bool:
    """Whether what it lends is its RAM."""
    return node.inventory is not None and node.inventory.backend is Backend.CPU


def device_types(entry: ModelEntry, nodes: Iterable[KnownNode]) -> frozenset[str]:
    """The types of the devices that the entry's replicas may get on these nodes."""
    types = {device.type for node in nodes if node.inventory is not None for device in node.inventory.devices}
    return frozenset(types.intersection(entry.requires.types) if entry.requires.types else types)


def _in_words(problems: dict[str, list[str]]) -> str:
    """Every different problem once, with the nodes that have it."""
    told = []
    for problem, nodes in problems.items():
        nodes.sort()
        named = ", ".join(nodes[:NAMED_MAX]) + (f" and {len(nodes) - NAMED_MAX} more" if len(nodes) > NAMED_MAX else "")
        told.append(f"{problem} (on {named})")
    return "; ".join(told[:NAMED_MAX]) or "no node was asked"
