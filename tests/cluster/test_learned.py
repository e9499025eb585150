"""What a run teaches, and when: peaks, loads, and what is kept for the next allocator."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

import pytest

from rayscheduler.cluster.learned import RAN_LONG_MS, Learned, Run, learned_from_json, memory_key
from rayscheduler.cluster.learning import Learning, Sighting
from rayscheduler.cluster.reports import Launch
from rayscheduler.core.types import DeviceId, ModelName, NodeName, Placement, ReplicaId
from rayscheduler.engines import EngineRequest

TWO = Placement((NodeName("n"),), (DeviceId("n/1"), DeviceId("n/3")), (100, 300))
A = ReplicaId("a#1")


@dataclass
class Story:
    """One replica `a#1` of two devices that serves two requests at a time."""

    kept: dict[str, str] = field(default_factory=dict)
    now_ms: int = 0

    def __post_init__(self) -> None:
        self.learning = Learning(self.kept.__setitem__)
        self.begin("key")

    def begin(self, key: str) -> None:
        request = EngineRequest("a", A, concurrency=2)
        self.launch = Launch(A, ModelName("a"), TWO, "llama-cpp", request, 10.0, memory_key=key)
        self.running = False

    def ready(self) -> None:
        self.running = True

    def reads(self, *held: int, leases: int = 0) -> list[ModelName]:
        """On each of its devices; nothing: it could not be read."""
        return self.learning.watch([Sighting(self.launch, self.running, held, leases)], self.now_ms)

    def known(self) -> Learned | None:
        return self.learning.known("key")


@pytest.fixture
def story() -> Story:
    return Story()


def test_the_peak_of_each_device_counts_also_while_it_loads(story: Story) -> None:
    assert story.reads(90, 400) == []
    assert story.known() is None, "it may yet fail"
    story.ready()
    assert story.reads(95, 200) == ["a"]
    assert story.known() == Learned((95, 400), excess_bytes=100, exercised=False)
    assert story.reads(95, 200) == [], "nothing new"


def test_a_full_house_exercises_it(story: Story) -> None:
    story.reads(25, 75, leases=2)
    story.ready()
    story.reads(25, 75, leases=1)
    assert story.known() == Learned((25, 75), -75, False)
    assert story.reads(25, 75, leases=2) == ["a"]
    assert story.known() == Learned((25, 75), -75, True)


def test_so_do_ten_minutes_if_somebody_was_served(story: Story) -> None:
    story.ready()
    story.reads(25, 75)
    story.now_ms = RAN_LONG_MS
    assert story.reads(25, 75) == [], "nobody has asked it anything"
    assert story.reads(25, 75, leases=1) == ["a"]


def test_a_trifle_is_no_news_and_a_restart_forgets_nothing(story: Story) -> None:
    story.ready()
    story.reads(25_000, 75_000)
    assert story.reads(25_200, 75_700) == []
    assert story.reads(25_500, 76_500) == ["a"]
    later = Story()
    later.learning.remember({**story.kept, "other": "{", "older": json.dumps({"peak": 1})})
    assert later.known() == story.known()
    later.ready()
    assert later.reads(1_000, 1_000) == [], "what was seen once can be seen again"
    assert later.known() == story.known()


def test_another_key_is_another_story_and_none_is_none(story: Story) -> None:
    story.ready()
    story.reads(25, 75)
    for key in ("", "other"):
        story.learning.watch([], 0)  # the replica has gone
        story.begin(key)
        story.ready()
        assert story.reads(200, 600) == (["a"] if key else [])
    assert story.known() == Learned((25, 75), -75, False)
    assert json.loads(story.kept["other"])["model"] == "a"


def test_two_runs_are_one_experience() -> None:
    much, busy = Learned((10, 20), 5), Learned((15, 15), -5, exercised=True)
    assert much.merged(busy) == busy.merged(much) == Learned((10, 20), 5, True)
    assert learned_from_json(much.to_json()) == much


def test_what_was_not_read_teaches_nothing(story: Story) -> None:
    story.ready()
    assert story.reads() == []
    assert story.known() is None


def test_a_run_that_was_never_ready_teaches_nothing() -> None:
    run = Run((100,))
    run.saw((500,), running=False, leases=0, leases_max=1, now_ms=0)
    assert run.news() is None


OPTIONS = {"model": "a", "source": "a.gguf", "context_length": 4096, "args": ("-ngl", "9"), "load_timeout_ms": 1}


def test_what_matters_is_in_the_key_and_what_does_not_is_not() -> None:
    key = memory_key("llama-cpp", OPTIONS, 1, "H100", "digest", "1.0")
    same = {**OPTIONS, "model": "b", "source": "b.gguf", "load_timeout_ms": 2}
    assert memory_key("llama-cpp", same, 1, "H100", "digest", "1.0") == key
    others = [
        memory_key("vllm", OPTIONS, 1, "H100", "digest", "1.0"),
        memory_key("llama-cpp", {**OPTIONS, "context_length": 8192}, 1, "H100", "digest", "1.0"),
        memory_key("llama-cpp", {**OPTIONS, "args": ()}, 1, "H100", "digest", "1.0"),
        memory_key("llama-cpp", OPTIONS, 2, "H100", "digest", "1.0"),
        memory_key("llama-cpp", OPTIONS, 1, "A100", "digest", "1.0"),
        memory_key("llama-cpp", OPTIONS, 1, "H100", "other", "1.0"),
        memory_key("llama-cpp", OPTIONS, 1, "H100", "digest", "1.1"),
        memory_key("llama-cpp", OPTIONS, 1, "H100", "", "1.0"),
    ]
    assert len({key, *others}) == len(others) + 1
