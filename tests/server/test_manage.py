"""Looking after jobs from outside a worker, on both faces."""

from __future__ import annotations

import threading
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

import axeq
from axeq import Cancellation, State
from tests.support.masking import Mask
from tests.support.pools import quick_pool, running
from tests.support.probe import Probe, probe, probe_in_thread
from tests.support.waiting import DEADLINE, aeventually, settled

few_kinds = pytest.mark.kinds("uri", "motor", "mongomock")
"""For what does not depend on how a store was opened, but at most on the driver and on how a pool is woken."""


class Another(axeq.Model[None], name="another"):
    """A job of another task."""


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


@pytest.mark.parametrize("reason", [3, None, ["late"]], ids=repr)
async def test_a_cancel_for_a_reason_that_is_no_text_is_refused_and_cancels_nothing(queue: Any, reason: Any) -> None:
    job = await settled(queue.enqueue(Probe()))

    for cancelling in (lambda: queue.cancel(job.id, reason=reason), lambda: job.cancel(reason)):
        with pytest.raises(axeq.ConfigurationError, match="reason must be text, not"):
            await settled(cancelling())

    assert (await settled(job.refresh())).state is State.ENQUEUED


async def test_a_job_is_known_by_a_moment_as_by_any_id(queue: Any, jobs: Any) -> None:
    moment = datetime(2026, 5, 4, 12, 0, 0, 123_456, tzinfo=timezone(timedelta(hours=2)))
    job = await settled(queue.enqueue(Probe(value=1), id=moment))

    again = await settled(queue.enqueue(Probe(value=2), id=moment))
    found = await settled(queue.get(moment))

    assert (again.created, again.id, found.id) == (False, job.id, job.id)
    assert found.data["value"] == 1
    assert await settled(queue.exists(moment))
    assert await settled(queue.cancel(moment)) is Cancellation.CANCELLED
    assert await settled(queue.retry_many([moment])) == {}
    assert await settled(queue.remove_many([moment])) == 1
    assert jobs.count_documents({}) == 0


async def test_a_naive_moment_is_no_id(queue: Any, jobs: Any) -> None:
    moment = datetime(2026, 5, 4)  # noqa: DTZ001 - a naive one is what is refused

    for call in (queue.get, queue.remove, lambda moment: queue.enqueue(Probe(), id=moment)):
        with pytest.raises(axeq.ConfigurationError, match="id is a naive datetime"):
            await settled(call(moment))


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


@few_kinds
async def test_jobs_are_found_by_what_their_payload_holds(queue: Any) -> None:
    seven = await settled(queue.enqueue(Probe(value={"user": {"id": 7}, "tags": ["a", "b"]})))
    eight = await settled(queue.enqueue(Probe(value={"user": {"id": 8}, "tags": ["b"]})))

    async def found(**data: Any) -> list[Any]:
        return [
            job.id for job in await settled(queue.find(data={f"value.{path}": value for path, value in data.items()}))
        ]

    assert await found(**{"user.id": 7}) == [seven.id]
    assert await found(user={"id": 8}) == [eight.id]
    assert await found(tags="b") == [eight.id, seven.id]
    with pytest.raises(axeq.PayloadInvalid, match="user"):
        await found(**{"user.id": {"$gt": 0}})


@few_kinds
async def test_a_search_of_payloads_takes_no_operators_and_no_sealed_ones(queue: Any, store: axeq.Store) -> None:
    for data in ({"$where": "1"}, {"value.$ne": 1}, {"": 1}, {"a..b": 1}, {7: 1}, {}, "value"):
        with pytest.raises(axeq.ConfigurationError, match="data"):
            await settled(queue.find(data=data))

    store.codec = Mask()
    with pytest.raises(axeq.ConfigurationError, match="sealed"):
        await settled(queue.find(data={"value": 1}))


@few_kinds
async def test_the_dead_are_listed_last_first_and_cleared_without_those_that_were_asked_to_end(
    queue: Any, store: axeq.Store
) -> None:
    with running(pool_for(store)):
        died = [await made(queue, "cancel", label=label) for label in ("one", "two", "three")]
        for job in died:
            await until(queue, job.id, State.CANCELLED)
        asked = await made(queue, delay=600)
        await settled(asked.cancel())

    assert {job.id for job in await settled(queue.dead())} == {job.id for job in died}
    ends = [job.finished_at for job in await settled(queue.dead(name="probe"))]
    assert ends == sorted(ends, reverse=True)
    assert len(await settled(queue.dead(limit=1, skip=2))) == 1
    assert await settled(queue.dead(name="other")) == []
    await settled(queue.retry(died[0].id))
    assert await settled(queue.clear_dead(name="other")) == 0
    assert await settled(queue.clear_dead()) == 2
    assert {job.id for job in await settled(queue.find())} == {died[0].id, asked.id}


@few_kinds
async def test_stats_tell_the_tasks_apart(queue: Any, store: axeq.Store) -> None:
    await settled(queue.enqueue_many([Probe() for _ in range(3)]))
    await settled((await made(queue)).cancel())
    await settled(queue.enqueue(Another()))
    await settled(type(queue)(store, "elsewhere").enqueue(Another()))
    none = dict.fromkeys(State, 0)

    assert await settled(queue.stats_by_task()) == {
        "another": {**none, State.ENQUEUED: 1},
        "probe": {**none, State.ENQUEUED: 3, State.CANCELLED: 1},
    }
    assert sum(counts[State.ENQUEUED] for counts in (await settled(queue.stats_by_task(cap=2))).values()) == 2


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


@few_kinds
async def test_stats_count_no_further_than_asked(queue: Any) -> None:
    await settled(queue.enqueue_many([Probe() for _ in range(5)]))

    assert (await settled(queue.stats(cap=3)))[State.ENQUEUED] == 3


async def test_a_waiting_job_is_cancelled_at_once(queue: Any) -> None:
    job = await made(queue, label="one")

    assert await settled(queue.cancel(job.id, reason="not needed")) is Cancellation.CANCELLED
    found = await settled(job.refresh())
    assert (found.state, found.cause, found.available_at) == (State.CANCELLED, "requested", None)
    assert found.events[-1]["reason"] == "not needed"
    assert found.expire_at > found.finished_at
    await made(queue, label="one")


@few_kinds
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


@few_kinds
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


@few_kinds
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


@few_kinds
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


@few_kinds
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


@few_kinds
async def test_a_retry_whose_label_is_taken_meanwhile_is_refused(queue: Any) -> None:
    job = await made(queue, label="one")
    await settled(job.cancel())
    await made(queue, label="one")

    with pytest.raises(axeq.LabelTaken, match="'one'"):
        await settled(queue.retry(job.id))

    assert (await settled(job.refresh())).state is State.CANCELLED


@few_kinds
async def test_many_jobs_are_retried_and_each_that_cannot_be_is_reported(queue: Any) -> None:
    labelled, taken = await made(queue, label="free"), await made(queue, label="taken")
    plain = [await made(queue) for _ in range(3)]
    for job in (*plain, labelled, taken):
        await settled(job.cancel())
    await made(queue, label="taken")
    waiting = await made(queue)

    refused = await settled(queue.retry_many([*plain, labelled.id, taken, waiting.id, 17]))

    assert {identity: type(error) for identity, error in refused.items()} == {
        taken.id: axeq.LabelTaken,
        waiting.id: axeq.JobNotFound,
        17: axeq.JobNotFound,
    }
    again = [await settled(job.refresh()) for job in (*plain, labelled)]
    assert {(job.state, job.attempts, job.cause) for job in again} == {(State.ENQUEUED, 0, None)}
    assert {job.events[-1]["verb"] for job in again} == {"retry"}
    assert (await settled(taken.refresh())).state is State.CANCELLED


@few_kinds
async def test_many_jobs_are_removed_at_once(queue: Any) -> None:
    gone = [await made(queue) for _ in range(3)]
    kept = await made(queue)

    assert await settled(queue.remove_many([gone[0], gone[1].id, gone[2], 17])) == 3
    assert await settled(queue.remove_many([])) == 0

    assert [job.id for job in await settled(queue.find())] == [kept.id]


@few_kinds
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


@few_kinds
async def test_removing_a_running_job_costs_its_worker_the_lease(
    queue: Any, store: axeq.Store, caplog: pytest.LogCaptureFixture
) -> None:
    pool = quick_pool(store)
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
    monkeypatch.setattr("axeq.running.shift._CONTROLS_EVERY", 0.1)

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


@few_kinds
async def test_a_pause_does_not_touch_the_jobs(queue: Any) -> None:
    job = await made(queue)

    await settled(queue.pause())

    assert (await settled(queue.get(job.id))).document == job.document
