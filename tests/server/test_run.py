"""Running jobs: every kind of handler, every outcome, and what is kept of each."""

from __future__ import annotations

import asyncio
import contextvars
import os
import signal
import threading
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pydantic
import pytest
from bson import ObjectId

import axeq
from tests.support.pools import quick_pool, running
from tests.support.probe import Probe, probe, probe_in_process, stored_probe
from tests.support.waiting import DEADLINE, cancelled, eventually, in_state

few_kinds = pytest.mark.kinds("uri", "mongomock")
"""For what does not depend on how a store was opened."""


class Sum(axeq.Model[int], name="sum"):
    numbers: list[int]


class Badge(axeq.Model[str], name="badge", version=2):
    """Version 1 said `name`."""

    title: str

    @classmethod
    def upgrade(cls, data: dict[str, Any], version: int) -> dict[str, Any]:
        return {"title": data["name"].upper()}


class UnprintableError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


def pool_for(store: axeq.Store, handler: Any = probe, **options: Any) -> axeq.Pool:
    pool = quick_pool(store)
    pool.add(axeq.Task(Probe, handler, **{"min_delay": 0.01, "max_delay": 0.05, **options}))
    return pool


def written(jobs: Any, **fields: Any) -> ObjectId:
    """Puts a job into the collection by hand, due a second ago."""
    document = stored_probe(**fields)
    jobs.insert_one(document)
    identity: ObjectId = document["_id"]
    return identity


def test_an_enqueued_job_runs_and_its_result_comes_back(store: axeq.Store, handler: Any) -> None:
    with running(pool_for(store, handler)):
        job = axeq.Queue(store).enqueue(Probe(value={"made": [1, 2.5, "three"]}))

        assert job.wait(DEADLINE) == {"made": [1, 2.5, "three"]}
        assert job.state is axeq.State.COMPLETED
        assert (job.attempts, job.lost, job.available_at, job.error) == (1, 0, None, None)
        assert job.created_at <= job.started_at <= job.ended_at <= job.finished_at < job.expire_at


def test_a_result_comes_back_as_the_type_that_the_model_declares(store: axeq.Store) -> None:
    class Made(pydantic.BaseModel):
        at: datetime
        size: int

    class Make(axeq.Model[Made], name="make"):
        pass

    made = Made(at=datetime(2020, 1, 1, tzinfo=UTC), size=3)
    pool = quick_pool(store)

    @pool.task(Make)
    async def make(ctx: axeq.Context[Make, Made]) -> Made:
        return made

    with running(pool):
        assert axeq.Queue(store).enqueue(Make()).wait(DEADLINE) == made


@pytest.mark.needs("processes")
def test_a_handler_runs_in_a_process_of_its_own(store: axeq.Store) -> None:
    pool = pool_for(store, probe_in_process, executor="process", max_attempts=1)
    queue = axeq.Queue(store)

    with running(pool):
        good, bad, dead = (
            queue.enqueue(Probe(value=7)),
            queue.enqueue(Probe(outcome="raise", value="wrong")),
            queue.enqueue(Probe(outcome="die")),
        )

        assert good.wait(DEADLINE) == 7
        assert cancelled(bad).error["type"] == "ValueError"
        assert "raise ValueError(ctx.model.value)" in cancelled(bad).error["traceback"]
        assert "exit code -9" in cancelled(dead).error["message"]


def own_process(ctx: axeq.Context[Probe, Any]) -> Any:
    return os.getpid()


@pytest.mark.needs("processes")
@few_kinds
def test_a_process_that_ends_while_it_is_idle_is_no_failure_of_the_next_job(store: axeq.Store) -> None:
    pool = pool_for(store, own_process, executor="process", workers=1)
    queue = axeq.Queue(store)

    with running(pool):
        first = queue.enqueue(Probe()).wait(DEADLINE)
        os.kill(first, signal.SIGKILL)
        os.waitid(os.P_PID, first, os.WEXITED | os.WNOWAIT)
        job = queue.enqueue(Probe())

        assert job.wait(DEADLINE) != first
        assert job.refresh().attempts == 1


@pytest.mark.needs("processes")
def test_a_process_that_runs_too_long_is_ended(store: axeq.Store) -> None:
    pool = pool_for(store, probe_in_process, executor="process", max_attempts=1, timeout=3)

    with running(pool):
        job = axeq.Queue(store).enqueue(Probe(outcome="hang"))

        assert cancelled(job).error["type"] == "TimeoutError"
        assert axeq.Queue(store).enqueue(Probe(value=1), timeout=DEADLINE).wait(DEADLINE) == 1


def test_retry_asks_for_another_attempt_that_counts(store: axeq.Store, handler: Any) -> None:
    with running(pool_for(store, handler, max_attempts=2)):
        job = axeq.Queue(store).enqueue(Probe(outcome="retry", value="not yet", delay=0.05))
        error = cancelled(job)

        assert (error.cause, error.error) == (
            "exhausted",
            {"type": "Retry", "message": "not yet", "traceback": ""},
        )
        assert job.refresh().attempts == 2
        assert [event["verb"] for event in job.events] == ["fail", "cancel"]


@few_kinds
def test_retry_waits_for_as_long_as_it_says(store: axeq.Store) -> None:
    with running(pool_for(store)):
        job = in_state(axeq.Queue(store).enqueue(Probe(outcome="retry", delay=600)), axeq.State.FAILED)

        assert job.available_at - job.ended_at >= timedelta(seconds=600)
        assert job.finished_at is None


def test_cancel_ends_the_job_without_another_attempt(store: axeq.Store, handler: Any) -> None:
    with running(pool_for(store, handler)):
        job = axeq.Queue(store).enqueue(Probe(outcome="cancel", value="nobody wants it"))

        assert cancelled(job).cause == "handler"
        assert job.refresh().attempts == 1
        assert job.events[-1]["reason"] == "nobody wants it"


def test_snooze_puts_the_job_back_uncounted(store: axeq.Store, handler: Any) -> None:
    with running(pool_for(store, handler)):
        job = axeq.Queue(store).enqueue(Probe(outcome="snooze", delay=600))
        eventually(lambda: job.refresh().events != [])

        assert (job.state, job.attempts, job.lost) == (axeq.State.ENQUEUED, 0, 0)
        assert job.available_at - job.ended_at >= timedelta(seconds=600)
        assert job.events[-1]["verb"] == "snooze"


@few_kinds
def test_a_snoozed_job_comes_again_by_itself(store: axeq.Store) -> None:
    with running(pool_for(store)):
        job = axeq.Queue(store).enqueue(Probe(outcome="snooze", delay=0.05))

        eventually(lambda: len(job.refresh().events) >= 3)
        assert job.attempts <= 1


def test_a_failure_keeps_its_error_and_is_tried_again_later(store: axeq.Store, handler: Any) -> None:
    with running(pool_for(store, handler, min_delay=600, max_delay=600)):
        job = in_state(axeq.Queue(store).enqueue(Probe(outcome="raise", value="broken")), axeq.State.FAILED)

        assert (job.error["type"], job.error["message"]) == ("ValueError", "broken")
        assert "raise ValueError(ctx.model.value)" in job.error["traceback"]
        assert job.available_at - job.ended_at >= timedelta(seconds=600)


@few_kinds
def test_each_further_failure_waits_longer(store: axeq.Store) -> None:
    with running(pool_for(store, min_delay=0.05, max_delay=60, delay_factor=4, max_attempts=3)):
        job = axeq.Queue(store).enqueue(Probe(outcome="raise"))
        cancelled(job)

    first, second, last = (event["at"] for event in job.refresh().events)
    assert second - first >= timedelta(seconds=0.05)
    assert last - second >= timedelta(seconds=0.2)


@few_kinds
def test_a_job_that_always_fails_is_given_up_at_its_last_attempt(store: axeq.Store, handler: Any) -> None:
    with running(pool_for(store, handler, max_attempts=3)):
        job = axeq.Queue(store).enqueue(Probe(outcome="raise", value="broken"))
        error = cancelled(job)

    assert (error.cause, error.error["message"]) == ("exhausted", "broken")
    assert job.refresh().attempts == 3
    assert [event["verb"] for event in job.events] == ["fail", "fail", "cancel"]


@few_kinds
def test_a_failure_leaves_no_trace_in_a_job_that_completes_in_the_end(store: axeq.Store) -> None:
    pool = quick_pool(store)

    @pool.task(Sum, min_delay=0)
    async def second_time_lucky(ctx: axeq.Context[Sum, int]) -> int:
        if ctx.attempt == 1:
            raise ValueError("once")
        return sum(ctx.model.numbers)

    with running(pool):
        job = axeq.Queue(store).enqueue(Sum(numbers=[1, 2]))

        assert job.wait(DEADLINE) == 3
        assert (job.attempts, job.error) == (2, None)
        assert [event["verb"] for event in job.events] == ["fail"]


@few_kinds
def test_an_attempt_that_hangs_is_stopped_at_its_timeout(store: axeq.Store, handler: Any) -> None:
    with running(pool_for(store, handler, timeout=0.1, max_attempts=2)) as pool:
        job = axeq.Queue(store).enqueue(Probe(outcome="hang"))
        error = cancelled(job)

    assert (error.cause, error.error["type"]) == ("exhausted", "TimeoutError")
    assert "longer than its 0.1 s" in error.error["message"]
    assert job.refresh().attempts == 2
    assert pool.counts["abandon"] == 0


@few_kinds
def test_a_handler_that_will_not_stop_is_abandoned_and_its_worker_replaced(
    store: axeq.Store, caplog: pytest.LogCaptureFixture
) -> None:
    blocked = threading.Event()
    pool = quick_pool(store, lease=3, drain=0.1)

    @pool.task(Probe, workers=1, timeout=0.1, max_lost=0)
    def deaf(ctx: axeq.Context[Probe, Any]) -> Any:
        if ctx.model.outcome == "block":
            blocked.wait(DEADLINE)
        return ctx.model.value

    with running(pool):
        job = axeq.Queue(store).enqueue(Probe(outcome="block"))
        eventually(lambda: pool.counts["abandon"] == 1)

        assert axeq.Queue(store).enqueue(Probe(value=1)).wait(DEADLINE) == 1
        assert job.refresh().state is axeq.State.DEQUEUED
        blocked.set()

    assert job.refresh().state is axeq.State.DEQUEUED
    assert f"the handler of job {job.id} (probe) does not stop" in caplog.text


@few_kinds
@pytest.mark.parametrize(
    ("error", "kept"),
    [
        (SystemExit(3), "SystemExit"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
        (asyncio.CancelledError(), "RuntimeError"),
        (StopIteration(), "RuntimeError"),
        (GeneratorExit(), "GeneratorExit"),
        (UnprintableError(), "UnprintableError"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
@pytest.mark.parametrize("executor", ["loop", "thread"])
def test_whatever_a_handler_raises_fails_its_job_and_not_the_pool(
    store: axeq.Store, executor: str, error: BaseException, kept: str
) -> None:
    pool = quick_pool(store)

    async def in_loop(ctx: axeq.Context[Probe, Any]) -> Any:
        return in_thread(ctx)

    def in_thread(ctx: axeq.Context[Probe, Any]) -> Any:
        if ctx.model.outcome == "raise":
            raise error
        return ctx.model.value

    pool.add(axeq.Task(Probe, in_loop if executor == "loop" else in_thread, max_attempts=1))
    with running(pool):
        job = axeq.Queue(store).enqueue(Probe(outcome="raise"))

        assert cancelled(job).error["type"] in (kept, type(error).__name__)
        assert axeq.Queue(store).enqueue(Probe(value="alive")).wait(DEADLINE) == "alive"


@few_kinds
def test_a_result_that_cannot_be_stored_ends_the_job_as_such(store: axeq.Store, handler: Any) -> None:
    pool = quick_pool(store)

    @pool.task(Probe)
    async def unstorable(ctx: axeq.Context[Probe, Any]) -> Any:
        return object()

    with running(pool):
        job = axeq.Queue(store).enqueue(Probe())
        error = cancelled(job)

    assert error.cause == "result"
    assert error.error["type"] == "ResultInvalid"
    assert job.refresh().attempts == 1


@few_kinds
def test_a_result_of_another_type_than_declared_ends_the_job_as_such(store: axeq.Store) -> None:
    pool = quick_pool(store)

    @pool.task(Sum)
    async def wrong(ctx: axeq.Context[Sum, Any]) -> Any:
        return "many"

    with running(pool):
        assert cancelled(axeq.Queue(store).enqueue(Sum(numbers=[]))).cause == "result"


@few_kinds
def test_a_stored_payload_that_no_longer_validates_ends_the_job_and_is_kept(store: axeq.Store, jobs: Any) -> None:
    identity = written(jobs, data={"outcome": "explode", "delay": "long"})

    with running(pool_for(store)):
        error = cancelled(axeq.Queue(store).get(identity))

    assert error.cause == "invalid"
    assert error.error["type"] == "ValidationError"
    assert "outcome: Input should be 'ok'" in error.error["message"]
    assert "delay: Input should be a valid number" in error.error["message"]
    assert jobs.find_one({"_id": identity})["data"] == {"outcome": "explode", "delay": "long"}


@few_kinds
def test_jobs_of_a_newer_version_are_left_alone_and_counted(store: axeq.Store, jobs: Any) -> None:
    newer = written(jobs, version=2)
    before = jobs.find_one({"_id": newer})

    with running(pool_for(store)) as pool:
        assert axeq.Queue(store).enqueue(Probe(value=1)).wait(DEADLINE) == 1
        eventually(lambda: pool.unknown == {"probe": 1})

    assert jobs.find_one({"_id": newer}) == before


@few_kinds
def test_jobs_of_an_unknown_task_are_left_alone_and_counted(
    store: axeq.Store, jobs: Any, caplog: pytest.LogCaptureFixture
) -> None:
    unknown = [written(jobs, name="other") for _ in range(2)]
    before = list(jobs.find({"_id": {"$in": unknown}}))

    with running(pool_for(store)) as pool:
        assert axeq.Queue(store).enqueue(Probe(value=1)).wait(DEADLINE) == 1
        eventually(lambda: pool.unknown == {"other": 2})

    assert list(jobs.find({"_id": {"$in": unknown}})) == before
    assert "jobs of 'other' are due" in caplog.text


@few_kinds
def test_a_payload_of_an_older_version_is_upgraded_before_it_is_read(store: axeq.Store, jobs: Any) -> None:
    identity = written(jobs, name="badge", version=1, data={"name": "ada"})
    pool = quick_pool(store)

    @pool.task(Badge)
    async def badge(ctx: axeq.Context[Badge, str]) -> str:
        return ctx.model.title

    with running(pool):
        assert axeq.Queue(store).wait(identity, timeout=DEADLINE).result == "ADA"


@few_kinds
def test_an_upgrade_that_fails_ends_the_job_as_invalid(store: axeq.Store, jobs: Any) -> None:
    identity = written(jobs, name="badge", version=1, data={"nom": "ada"})
    pool = quick_pool(store)

    @pool.task(Badge)
    async def badge(ctx: axeq.Context[Badge, str]) -> str:
        return ctx.model.title

    with running(pool):
        error = cancelled(axeq.Queue(store).get(identity))

    assert (error.cause, error.error["type"]) == ("invalid", "KeyError")
    assert jobs.find_one({"_id": identity})["data"] == {"nom": "ada"}


@few_kinds
@pytest.mark.parametrize("executor", ["loop", "thread"])
def test_a_context_variable_does_not_leak_into_the_next_job(store: axeq.Store, executor: str) -> None:
    tenant: contextvars.ContextVar[str] = contextvars.ContextVar("tenant", default="nobody")
    pool = quick_pool(store)

    def in_thread(ctx: axeq.Context[Probe, Any]) -> str:
        seen = tenant.get()
        tenant.set(str(ctx.model.value))
        return seen

    async def in_loop(ctx: axeq.Context[Probe, Any]) -> str:
        return in_thread(ctx)

    pool.add(axeq.Task(Probe, in_loop if executor == "loop" else in_thread, workers=1))
    queue = axeq.Queue(store)
    # So many that the pool claims ahead, and one job starts the next.
    waiting = queue.enqueue_many([Probe(value=number) for number in range(200)])
    with running(pool):
        seen = {job.wait(DEADLINE) for job in waiting}

    assert seen == {"nobody"}


def test_an_async_handler_enqueues_a_follow_up(store: axeq.Store) -> None:
    pool = pool_for(store)

    @pool.task(Sum)
    async def total(ctx: axeq.Context[Sum, int]) -> int:
        await ctx.queue.enqueue(Probe(value=sum(ctx.model.numbers)), id="follow-up")
        return 0

    with running(pool):
        axeq.Queue(store).enqueue(Sum(numbers=[1, 2])).wait(DEADLINE)

        assert axeq.Queue(store).wait("follow-up", timeout=DEADLINE).result == 3


def test_a_plain_handler_enqueues_a_follow_up(store: axeq.Store) -> None:
    pool = pool_for(store)

    @pool.task(Sum)
    def total(ctx: axeq.Context[Sum, int]) -> int:
        ctx.sync_queue.enqueue(Probe(value=sum(ctx.model.numbers)), id="follow-up")
        return 0

    with running(pool):
        axeq.Queue(store).enqueue(Sum(numbers=[1, 2])).wait(DEADLINE)

        assert axeq.Queue(store).wait("follow-up", timeout=DEADLINE).result == 3


def test_a_handler_knows_its_job_and_its_pool(store: axeq.Store, caplog: pytest.LogCaptureFixture) -> None:
    seen: list[Any] = []
    pool = axeq.Pool(store, max_lag=0, worker="here")

    @pool.task(Probe)
    async def look(ctx: axeq.Context[Probe, Any]) -> None:
        ctx.log.warning("looking")
        seen.append((ctx.job.id, ctx.attempt, ctx.worker, ctx.model, ctx.cancelled))

    with running(pool):
        job = axeq.Queue(store).enqueue(Probe(value=1))
        job.wait(DEADLINE)

    assert seen == [(job.id, 1, "here", Probe(value=1), False)]
    assert f"probe {job.id} attempt 1: looking" in caplog.text


@few_kinds
def test_a_handler_that_blocks_the_loop_keeps_its_job(store: axeq.Store) -> None:
    runs: list[int] = []
    pool = quick_pool(store, lease=3)

    @pool.task(Probe)
    async def blocks(ctx: axeq.Context[Probe, Any]) -> int:
        runs.append(ctx.attempt)
        time.sleep(3.6)
        return ctx.job.lost

    with running(pool):
        assert axeq.Queue(store).enqueue(Probe()).wait(DEADLINE) == 1

    assert runs == [1]
    assert pool.counts["lost"] == 0
