"""One replica over several nodes, as engines see it: a process on each, one of which leads and serves."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Sequence
from dataclasses import replace

import pytest

from rayscheduler.engines import EngineRequest, by_name
from rayscheduler.engines.ports import claim_port
from rayscheduler.engines.process import EngineProcess, Exit, log_file_name
from rayscheduler.errors import EngineError
from tests.engines.conftest import Start, command, refusal_of, simulated
from tests.engines.pids import BOUND_S, argv_of, python

HOST = "127.0.0.1"


def by_rank(count: int, request: EngineRequest) -> list[EngineRequest]:
    """The request as each of its nodes gets it."""
    claimed = claim_port(HOST)
    port = claimed.number
    claimed.release()
    whole = replace(request, node_count=count, leader_host=HOST, leader_port=port)
    return [replace(whole, node_rank=rank) for rank in range(count)]


async def ready(start: Start, count: int, request: EngineRequest) -> list[EngineProcess]:
    parts = [start("simulated", part) for part in by_rank(count, request)]
    for part in parts:
        await part.wait_ready(BOUND_S)
    return parts


async def ended(part: EngineProcess) -> Exit:
    return await asyncio.wait_for(part.wait_exit(), BOUND_S)


async def test_the_leader_is_ready_when_all_its_followers_have_joined(start: Start) -> None:
    leader_part, *follower_parts = by_rank(3, simulated())
    leader = start("simulated", leader_part)
    assert "HTTP 503 from /health" in await refusal_of(leader)
    first = start("simulated", follower_parts[0])
    await first.wait_ready()  # it has nothing to say
    assert "HTTP 503 from /health" in await refusal_of(leader)
    start("simulated", follower_parts[1])
    await leader.wait_ready(BOUND_S)


async def test_followers_may_be_there_first_and_strangers_do_not_count(start: Start) -> None:
    leader_part, follower_part = by_rank(2, simulated())
    follower = start("simulated", follower_part)
    leader = start("simulated", leader_part)
    await leader.wait_ready(BOUND_S)
    for hello in (b"1\n", b"2\n", b"nonsense\n"):
        with socket.create_connection((HOST, leader_part.leader_port), timeout=BOUND_S) as stranger:
            stranger.sendall(hello)
            assert stranger.recv(1) == b"", "it is not one of them, or is there already"
    assert leader.exit is None
    assert follower.exit is None


async def test_the_loss_of_one_follower_ends_all(start: Start) -> None:
    leader, second, third = await ready(start, 3, simulated())
    os.kill(third.pid, signal.SIGKILL)
    assert (await ended(leader)).words == "exited with status 1"
    assert leader.log_tail() == "a: the connection to its node 2 was lost"
    await ended(second)
    assert second.log_tail() == "a: the connection to its leader was lost"


async def test_the_loss_of_the_leader_ends_its_followers(start: Start) -> None:
    leader, *followers = await ready(start, 3, simulated())
    os.kill(leader.pid, signal.SIGKILL)
    for follower in followers:
        assert (await ended(follower)).words == "exited with status 1"


async def test_each_node_holds_its_own_part_of_the_memory(start: Start) -> None:
    mib = 1 << 20
    leader_part, follower_part = by_rank(2, simulated(simulate={"allocate": True}))
    leader = start("simulated", replace(leader_part, device_bytes=(100 * mib,)))
    follower = start("simulated", replace(follower_part, device_bytes=(80 * mib, 80 * mib)))
    await leader.wait_ready(BOUND_S)
    assert leader.measured_bytes() == pytest.approx(100 * mib, rel=0.15)
    assert follower.measured_bytes() == pytest.approx(160 * mib, rel=0.15)


def test_each_node_has_a_log_of_its_own() -> None:
    assert log_file_name("org/m#1", 2) == "org%2Fm#1-node2.log"
    assert log_file_name("org/m#1") == "org%2Fm#1.log"


async def test_any_command_can_span_nodes_if_it_asks_which_one_it_is(start: Start) -> None:
    places = ("${NODE_RANK}", "${NODE_COUNT}", "${LEADER_HOST}:${LEADER_PORT}")
    request = command(*python("import signal; signal.pause()", *places))
    parts = by_rank(2, request)
    for part in parts:
        by_name("command").check(part)
    follower = start("command", parts[1])
    await follower.wait_ready()
    assert argv_of(follower.pid)[-4:] == ["1", "2", f"{HOST}:{parts[1].leader_port}", ""]


@pytest.mark.parametrize("args", [("serve",), ("serve", "${NODE_COUNT}"), ("serve", "$${NODE_RANK}")])
def test_a_command_that_cannot_tell_its_nodes_apart_is_refused(args: Sequence[str]) -> None:
    request = command(*args)
    by_name("command").validate(request)
    with pytest.raises(EngineError, match=r"placed over 2 nodes, and its command cannot tell them apart; use"):
        by_name("command").validate(replace(request, node_count=2))


def test_an_engine_of_one_node_is_refused_on_two() -> None:
    request = EngineRequest("m", "m#1", source="m.gguf", node_count=2)
    with pytest.raises(EngineError, match="placed over 2 nodes, which the engine llama-cpp cannot serve"):
        by_name("llama-cpp").validate(request)
