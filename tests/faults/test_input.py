"""What handlers do and what moments are given: whatever ends a handler is kept as its job's end, and times hold."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any
from zoneinfo import ZoneInfo

import bson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import axeq
from axeq.documents.record import Record
from axeq.rules.outcome import Failed, Limits, Snoozed, describe
from axeq.rules.settlement import settlement
from axeq.words.backoff import Exponential
from axeq.words.clock import milliseconds
from tests.support.pools import quick_pool, running
from tests.support.waiting import DEADLINE
from tests.unit.playing import NOW, ScriptedClock, held_job

from .inputs import KIB, MIB, Anything, fuzzed, on_mongomock

# F36: handlers


class DeafError(Exception):
    """Cannot be printed, and does not even fail as an error."""

    def __str__(self) -> str:
        raise SystemExit("no text")


class LyingError(Exception):
    def __str__(self) -> Any:
        return 5


def deep(levels: int = 10**6) -> int:
    return deep(levels - 1) + 1


def recurse() -> None:
    deep()


def group() -> None:
    raise ExceptionGroup("both", [ValueError("a"), KeyError("b")])


def base_group() -> None:
    raise BaseExceptionGroup("worse", [SystemExit(1), ValueError("a")])


def lie() -> None:
    raise LyingError


def hard_exit() -> None:
    raise SystemExit("x" * MIB)


HANDLERS: dict[str, tuple[Callable[[], None], str]] = {
    "recursion": (recurse, "RecursionError"),
    "a group": (group, "ExceptionGroup"),
    "a group of exits": (base_group, "BaseExceptionGroup"),
    "a lying text": (lie, "LyingError"),
    "a long exit": (hard_exit, "SystemExit"),
}


@pytest.mark.parametrize("what", HANDLERS)
@pytest.mark.parametrize("executor", ["loop", "thread"])
def test_whatever_ends_a_handler_is_its_jobs_failure_alone(executor: str, what: str) -> None:
    queue, jobs = on_mongomock()
    ends, kind = HANDLERS[what]
    pool = quick_pool(queue.store)

    def in_thread(ctx: axeq.Context[Anything, Any]) -> Any:
        if ctx.model.value == "end":
            ends()
        return ctx.model.value

    async def in_loop(ctx: axeq.Context[Anything, Any]) -> Any:
        return in_thread(ctx)

    pool.add(axeq.Task(Anything, in_loop if executor == "loop" else in_thread, max_attempts=1))
    with running(pool):
        job = queue.enqueue(Anything(value="end"))

        with pytest.raises(axeq.JobCancelled) as cancelled:
            job.wait(DEADLINE)
        assert queue.enqueue(Anything(value="alive")).wait(DEADLINE) == "alive"

    assert cancelled.value.error is not None
    assert cancelled.value.error["type"] == kind
    assert len(bson.encode(jobs.find_one({"_id": job.id}))) < 64 * KIB


def test_an_exception_whose_text_exits_is_still_described() -> None:
    assert describe(DeafError())["type"] == "DeafError"


def test_a_handler_that_swallows_its_cancellation_ends_as_it_says_once_it_does() -> None:
    queue, _ = on_mongomock()
    pool = quick_pool(queue.store)

    @pool.task(Anything, timeout=0.05, max_attempts=1)
    async def stubborn(ctx: axeq.Context[Anything, Any]) -> Any:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            return "done anyway"

    with running(pool), pytest.raises(axeq.JobCancelled) as cancelled:
        queue.enqueue(Anything()).wait(DEADLINE)

    assert cancelled.value.cause == "exhausted"
    assert cancelled.value.error is not None
    assert cancelled.value.error["type"] == "TimeoutError"


# F22: times

ZONES = st.sampled_from(["UTC", "Europe/Zurich", "America/St_Johns", "Asia/Kathmandu", "Australia/Lord_Howe"])


@fuzzed
@given(
    st.datetimes(datetime(1900, 1, 1), datetime(2040, 12, 30), timezones=ZONES.map(ZoneInfo), allow_imaginary=False)  # noqa: DTZ001
)
@example(datetime(2026, 10, 25, 2, 30, fold=0, tzinfo=ZoneInfo("Europe/Zurich")))
@example(datetime(2026, 10, 25, 2, 30, fold=1, tzinfo=ZoneInfo("Europe/Zurich")))
@example(datetime(2016, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC))
def test_a_job_is_due_at_its_moment_in_any_zone_and_never_before(moment: datetime) -> None:
    queue, jobs = on_mongomock()
    if moment > datetime.now(UTC) + timedelta(days=3660):
        with pytest.raises(axeq.ConfigurationError, match="run_at must be within ten years"):
            queue.enqueue(Anything(), run_at=moment)
        assert jobs.count_documents({}) == 0
        return

    job = queue.enqueue(Anything(), run_at=moment)

    assert job.available_at is not None
    assert job.available_at >= moment
    assert job.available_at == max(milliseconds(moment, up=True), job.created_at)
    assert queue.get(job.id).available_at == job.available_at


@pytest.mark.parametrize("option", ["run_at", "deadline"])
@pytest.mark.parametrize(
    "moment",
    [
        datetime(2026, 1, 1),  # noqa: DTZ001
        date(2026, 1, 1),
        "2026-01-01T00:00:00Z",
        datetime(9999, 12, 31, 23, 59, tzinfo=timezone(-timedelta(hours=1))),
        datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=1))),
        datetime.max.replace(tzinfo=UTC),
    ],
    ids=str,
)
def test_what_is_no_moment_that_can_be_kept_is_refused_by_its_option(option: str, moment: Any) -> None:
    queue, jobs = on_mongomock()

    with pytest.raises(axeq.ConfigurationError, match=option):
        queue.enqueue(Anything(), **{option: moment})

    assert jobs.count_documents({}) == 0


# F51: delays


@fuzzed
@given(
    shortest=st.floats(0.001, 1e6), factor=st.floats(1, 1000), longer=st.floats(1, 1e6), attempt=st.integers(1, 10**6)
)
def test_a_failed_job_waits_longer_each_time_and_never_beyond_the_limit(
    shortest: float, factor: float, longer: float, attempt: int
) -> None:
    curve = Exponential(shortest, factor, longest := min(shortest * longer, 10**8), jitter=0)
    delays = [curve(each) for each in (attempt, attempt + 1)]

    assert 0 < delays[0] <= delays[1] <= longest


@fuzzed
@given(delay=st.floats(0, 3650 * 86_400), attempts=st.integers(1, 10**6))
def test_a_job_is_put_off_by_its_delay_to_the_millisecond(delay: float, attempts: int) -> None:
    clock = ScriptedClock()

    for outcome in (Failed({"type": "E", "message": "", "traceback": ""}, delay=delay), Snoozed(delay=delay)):
        entry = settlement(Record(held_job(attempts=attempts)), outcome, Limits(), clock)  # type: ignore[arg-type]
        due = entry.update["$set"]["available_at"]
        asked = clock.latest() + timedelta(seconds=delay)

        assert asked <= due < asked + timedelta(milliseconds=1)
        assert due >= NOW
