"""Looking after jobs from outside a worker, on both faces."""

from __future__ import annotations

import threading
from datetime import timedelta
from typing import Any

import pytest

import axeq
from axeq import Cancellation, State
from tests.support.pools import quick_pool, running
from tests.support.probe import Probe, probe, probe_in_thread
from tests.support.waiting import DEADLINE, aeventually, settled

HANDLERS = {"loop": probe, "thread": probe_in_thread}


def pool_for(store: axeq.Store, handler: Any = probe, **options: Any) -> axeq.Pool:
    pool = quick_pool(store)
    pool.add(axeq.Task(Probe, handler, **{"min_delay": 600, **options}))
    return pool


async def until(queue: Any, identity: Any, state: State) -> Any:
    """Returns the job once it is in `state`."""

    async def there() -> Any:
        job = await settled(queue.get(identity))
        assert job.state is state, job
        return job

    return await aeventually(there)


async def made(queue: Any, outcome: Any = "ok", **options: Any) -> Any:
    return await settled(queue.enqueue(Probe(outcome=outcome), **options))


async def test_a_job_that_is_not_there_is_an_error(queue: Any) -> None:
    for call in (queue.get, queue.cancel, queue.retry, queue.wait):
        with pytest.raises(axeq.JobNotFound, match="no job 17") as caught:
            await settled(call(17))
        assert caught.value.id == 17

    assert await settled(queue.remove(17)) is False


async def test_jobs_are_found_by_state_name_and_label_newest_first(queue: Any, store: axeq.Store) -> None:
    first, second = await made(queue), await made(queue, label="one")
    other = await settled(queue.enqueue(Probe(), run_at=None))
    await settled(queue.cancel(other.id))
    await settled(type(queue)(store, "elsewhere").enqueue(Probe()))

    async def found(**query: Any) -> list[Any]:
        return [job.id for job in await settled(queue.find(**query))]

    assert await found() == [other.id, second.id, first.id]
    assert await found(state=State.ENQUEUED) == [second.id, first.id]
    assert await found(state=State.ENQUEUED, limit=1, skip=1) == [first.id]
    assert await found(name="probe", label="one") == [second.id]
    assert await found(name="other") == []


async def test_stats_count_the_jobs_of_the_queue_by_state(queue: Any, store: axeq.Store) -> None:
    for outcome in ("ok", "ok", "raise", "cancel"):
        await made(queue, outcome)
    await made(queue, delay=600)
    await settled(type(queue)(store, "elsewhere").enqueue(Probe()))
    expected = {State.ENQUEUED: 1, State.DEQUEUED: 0, State.COMPLETED: 2, State.FAILED: 1, State.CANCELLED: 1}

    async def counted() -> None:
        assert await settled(queue.stats()) == expected

    with running(pool_for(store)):
        await aeventually(counted)


async def test_stats_count_no_further_than_asked(queue: Any) -> None:
    await settled(queue.enqueue_many([Probe() for _ in range(5)]))

    assert (await settled(queue.stats(cap=3)))[State.ENQUEUED] == 3


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


async def test_wait_tells_that_the_job_was_removed_meanwhile(queue: Any, jobs: Any) -> None:
    job = await made(queue)
    remover = threading.Timer(0.2, lambda: jobs.delete_one({"_id": job.id}))
    remover.start()

    with pytest.raises(axeq.JobGone):
        await settled(job.wait(DEADLINE))
    remover.join()


async def test_a_waiting_job_is_cancelled_at_once(queue: Any) -> None:
    job = await made(queue, label="one")

    assert await settled(queue.cancel(job.id, reason="not needed")) is Cancellation.CANCELLED
    found = await settled(job.refresh())
    assert (found.state, found.cause, found.available_at) == (State.CANCELLED, "requested", None)
    assert found.events[-1]["reason"] == "not needed"
    assert found.expire_at > found.finished_at
    await made(queue, label="one")


@pytest.mark.parametrize("handler", HANDLERS)
async def test_cancelling_a_running_job_stops_its_handler(queue: Any, store: axeq.Store, handler: str) -> None:
    with running(pool_for(store, HANDLERS[handler])) as pool:
        job = await made(queue, "hang")
        await until(queue, job.id, State.DEQUEUED)

        assert await settled(job.cancel("stop it")) is Cancellation.REQUESTED
        found = await until(queue, job.id, State.CANCELLED)

    assert found.cause == "requested"
    assert found.events[-1]["reason"] == "stop it"
    assert not found.cancel_requested
    assert pool.counts["cancel"] == 1


async def test_a_completion_wins_over_a_cancel_that_came_late(queue: Any, store: axeq.Store) -> None:
    finish = threading.Event()
    pool = quick_pool(store)

    @pool.task(Probe)
    def deaf(ctx: axeq.Context[Probe, Any]) -> str:
        finish.wait(DEADLINE)
        return "done"

    with running(pool):
        job = await made(queue)
        await until(queue, job.id, State.DEQUEUED)
        asked = await settled(job.cancel())
        finish.set()

        assert asked is Cancellation.REQUESTED
        assert await settled(job.wait(DEADLINE)) == "done"
        assert await settled(job.cancel()) is Cancellation.TOO_LATE


async def test_a_failure_under_a_cancel_ends_the_job(queue: Any, store: axeq.Store) -> None:
    finish = threading.Event()
    pool = quick_pool(store)

    @pool.task(Probe, min_delay=600)
    def fails(ctx: axeq.Context[Probe, Any]) -> None:
        finish.wait(DEADLINE)
        raise ValueError("broken")

    with running(pool):
        job = await made(queue)
        await until(queue, job.id, State.DEQUEUED)
        await settled(job.cancel())
        finish.set()

        assert (await until(queue, job.id, State.CANCELLED)).cause == "requested"


async def test_a_job_whose_worker_is_gone_is_cancelled_at_once(queue: Any, jobs: Any) -> None:
    job = await made(queue)
    jobs.update_one(
        {"_id": job.id}, {"$set": {"state": "dequeued", "claim": {"token": 1, "worker": "gone"}, "lost": 1}}
    )

    assert await settled(job.cancel()) is Cancellation.CANCELLED


async def test_a_failed_job_retried_by_hand_runs_at_once_as_if_new(queue: Any, store: axeq.Store) -> None:
    with running(pool_for(store)):
        job = await made(queue, "raise")
        await until(queue, job.id, State.FAILED)

    again = await settled(job.retry())

    assert (again.state, again.attempts, again.error) == (State.ENQUEUED, 0, None)
    assert again.events[-1]["verb"] == "retry"
    with running(pool_for(store)):
        assert (await until(queue, job.id, State.FAILED)).attempts == 1


@pytest.mark.parametrize("outcome", ["ok", "cancel"])
async def test_an_ended_job_retried_by_hand_is_live_again_and_not_removed(
    queue: Any, store: axeq.Store, outcome: Any
) -> None:
    job = await made(queue, outcome)
    with running(pool_for(store)):
        await until(queue, job.id, State.COMPLETED if outcome == "ok" else State.CANCELLED)

    again = await settled(queue.retry(job.id))

    assert (again.state, again.attempts, again.lost) == (State.ENQUEUED, 0, 0)
    assert (again.finished_at, again.expire_at, again.cause, again.result) == (None, None, None, None)
    assert again.available_at is not None


async def test_a_retry_whose_label_is_taken_meanwhile_is_refused(queue: Any) -> None:
    job = await made(queue, label="one")
    await settled(job.cancel())
    await made(queue, label="one")

    with pytest.raises(axeq.LabelTaken, match="'one'"):
        await settled(queue.retry(job.id))

    assert (await settled(job.refresh())).state is State.CANCELLED


async def test_a_job_that_waits_already_is_not_retried(queue: Any) -> None:
    job = await made(queue, delay=600)

    with pytest.raises(axeq.JobNotFound, match=f"job {job.id} is enqueued: only a job that has failed or ended"):
        await settled(queue.retry(job.id))

    assert (await settled(queue.get(job.id))).document == job.document


async def test_a_removed_job_is_gone(queue: Any) -> None:
    job = await made(queue)

    assert await settled(job.remove()) is True
    assert await settled(job.remove()) is False
    with pytest.raises(axeq.JobNotFound):
        await settled(job.refresh())


async def test_removing_a_running_job_costs_its_worker_the_lease(
    queue: Any, store: axeq.Store, caplog: pytest.LogCaptureFixture
) -> None:
    pool = quick_pool(store, lease=0.6)
    pool.add(axeq.Task(Probe, probe))
    with running(pool):
        job = await made(queue, "hang")
        await until(queue, job.id, State.DEQUEUED)

        assert await settled(queue.remove(job.id)) is True
        await aeventually(lambda: pool.counts["lost"] == 1)

    assert f"LeaseLost: job {job.id}" in caplog.text
    assert await settled(queue.find()) == []


@pytest.mark.parametrize("name", [None, "probe"], ids=["queue", "task"])
async def test_a_paused_queue_or_task_starts_nothing_until_it_is_resumed(
    queue: Any, store: axeq.Store, name: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("axeq.shift._CONTROLS_EVERY", 0.1)

    class Other(axeq.Model[int], name="other"):
        pass

    pool = pool_for(store)

    @pool.task(Other)
    async def other(ctx: axeq.Context[Other, int]) -> int:
        return 2

    await settled(queue.pause(name))
    with running(pool):
        waiting, free = await made(queue), await settled(queue.enqueue(Other()))
        if name:
            assert await settled(free.wait(DEADLINE)) == 2
        assert (await settled(waiting.refresh())).state is State.ENQUEUED

        await settled(queue.resume(name))

        await settled(waiting.wait(DEADLINE))
        assert await settled(free.wait(DEADLINE)) == 2


async def test_a_pause_does_not_touch_the_jobs(queue: Any) -> None:
    job = await made(queue)

    await settled(queue.pause())

    assert (await settled(queue.get(job.id))).document == job.document
