"""What operators ask of a running service, and how it is answered."""

from __future__ import annotations

import json

import pytest

from tests.cli.conftest import Run
from tests.cli.doubles import FakeService, load_failed, model, replica, status


def test_status_is_tables_for_people(run: Run, service: FakeService) -> None:
    service.now = status(replicas=[replica()], models=[model(state="loaded")])
    ran = run("status")
    assert ran.code == 0
    for shown in ("n1/0", "a#1", "RUNNING", "60.0 GiB", "80.0 GiB", "loaded"):
        assert shown in ran.out


def test_status_as_json_is_what_the_allocator_said(run: Run, service: FakeService) -> None:
    assert json.loads(run("status", "--json").out) == service.now


@pytest.mark.parametrize("command", [["load", "--no-wait"], ["unload"], ["pin"], ["unpin"]])
def test_verbs_take_aliases_and_say_what_happened(run: Run, service: FakeService, command: list[str]) -> None:
    service.now = status(models=[model("qwen", aliases=["best"])])
    ran = run(*command, "best")
    assert ran.code == 0
    assert ran.out.startswith("qwen ")
    assert service.asked[-1][:2] == (command[0], "qwen")


@pytest.mark.parametrize("command", ["load", "unload", "pin", "unpin"])
def test_an_unknown_model_is_answered_with_the_nearest_name(run: Run, service: FakeService, command: str) -> None:
    service.now = status(models=[model("smollm2"), model("gemma")])
    ran = run(command, "smolm")
    assert ran.code == 1
    assert ran.one_line == "rayscheduler: there is no model 'smolm'; did you mean smollm2?"
    assert len(service.asked) == 1, "nothing was asked but the status"


def test_a_name_near_nothing_is_answered_with_all_names(run: Run, service: FakeService) -> None:
    service.now = status(models=[model("smollm2", aliases=["small"]), model("gemma")])
    assert run("pin", "xyz").one_line.endswith("there is no model 'xyz'; the models are: gemma, small, smollm2")


ADAPTER = {"name": "bot", "aliases": ["support"], "base": "a", "source": "org/bot", "replicas": []}


@pytest.mark.parametrize("command", [["load", "--no-wait"], ["unload"], ["pin"]])
def test_verbs_take_adapters(run: Run, service: FakeService, command: list[str]) -> None:
    service.now = status(adapters=[ADAPTER])
    assert run(*command, "support").code == 0
    assert service.asked[-1][:2] == (command[0], "bot")


def test_who_loads_an_adapter_sees_how_its_base_comes(run: Run, service: FakeService) -> None:
    service.stories = [
        status(adapters=[ADAPTER]),  # asked for the names
        status(replicas=[replica("a#1", "STARTING")]),
        status(replicas=[replica("a#1", "RUNNING")]),
        status(replicas=[replica("a#1", "RUNNING", adapters=["bot"])]),
    ]
    ran = run("load", "bot")
    assert ran.code == 0
    assert ran.err.splitlines() == ["bot starts on n1/0"]
    assert ran.out.startswith("bot will be loaded, after "), "what the allocator says of it"


def test_load_tells_each_phase_once_where_there_is_no_terminal(run: Run, service: FakeService) -> None:
    service.stories = [
        status(),  # asked for the names
        status(),
        status(replicas=[replica("a#1", "PENDING", waits_for=["b#1"])]),
        status(replicas=[replica("a#1", "PENDING", waits_for=["b#1"])]),
        status(replicas=[replica("a#1", "STARTING")]),
        status(replicas=[replica("a#1", "RUNNING")]),
        status(replicas=[replica("a#1", "RUNNING")]),  # asked for what to say about it
    ]
    ran = run("load", "a")
    assert ran.code == 0
    assert ran.err.splitlines() == ["a waits for room", "a waits for b#1 to make way", "a starts on n1/0"]
    assert ran.out.startswith("a runs: a#1 on n1/0, after ")


def test_load_as_json_has_nothing_else_on_stdout(run: Run, service: FakeService) -> None:
    service.stories = [status(), status(replicas=[replica("a#7")])]
    answer = json.loads(run("load", "a", "--json").out)
    assert answer["ok"] is True
    assert answer["replica"] == "a#7"


def test_a_load_that_fails_is_one_line_and_exit_code_1(run: Run, service: FakeService) -> None:
    service.stories = [status(), status(models=[model(state="backing_off", backoff_s=1.0)])]
    service.outcome = load_failed("a")
    ran = run("load", "a")
    assert ran.code == 1
    assert ran.err.splitlines()[-1] == "rayscheduler: a failed to load: no such file"


def test_decisions_say_why(run: Run, service: FakeService) -> None:
    service.taken = [
        {"serial": 1, "at": 0.0, "decision": "stop", "replica": "b#1", "model": "b", "reason": "evicted",
         "for": "a#1", "why": "idle for 60 s"},
        {"serial": 1, "at": 0.0, "decision": "start", "replica": "a#1", "model": "a", "node": "n1",
         "devices": ["n1/0"], "bytes": [2**30], "evicts": ["b#1"], "why": "r1 asked"},
        {"serial": 2, "at": 1.0, "decision": "grant", "request": "r1", "replica": "a#1"},
        {"serial": 3, "at": 2.0, "decision": "reject", "request": "r2", "code": "model_not_found", "status": 404,
         "message": "no model c"},
    ]  # fmt: skip
    ran = run("decisions", "-n", "4")
    assert ran.code == 0
    for shown in ("b#1 evicted for a#1", "idle for 60 s", "a#1 on n1/0, 1.0 GiB, evicting b#1", "r1 to a#1",
                  "r2 404 model_not_found", "no model c"):  # fmt: skip
        assert shown in ran.out
    assert ran.out.index("r2 404") < ran.out.index("b#1 evicted"), "the newest, which comes first, is shown last"
    assert json.loads(run("decisions", "a", "--json").out) == service.taken
    assert service.asked[-1] == ("decisions", 30, "a")


def test_nothing_decided_is_said(run: Run, service: FakeService) -> None:
    assert run("decisions", "zz").out == "nothing was decided about zz\n"


def test_the_address_is_passed_on(run: Run, service: FakeService, monkeypatch: pytest.MonkeyPatch) -> None:
    run("status", "--address", "10.0.0.1:6379")
    monkeypatch.setenv("RAYSCHEDULER_ADDRESS", "auto")
    run("status")
    assert [asked[1] for asked in service.asked] == ["10.0.0.1:6379", "auto"]
