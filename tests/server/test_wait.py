"""Waiting for jobs to end, on both faces: by change stream where there are any, by looking elsewhere."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest

import axeq
from axeq import State
from axeq.rules.waiting import _Awaited
from tests.support.pools import quick_pool, running
from tests.support.probe import Probe, probe
from tests.support.waiting import DEADLINE, aeventually, eventually, settled

pytestmark = pytest.mark.kinds("uri", "motor", "mongomock")
"""Those whose change streams differ; nothing else of it depends on how a store was opened."""


async def made(queue: Any, outcome: Any = "ok", **options: Any) -> Any:
    return await settled(queue.enqueue(Probe(outcome=outcome), **options))


def opened(store: axeq.Store) -> int:
    """Returns how many change streams the store has opened for waits."""
    return store._changes.opened


@contextmanager
def pool_of(store: axeq.Store) -> Iterator[axeq.Pool]:
    pool = quick_pool(store)
    pool.add(axeq.Task(Probe, probe, workers=4))
    with running(pool):
        yield pool


def canceller(store: axeq.Store, job: Any) -> Callable[[], Any]:
    return lambda: axeq.Queue(store).cancel(job.id)


@contextmanager
def meanwhile(ready: Any, act: Any) -> Iterator[None]:
    """Calls `act` in a thread as soon as `ready()` holds."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            eventually(ready)
            act()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        thread.join()
    assert failures == []


async def test_wait_gives_up_at_its_timeout_and_leaves_the_job(queue: Any) -> None:
    job = await made(queue)

    with pytest.raises(axeq.WaitTimeout, match=f"job {job.id} is still enqueued after 0.05 s"):
        await settled(job.wait(0.05))
    with pytest.raises(TimeoutError):
        await settled(queue.wait(job.id, timeout=timedelta(seconds=0)))

    assert (await settled(job.refresh())).state is State.ENQUEUED


async def test_wait_tells_that_the_job_was_cancelled_and_why(queue: Any) -> None:
    job = await made(queue)
    await settled(job.cancel("not needed"))

    with pytest.raises(axeq.JobCancelled, match="requested") as caught:
        await settled(job.wait(DEADLINE))

    assert (caught.value.id, caught.value.cause) == (job.id, "requested")


async def test_wait_tells_that_the_job_was_removed_meanwhile(
    queue: Any, jobs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = threading.Event()
    monkeypatch.setattr("axeq.rules.waiting._Awaited.look", _noting(seen))
    job = await made(queue)

    with pytest.raises(axeq.JobGone), meanwhile(seen.is_set, lambda: jobs.delete_one({"_id": job.id})):
        await settled(job.wait(DEADLINE))


def _noting(looked: threading.Event) -> Callable[[_Awaited], Any]:
    """Returns the look of a wait, setting `looked` after the first."""
    look = _Awaited.look

    def noted(self: _Awaited) -> Any:
        ended = yield from look(self)
        looked.set()
        return ended

    return noted


@pytest.mark.needs("streams")
async def test_a_wait_hears_of_the_end_by_change_stream(queue: Any, store: axeq.Store) -> None:
    job = await made(queue)

    with (
        meanwhile(lambda: opened(store) > 0, canceller(store, job)),
        pytest.raises(axeq.JobCancelled),
    ):
        await settled(job.wait(DEADLINE))

    assert opened(store) == 1


@pytest.mark.needs("streams")
async def test_a_wait_hears_of_a_removal_by_change_stream(queue: Any, store: axeq.Store) -> None:
    job = await made(queue)

    with pytest.raises(axeq.JobGone), meanwhile(lambda: opened(store) > 0, lambda: axeq.Queue(store).remove(job.id)):
        await settled(job.wait(DEADLINE))


@pytest.mark.needs("streams")
async def test_a_wait_by_change_stream_gives_up_at_its_timeout(queue: Any, store: axeq.Store) -> None:
    job = await made(queue)

    with pytest.raises(axeq.WaitTimeout, match=r"still enqueued after 3 s"):
        await settled(job.wait(3))

    assert opened(store) >= 1


@pytest.mark.needs("streams")
async def test_a_job_that_completes_while_a_wait_opens_its_stream_is_not_missed(queue: Any, store: axeq.Store) -> None:
    jobs = await settled(queue.enqueue_many([Probe(value=number) for number in range(20)], delay=0.08))
    with pool_of(store):
        results = [await settled(job.wait(DEADLINE)) for job in jobs]

    assert results == list(range(20))


@pytest.mark.needs("streams")
async def test_no_more_than_sixteen_waits_have_a_stream_at_once_and_the_others_poll(
    store: axeq.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("axeq.rules.waiting._STREAMED", DEADLINE)  # none ends, and is opened anew, while others begin
    queue = axeq.AsyncQueue(store)
    jobs = await queue.enqueue_many([Probe(value=number) for number in range(24)])
    waits = [asyncio.create_task(job.wait(DEADLINE)) for job in jobs]
    await aeventually(lambda: opened(store) >= 16)
    assert not store._changes._free.acquire(blocking=False)
    assert opened(store) == 16

    with pool_of(store):
        results = await asyncio.gather(*waits)

    assert results == list(range(24))


async def test_where_a_server_has_no_streams_a_wait_polls(queue: Any, store: axeq.Store, monkeypatch: Any) -> None:
    monkeypatch.setattr("axeq.wire.changes._has_streams", lambda client: False)
    job = await made(queue)

    with pytest.raises(axeq.JobCancelled), meanwhile(lambda: True, canceller(store, job)):
        await settled(job.wait(DEADLINE))

    assert opened(store) == 0


@pytest.mark.needs("streams")
async def test_a_stream_that_the_server_refuses_is_not_asked_for_again_at_once(
    queue: Any, store: axeq.Store, monkeypatch: Any
) -> None:
    monkeypatch.setattr("axeq.wire.changes._pipeline", lambda ids: [{"$noSuchStage": {}}])
    job = await made(queue)

    with (
        meanwhile(lambda: store._changes._resting_until > 0, canceller(store, job)),
        pytest.raises(axeq.JobCancelled),
    ):
        await settled(job.wait(DEADLINE))

    assert opened(store) == 0


async def test_many_jobs_are_waited_for_together_whatever_their_end(queue: Any, store: axeq.Store) -> None:
    jobs = [await made(queue, outcome) for outcome in ("ok", "cancel", "ok")]

    with pool_of(store):
        ended = await settled(queue.wait_many([jobs[2], jobs[0].id, jobs[1]], timeout=DEADLINE))

    assert [job.id for job in ended] == [jobs[2].id, jobs[0].id, jobs[1].id]
    assert [job.state for job in ended] == [State.COMPLETED, State.COMPLETED, State.CANCELLED]
    assert ended[0].payload == Probe()


async def test_a_wait_for_many_gives_up_at_its_timeout_and_names_one(queue: Any) -> None:
    jobs = [await made(queue), await made(queue)]

    with pytest.raises(axeq.WaitTimeout, match=r"after 0\.2 s \(1 other has") as caught:
        await settled(queue.wait_many(jobs, timeout=0.2))

    assert caught.value.id == jobs[0].id
    with pytest.raises(axeq.JobNotFound, match="no job 17"):
        await settled(queue.wait_many([jobs[0], 17]))
    assert await settled(queue.wait_many([])) == []
