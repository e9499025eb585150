"""From a request for a cold model to an engine that answers, and what makes way for it."""

from __future__ import annotations

import json
import urllib.error
import urllib.request

import pytest
import ray

from tests.integration.world import WITHIN_S, World, is_gone

MIB = 2**20


def test_a_cold_model_is_loaded_and_answers(quick: World) -> None:
    lease = quick.ask("alpha").granted()
    assert lease["replica"].startswith("a#")
    assert lease["model"] == "a", "the canonical name, not the alias"
    said = ask_engine(lease["endpoint"], lease["api_key"], lease["model"])
    assert said["choices"][0]["message"]["content"]
    with pytest.raises(urllib.error.HTTPError, match="401"):
        ask_engine(lease["endpoint"], "not the key", lease["model"])

    status = quick.until_quiet()
    replica = quick.replica(lease["replica"])
    assert (replica["state"], replica["leases"], replica["device_bytes"]) == ("RUNNING", 1, [600 * MIB])
    assert quick.model("a")["state"] == "loaded"
    node = quick.home()
    (device,) = node["devices"]
    assert (node["lends"], node["backend"], node["mend"]) == (True, "cpu", None)
    assert (device["capacity_bytes"], device["reserved_bytes"]) == (1000 * MIB, 600 * MIB)
    measured = quick.until(lambda now: now["replicas"][0]["measured_bytes"])
    assert measured["replicas"][0]["measured_bytes"] > 2 * MIB
    assert "api_key" not in json.dumps(status)


def test_one_makes_way_for_the_other(quick: World) -> None:
    first = quick.ask("a")
    a = first.granted()["replica"]
    runner, engine = quick.pids_of(a)
    second = quick.ask("b")
    first.release()
    b = second.granted()["replica"]
    assert is_gone(engine)
    (stop,) = quick.decisions(decision="stop", replica=a)
    assert (stop["reason"], stop["for"]) == ("evicted", b)
    (start,) = quick.decisions(decision="start", replica=b)
    assert start["evicts"] == [a]
    assert start["serial"] > stop["serial"]
    assert [replica["id"] for replica in quick.until_quiet()["replicas"]] == [b]
    assert is_gone(runner)


def test_requests_for_one_model_join_one_load(quick: World) -> None:
    asks = {ask.reply: ask for ask in [quick.ask("a") for _ in range(10)]}
    granted, waiting = ray.wait(list(asks), num_returns=4, timeout=WITHIN_S)
    replicas = {asks[reply].granted()["replica"] for reply in granted}
    assert quick.model("a")["waiting"] == 6, "its concurrency is 4"
    for reply in granted:
        asks[reply].release()
    while waiting:
        (reply,), waiting = ray.wait(waiting, timeout=WITHIN_S)
        replicas.add(asks[reply].granted()["replica"])
        asks[reply].release()
    (replica,) = replicas
    assert len(quick.decisions(decision="start", replica=replica)) == 1


def test_both_fit_beside_each_other(quick: World) -> None:
    a, c = quick.ask("a"), quick.ask("c")
    a.granted()
    c.granted()
    quick.until_quiet()
    assert quick.home()["devices"][0]["reserved_bytes"] == 900 * MIB


def test_a_lease_asked_for_twice_is_one(quick: World) -> None:
    first = quick.ask("a", request="twice")
    again = quick.ask("a", request="twice")
    assert first.granted() == again.granted()
    assert quick.model("a")["waiting"] == 0
    assert quick.replica(first.granted()["replica"])["leases"] == 1
    first.release()
    assert quick.until(lambda now: now["replicas"][0]["leases"] == 0)
    assert quick.ask("a", request="another").granted()


def test_what_is_new_is_decided_in_one_call(quick: World) -> None:
    """Ends before arrivals, so what one request gives back another of the same call may have."""
    first = quick.ask("a")
    replica = first.granted()["replica"]
    asks = [
        ["alpha", "next", None, None, None],
        ["nobody", "lost", None, None, None],
        ["b", "cold", None, None, None],
        ["a", "odd", None, "no-tier", None],
    ]
    granted, unknown, waits, no_tier = quick.call("exchange", "", [first.id], asks)
    assert (granted["replica"], unknown["status"], waits, no_tier["status"]) == (replica, 404, None, 400)
    assert [waiting["request"] for waiting in quick.status()["queue"]] == ["cold"]
    assert quick.call("exchange", "", ["next"], []) == []
    assert quick.ask("b", request="cold").granted()["model"] == "b", "`lease` tells what an exchange left open"


def test_who_gives_up_does_not_wait_any_more(quick: World) -> None:
    holding = quick.ask("a")
    holding.granted()
    waiting = quick.ask("b")
    quick.until(lambda now: now["queue"])
    waiting.release()
    assert waiting.rejected()["status"] == 499
    assert quick.status()["queue"] == []
    quick.call("exchange", "", ["overtaken"], [])
    assert quick.ask("c", request="overtaken").rejected()["code"] == "cancelled", "its release came first"


def test_what_cannot_be_served_is_said(quick: World) -> None:
    quick.deploy("models: [{name: huge, engine: simulated, memory: 2GiB}]")
    unknown = quick.ask("nobody").rejected()
    assert (unknown["status"], unknown["code"]) == (404, "model_not_found")
    never = quick.ask("huge").rejected()
    assert (never["status"], never["code"]) == (422, "never_fits")
    assert "2.0 GiB" in never["message"]
    tier = quick.ask("huge", tier="gold").rejected()
    assert (tier["status"], tier["code"]) == (400, "unknown_tier")
    late = quick.ask("huge", deadline_ms=1).rejected()
    assert late["code"] == "never_fits"


def test_a_deadline_is_kept(quick: World) -> None:
    holding = quick.ask("a")
    holding.granted()
    late = quick.ask("b", deadline_ms=200).rejected()
    assert (late["status"], late["code"]) == (504, "deadline_exceeded")


def test_the_operators_verbs(quick: World) -> None:
    loaded = quick.call("load", "alpha", True)
    assert loaded["ok"], loaded
    (replica,) = quick.until_quiet()["replicas"]
    assert quick.call("pin", "a", True)["ok"]
    waiting = quick.ask("b", deadline_ms=300).rejected()
    assert waiting["status"] in (422, 504), "a pinned model does not make way"
    assert quick.call("pin", "a", False)["ok"]
    assert quick.call("unload", "a")["ok"]
    quick.until(lambda now: not now["replicas"])
    (stop,) = quick.decisions(decision="stop", replica=replica["id"])
    assert (stop["reason"], stop["why"]) == ("unloaded", "an operator unloaded its model")
    assert quick.call("load", "nobody")["error"]["status"] == 404
    assert quick.call("unload", "nobody")["error"]["status"] == 404
    assert quick.call("pin", "nobody", True)["error"]["status"] == 404


def test_unloaded_before_it_is_up(world: World) -> None:
    world.deploy("models: [{name: slow, engine: simulated, memory: 300MiB, simulate: {load: 1h}}]")
    waiting = world.ask("slow")
    for state in ("", "loading"):
        world.until(lambda now, state=state: [r for r in now["replicas"] if (r["runner"] or "") == state])  # type: ignore[misc]
        world.call("unload", "slow")
        assert waiting.rejected()["code"] == "unloaded"
        assert world.until_quiet()["replicas"] == []
        waiting = world.ask("slow")
    world.call("unload", "slow")


def ask_engine(endpoint: str, api_key: str, model: str) -> dict[str, list[dict[str, dict[str, str]]]]:
    body = {"model": model, "messages": [{"role": "user", "content": "hello"}]}
    request = urllib.request.Request(
        f"{endpoint}/v1/chat/completions",
        json.dumps(body).encode(),
        {"content-type": "application/json", "authorization": f"Bearer {api_key}"},
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        return dict(json.load(answer))
