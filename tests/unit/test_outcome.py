"""What becomes of a job: the judgement before it runs, and the decision after."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from axeq.backoff import Exponential
from axeq.errors import Cancel, ResultInvalid, Retry, Snooze
from axeq.outcome import Cancelled, Failed, Limits, Reported, Snoozed, decide, describe, judge
from axeq.record import failure
from axeq.settlement import settlement
from axeq.states import Cause

from .playing import NOW, ScriptedClock, changed, held_record

LIMITS = Limits(max_attempts=3, max_lost=2, backoff=Exponential(1, 2, 600, jitter=0))
AT = datetime(2027, 1, 1, 8, 0, tzinfo=UTC)


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class Wordless(Exception):
    def __str__(self) -> str:
        return None  # type: ignore[return-value]


# Before it runs


def test_a_job_within_its_limits_runs() -> None:
    record = held_record(attempts=3, lost=3, deadline=NOW + timedelta(milliseconds=1))

    assert judge(record, LIMITS, NOW) is None


@pytest.mark.parametrize(
    ("fields", "cause", "reason"),
    [
        ({"cancel": {"at": NOW, "reason": "wrong file"}}, Cause.REQUESTED, "wrong file"),
        ({"attempts": 4}, Cause.EXHAUSTED, "no attempt left of 3"),
        ({"attempts": 2, "max_attempts": 1}, Cause.EXHAUSTED, "no attempt left of 1"),
        ({"lost": 4}, Cause.EXHAUSTED, "3 leases lost in a row, the limit is 2"),
        ({"deadline": NOW}, Cause.EXPIRED, "its deadline 2026-05-04T12:00:00+00:00 has passed"),
    ],
    ids=["cancel asked for", "attempts", "its own attempts", "leases", "deadline"],
)
def test_a_job_ends_without_running_and_says_why(fields: dict[str, Any], cause: Cause, reason: str) -> None:
    verdict = judge(held_record(**fields), LIMITS, NOW)

    assert verdict is not None
    assert (verdict.cause, verdict.reason) == (cause, reason)


def test_a_cancel_asked_for_goes_before_every_other_cause() -> None:
    record = held_record(cancel={"at": NOW}, attempts=9, lost=9, deadline=NOW)

    verdict = judge(record, LIMITS, NOW)

    assert verdict is not None
    assert verdict.cause is Cause.REQUESTED


def test_an_exhausted_job_keeps_its_last_failure() -> None:
    error = failure("ValueError", "bad colour")

    for fields in ({"attempts": 4}, {"lost": 4}):
        record = held_record(error=error, **fields)
        verdict = judge(record, LIMITS, NOW)
        assert verdict is not None
        ended = changed(record.document, settlement(record, verdict, LIMITS, ScriptedClock()).update)

        assert ended["error"] == error
        assert "type" not in ended["events"][-1]


def test_without_limits_a_job_runs_for_ever() -> None:
    record = held_record(attempts=10_000, lost=10_000)

    assert judge(record, Limits(max_attempts=0, max_lost=None), NOW) is None


def test_a_job_that_may_lose_no_lease_never_runs_after_a_lost_one() -> None:
    limits = Limits(max_lost=0)

    first, second = judge(held_record(lost=1), limits, NOW), judge(held_record(lost=2), limits, NOW)

    assert first is None
    assert second is not None


def test_a_jobs_own_limit_of_attempts_may_be_wider_than_the_tasks() -> None:
    assert judge(held_record(attempts=9, max_attempts=10), LIMITS, NOW) is None
    assert judge(held_record(attempts=9, max_attempts=0), LIMITS, NOW) is None


# After it ran


def test_an_exception_is_tried_again_after_the_backoff() -> None:
    outcome = decide(ValueError("bad colour"), held_record(attempts=2), LIMITS)

    assert isinstance(outcome, Failed)
    assert (outcome.delay, outcome.at) == (2.0, None)
    assert (outcome.error["type"], outcome.error["message"]) == ("ValueError", "bad colour")
    assert "ValueError: bad colour" in outcome.error["traceback"]


def test_the_last_attempt_that_fails_ends_the_job() -> None:
    outcome = decide(ValueError("bad colour"), held_record(attempts=3), LIMITS)

    assert isinstance(outcome, Cancelled)
    assert (outcome.cause, outcome.reason) == (Cause.EXHAUSTED, "attempt 3 of 3 failed")
    assert outcome.error is not None
    assert outcome.error["type"] == "ValueError"


def test_a_retry_counts_as_an_attempt() -> None:
    outcome = decide(Retry("busy", delay=5), held_record(attempts=3), LIMITS)

    assert isinstance(outcome, Cancelled)
    assert outcome.cause is Cause.EXHAUSTED
    assert outcome.error == failure("Retry", "busy")


@pytest.mark.parametrize(
    ("error", "delay", "at"),
    [
        (Retry("busy"), 1.0, None),
        (Retry(delay=0), 0.0, None),
        (Retry(delay=2.5), 2.5, None),
        (Retry(delay=timedelta(minutes=1)), 60.0, None),
        (Retry(at=AT), 0.0, AT),
        (Retry(delay=9, at=AT), 0.0, AT),
    ],
    ids=["backoff", "at once", "seconds", "timedelta", "at", "at before delay"],
)
def test_a_retry_says_when(error: Retry, delay: float, at: datetime | None) -> None:
    outcome = decide(error, held_record(), LIMITS)

    assert isinstance(outcome, Failed)
    assert (outcome.delay, outcome.at) == (delay, at)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (Snooze(delay=90), Snoozed(90.0)),
        (Snooze(delay=timedelta(minutes=1)), Snoozed(60.0)),
        (Snooze(at=AT), Snoozed(at=AT)),
    ],
    ids=["seconds", "timedelta", "at"],
)
def test_a_snooze_puts_the_job_back_even_after_the_last_attempt(error: Snooze, expected: Snoozed) -> None:
    assert decide(error, held_record(attempts=3), LIMITS) == expected


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (Retry(at=datetime(2027, 1, 1)), "Retry(at=) is a naive datetime"),  # noqa: DTZ001 - the mistake itself
        (Retry(delay=-1), "Retry(delay=) must be between 0 s and ten years"),
        (Retry(delay=float("nan")), "Retry(delay=) must be between"),
        (Retry(delay="soon"), "Retry(delay=) must be a timedelta or seconds, not str"),  # type: ignore[arg-type]
        (Retry(at="noon"), "Retry(at=) must be an aware datetime, not str"),  # type: ignore[arg-type]
        (Snooze(), "Snooze takes exactly one of delay= and at="),
        (Snooze(delay=1, at=AT), "Snooze takes exactly one of delay= and at="),
        (Snooze(at=datetime(2027, 1, 1)), "Snooze(at=) is a naive datetime"),  # noqa: DTZ001 - as above
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_mistaken_outcome_is_a_failure_that_names_the_mistake(error: Exception, message: str) -> None:
    outcome = decide(error, held_record(attempts=2), LIMITS)

    assert isinstance(outcome, Failed)
    assert outcome.error["type"] == "ConfigurationError"
    assert message in outcome.error["message"]
    assert outcome.delay == 2.0


def test_a_cancel_ends_the_job_with_its_reason() -> None:
    assert decide(Cancel("not wanted"), held_record(), LIMITS) == Cancelled(Cause.HANDLER, "not wanted")


def test_a_reason_that_is_not_text_is_kept_as_text() -> None:
    outcome = decide(Cancel(ValueError("bad colour")), held_record(), LIMITS)  # type: ignore[arg-type]

    assert isinstance(outcome, Cancelled)
    assert outcome.reason == "bad colour"


def test_a_result_that_cannot_be_stored_ends_the_job() -> None:
    outcome = decide(ResultInvalid("result of 'thumbnail': too large"), held_record(), LIMITS)

    assert isinstance(outcome, Cancelled)
    assert outcome.cause is Cause.RESULT
    assert outcome.error == failure("ResultInvalid", "result of 'thumbnail': too large")


@pytest.mark.parametrize(
    ("error", "text"),
    [(Mute(), "<Mute whose text raised RuntimeError>"), (Wordless(), "<Wordless whose text raised TypeError>")],
    ids=["raises", "returns no text"],
)
def test_an_exception_that_cannot_be_printed_is_still_kept(error: Exception, text: str) -> None:
    outcome = decide(error, held_record(), LIMITS)

    assert isinstance(outcome, Failed)
    assert (outcome.error["type"], outcome.error["message"]) == (type(error).__name__, text)


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), ExceptionGroup("both", [ValueError("a")])])
def test_every_kind_of_exception_is_a_failure(error: BaseException) -> None:
    outcome = decide(error, held_record(), LIMITS)

    assert isinstance(outcome, Failed)
    assert outcome.error["type"] == type(error).__name__


def test_a_failure_in_another_process_keeps_what_was_reported_there() -> None:
    reported = failure("ValueError", "bad colour", "Traceback ...")

    assert describe(Reported(reported)) == reported


def test_a_stored_failure_is_bounded_and_keeps_the_end_of_its_traceback() -> None:
    stored = failure("ValueError", "x" * 10_000, "first\n" + "line\n" * 10_000 + "last")

    assert len(stored["message"]) == 2048
    assert len(stored["traceback"]) == 16_384
    assert stored["traceback"].endswith("last")


def test_a_stored_failure_holds_no_credentials_and_no_text_that_utf8_cannot_hold() -> None:
    stored = describe(ValueError("mongodb://ann:secret@host/db \ud800"))

    assert "secret" not in str(stored)
    assert stored["message"].encode()
