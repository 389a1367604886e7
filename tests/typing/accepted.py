"""A program that mypy --strict and pyright must accept as it stands: the types that users are promised."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, assert_type

from pydantic import BaseModel
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.client_session import ClientSession

import axeq


class Made(BaseModel):
    path: str


class Thumbnail(axeq.Model[Made], name="thumbnail"):
    image: str
    width: int = 320


class Ping(axeq.Model, name="ping", version=2):
    host: str = "localhost"


class Total(axeq.Model[int], name="total", secrets="store"):
    numbers: list[int]


class Plain(BaseModel):
    text: str


def text_of(payload: Plain) -> str | None:
    return payload.text or None


store = axeq.Store("mongodb://localhost:27017/shop", timeout=timedelta(seconds=5))
queue = axeq.Queue(store, max_payload=100_000)
async_queue = axeq.AsyncQueue(store, "images")
pool = axeq.Pool(store, queue="images", lease=30, drain=timedelta(seconds=10), max_lag=0.05)


@pool.task(Thumbnail, workers=4, max_attempts=5, min_delay=1, max_delay=600, delay_factor=2, timeout=600)
async def thumbnail(ctx: axeq.Context[Thumbnail, Made]) -> Made:
    assert_type(ctx.model, Thumbnail)
    assert_type(ctx.model.width, int)
    assert_type(ctx.attempt, int)
    assert_type(ctx.cancelled, bool)
    assert_type(ctx.job, axeq.Record)
    assert_type(ctx.queue, axeq.AsyncQueue)
    assert_type(ctx.sync_queue, axeq.Queue)
    ctx.log.info("makes %s", ctx.model.image)
    if not ctx.model.image:
        raise axeq.Cancel("nothing to make")
    follow_up = await ctx.queue.enqueue(Ping(), delay=5)
    assert_type(follow_up, axeq.AsyncJob[Ping, Any])
    return Made(path=ctx.model.image)


@pool.task(Plain, name="plain-move")
async def move(ctx: axeq.Context[Plain, Any]) -> None:
    ctx.progress(0.5, "half way", partial={"so": "far"})
    assert_type(ctx.restore(Plain), Plain | None)
    await ctx.checkpoint(Plain(text="half"))
    ctx.extend(timedelta(minutes=10))
    async with ctx.transaction() as session:
        assert_type(session, AsyncClientSession)
        await session.client["shop"]["orders"].insert_one({"text": ctx.model.text}, session=session)
        ctx.result = "made"


class Counter(axeq.Model[int], name="counter"):
    number: int


@pool.task(Counter)
async def counter(ctx: axeq.Context[Counter, int]) -> int:
    async def count(session: AsyncClientSession) -> int:
        await ctx.queue.enqueue(Ping(), session=session)
        return ctx.model.number

    assert_type(ctx.result, int | None)
    return await ctx.transact(count)


class Tally(axeq.Model[int], name="tally"):
    number: int


@pool.task(Tally)
def tally(ctx: axeq.Context[Tally, int]) -> int:
    ctx.sync_checkpoint({"page": 3})
    if ctx.attempt > 1:
        return ctx.sync_transact(lambda session: ctx.model.number)
    with ctx.sync_transaction() as session:
        assert_type(session, ClientSession)
        ctx.result = ctx.model.number
    return ctx.model.number


@pool.task(Total, executor="thread", retention=timedelta(days=1))
def total(ctx: axeq.Context[Total, int]) -> int:
    if ctx.attempt > 3:
        raise axeq.Snooze(delay=timedelta(minutes=5), data=Total(numbers=ctx.model.numbers[1:]), reason="too many")
    return sum(ctx.model.numbers)


@pool.task(Ping, max_lost=None)
async def ping(ctx: axeq.Context[Ping, Any]) -> None:
    raise axeq.Retry("busy", at=datetime.now(UTC) + timedelta(minutes=1))


def patience(attempt: int, error: BaseException, job: axeq.Record) -> timedelta | None:
    return timedelta(seconds=attempt) if job.attempts < 5 else None


fussy = axeq.Task(Thumbnail, thumbnail, backoff=patience, retry_on=(OSError, TimeoutError), no_retry_on=BrokenPipeError)
patient = axeq.Task(Thumbnail, thumbnail, backoff=axeq.backoff.Exponential(maximum=timedelta(hours=1)), retry_on=None)
steady = axeq.Task(Thumbnail, thumbnail, backoff=axeq.backoff.Constant(5), is_failure=lambda error: bool(error.args))
lenient = [axeq.Task(Ping, ping, backoff=curve) for curve in (axeq.backoff.gue(), axeq.backoff.never)]


@pool.task(Plain, name="plain")
def plain(ctx: axeq.Context[Plain, int]) -> int:
    return len(ctx.model.text)


assert_type(pool.add(axeq.Task(Thumbnail, thumbnail, workers=8)), axeq.Task[Thumbnail, Made])
assert_type(axeq.Task(Total, total), axeq.Task[Total, int])
assert_type(axeq.Task(Plain, plain, name="plain"), axeq.Task[Plain, int])


def produce() -> None:
    job = queue.enqueue(Thumbnail(image="a.jpg"), delay=5, label="a.jpg", priority=-1)
    assert_type(job, axeq.Job[Thumbnail, Made])
    assert_type(job.wait(timeout=30), Made)
    assert_type(job.payload, Thumbnail)
    assert_type(job.refresh(), axeq.Job[Thumbnail, Made])
    assert_type(job.retry().wait(), Made)
    assert_type(job.state, axeq.State)
    assert_type(job.cancel("not wanted"), axeq.Cancellation)
    assert_type(job.remove(), bool)

    assert_type(job.phase, axeq.Phase)
    assert_type(job.errors[0].attempt, int)
    assert_type(job.timeline[0]["at"], Any)
    queue.enqueue(Thumbnail(image="a.jpg"), priority=axeq.Priority.HIGH, max_attempts=3, timeout=timedelta(seconds=5))

    number = queue.enqueue(Total(numbers=[1, 2]), run_at=datetime.now(UTC), retention=timedelta(hours=1))
    assert_type(number.wait(), int)
    assert_type(queue.enqueue(Ping()), axeq.Job[Ping, Any])
    assert_type(queue.enqueue(Plain(text="a"), name="plain"), axeq.Job[Plain, Any])

    many = queue.enqueue_many((Thumbnail(image=name) for name in ("a.jpg", "b.jpg")), priority=3)
    assert_type(many, list[axeq.Job[Thumbnail, Made]])
    assert_type(queue.enqueue_many([Plain(text="a")], name="plain"), list[axeq.Job[Plain, Any]])

    kept = queue.enqueue(Thumbnail(image="a.jpg"), label="a", isolation=timedelta(hours=1), on_conflict="ignore")
    assert_type(kept.created, bool)
    assert_type(queue.exists(kept.id), bool)
    queue.enqueue(Thumbnail(image="a.jpg"), unique=True, on_conflict="replace", group="album-7")
    queue.enqueue(Thumbnail(image="a.jpg"), unique=60)
    labelled = queue.enqueue_many(
        [Thumbnail(image="a.jpg")], label=lambda payload: payload.image, on_conflict="ignore", group="album-7"
    )
    assert_type(labelled, list[axeq.Job[Thumbnail, Made]])
    queue.enqueue_many([Plain(text="a")], name="plain", label=text_of)
    queue.callback(lambda request: Ping(), label=lambda payload: payload.host, on_conflict="ignore", priority=3)

    assert_type(queue.get(job.id, model=Thumbnail), axeq.Job[Thumbnail, Any])
    assert_type(queue.find(state=axeq.State.FAILED, limit=10), list[axeq.Job[Any, Any]])
    assert_type(queue.find(state="failed"), list[axeq.Job[Any, Any]])
    assert_type(queue.find(data={"width": 320}), list[axeq.Job[Any, Any]])
    assert_type(queue.dead(name="thumbnail"), list[axeq.Job[Any, Any]])
    assert_type(queue.wait_many(many, timeout=30), list[axeq.Job[Thumbnail, Made]])
    assert_type(queue.wait_many([job.id]), list[axeq.Job[Any, Any]])
    assert_type(queue.take(Thumbnail, 5, lease=60, max_attempts=3), list[axeq.Lease[Thumbnail, Made]])
    assert_type(queue.take(Plain, name="plain"), list[axeq.Lease[Plain, Any]])
    for lease in queue.consume(Thumbnail, batch=10, wait=timedelta(seconds=5)):
        assert_type(lease.model, Thumbnail)
        assert_type(lease.job, axeq.Record)
        lease.heartbeat(Plain(text="so far"))
        assert_type(lease.restore(Plain), Plain | None)
        assert_type(lease.complete(Made(path="b")), axeq.State)
    with queue.consume(Plain, name="plain") as leases:
        for plain_lease in leases:
            plain_lease.fail(ValueError("broken"), delay=timedelta(seconds=5))
    assert_type(queue.retry_many(many), dict[Any, axeq.AxeqError])
    assert_type(queue.remove_many([job.id]) + queue.clear_dead(), int)
    assert_type(queue.stats_by_task()["thumbnail"][axeq.State.FAILED], int)
    assert_type(queue.stats()[axeq.State.ENQUEUED], int)
    assert_type(queue.cancel(job.id), axeq.Cancellation)
    queue.pause("thumbnail")
    queue.resume()


async def aproduce() -> None:
    job = await async_queue.enqueue(Thumbnail(image="a.jpg"), deadline=datetime.now(UTC))
    assert_type(job, axeq.AsyncJob[Thumbnail, Made])
    assert_type(await job.wait(timedelta(seconds=30)), Made)
    assert_type(await job.refresh(), axeq.AsyncJob[Thumbnail, Made])
    assert_type(await async_queue.enqueue(Plain(text="a"), name="plain"), axeq.AsyncJob[Plain, Any])

    many = await async_queue.enqueue_many([Total(numbers=[1])], delay=timedelta(seconds=1))
    assert_type(many, list[axeq.AsyncJob[Total, int]])
    assert_type([await each.wait() for each in many], list[int])
    assert_type(await async_queue.wait_many(many), list[axeq.AsyncJob[Total, int]])
    assert_type(await async_queue.find(state="completed"), list[axeq.AsyncJob[Any, Any]])
    assert_type(await async_queue.take(Total), list[axeq.AsyncLease[Total, int]])
    async with async_queue.consume(Total, worker="me") as leases:
        async for lease in leases:
            assert_type(lease.model.numbers, list[int])
            assert_type(await lease.complete(3), axeq.State)


async def run_inside_an_app() -> None:
    async with pool:
        pool.stop()


def run_as_a_process() -> None:
    pool.run()


def look_at_errors() -> str | None:
    try:
        queue.enqueue(Thumbnail(image="a.jpg"), label="a.jpg")
    except axeq.LabelTaken as taken:
        return taken.label
    except axeq.PayloadTooLarge as large:
        assert_type(large.size, int)
    except axeq.StoreUnavailable as unavailable:
        assert_type(unavailable.sent, bool)
    return None
