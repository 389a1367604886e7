"""Pulling jobs without a pool, on both faces."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
from pydantic import BaseModel

import axeq
from axeq import State
from tests.support.masking import Mask
from tests.support.probe import Probe, stored_probe
from tests.support.waiting import DEADLINE, aeventually, due, eventually, settled

pytestmark = pytest.mark.kinds("uri", "motor", "mongomock")
"""Those whose drivers or whose waiting differ; nothing else of it depends on how a store was opened."""


class Cursor(BaseModel):
    page: int


class Grown(axeq.Model[Any], name="probe"):
    """The probe's payload as a later release sees it."""

    needed: int


async def made(queue: Any, count: int = 1, **options: Any) -> list[Any]:
    """Enqueues jobs; those without a delay are certainly due once it returns, however roughly the time is known."""
    jobs = list(await settled(queue.enqueue_many([Probe(value=number) for number in range(count)], **options)))
    if "delay" not in options:
        due(queue.store, jobs[-1])
    return jobs


async def taken(queue: Any, count: int = 1, **options: Any) -> list[Any]:
    return list(await settled(queue.take(Probe, count, **options)))


async def one(queue: Any, **options: Any) -> Any:
    """Returns the lease of a job that is due now, or in a moment."""

    async def there() -> Any:
        leases = await taken(queue, **options)
        assert leases
        return leases[0]

    return await aeventually(there)


async def each(consumer: Any) -> AsyncIterator[Any]:
    """Yields what a consumer of either face yields; the sync one's waits block a thread."""
    if hasattr(consumer, "__aiter__"):
        async for lease in consumer:
            yield lease
        return
    leases = iter(consumer)
    while (lease := await asyncio.to_thread(next, leases, None)) is not None:
        yield lease


async def state_of(queue: Any, job: Any) -> State:
    return (await settled(queue.get(job.id))).state


async def test_jobs_are_taken_in_order_with_their_payload(queue: Any) -> None:
    late = (await made(queue, 1, priority=5))[0]
    soon = await made(queue, 2)

    leases = await taken(queue, 5, worker="me")

    assert [lease.job.id for lease in leases] == [soon[0].id, soon[1].id, late.id]
    assert [lease.model for lease in leases] == [Probe(value=0), Probe(value=1), Probe(value=0)]
    assert {(lease.job.state, lease.job.worker, lease.attempt) for lease in leases} == {("dequeued", "me", 1)}
    assert await taken(queue, 5) == []


async def test_no_more_jobs_are_taken_than_asked_for_and_none_before_its_time(queue: Any) -> None:
    await made(queue, 3)
    await made(queue, 1, delay=600)

    assert [len(await taken(queue, 2)) for _ in range(3)] == [2, 1, 0]


async def test_a_paused_queue_or_task_hands_nothing_out(queue: Any) -> None:
    await made(queue)

    for name in (None, "probe"):
        await settled(queue.pause(name))
        assert await taken(queue) == []
        await settled(queue.resume(name))
    assert len(await taken(queue)) == 1


async def test_a_lease_completes_its_job_with_a_result(queue: Any) -> None:
    (job,) = await made(queue)
    lease = await one(queue)

    assert await settled(lease.complete({"made": 1})) is State.COMPLETED

    ended = await settled(job.refresh())
    assert await settled(job.wait(DEADLINE)) == {"made": 1}
    assert (ended.attempts, ended.lost) == (1, 0)
    assert ended.started_at <= ended.ended_at
    assert lease.settled


async def test_a_failed_job_comes_again_after_its_delay_until_its_attempts_are_used_up(queue: Any) -> None:
    (job,) = await made(queue)
    lease = await one(queue, max_attempts=2)

    assert await settled(lease.fail(ValueError("broken"), delay=0)) is State.FAILED
    again = await one(queue, max_attempts=2)
    assert await settled(again.fail("broken once more")) is State.CANCELLED

    ended = await settled(job.refresh())
    assert (ended.cause, ended.attempts) == ("exhausted", 2)
    assert [error.type for error in ended.errors] == ["ValueError", "Failure"]


async def test_a_failure_waits_for_the_backoff_by_default(queue: Any) -> None:
    (job,) = await made(queue)
    lease = await one(queue, backoff=axeq.backoff.Constant(300))

    await settled(lease.fail(ValueError("broken")))

    wait = (await settled(job.refresh())).available_at - datetime.now(UTC)
    assert timedelta(seconds=250) < wait < timedelta(seconds=350)


async def test_a_snoozed_job_is_put_back_uncounted_with_new_data(queue: Any) -> None:
    (job,) = await made(queue)
    lease = await one(queue)

    assert await settled(lease.snooze(delay=0, data=Probe(value="new"))) is State.ENQUEUED

    again = await one(queue)
    assert (again.model.value, again.attempt) == ("new", 1)
    with pytest.raises(axeq.ConfigurationError, match="exactly one"):
        await settled(again.snooze())
    await settled(again.snooze(at=datetime.now(UTC) + timedelta(hours=1)))
    assert await state_of(queue, job) is State.ENQUEUED


async def test_a_released_job_is_as_it_was(queue: Any) -> None:
    (job,) = await made(queue)

    assert await settled((await one(queue)).release("not mine")) is State.ENQUEUED

    found = await settled(job.refresh())
    assert (found.attempts, found.lost, found.events[-1]["reason"]) == (0, 0, "not mine")


async def test_a_lease_ends_its_job_for_good(queue: Any) -> None:
    (job,) = await made(queue)

    assert await settled((await one(queue)).cancel("not wanted")) is State.CANCELLED

    assert (await settled(job.refresh())).cause == "handler"


@pytest.mark.parametrize(
    ("verb", "given", "named"),
    [
        ("cancel", {"reason": 3}, "reason must be text, not int"),
        ("cancel", {"reason": None}, "reason must be text, not NoneType"),
        ("release", {"reason": ["full"]}, "reason must be text, not list"),
        ("snooze", {"delay": 5, "reason": ValueError("busy")}, "reason must be text, not ValueError"),
        ("fail", {"error": 3}, "fail takes an exception or text, not int"),
    ],
)
async def test_what_is_no_reason_is_refused_and_leaves_the_lease_as_it_is(
    queue: Any, verb: str, given: Any, named: str
) -> None:
    await made(queue)
    lease = await one(queue)

    with pytest.raises(axeq.ConfigurationError, match=named):
        await settled(getattr(lease, verb)(**given))

    assert await settled(lease.complete("small")) is State.COMPLETED


async def test_a_result_that_cannot_be_stored_leaves_the_lease_as_it_is(queue: Any) -> None:
    await made(queue)
    lease = await one(queue)

    with pytest.raises(axeq.ResultInvalid):
        await settled(lease.complete(object()))

    assert await settled(lease.complete("small")) is State.COMPLETED


async def test_a_heartbeat_keeps_the_lease_and_stores_the_checkpoint(queue: Any) -> None:
    (job,) = await made(queue)
    lease = await one(queue, lease=5)
    before = lease.expires_at

    await settled(lease.heartbeat(Cursor(page=3)))
    await settled(lease.heartbeat())

    assert lease.expires_at >= before
    assert lease.restore(Cursor) == Cursor(page=3)
    await settled(lease.fail("later", delay=0))
    again = await one(queue)
    assert again.restore(Cursor) == Cursor(page=3)
    await settled(again.complete())
    assert "checkpoint" not in (await settled(job.refresh())).document


async def test_a_checkpoint_is_sealed_where_payloads_are(queue: Any, store: axeq.Store) -> None:
    store.codec = Mask()
    (job,) = await made(queue)
    lease = await one(queue)

    await settled(lease.heartbeat(Cursor(page=77)))
    await settled(lease.release())

    stored = (await settled(job.refresh())).document["checkpoint"]
    assert isinstance(stored, bytes)
    assert (await one(queue)).restore(Cursor) == Cursor(page=77)


async def test_a_lease_that_lapsed_is_lost_and_changes_nothing(queue: Any, jobs: Any) -> None:
    (job,) = await made(queue)
    stale = await one(queue, worker="slow")
    jobs.update_one({"_id": job.id}, {"$set": {"available_at": datetime.now(UTC) - timedelta(seconds=60)}})
    fresh = await one(queue, worker="quick")
    before = jobs.find_one({"_id": job.id})

    for call in (
        lambda: stale.heartbeat(Cursor(page=1)),
        lambda: stale.complete("stale"),
        lambda: stale.fail("stale"),
        lambda: stale.snooze(delay=1),
        lambda: stale.cancel(),
        lambda: stale.release(),
    ):
        with pytest.raises(axeq.LeaseLost, match=str(job.id)):
            await settled(call())

    assert jobs.find_one({"_id": job.id}) == before
    assert (fresh.job.worker, fresh.job.lost, fresh.attempt) == ("quick", 2, 1)
    await settled(fresh.complete("fresh"))
    assert await settled(job.wait(DEADLINE)) == "fresh"


async def test_a_lease_that_has_ended_takes_no_other_verb(queue: Any) -> None:
    (job,) = await made(queue)
    lease = await one(queue)
    await settled(lease.complete(1))

    for call in (lambda: lease.fail("x"), lambda: lease.complete(2), lease.heartbeat):
        with pytest.raises(axeq.LeaseLost, match="has ended: completed"):
            await settled(call())

    assert await settled(job.wait(DEADLINE)) == 1


async def test_a_cancel_that_was_asked_for_is_seen_and_wins_over_a_failure(queue: Any) -> None:
    (job,) = await made(queue)
    lease = await one(queue)
    await settled(queue.cancel(job.id, reason="stop it"))

    await settled(lease.heartbeat())

    assert lease.cancelled
    assert await settled(lease.fail("as well")) is State.CANCELLED
    assert (await settled(job.refresh())).cause == "requested"


async def test_jobs_that_are_not_fit_to_run_end_and_are_not_handed_out(queue: Any, jobs: Any) -> None:
    now = datetime.now(UTC)
    unfit = {
        "invalid": stored_probe(data={"outcome": "nonsense"}),
        "expired": stored_probe(deadline=now - timedelta(hours=1)),
        "exhausted": stored_probe(attempts=3),
    }
    jobs.insert_many(list(unfit.values()))
    (good,) = await made(queue)

    leases = await taken(queue, 10, max_attempts=3)

    assert [lease.job.id for lease in leases] == [good.id]
    for cause, document in unfit.items():
        ended = await settled(queue.get(document["_id"]))
        assert (ended.state, ended.cause) == (State.CANCELLED, cause)


async def test_a_payload_of_a_newer_version_is_left_to_newer_consumers(queue: Any, jobs: Any) -> None:
    document = stored_probe(version=2)
    jobs.insert_one(document)
    before = await settled(queue.get(document["_id"]))

    assert await taken(queue, 10) == []

    assert (await settled(queue.get(document["_id"]))).document == before.document


async def test_a_job_that_has_lost_a_lease_comes_alone(queue: Any, jobs: Any) -> None:
    early = datetime.now(UTC) - timedelta(minutes=5)
    poison = stored_probe(
        state="dequeued", lost=1, attempts=1, claim={"token": 1, "worker": "dead"}, available_at=early
    )
    jobs.insert_one(poison)
    await made(queue, 3)

    first, second = await taken(queue, 10), await taken(queue, 10)

    assert [lease.job.id for lease in first] == [poison["_id"]]
    assert (first[0].attempt, first[0].job.lost) == (1, 2)
    assert len(second) == 3


async def test_a_job_whose_holders_keep_dying_ends_exhausted(queue: Any, jobs: Any) -> None:
    poison = stored_probe(state="dequeued", lost=3, attempts=1, claim={"token": 1, "worker": "dead"})
    jobs.insert_one(poison)

    assert await taken(queue, 10, max_lost=2) == []

    assert (await settled(queue.get(poison["_id"]))).cause == "exhausted"


async def test_a_sealed_job_is_left_to_those_that_can_open_it(queue: Any, store: axeq.Store) -> None:
    store.codec = Mask()
    (job,) = await made(queue)
    store.codec = None

    assert await taken(queue) == []

    store.codec = Mask()
    found = await settled(job.refresh())
    assert (found.state, found.attempts) == (State.ENQUEUED, 0)
    assert found.available_at > datetime.now(UTC) + timedelta(seconds=30)


async def test_a_loop_hands_out_every_job_and_ends_when_nothing_comes(queue: Any) -> None:
    jobs = await made(queue, 25)
    seen = []

    async for lease in each(queue.consume(Probe, batch=10, wait=0.2)):
        seen.append(lease.job.id)
        await settled(lease.complete())

    assert seen == [job.id for job in jobs]


async def test_a_loop_hears_at_once_of_what_its_store_enqueues(queue: Any, store: axeq.Store, monkeypatch: Any) -> None:
    monkeypatch.setattr("axeq.faces.consumer._SHORTEST_PAUSE", DEADLINE)
    monkeypatch.setattr("axeq.faces.consumer._LONGEST_PAUSE", DEADLINE)
    consumer = queue.consume(Probe)

    def produce() -> None:
        eventually(lambda: bool(store._listeners))
        axeq.Queue(store).enqueue(Probe(value=7))

    producer = threading.Thread(target=produce)
    producer.start()
    async with aclosing(each(consumer)) as leases:
        lease = await asyncio.wait_for(anext(leases), DEADLINE / 2)
        await settled(lease.complete())
        await left(consumer)
    producer.join()

    assert lease.model.value == 7


async def left(consumer: Any) -> None:
    """Leaves the `with` of a consumer of either face."""
    await settled(consumer.aclose() if hasattr(consumer, "aclose") else consumer.close())


async def test_a_loop_that_is_stopped_lets_the_job_in_hand_be_handled(queue: Any) -> None:
    jobs = await made(queue, 3)
    consumer = queue.consume(Probe)
    seen = []

    async for lease in each(consumer):
        consumer.stop()
        seen.append(lease.job.id)
        await settled(lease.complete())

    assert seen == [jobs[0].id]
    assert [await state_of(queue, job) for job in jobs] == [State.COMPLETED, State.ENQUEUED, State.ENQUEUED]


async def test_what_a_loop_that_is_left_has_not_handled_is_given_back(queue: Any) -> None:
    jobs = await made(queue, 5)
    consumer = queue.consume(Probe, batch=4)

    async with aclosing(each(consumer)) as leases:
        await settled((await anext(leases)).complete())
        await anext(leases)
        await left(consumer)

    found = {job.id: job for job in await settled(queue.find())}
    assert [found[job.id].state for job in jobs] == [State.COMPLETED] + [State.ENQUEUED] * 4
    assert {(found[job.id].attempts, found[job.id].lost) for job in jobs[1:]} == {(0, 0)}


def passed(moment: datetime) -> bool:
    return datetime.now(UTC) > moment


async def test_a_lease_that_waited_for_long_is_renewed_before_it_is_handed_out(queue: Any) -> None:
    first, second, gone = await made(queue, 3)
    consumer = queue.consume(Probe, lease=1, wait=0.1)
    seen = []

    async for lease in each(consumer):
        seen.append(lease.job.id)
        if len(seen) == 1:
            await settled(queue.remove(gone.id))
            held = (await settled(queue.get(second.id))).available_at
            await aeventually(partial(passed, lease.expires_at - timedelta(seconds=0.3)))
        else:
            assert lease.expires_at > held
        await settled(lease.complete())

    assert seen == [first.id, second.id]


async def test_a_mistake_in_an_option_is_found_before_anything_is_claimed(queue: Any) -> None:
    for options in ({"lease": 0.1}, {"batch": 0}, {"max_attempt": 3}, {"wait": "soon"}, {"max_lost": -1}):
        with pytest.raises(axeq.ConfigurationError, match=next(iter(options))):
            queue.consume(Probe, **options)
    with pytest.raises(axeq.ConfigurationError, match="count"):
        await taken(queue, 0)
    with pytest.raises(axeq.ConfigurationError, match="max_delay"):
        await taken(queue, 1, backoff=axeq.backoff.Constant(1), max_delay=5)


# What only one face has: how its loops are left


def released(queue: axeq.Queue, jobs: list[Any]) -> bool:
    return {queue.get(job.id).state for job in jobs} == {State.ENQUEUED}


async def test_break_return_and_exception_give_back_what_a_sync_loop_holds(store: axeq.Store) -> None:
    queue = axeq.Queue(store)
    jobs = queue.enqueue_many([Probe() for _ in range(3)])

    for _ in queue.consume(Probe):
        break
    assert released(queue, jobs)
    with suppress(KeyError):
        for _ in queue.consume(Probe):
            raise KeyError
    assert released(queue, jobs)
    with queue.consume(Probe) as leases:
        next(iter(leases))
    assert released(queue, jobs)


async def test_break_exception_and_cancellation_give_back_what_an_async_loop_holds(store: axeq.Store) -> None:
    queue, looking = axeq.AsyncQueue(store), axeq.Queue(store)
    jobs = await queue.enqueue_many([Probe() for _ in range(3)])

    async def broken() -> None:
        async for _ in queue.consume(Probe):
            break

    await broken()
    await aeventually(lambda: released(looking, jobs))
    with suppress(KeyError):
        async with queue.consume(Probe) as leases:
            async for _ in leases:
                raise KeyError
    assert released(looking, jobs)

    begun = asyncio.Event()

    async def endless() -> None:
        async with queue.consume(Probe) as leases:
            async for _ in leases:
                begun.set()
                await asyncio.sleep(3600)

    task = asyncio.create_task(endless())
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert released(looking, jobs)


async def test_a_take_that_is_cancelled_gives_back_what_its_claim_brings(store: axeq.Store) -> None:
    queue, looking = axeq.AsyncQueue(store), axeq.Queue(store)
    jobs = await queue.enqueue_many([Probe() for _ in range(3)])

    for pauses in range(12):
        task = asyncio.create_task(queue.take(Probe, 3))
        for _ in range(pauses):
            await asyncio.sleep(0)
        task.cancel()
        try:
            for lease in await task:
                await lease.release()
        except asyncio.CancelledError:
            pass
        assert released(looking, jobs)


def test_a_loop_that_ends_with_asyncio_run_gives_back_what_was_claimed(uri: str) -> None:
    with axeq.Store(uri) as store:
        queue = axeq.Queue(store)
        jobs = queue.enqueue_many([Probe() for _ in range(3)])

        async def main() -> None:
            try:
                async for _ in axeq.AsyncQueue(store).consume(Probe):
                    break
            finally:
                await store.leave_loop()

        asyncio.run(main())

        eventually(lambda: released(queue, jobs))
