"""Trying again: what a task and a job say of it, and what is kept of each failure."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import bson
import pytest

import axeq
from axeq.documents.codec import CODEC_OPTIONS
from tests.support.masking import Mask
from tests.support.pools import probe_pool, quick_pool, running
from tests.support.probe import Probe, probe_in_process, stored_probe
from tests.support.waiting import DEADLINE, cancelled, eventually, in_state, settled

pytestmark = pytest.mark.kinds("uri", "mongomock")
"""Nothing of it depends on how a store was opened."""

SECRET = "s3cr3t-w0rd"  # a test's own
OVER = timedelta(milliseconds=300)


class Pages(axeq.Model[list[int]], name="pages"):
    """Visits pages, one in each attempt."""

    left: int
    seen: tuple[int, ...] = ()


class RefusedError(ConnectionError):
    """Cannot be pickled and read back: its constructor takes two arguments and passes one on."""

    def __init__(self, host: str, port: int) -> None:
        super().__init__(f"{host}:{port} refused")


def visit(ctx: axeq.Context[Pages, list[int]]) -> list[int]:
    """Visits one page, and leaves the others to the attempts to come."""
    seen = (*ctx.model.seen, ctx.model.left)
    if ctx.model.left > 1:
        raise axeq.Snooze(delay=0, data=Pages(left=ctx.model.left - 1, seen=seen), reason=f"{ctx.model.left} seen")
    return list(seen)


# The backoff


def test_a_tasks_own_backoff_says_when_a_job_is_tried_again(store: axeq.Store) -> None:
    told: list[tuple[int, str, Any]] = []

    def wait(attempt: int, error: BaseException, job: axeq.Record) -> timedelta:
        told.append((attempt, str(error), job.id))
        return timedelta(minutes=10)

    with running(probe_pool(store, backoff=wait)):
        job = in_state(axeq.Queue(store).enqueue(Probe(outcome="raise", value="broken")), axeq.State.FAILED)

    assert told == [(1, "broken", job.id)]
    assert job.available_at is not None
    assert job.ended_at is not None
    assert job.available_at - job.ended_at >= timedelta(minutes=10)


def test_a_job_that_its_backoff_gives_up_ends_with_its_error(store: axeq.Store) -> None:
    with running(probe_pool(store, backoff=lambda attempt, error, job: 0 if attempt < 3 else None)):
        job = axeq.Queue(store).enqueue(Probe(outcome="raise", value="broken"))
        error = cancelled(job)

    assert (error.cause, error.error["message"]) == ("exhausted", "broken")
    assert job.refresh().attempts == 3


def test_a_backoff_that_raises_loses_neither_the_attempts_error_nor_its_own_mistake(
    plain_store: axeq.Store, caplog: pytest.LogCaptureFixture
) -> None:
    def wait(attempt: int, error: BaseException, job: axeq.Record) -> float:
        raise SystemExit(SECRET)

    with running(probe_pool(plain_store, backoff=wait)):
        job = in_state(axeq.Queue(plain_store).enqueue(Probe(outcome="raise", value="broken")), axeq.State.FAILED)

        assert axeq.Queue(plain_store).enqueue(Probe(value="alive")).wait(DEADLINE) == "alive"
    assert job.error is not None
    assert job.error["message"] == "broken"
    assert f"job {job.id} (probe): backoff raised SystemExit ({__file__}:" in caplog.text
    assert SECRET not in caplog.text


def test_each_25th_failure_of_a_job_without_a_limit_is_in_the_log(
    plain_store: axeq.Store, raw: Any, caplog: pytest.LogCaptureFixture
) -> None:
    raw.insert_many(
        [
            stored_probe(_id="warned", attempts=23, data={"outcome": "raise"}),
            stored_probe(_id="limited", attempts=23, max_attempts=100, data={"outcome": "raise"}),
        ]
    )
    queue = axeq.Queue(plain_store)

    with running(probe_pool(plain_store, backoff=lambda attempt, error, job: 0 if attempt < 26 else 600)):
        for identity in ("warned", "limited"):
            eventually(lambda identity=identity: queue.get(identity).attempts == 26)
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    said = [text for text in warnings if "has failed" in text]

    assert said == ["job warned (probe) has failed 25 times and has no limit: give its task max_attempts"]


# Exceptions


def test_a_job_is_tried_again_only_after_the_exceptions_that_its_task_names(store: axeq.Store, handler: Any) -> None:
    with running(probe_pool(store, handler, retry_on=(ConnectionError,))):
        job = axeq.Queue(store).enqueue(Probe(outcome="raise", value="broken"))
        error = cancelled(job)

    assert (error.cause, error.error["type"], error.error["message"]) == ("handler", "ValueError", "broken")
    assert job.refresh().attempts == 1
    assert job.phase is axeq.Phase.DEAD


def test_where_only_retry_tries_again_a_retry_does(store: axeq.Store) -> None:
    with running(probe_pool(store, retry_on=(), max_attempts=2)):
        job = axeq.Queue(store).enqueue(Probe(outcome="retry", value="not yet"))

        assert cancelled(job).cause == "exhausted"
    assert job.refresh().attempts == 2


def test_running_too_long_is_a_timeout_error_that_a_task_may_exclude(plain_store: axeq.Store) -> None:
    with running(probe_pool(plain_store, timeout=0.1, no_retry_on=(TimeoutError,))):
        job = axeq.Queue(plain_store).enqueue(Probe(outcome="hang"))
        error = cancelled(job)

    assert (error.cause, error.error["type"]) == ("handler", "TimeoutError")
    assert job.refresh().attempts == 1


def test_an_exception_that_is_no_failure_puts_the_job_back_uncounted(store: axeq.Store, handler: Any) -> None:
    with running(probe_pool(store, handler, is_failure=lambda error: False, max_attempts=1, backoff=lambda *_: 600)):
        job = axeq.Queue(store).enqueue(Probe(outcome="raise", value="the host is full"))
        eventually(lambda: job.refresh().events != [])

    assert (job.state, job.attempts, job.lost, job.error, job.errors) == (axeq.State.ENQUEUED, 0, 0, None, [])
    assert job.available_at is not None
    assert job.available_at > datetime.now(UTC) + timedelta(minutes=9)
    assert job.events[-1]["reason"] == "ValueError, no failure: the host is full"


def raise_in_process(ctx: axeq.Context[Probe, Any]) -> Any:
    if ctx.model.outcome == "raise":
        raise RefusedError("db", 27017)
    return probe_in_process(ctx)


def counts_in_process(error: BaseException) -> bool:
    return not isinstance(error, RefusedError)


def waits_in_process(attempt: int, error: BaseException, job: axeq.Record) -> float | None:
    return None if isinstance(error, RefusedError) and attempt == job.attempts else 600


@pytest.mark.needs("processes")
def test_an_exception_of_a_handlers_process_is_judged_by_its_class_even_where_it_cannot_be_pickled(
    store: axeq.Store,
) -> None:
    ends = {}
    for name, rules in {
        "tried again": {"retry_on": ConnectionError, "max_attempts": 2, "min_delay": 0},
        "not tried again": {"no_retry_on": RefusedError},
        "given up": {"backoff": waits_in_process},
    }.items():
        with running(probe_pool(store, raise_in_process, executor="process", workers=1, **rules)):
            job = axeq.Queue(store).enqueue(Probe(outcome="raise"))
            error = cancelled(job)
            ends[name] = (error.cause, job.refresh().attempts, error.error["type"])

    assert ends == {
        "tried again": ("exhausted", 2, "RefusedError"),
        "not tried again": ("handler", 1, "RefusedError"),
        "given up": ("exhausted", 1, "RefusedError"),
    }


@pytest.mark.needs("processes")
def test_what_is_a_failure_is_asked_in_the_handlers_process(store: axeq.Store) -> None:
    pool = probe_pool(
        store, raise_in_process, executor="process", workers=1, is_failure=counts_in_process, min_delay=600
    )

    with running(pool):
        job = axeq.Queue(store).enqueue(Probe(outcome="raise"))
        eventually(lambda: job.refresh().events != [])

    assert (job.state, job.attempts, job.error) == (axeq.State.ENQUEUED, 0, None)
    assert job.events[-1]["reason"] == "RefusedError, no failure: db:27017 refused"


@pytest.mark.needs("processes")
def test_a_handlers_process_that_dies_is_no_exception_of_the_handlers(store: axeq.Store) -> None:
    with running(probe_pool(store, probe_in_process, executor="process", workers=1, retry_on=(), min_delay=600)):
        job = in_state(axeq.Queue(store).enqueue(Probe(outcome="die")), axeq.State.FAILED)

    assert job.error is not None
    assert (job.attempts, job.error["type"]) == (1, "ProcessDied")
    assert f"exit code {-signal.SIGKILL}" in job.error["message"]


# A new payload


@pytest.mark.parametrize("executor", ["thread", "process"])
@pytest.mark.needs("processes")
def test_a_snooze_takes_the_next_attempts_payload_with_it(store: axeq.Store, executor: Any) -> None:
    pool = quick_pool(store)
    pool.add(axeq.Task(Pages, visit, executor=executor, workers=1))

    with running(pool):
        job = axeq.Queue(store).enqueue(Pages(left=3))

        assert job.wait(DEADLINE) == [3, 2, 1]
    assert (job.attempts, job.payload) == (1, Pages(left=1, seen=(3, 2)))
    assert [(event["verb"], event["reason"]) for event in job.events] == [("snooze", "3 seen"), ("snooze", "2 seen")]


def test_a_snooze_from_any_store_replaces_the_payload(store: axeq.Store, jobs: Any) -> None:
    pool = quick_pool(store)
    pool.add(axeq.Task(Pages, visit))

    with running(pool):
        job = axeq.Queue(store).enqueue(Pages(left=2))

        assert job.wait(DEADLINE) == [2, 1]
    assert jobs.find_one({"_id": job.id})["data"] == {"left": 1, "seen": [2]}


def test_a_snooze_with_a_payload_of_another_model_is_a_failure_that_says_so(store: axeq.Store) -> None:
    pool = quick_pool(store)

    @pool.task(Pages, max_attempts=1)
    async def mistaken(ctx: axeq.Context[Pages, list[int]]) -> list[int]:
        raise axeq.Snooze(delay=1, data=Probe())

    with running(pool):
        job = axeq.Queue(store).enqueue(Pages(left=1))
        error = cancelled(job)

    assert (error.cause, error.error["type"]) == ("exhausted", "PayloadInvalid")
    assert "payload of 'pages' must be a Pages, not Probe" in error.error["message"]
    assert job.refresh().payload == Pages(left=1)


# A job's own limits


async def test_a_job_brings_its_own_limits(queue: Any, store: axeq.Store) -> None:
    failing = Probe(outcome="raise")
    once = await settled(queue.enqueue(failing, max_attempts=1))
    thrice, *_ = await settled(queue.enqueue_many([failing], max_attempts=3, timeout=timedelta(minutes=1)))
    slow = await settled(queue.enqueue(Probe(outcome="hang"), timeout=0.1, max_attempts=1))

    with running(probe_pool(store, max_attempts=2, min_delay=0)):
        for job in (once, thrice, slow):
            with pytest.raises(axeq.JobCancelled):
                await settled(job.wait(DEADLINE))

    assert ((await settled(once.refresh())).attempts, (await settled(thrice.refresh())).attempts) == (1, 3)
    assert (thrice.max_attempts, thrice.timeout) == (3, 60.0)
    assert "longer than its 0.1 s" in (await settled(slow.refresh())).error["message"]


def test_a_job_may_be_tried_for_ever_though_its_task_may_not(plain_store: axeq.Store) -> None:
    with running(probe_pool(plain_store, max_attempts=1, min_delay=0)):
        job = axeq.Queue(plain_store).enqueue(Probe(outcome="raise"), max_attempts=0)
        eventually(lambda: job.refresh().attempts > 2)

    assert job.state is not axeq.State.CANCELLED


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("max_attempts", -1),
        ("max_attempts", 1.5),
        ("max_attempts", True),
        ("max_attempts", 2**31),
        ("timeout", 0),
        ("timeout", -1),
        ("timeout", "1 min"),
    ],
)
def test_a_limit_that_cannot_work_is_refused_by_name(plain_store: axeq.Store, option: str, value: Any) -> None:
    queue: Any = axeq.Queue(plain_store)

    with pytest.raises(axeq.ConfigurationError, match=option):
        queue.enqueue(Probe(), **{option: value})
    with pytest.raises(axeq.ConfigurationError, match=option):
        queue.enqueue_many([Probe()], **{option: value})


def test_a_deadline_ends_a_running_attempt_for_good(store: axeq.Store, handler: Any) -> None:
    with running(probe_pool(store, handler)) as pool:
        assert axeq.Queue(store).enqueue(Probe(value="warm")).wait(DEADLINE) == "warm"
        deadline = datetime.now(UTC) + OVER
        job = axeq.Queue(store).enqueue(Probe(outcome="hang"), deadline=deadline)
        error = cancelled(job)

    assert error.cause == "expired"
    assert job.refresh().attempts == 1
    assert job.finished_at is not None
    assert job.finished_at >= deadline - timedelta(milliseconds=1)
    assert "its deadline" in job.events[-1]["reason"]
    assert pool.counts["abandon"] == 0


@pytest.mark.needs("processes")
def test_a_deadline_ends_a_handlers_process(store: axeq.Store) -> None:
    with running(probe_pool(store, probe_in_process, executor="process", workers=1)):
        assert axeq.Queue(store).enqueue(Probe(value="warm")).wait(DEADLINE) == "warm"
        job = axeq.Queue(store).enqueue(Probe(outcome="hang"), deadline=datetime.now(UTC) + OVER)
        error = cancelled(job)

    assert (error.cause, error.error) == ("expired", None)


def test_a_job_whose_next_attempt_would_come_too_late_ends_at_once(plain_store: axeq.Store) -> None:
    with running(probe_pool(plain_store, min_delay=600)):
        deadline = datetime.now(UTC) + timedelta(minutes=5)
        error = cancelled(axeq.Queue(plain_store).enqueue(Probe(outcome="raise", value="broken"), deadline=deadline))

    assert (error.cause, error.error["message"]) == ("expired", "broken")


def test_a_timeout_that_comes_before_the_deadline_is_a_failure_like_any(plain_store: axeq.Store) -> None:
    with running(probe_pool(plain_store, timeout=0.1, min_delay=600)):
        deadline = datetime.now(UTC) + timedelta(hours=1)
        job = in_state(axeq.Queue(plain_store).enqueue(Probe(outcome="hang"), deadline=deadline), axeq.State.FAILED)

    assert job.error is not None
    assert job.error["type"] == "TimeoutError"


def test_a_handler_never_starts_once_the_deadline_of_its_claimed_job_has_passed(
    plain_store: axeq.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("axeq.running.lane._AHEAD_SECONDS", 3600)  # so that it claims ahead however slow jobs are
    ran: list[str] = []
    freed = threading.Event()
    pool = quick_pool(plain_store)

    @pool.task(Probe, workers=1)
    async def work(ctx: axeq.Context[Probe, Any]) -> None:
        ran.append(ctx.model.value)
        while ctx.model.value == "first" and not freed.is_set():
            await asyncio.sleep(0.01)

    queue = axeq.Queue(plain_store)
    with running(pool):
        queue.enqueue(Probe(value="quick")).wait(DEADLINE)
        first = queue.enqueue(Probe(value="first"), priority=axeq.Priority.HIGHEST)
        eventually(lambda: "first" in ran)
        late = queue.enqueue(Probe(value="late"), deadline=datetime.now(UTC) + timedelta(seconds=5))
        in_state(late, axeq.State.DEQUEUED)
        eventually(lambda: plain_store.clock.earliest() > late.deadline)
        freed.set()

        assert first.wait(DEADLINE) is None
        assert cancelled(late).cause == "expired"

    assert "passed before its handler could start" in late.refresh().events[-1]["reason"]
    assert "late" not in ran


# What is kept


def test_a_job_tells_its_failures_and_its_history(store: axeq.Store, handler: Any) -> None:
    with running(probe_pool(store, handler, max_attempts=3, min_delay=0)):
        job = axeq.Queue(store).enqueue(Probe(outcome="raise", value="broken"))
        cancelled(job)
    errors = job.refresh().errors

    assert [(error.type, error.message, error.attempt) for error in errors] == [
        ("ValueError", "broken", attempt) for attempt in (1, 2, 3)
    ]
    assert all("raise ValueError(ctx.model.value)" in error.traceback for error in errors)
    assert [(entry["verb"], entry["attempt"]) for entry in job.timeline] == [
        ("enqueue", 0),
        ("fail", 1),
        ("fail", 2),
        ("start", 3),
        ("end", 3),
        ("cancel", 3),
    ]
    assert [entry["at"] for entry in job.timeline] == sorted(entry["at"] for entry in job.timeline)


def test_a_jobs_phase_is_told_by_the_servers_clock(store: axeq.Store, jobs: Any) -> None:
    queue = axeq.Queue(store)
    later, now = queue.enqueue(Probe(value=1), delay=600), queue.enqueue(Probe(outcome="raise"), label="now")

    assert (later.phase, now.phase) == (axeq.Phase.SCHEDULED, axeq.Phase.PENDING)
    with running(probe_pool(store, min_delay=600)):
        hanging = in_state(queue.enqueue(Probe(outcome="hang")), axeq.State.DEQUEUED)
        assert (hanging.phase, in_state(now, axeq.State.FAILED).phase) == (axeq.Phase.ACTIVE, axeq.Phase.RETRYING)
        hanging.cancel()
    lapsed = stored_probe(state="dequeued", attempts=1, lost=1, claim={"token": bson.ObjectId(), "worker": "w"})
    jobs.insert_one(lapsed)
    later.cancel()

    assert queue.get(lapsed["_id"]).phase is axeq.Phase.ORPHANED
    assert later.refresh().phase is axeq.Phase.CANCELLED


async def test_a_named_priority_runs_in_its_place(queue: Any, store: axeq.Store, jobs: Any) -> None:
    for priority in (axeq.Priority.LOWEST, axeq.Priority.DEFAULT, axeq.Priority.HIGHEST):
        await settled(queue.enqueue(Probe(value=priority.name), priority=priority))

    stored = {document["data"]["value"]: document["priority"] for document in jobs.find()}

    assert stored == {"LOWEST": 32767, "DEFAULT": 0, "HIGHEST": -32768}
    assert {type(number) for number in stored.values()} == {int}


def test_in_a_sealed_store_neither_failures_of_the_past_nor_a_new_payload_can_be_read(uri: str, raw: Any) -> None:
    attempts: list[int] = []

    with axeq.Store(uri, codec=Mask()) as store, axeq.Store(uri) as keyless:
        pool = quick_pool(store)

        @pool.task(Probe, min_delay=0, max_attempts=2, is_failure=lambda error: not isinstance(error, KeyError))
        async def fail(ctx: axeq.Context[Probe, Any]) -> Any:
            attempts.append(ctx.attempt)
            if len(attempts) == 1:
                raise axeq.Snooze(delay=0, data=Probe(value=f"{SECRET} again"))
            if len(attempts) == 2:
                raise KeyError(ctx.model.value)
            raise ValueError(ctx.model.value)

        with running(pool):
            job = axeq.Queue(store).enqueue(Probe(value=SECRET))
            cancelled(job)
        stored = raw.find_one()
        seen, shown = job.refresh().errors, axeq.Queue(keyless).get(job.id).errors

    assert SECRET.encode() not in bson.encode(stored, codec_options=CODEC_OPTIONS)
    assert [(error.type, error.message) for error in seen] == [("ValueError", f"{SECRET} again")] * 2
    assert all("raise ValueError(ctx.model.value)" in error.traceback for error in seen)
    assert [(error.type, error.message, error.traceback) for error in shown] == [("ValueError", "(sealed)", "")] * 2
    assert [event["verb"] for event in stored["events"]] == ["snooze", "snooze", "fail", "cancel"]


def test_a_mistake_in_a_handlers_process_is_in_the_pools_log(
    plain_store: axeq.Store, caplog: pytest.LogCaptureFixture
) -> None:
    pool = probe_pool(plain_store, raise_in_process, executor="process", workers=1, backoff=broken_in_process)

    with running(pool):
        job = in_state(axeq.Queue(plain_store).enqueue(Probe(outcome="raise")), axeq.State.FAILED)

    assert f"job {job.id} (probe): backoff raised ZeroDivisionError ({__file__}:" in caplog.text


def broken_in_process(attempt: int, error: BaseException, job: axeq.Record) -> float:
    return os.getpid() / 0
