"""What becomes of a job: the judgement before it runs, and the decision after."""

from __future__ import annotations

import dataclasses
import pickle
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from axeq.documents.failure import failure
from axeq.documents.record import Record
from axeq.rules.outcome import (
    Cancelled,
    Failed,
    Limits,
    Reported,
    Snoozed,
    decide,
    describe,
    expired_before,
    fault,
    judge,
)
from axeq.rules.settlement import settlement
from axeq.words.backoff import Exponential, never
from axeq.words.errors import Cancel, ResultInvalid, Retry, Snooze
from axeq.words.states import Cause

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


# What a task says of exceptions


class Busy(ConnectionError):
    pass


def with_rules(**rules: Any) -> Limits:
    return dataclasses.replace(LIMITS, **rules)


def test_a_backoff_is_told_the_attempt_its_exception_and_the_job() -> None:
    record, error = held_record(attempts=2), ValueError("bad colour")

    outcome = decide(error, record, with_rules(backoff=lambda *told: 100 * told[0] + (told[1:] == (error, record))))

    assert isinstance(outcome, Failed)
    assert outcome.delay == 201


@pytest.mark.parametrize("wait", [None, -1, timedelta(seconds=-1)])
def test_a_backoff_that_names_no_time_ends_the_job_with_its_error(wait: Any) -> None:
    outcome = decide(ValueError("bad colour"), held_record(attempts=1), with_rules(backoff=lambda *_: wait))

    assert isinstance(outcome, Cancelled)
    assert (outcome.cause, outcome.reason) == (Cause.EXHAUSTED, "no attempt after attempt 1: so says its backoff")
    assert outcome.error is not None
    assert outcome.error["message"] == "bad colour"


def broken(*_: Any) -> Any:
    raise KeyError("what the job carries")


@pytest.mark.parametrize(
    ("backoff", "mistake"),
    [(broken, "backoff raised KeyError ("), (lambda *_: "soon", "what the backoff returns must be a timedelta")],
    ids=["raises", "nonsense"],
)
def test_a_broken_backoff_costs_the_attempt_nothing_but_its_own_delay(backoff: Any, mistake: str) -> None:
    outcome = decide(ValueError("bad colour"), held_record(attempts=2), with_rules(backoff=backoff))

    assert isinstance(outcome, Failed)
    assert (outcome.error["type"], outcome.delay) == ("ValueError", 2.0)
    assert outcome.mistake.startswith(mistake)
    assert "what the job carries" not in outcome.mistake


def test_a_backoff_is_not_asked_where_the_handler_or_the_limit_has_decided() -> None:
    limits = with_rules(backoff=broken)

    asked_for = decide(Retry(delay=5), held_record(), limits)
    exhausted = decide(ValueError(), held_record(attempts=3), limits)

    assert isinstance(asked_for, Failed)
    assert isinstance(exhausted, Cancelled)
    assert (asked_for.delay, asked_for.mistake, exhausted.mistake) == (5.0, "", "")


@pytest.mark.parametrize(
    ("rules", "error", "again"),
    [
        ({"retry_on": (ConnectionError,)}, Busy("full"), True),
        ({"retry_on": (ConnectionError, ValueError)}, ValueError(), True),
        ({"retry_on": (ConnectionError,)}, ValueError(), False),
        ({"retry_on": (ConnectionError,)}, Retry("not yet"), True),
        ({"retry_on": ()}, ConnectionError(), False),
        ({"retry_on": ()}, Retry("not yet"), True),
        ({"no_retry_on": (ValueError,)}, ValueError(), False),
        ({"no_retry_on": (ValueError,)}, KeyError(), True),
        ({"retry_on": (OSError,), "no_retry_on": (Busy,)}, ConnectionError(), True),
        ({"retry_on": (OSError,), "no_retry_on": (Busy,)}, Busy(), False),
        ({"no_retry_on": (Exception,)}, Retry("not yet"), True),
    ],
)
def test_a_job_is_tried_again_only_after_the_exceptions_that_its_task_names(
    rules: dict[str, Any], error: Exception, again: bool
) -> None:
    outcome = decide(error, held_record(attempts=1), with_rules(**rules))

    assert isinstance(outcome, Failed if again else Cancelled)


def test_a_job_that_is_not_tried_again_keeps_its_error() -> None:
    outcome = decide(Busy("the host is full"), held_record(), with_rules(retry_on=()))

    assert isinstance(outcome, Cancelled)
    assert (outcome.cause, outcome.reason) == (Cause.HANDLER, "Busy is not tried again")
    assert outcome.error is not None
    assert (outcome.error["type"], outcome.error["message"]) == ("Busy", "the host is full")


def test_what_is_not_the_handlers_own_failure_is_tried_again_whatever_its_task_names() -> None:
    outcome = fault(Busy("full"), held_record(), with_rules(retry_on=(), no_retry_on=(Exception,), is_failure=broken))

    assert isinstance(outcome, Failed)
    assert outcome.mistake == ""


def test_an_exception_that_is_no_failure_puts_the_job_back_after_the_backoff() -> None:
    limits = with_rules(is_failure=lambda error: not isinstance(error, Busy), retry_on=())

    outcome = decide(Busy("full"), held_record(attempts=3), limits)

    assert isinstance(outcome, Snoozed)
    assert outcome.delay == 4.0
    assert outcome.error is not None
    assert outcome.error["message"] == "full"


def test_an_exception_that_is_no_failure_is_not_among_the_jobs_errors() -> None:
    record = held_record(attempts=2, lost=1)
    outcome = decide(Busy("full"), record, with_rules(is_failure=lambda error: False))

    stored = changed(record.document, settlement(record, outcome, LIMITS, ScriptedClock()).update)

    assert (stored["state"], stored["attempts"], stored["lost"]) == ("enqueued", 1, 0)
    assert "error" not in stored
    assert Record(stored).errors == []
    assert stored["events"][-1]["reason"] == "Busy, no failure: full"


def test_an_exception_that_is_no_failure_still_ends_a_job_whose_backoff_is_at_its_end() -> None:
    outcome = decide(Busy("full"), held_record(), with_rules(is_failure=lambda error: False, backoff=never))

    assert isinstance(outcome, Cancelled)
    assert outcome.cause is Cause.EXHAUSTED


def test_a_judgement_that_raises_takes_the_exception_for_a_failure() -> None:
    outcome = decide(ValueError("bad colour"), held_record(), with_rules(is_failure=broken))

    assert isinstance(outcome, Failed)
    assert outcome.error["message"] == "bad colour"
    assert outcome.mistake.startswith("is_failure raised KeyError (")


@pytest.mark.parametrize(("answer", "kind"), [(None, "NoneType"), (0, "int"), ("no", "str")])
def test_a_judgement_that_forgets_to_answer_does_not_put_jobs_back_for_ever(answer: Any, kind: str) -> None:
    outcome = decide(ValueError("bad colour"), held_record(), with_rules(is_failure=lambda error: answer))

    assert isinstance(outcome, Failed)
    assert outcome.mistake == f"is_failure returned a {kind}, not a bool"


@pytest.mark.parametrize("outcome", [Failed(failure("E", "m"), delay=60), Snoozed(at=NOW + timedelta(seconds=60))])
def test_a_job_that_would_come_again_only_after_its_deadline_ends_now(outcome: Failed | Snoozed) -> None:
    soon, later = (held_record(deadline=NOW + timedelta(seconds=seconds)) for seconds in (60, 61))

    ended = expired_before(outcome, soon, NOW)

    assert isinstance(ended, Cancelled)
    assert (ended.cause, ended.error) == (Cause.EXPIRED, outcome.error)
    assert "comes before its next attempt" in ended.reason
    assert expired_before(outcome, later, NOW) is outcome
    assert expired_before(outcome, held_record(), NOW) is outcome


def test_what_was_decided_in_the_handlers_process_is_not_decided_anew() -> None:
    there = Cancelled(Cause.HANDLER, "decided there")

    assert decide(pickle.loads(pickle.dumps(Reported(failure("E", ""), there))), held_record(), LIMITS) == there


def test_a_snooze_brings_its_new_payload_and_its_reason() -> None:
    outcome = decide(Snooze(delay=5, data={"page": 2}, reason="next page"), held_record(), LIMITS)

    assert outcome == Snoozed(5.0, data={"page": 2}, reason="next page")


@pytest.mark.parametrize("snooze", [Snooze(delay=5, data={"page": 2}, reason="next page"), Snooze(at=AT)])
def test_a_snooze_can_leave_the_handlers_process(snooze: Snooze) -> None:
    sent = pickle.loads(pickle.dumps(snooze))

    assert vars(sent) == vars(snooze)


def test_a_new_payload_replaces_the_old_and_drops_what_had_been_done_on_it() -> None:
    record = held_record(version=1, data={"page": 1}, checkpoint={"line": 7})

    written = [
        changed(record.document, settlement(record, outcome, LIMITS, ScriptedClock()).update)
        for outcome in (Snoozed(5.0), Snoozed(5.0, data={"page": 2}, version=3))
    ]

    assert [(each["data"], each["version"], each.get("checkpoint")) for each in written] == [
        ({"page": 1}, 1, {"line": 7}),
        ({"page": 2}, 3, None),
    ]


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
