"""Whoever starts and ends pools in one process keeps nothing of them."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest

import axeq
from tests.faults.arena import Arena
from tests.faults.leaks import Belongings
from tests.faults.proxy import Proxy
from tests.faults.scale import size
from tests.faults.tasks import Work
from tests.faults.toxics import BlackHole
from tests.support.waiting import aeventually, eventually

pytestmark = pytest.mark.usefixtures("nothing_left")

MakeArena = Callable[..., Arena]


async def work(ctx: axeq.Context[Work, int]) -> int:
    await asyncio.sleep(ctx.model.seconds)
    return ctx.model.number


def work_in_thread(ctx: axeq.Context[Work, int]) -> int:
    return ctx.model.number


@pytest.mark.fault("F62")
@pytest.mark.parametrize("handler", [work, work_in_thread])
async def test_pools_that_have_ended_leave_no_task_thread_or_socket(arena: MakeArena, handler: Any) -> None:
    scene = arena()
    await _one_run(scene.uri, handler)  # what is made once per process, is made
    before, tasks = Belongings.now(), asyncio.all_tasks()

    for _ in range(size(3, full=50)):
        await _one_run(scene.uri, handler)

    await aeventually(lambda: asyncio.all_tasks() == tasks)
    await aeventually(lambda: _nothing_since(before))


@pytest.mark.fault("F62")
async def test_a_pool_that_ends_while_its_server_is_silent_leaves_nothing(
    arena: MakeArena, proxy: Proxy, database: str
) -> None:
    scene = arena(through=proxy.uri(database))
    await _one_run(scene.through, work)
    before, tasks = Belongings.now(), asyncio.all_tasks()

    hole = BlackHole()
    async with axeq.Store(scene.through, timeout=3) as store:
        pool = axeq.Pool(store, lease=2, drain=1)
        pool.add(axeq.Task(Work, work))
        async with pool:
            proxy.add(hole)

    await aeventually(lambda: asyncio.all_tasks() == tasks)
    assert hole.count > 0, "the pool's end was not silent"
    proxy.remove(hole)
    proxy.reset()
    await aeventually(lambda: _nothing_since(before))


@pytest.mark.fault("F62")
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_queue_on_one_event_loop_after_another_keeps_nothing_of_those_that_ended(arena: MakeArena) -> None:
    store = axeq.Store(arena().uri)
    queue = axeq.AsyncQueue(store)
    loops: list[weakref.ref[asyncio.AbstractEventLoop]] = []

    async def enqueue() -> None:
        loops.append(weakref.ref(asyncio.get_running_loop()))
        await queue.enqueue(Work(number=7))

    for _ in range(4):
        asyncio.run(enqueue())

    # The last one's client is let go when the next one comes.
    eventually(lambda: _gone(loops[:-1]))
    store.close()
    eventually(lambda: _gone(loops))


def _gone(loops: list[weakref.ref[asyncio.AbstractEventLoop]]) -> None:
    gc.collect()
    assert [loop() for loop in loops if loop() is not None] == []


async def _one_run(uri: str, handler: Any) -> None:
    async with axeq.Store(uri) as store:
        pool = axeq.Pool(store, drain=5)
        pool.add(axeq.Task(Work, handler))
        async with pool:
            job = await axeq.AsyncQueue(store).enqueue(Work(number=7))
            assert await job.wait(20) == 7


def _nothing_since(before: Belongings) -> None:
    assert Belongings.now().since(before) == []
