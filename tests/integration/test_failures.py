"""What dies, and what becomes of it: loads, engines, runners, the agent, the allocator, clients."""

from __future__ import annotations

import ray

from rayscheduler.cluster.names import NAMESPACE, agent_name
from tests.integration.world import QUICK, World, is_gone, kill


def test_a_load_that_fails_rejects_with_the_engines_last_words(world: World) -> None:
    world.deploy("models: [{name: bad, engine: simulated, memory: 300MiB, simulate: {load: 0s, fail: load}}]")
    answer = world.ask("bad").rejected()
    assert (answer["status"], answer["code"]) == (503, "load_failed")
    assert answer["retry_after_s"] >= 1
    assert "exited with status" in answer["message"]
    model = world.until(lambda now: now["models"][0]["state"] == "backing_off")["models"][0]
    assert model["failures"] == 1
    assert "exited with status" in model["last_error"]
    refused = world.call("load", "bad", True)
    assert refused["error"]["code"] == "load_failed", refused
    world.call("unload", "bad")
    assert world.until_quiet()["replicas"] == []


def test_an_engine_that_is_not_ready_in_time_is_ended(world: World) -> None:
    world.deploy("models: [{name: slow, engine: simulated, memory: 300MiB, load_timeout: 500ms, simulate: {load: 1h}}]")
    answer = world.ask("slow").rejected()
    assert answer["code"] == "load_failed"
    assert "not ready after" in answer["message"]
    world.call("unload", "slow")
    assert world.until_quiet()["replicas"] == []


def test_a_killed_engine_is_a_crash_and_the_next_request_loads_it_again(quick: World) -> None:
    ask = quick.ask("a")
    first = ask.granted()["replica"]
    runner, engine = quick.pids_of(first)
    kill(engine)
    quick.until(lambda now: not any(replica["id"] == first for replica in now["replicas"]))
    second = quick.ask("a").granted()["replica"]
    assert second != first
    quick.until_quiet()
    assert [stop["reason"] for stop in quick.decisions(decision="stop", replica=first)] == ["crashed"]
    assert is_gone(runner)


def test_a_killed_runner_takes_its_engine_along_and_stands_down(quick: World) -> None:
    first = quick.ask("a").granted()["replica"]
    runner, engine = quick.pids_of(first)
    kill(runner)
    quick.until(lambda now: not any(replica["id"] == first for replica in now["replicas"]))
    assert is_gone(engine)
    second = quick.ask("a").granted()["replica"]
    quick.until_quiet()
    assert second != first
    assert [stop["reason"] for stop in quick.decisions(decision="stop", replica=first)] == ["crashed"]


def test_an_unreachable_replica_is_ended(quick: World) -> None:
    ask = quick.ask("a")
    lease = ask.granted()
    assert quick.call("replica_unreachable", lease["replica"], ask.id) == {"gone": False}, "it answers"
    _, engine = quick.pids_of(lease["replica"])
    kill(engine)
    quick.until(lambda _: quick.call("replica_unreachable", lease["replica"], ask.id) == {"gone": True})
    assert quick.call("replica_unreachable", "a#999", ask.id) == {"gone": True}
    quick.until(lambda now: not now["replicas"])


def test_a_new_agent_watches_what_the_old_one_did(quick: World) -> None:
    replica = quick.ask("a").granted()["replica"]
    agent = ray.get_actor(agent_name(quick.home()["node_id"]), namespace=NAMESPACE)
    ray.kill(agent, no_restart=False)
    runner, engine = quick.pids_of(replica)
    kill(runner)
    quick.until(lambda now: not now["replicas"])
    assert is_gone(engine)


def test_a_new_allocator_adopts_what_runs(quick: World) -> None:
    kept, idle = quick.ask("a", holder="keeper"), quick.ask("c")
    lease = kept.granted()
    idle.granted()
    idle.release()
    quick.call("pin", "c", True)
    before = quick.until_quiet()
    pids = quick.pids_of(lease["replica"])
    quick.heartbeats["keeper"] = [[kept.id, lease["replica"]]]

    quick.another_allocator()
    quick.call("heartbeat", "keeper", quick.heartbeats["keeper"])
    again = quick.ask("a", holder="keeper", request=kept.id)
    after = quick.until_quiet()

    assert [replica["id"] for replica in after["replicas"]] == [replica["id"] for replica in before["replicas"]]
    assert quick.pids_of(lease["replica"]) == pids, "nothing was loaded again"
    assert quick.replica(lease["replica"])["leases"] == 1
    assert again.granted() == lease
    assert quick.model("c")["pinned"]
    assert quick.decisions(decision="start") == []
    kept.release()
    quick.until(lambda now: all(replica["leases"] == 0 for replica in now["replicas"]))
    quick.call("pin", "c", False)
    quick.ask("b").granted()
    names = [replica["id"] for replica in quick.until_quiet()["replicas"]]
    assert len(names) == len(set(names)), "no id is used twice"


def test_another_policy_takes_effect_and_nothing_is_loaded_again(quick: World) -> None:
    replica = quick.ask("a").granted()["replica"]
    pids = quick.pids_of(replica)
    quick.deploy("scheduler: {policy: serial}\n" + QUICK)
    quick.until(lambda now: now["policy"] == "serial" and now["replicas"])
    assert quick.pids_of(replica) == pids


def test_a_runner_that_dies_while_there_is_no_allocator_is_not_adopted(quick: World) -> None:
    replica = quick.ask("a").granted()["replica"]
    runner, engine = quick.pids_of(replica)
    ray.kill(quick.allocator, no_restart=False)
    kill(runner)
    after = quick.until_quiet()
    assert is_gone(engine)
    assert all(found["endpoint"] for found in after["replicas"])
    assert quick.ask("a").granted()


def test_a_silent_holder_has_left(quick: World) -> None:
    lost, kept = quick.ask("c", holder="lost"), quick.ask("c", holder="kept")
    replica = lost.granted()["replica"]
    kept.granted()

    quick.heartbeats["kept"] = [[kept.id, replica]]
    quick.until(lambda now: now["replicas"][0]["leases"] == 1, within_s=30)
