"""A bound in time that keeps cancellations."""

from __future__ import annotations

import asyncio

import pytest

from rayscheduler.cluster.bounded import within


async def test_result_in_time() -> None:
    async def answer() -> int:
        return 42

    assert await within(5.0, answer()) == 42


async def test_work_that_takes_too_long_is_cancelled() -> None:
    work = asyncio.get_running_loop().create_future()
    with pytest.raises(asyncio.TimeoutError):
        await within(0.001, work)
    assert work.cancelled()


async def test_errors_pass() -> None:
    async def fail() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        await within(5.0, fail())


@pytest.mark.parametrize("done_first", [True, False])
async def test_cancelled_in_the_moment_of_the_result(done_first: bool) -> None:
    work = asyncio.get_running_loop().create_future()
    waiting = asyncio.create_task(within(5.0, work))
    await asyncio.sleep(0)
    if done_first:
        work.set_result(1)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_cancelling_the_waiter_cancels_the_work() -> None:
    work = asyncio.get_running_loop().create_future()
    waiting = asyncio.create_task(within(5.0, work))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert work.cancelled()
