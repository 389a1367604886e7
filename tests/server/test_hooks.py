"""What a pool tells: hooks, the end of a job, its health; and what its handlers share."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

import axeq
from axeq.attempts import leases
from axeq.rules import manage
from tests.support.pools import quick_pool, running
from tests.support.probe import Probe, probe, probe_in_process, probe_in_thread
from tests.support.waiting import DEADLINE, eventually

pytestmark = pytest.mark.kinds("uri", "mongomock")
JOB_MOMENTS = ("claimed", "started", "done", "lost")


class Later(axeq.Model[int], name="later", version=2):
    pass


def pool_for(store: axeq.Store, handler: Any = probe, **options: Any) -> axeq.Pool:
    pool = quick_pool(store)
    pool.add(axeq.Task(Probe, handler, **{"min_delay": 0.01, "max_delay": 0.05, **options}))
    return pool


def told_by(pool: axeq.Pool) -> list[tuple[str, Any]]:
    """Returns the list that grows by each moment of a job, and the job as told."""
    told: list[tuple[str, Any]] = []
    for moment in JOB_MOMENTS:
        pool.on(moment)(lambda job, moment=moment: told.append((moment, job)))
    return told


def ended(job: Any) -> Any:
    eventually(lambda: job.refresh().final)
    return job


def test_hooks_follow_a_job_from_its_claim_to_its_stored_end(store: axeq.Store) -> None:
    pool = pool_for(store)
    told = told_by(pool)

    with running(pool):
        job = axeq.Queue(store).enqueue(Probe(value=7))
        job.wait(DEADLINE)
        eventually(lambda: len(told) == 3)

    assert [(moment, record.id) for moment, record in told] == [
        ("claimed", job.id),
        ("started", job.id),
        ("done", job.id),
    ]
    done = told[-1][1]
    assert done.document == job.refresh().document
    assert (done.state, done.result) == (axeq.State.COMPLETED, 7)


@pytest.mark.parametrize("outcome", ["retry", "cancel", "snooze"])
def test_the_done_hook_shows_the_job_as_every_outcome_left_it(store: axeq.Store, outcome: Any) -> None:
    pool = pool_for(store)
    told = told_by(pool)

    with running(pool):
        job = axeq.Queue(store).enqueue(Probe(outcome=outcome, delay=600))
        eventually(lambda: len(told) == 3)

    assert told[-1][1].document == job.refresh().document


def test_a_job_cancelled_while_it_failed_is_told_and_notified_as_cancelled(store: axeq.Store) -> None:
    told: list[Any] = []
    notified: list[Any] = []
    entered, cancelled = threading.Event(), threading.Event()

    def fail_under_way(ctx: axeq.Context[Probe, Any]) -> Any:
        entered.set()
        cancelled.wait(DEADLINE)
        raise ValueError("too late")

    pool = pool_for(store, fail_under_way, notify=notified.append)
    pool.on("done")(told.append)
    with running(pool):
        job = axeq.Queue(store).enqueue(Probe())
        entered.wait(DEADLINE)
        job.cancel(reason="no longer wanted")
        cancelled.set()
        ended(job)
        eventually(lambda: bool(told) and bool(notified))

    assert [(each.state, each.cause) for each in (*told, *notified)] == [("cancelled", "requested")] * 2
    assert told[0].document == job.refresh().document


def test_error_hooks_get_every_exception_that_is_no_outcome(store: axeq.Store) -> None:
    errors: list[tuple[str, Any]] = []
    pool = pool_for(store, max_attempts=1, max_result=100)
    pool.on("error")(lambda error, job: errors.append((repr(error), job.id)))
    queue = axeq.Queue(store)

    with running(pool):
        outcomes = [queue.enqueue(Probe(outcome=outcome)) for outcome in ("ok", "cancel", "retry")]
        raised = queue.enqueue(Probe(outcome="raise", value="wrong"))
        too_large = queue.enqueue(Probe(value="x" * 200))
        for job in (*outcomes, raised, too_large):
            ended(job)

    assert sorted(identity for _, identity in errors) == sorted([raised.id, too_large.id])
    assert ("ValueError('wrong')", raised.id) in errors


def test_an_attempt_that_ran_too_long_is_told_as_a_timeout_error(store: axeq.Store) -> None:
    errors: list[BaseException] = []
    pool = pool_for(store, max_attempts=1, timeout=0.05)
    pool.on("error")(lambda error, job: errors.append(error))

    with running(pool):
        ended(axeq.Queue(store).enqueue(Probe(outcome="hang")))

    assert [type(error) for error in errors] == [TimeoutError]


@pytest.mark.needs("processes")
def test_an_error_in_a_process_reaches_the_hook_as_a_stand_in_with_type_and_message(store: axeq.Store) -> None:
    errors: list[Any] = []
    pool = pool_for(store, probe_in_process, executor="process", max_attempts=1)
    pool.on("error")(lambda error, job: errors.append(error))

    with running(pool):
        ended(axeq.Queue(store).enqueue(Probe(outcome="raise", value="wrong")))

    (error,) = errors
    assert (error.type, error.message, str(error)) == ("ValueError", "wrong", "ValueError: wrong")
    assert "raise ValueError" in error.traceback


def test_a_hook_that_fails_changes_nothing_and_is_logged(store: axeq.Store, caplog: pytest.LogCaptureFixture) -> None:
    pool = pool_for(store)

    @pool.on("claimed")
    def leave(job: axeq.Record) -> None:
        raise SystemExit(3)

    @pool.on("started")
    async def stumble(job: axeq.Record) -> None:
        raise ValueError("of the hook")

    with caplog.at_level(logging.ERROR, "axeq.pool"), running(pool):
        assert axeq.Queue(store).enqueue(Probe(value=1)).wait(DEADLINE) == 1

    logged = [record.getMessage() for record in caplog.records]
    assert [text for text in logged if "SystemExit: 3" in text]
    assert [text for text in logged if "of the hook" in text]


def test_jobs_that_no_task_understands_are_told_by_name_and_count(store: axeq.Store) -> None:
    told: list[tuple[str, int]] = []
    axeq.Queue(store).enqueue_many([Later(), Later()])
    pool = pool_for(store)
    pool.on("unknown")(lambda name, count: told.append((name, count)))

    with running(pool):
        eventually(lambda: told == [("later", 2)])


def test_a_removed_job_is_told_as_lost(store: axeq.Store) -> None:
    lost: list[Any] = []
    pool = pool_for(store)
    pool.on("lost")(lost.append)
    started = threading.Event()
    pool.on("started")(lambda job: started.set())

    with running(pool):
        job = axeq.Queue(store).enqueue(Probe(outcome="hang"))
        started.wait(DEADLINE)
        job.remove()
        eventually(lambda: [each.id for each in lost] == [job.id])


@pytest.mark.parametrize("handler", [probe, probe_in_thread], ids=["async", "plain"])
def test_notify_is_called_once_the_end_is_stored_and_never_for_a_failure_to_be_retried(
    store: axeq.Store, jobs: Any, handler: Any
) -> None:
    seen: list[tuple[Any, str, Any]] = []

    async def tell(job: axeq.AsyncJob[Probe, Any]) -> None:
        seen.append((job.id, (await job.refresh()).state, await job.wait(DEADLINE)))

    def tell_plainly(job: axeq.Job[Probe, Any]) -> None:
        seen.append((job.id, job.refresh().state, job.wait(DEADLINE)))

    failing = [ValueError("at first")]

    async def fail_once(ctx: axeq.Context[Probe, Any]) -> Any:
        if failing:
            raise failing.pop()
        return ctx.model.value

    pool = pool_for(store, fail_once, notify=tell if handler is probe else tell_plainly)
    with running(pool):
        job = axeq.Queue(store).enqueue(Probe(value=7))
        job.wait(DEADLINE)

    assert job.refresh().attempts == 2
    assert seen == [(job.id, axeq.State.COMPLETED, 7)]


def test_notify_is_called_for_a_job_that_is_judged_without_running(store: axeq.Store, jobs: Any) -> None:
    seen: list[tuple[Any, Any]] = []
    pool = pool_for(store, notify=lambda job: seen.append((job.id, job.cause)))
    job = axeq.Queue(store).enqueue(Probe())
    jobs.update_one({"_id": job.id}, {"$set": {"data": {"outcome": "unheard of"}}})

    with running(pool):
        ended(job)

    assert seen == [(job.id, "invalid")]


def test_an_error_of_notify_goes_to_the_error_hooks_and_the_log(
    store: axeq.Store, caplog: pytest.LogCaptureFixture
) -> None:
    errors: list[tuple[str, Any]] = []

    async def fall(job: Any) -> None:
        raise ValueError("nobody listens")

    pool = pool_for(store, notify=fall)
    pool.on("error")(lambda error, job: errors.append((str(error), job.id)))
    with caplog.at_level(logging.ERROR, "axeq.pool"), running(pool):
        job = axeq.Queue(store).enqueue(Probe(value=1))
        assert job.wait(DEADLINE) == 1
        eventually(lambda: bool(errors))

    assert errors == [("nobody listens", job.id)]
    assert [record for record in caplog.records if "nobody listens" in record.getMessage()]
    assert job.refresh().state is axeq.State.COMPLETED


def test_a_lifespan_is_entered_before_the_first_claim_and_left_after_the_last_handler(store: axeq.Store) -> None:
    history: list[str] = []

    @asynccontextmanager
    async def lifespan(pool: axeq.Pool) -> AsyncIterator[dict[str, str]]:
        history.append("entered")
        yield {"of": ", ".join(pool.queues)}
        history.append("left")

    pool = quick_pool(store, lifespan=lifespan, drain=0)
    pool.on("claimed")(lambda job: history.append("claimed"))

    @pool.task(Probe)
    async def use(ctx: axeq.Context[Probe, Any]) -> Any:
        history.append("begun")
        try:
            await asyncio.sleep(0 if ctx.model.outcome == "ok" else 3600)
        finally:
            history.append("stopped")
        return ctx.resources

    queue = axeq.Queue(store)
    with running(pool):
        assert queue.enqueue(Probe()).wait(DEADLINE) == {"of": "default"}
        queue.enqueue(Probe(outcome="hang"))
        eventually(lambda: history.count("begun") == 2)

    assert history == ["entered", *["claimed", "begun", "stopped"] * 2, "left"]


@pytest.mark.parametrize("moment", ["entered", "held", "left"])
def test_an_error_in_the_lifespan_ends_run_with_that_error(store: axeq.Store, moment: str) -> None:
    @asynccontextmanager
    async def lifespan(pool: axeq.Pool) -> AsyncIterator[None]:
        if moment == "entered":
            raise ZeroDivisionError(moment)
        if moment == "held":
            async with asyncio.TaskGroup() as group:
                group.create_task(fall())
                yield
        else:
            yield
        raise ZeroDivisionError(moment)

    async def fall() -> None:
        raise ZeroDivisionError("held")

    pool = quick_pool(store, lifespan=lifespan)
    pool.add(axeq.Task(Probe, probe))
    if moment == "left":
        pool.stop()

    with pytest.raises((ZeroDivisionError, ExceptionGroup)) as caught:
        pool.run()

    error = caught.value.exceptions[0] if isinstance(caught.value, ExceptionGroup) else caught.value
    assert str(error) == moment
    assert not pool.healthy


def test_a_pool_says_each_interval_that_it_is_healthy(store: axeq.Store) -> None:
    told: list[BaseException | None] = []
    pool = quick_pool(store, health_interval=0.02)
    pool.add(axeq.Task(Probe, probe))
    pool.on("health")(told.append)

    assert not pool.healthy
    with running(pool):
        eventually(lambda: len(told) >= 2)
        assert pool.healthy

    assert not pool.healthy
    assert set(told) == {None}


def test_a_pool_is_unhealthy_while_the_server_does_not_answer(
    store: axeq.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Any] = []
    pool = quick_pool(store, health_interval=0.02)
    pool.add(axeq.Task(Probe, probe))
    pool.on("health")(told.append)

    with running(pool):
        with monkeypatch.context() as broken:
            broken.setattr(manage, "ping", unanswered)
            eventually(lambda: not pool.healthy)
            eventually(lambda: any(isinstance(each, axeq.StoreUnavailable) for each in told))
        eventually(lambda: pool.healthy)
        eventually(lambda: bool(told) and told[-1] is None)


def test_a_pool_is_unhealthy_while_its_leases_cannot_be_confirmed(
    store: axeq.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Any] = []
    pool = quick_pool(store, health_interval=0.02, lease=0.5, drain=0)
    pool.add(axeq.Task(Probe, probe))
    pool.on("health")(told.append)

    with running(pool):
        with monkeypatch.context() as broken:
            broken.setattr(leases, "extend", unanswered)
            job = axeq.Queue(store).enqueue(Probe(outcome="hang"))
            eventually(lambda: not pool.healthy)
            eventually(lambda: any(isinstance(each, axeq.StoreUnavailable) for each in told))
        job.cancel()
        eventually(lambda: pool.healthy)


def unanswered(*_: Any, **__: Any) -> Any:
    raise axeq.StoreUnavailable("db:27017", "no answer")
    yield
