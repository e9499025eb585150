"""Which models the core may have, as nodes come, files are read and runs teach; no model waits for another."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from rayscheduler.cluster import figure_book as module
from rayscheduler.cluster.asking import WAVE, Asking
from rayscheduler.cluster.figure_book import FigureBook
from rayscheduler.cluster.inventory import LentDevice, NodeInventory
from rayscheduler.cluster.learned import Learned
from rayscheduler.cluster.learning import Learning
from rayscheduler.cluster.membership import KnownNode
from rayscheduler.cluster.reports import DeviceEstimate, SizeAnswer, SizeQuestion
from rayscheduler.config.service import ModelEntry
from rayscheduler.core.types import Backend, ModelName, NodeName

GIB = 2**30
WITHIN_S = 10.0


def entry(name: str = "a", **keys: Any) -> ModelEntry:
    return ModelEntry.model_validate({"name": name, "engine": "llama-cpp", "source": f"{name}.gguf", **keys})


def node(name: str, backend: Backend = Backend.NVIDIA, kind: str = "H100") -> KnownNode:
    inventory = NodeInventory(name, backend, (LentDevice(0, 80 * 1024, f"GPU-{name}", kind),))
    return KnownNode(NodeName(name), f"id-{name}", "", 0, {}, {}, inventory=inventory)


class Cluster:
    """`files`: what is found by (node, source); on a node that is `deaf` a question stays without an answer."""

    def __init__(self) -> None:
        self.nodes: list[KnownNode] = []
        self.files: dict[tuple[str, str], int] = {}
        self.deaf: set[str] = set()
        self.asked: list[str] = []
        self.kept: dict[str, str] = {}
        self.news: list[str] = []
        self.learning = Learning(lambda key, told: None)
        self.book = self.new_book()

    def new_book(self) -> FigureBook:
        return FigureBook(Asking(self.answer), self.learning, lambda: self.nodes, self.keep, self.news.append)

    async def answer(self, node_id: str, question: SizeQuestion) -> SizeAnswer:
        name, source = node_id.removeprefix("id-"), str(question.request.source)
        self.asked.append(f"{name} {source}")
        if name in self.deaf:
            await asyncio.Event().wait()
        size = self.files.get((name, source))
        if size is None:
            return SizeAnswer(problem=f"{source} does not exist")
        return SizeAnswer("digest", "1.0", {1: DeviceEstimate(size, {"weights": size})})

    async def keep(self, model: str, told: str) -> None:
        self.kept[model] = told

    def bytes_of(self, name: str) -> dict[int, int] | None:
        model = self.book.model(name)
        return None if model is None else dict(model.requirement.bytes_by_count)

    async def reply(self, name: str) -> dict[str, Any] | None:
        return await asyncio.wait_for(self.book.why_not(name, None), WITHIN_S)


@pytest.fixture
async def cluster(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Cluster]:
    monkeypatch.setattr(module, "LOOK_EVERY_S", 0.01)
    made = Cluster()
    working = asyncio.ensure_future(made.book.work())
    yield made
    working.cancel()


async def test_a_model_waits_for_a_node_that_has_its_file(cluster: Cluster) -> None:
    cluster.files["n1", "a.gguf"] = 10 * GIB
    cluster.book.deploy([entry()])
    waiting = asyncio.ensure_future(cluster.reply("a"))
    await asyncio.sleep(0)
    assert not waiting.done(), "before the first node has joined everything waits"
    cluster.nodes = [node("n0"), node("n1")]
    cluster.book.node_reported()
    assert await waiting is None
    assert cluster.bytes_of("a") == {1: 10 * GIB}
    assert cluster.news == ["a"]
    told = cluster.book.status("a")
    assert told["by_count"][0]["parts_bytes"] == {"weights": 10 * GIB}


async def test_nobody_waits_for_another_model(cluster: Cluster) -> None:
    cluster.nodes, cluster.deaf = [node("n1")], {"n1"}
    cluster.book.deploy([entry(), entry("b", engine="command", args=["serve"], memory="1GiB")])
    assert await cluster.reply("b") is None
    assert cluster.bytes_of("b") == {1: GIB, 2: GIB // 2, 4: GIB // 4, 8: GIB // 8}
    refused = await cluster.book.why_not("a", 0.01)
    assert refused is not None
    assert (refused["status"], refused["code"]) == (504, "deadline_exceeded")


async def test_what_nobody_can_read_is_rejected_with_the_reason_and_asked_again(cluster: Cluster) -> None:
    cluster.nodes = [node(f"n{index:02}") for index in range(WAVE + 2)]
    cluster.book.deploy([entry()])
    refused = await cluster.reply("a")
    assert refused is not None
    assert (refused["status"], refused["code"], refused["retry_after_s"]) == (503, "load_failed", 1)
    assert "a says no memory, and its files cannot be estimated: a.gguf does not exist" in refused["message"]
    assert "n00, n01, n02 and 7 more" in refused["message"]
    assert cluster.book.status("a")["problem"] == refused["message"]
    assert len(set(cluster.asked)) == WAVE + 2

    cluster.files["n09", "a.gguf"] = GIB
    cluster.book._models["a"].again_s = 0.0  # the pause is over
    await _until(lambda: cluster.bytes_of("a") == {1: GIB})
    assert await cluster.reply("a") is None


async def test_a_file_that_contradicts_its_entry_is_refused_and_its_neighbour_is_not(cluster: Cluster) -> None:
    cluster.nodes = [node("n1")]
    cluster.files = {("n1", "a.gguf"): 10 * GIB, ("n1", "b.gguf"): 10 * GIB}
    cluster.book.deploy([entry(memory="4GiB"), entry("b", memory="9GiB")])
    refused = await cluster.reply("a")
    assert refused is not None
    assert (refused["status"], refused["code"], refused["granted"]) == (422, "memory_contradicted", False)
    assert cluster.bytes_of("a") is None
    assert await cluster.reply("b") is None
    assert list(cluster.book.models()) == ["b"]

    cluster.book.deploy([entry(memory="4GiB", trust=True), entry("b", memory="9GiB")])
    assert await cluster.reply("a") is None
    assert cluster.bytes_of("a") == {1: 4 * GIB, 2: 2 * GIB, 4: GIB, 8: GIB // 2}


async def test_who_waits_for_a_model_waits_for_its_next_entry_too(cluster: Cluster) -> None:
    cluster.nodes, cluster.deaf = [node("n1")], {"n1"}
    cluster.book.deploy([entry(), entry("b")])
    waiting = [asyncio.ensure_future(cluster.reply(name)) for name in "ab"]
    await asyncio.sleep(0)
    cluster.deaf, cluster.files = set(), {("n1", "a.gguf"): GIB}
    cluster.book.deploy([entry(context_length=8192)])
    assert await asyncio.gather(*waiting) == [None, None], "b is unknown now, which is for the core to say"
    assert cluster.bytes_of("a") == {1: GIB}


async def test_an_entry_that_says_its_memory_does_not_wait_for_long(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHECK_WITHIN_S", 0.05)
    cluster.nodes, cluster.deaf = [node("n1")], {"n1"}
    cluster.book.deploy([entry(memory="4GiB")])
    assert cluster.bytes_of("a") is None
    assert await cluster.reply("a") is None
    cluster.nodes = [node("n2")]
    cluster.book.deploy([entry("b", memory="4GiB")])
    assert await cluster.reply("b") is None, "its file is nowhere: its engine will say so"


async def test_where_no_node_could_run_it_nobody_is_asked(cluster: Cluster) -> None:
    cluster.nodes = [node("n1", Backend.CPU, "x86_64")]
    amd = {"requires": {"backend": "rocm"}}
    cluster.book.deploy([entry(**amd), entry("b", memory="1GiB", **amd)])
    refused = await cluster.reply("a")
    assert refused is not None
    assert (refused["status"], refused["code"]) == (422, "never_fits")
    assert await cluster.reply("b") is None, "the core will say that it never fits"
    assert cluster.asked == []
    cluster.nodes = [*cluster.nodes, node("n2", Backend.ROCM, "MI300")]
    cluster.files["n2", "a.gguf"] = GIB
    await _until(lambda: cluster.bytes_of("a") == {1: GIB})


async def test_a_new_allocator_knows_at_once_what_the_old_one_was_told(cluster: Cluster) -> None:
    cluster.nodes = [node("n1")]
    cluster.files["n1", "a.gguf"] = GIB
    cluster.book.deploy([entry()])
    assert await cluster.reply("a") is None
    later = cluster.new_book()
    later.remember(cluster.kept)
    later.deploy([entry(), entry("b", memory="2GiB"), entry("c")], unasked=True)
    assert set(later.models()) == {"a", "b"}
    another = cluster.new_book()
    another.remember(cluster.kept)
    another.deploy([entry(context_length=8192)])
    assert another.models() == {}, "that is another question"


async def test_what_is_learned_is_news_and_used(cluster: Cluster) -> None:
    cluster.nodes = [node("n1")]
    cluster.files["n1", "a.gguf"] = 10 * GIB
    cluster.book.deploy([entry()])
    assert await cluster.reply("a") is None
    key = cluster.book.key("a", 1, "H100")
    cluster.learning._known[key] = Learned((12 * GIB,), 2 * GIB)
    cluster.book.learned([ModelName("a")])
    assert cluster.news == ["a", "a"]
    (reserved,) = (cluster.bytes_of("a") or {}).values()
    assert reserved > 12 * GIB
    assert cluster.book.status("a")["by_count"][0]["source"] == "learned"


async def test_a_name_that_nobody_knows_is_for_the_core_to_reject(cluster: Cluster) -> None:
    cluster.book.deploy([])
    assert await cluster.reply("a") is None
    assert cluster.book.problem("a") is None


async def _until(holds: Callable[[], bool]) -> None:
    async def look() -> None:
        while not holds():  # noqa: ASYNC110 (it is settled in many places)
            await asyncio.sleep(0)

    await asyncio.wait_for(look(), WITHIN_S)
