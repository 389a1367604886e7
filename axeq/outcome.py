"""What becomes of a job: pure decisions, before it runs and after. No IO, no clock of its own."""

from __future__ import annotations

import traceback
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from axeq.backoff import Backoff
from axeq.codec import Codec
from axeq.duration import aware, seconds
from axeq.errors import Cancel, ConfigurationError, ResultInvalid, Retry, Snooze
from axeq.record import Document, Record, event, failure, flaw, sealed_failure, usual
from axeq.states import Cause, State

__all__ = [
    "Cancelled",
    "Completed",
    "Failed",
    "Flawed",
    "Limits",
    "Outcome",
    "Released",
    "Reported",
    "Snoozed",
    "decide",
    "end_flawed",
    "judge",
    "sealed",
]


@dataclass(frozen=True, slots=True)
class Limits:
    """How often a task's job may be tried and how long it is kept. Durations in seconds."""

    max_attempts: int = 0
    max_lost: int | None = 5
    backoff: Backoff = Backoff()  # noqa: RUF009 - frozen
    retention: float = 7 * 86_400.0
    cancelled_retention: float = 30 * 86_400.0


@dataclass(frozen=True, slots=True)
class Completed:
    """The handler returned; `result` is plain BSON, None for none."""

    result: Any = None


@dataclass(frozen=True, slots=True)
class Failed:
    """To be tried again, `delay` seconds from now or `at` a moment."""

    error: Document
    delay: float = 0.0
    at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Cancelled:
    """Ended without completing."""

    cause: Cause
    reason: str = ""
    error: Document | None = None


@dataclass(frozen=True, slots=True)
class Snoozed:
    """Put back, uncounted, for `delay` seconds or until `at`."""

    delay: float = 0.0
    at: datetime | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Released:
    """Given back untouched, due now."""

    reason: str = ""


@dataclass(frozen=True, slots=True)
class Flawed:
    """Ended as invalid, because its own document has a flaw that no rule can work with."""

    reason: str


Outcome = Completed | Failed | Cancelled | Snoozed | Released | Flawed


class Reported(Exception):
    """A failure that happened in another process. `document` is the job's `error`."""

    def __init__(self, document: Document) -> None:
        super().__init__(document)
        self.document = document


def judge(record: Record, limits: Limits, now: datetime) -> Cancelled | Flawed | None:
    """Returns how a job just claimed ends without running, or None where it runs.

    `record` is as the claim left it, so `lost` counts this claim too; `now` is the lower bound of the server's
    time.
    """
    if not usual(record.document) and (found := flaw(record.document)) is not None:
        return Flawed(found)
    if record.cancel_requested:
        return Cancelled(Cause.REQUESTED, record.cancel_reason or "")
    if limits.max_lost is not None and record.lost - 1 > limits.max_lost:
        return Cancelled(
            Cause.EXHAUSTED,
            f"{record.lost - 1} leases lost in a row, the limit is {limits.max_lost}",
            _kept(record),
        )
    allowed = _allowed(record, limits)
    if allowed and record.attempts > allowed:
        return Cancelled(Cause.EXHAUSTED, f"no attempt left of {allowed}", _kept(record))
    if record.deadline is not None and record.deadline <= now:
        return Cancelled(Cause.EXPIRED, f"its deadline {record.deadline.isoformat()} has passed")
    return None


def decide(error: BaseException, record: Record, limits: Limits) -> Outcome:
    """Returns what an exception that ended an attempt makes of the job."""
    if isinstance(error, Cancel):
        return Cancelled(Cause.HANDLER, _text(error.reason))
    if isinstance(error, ResultInvalid):
        return Cancelled(Cause.RESULT, _text(error), failure(type(error).__name__, _text(error)))
    try:
        if isinstance(error, Snooze):
            return _snoozed(error)
        delay, at = _again(error, record, limits)
    except ConfigurationError as mistake:
        error, delay, at = mistake, limits.backoff.delay(record.attempts), None
    stored = describe(error)
    allowed = _allowed(record, limits)
    if allowed and record.attempts >= allowed:
        return Cancelled(Cause.EXHAUSTED, f"attempt {record.attempts} of {allowed} failed", stored)
    return Failed(stored, delay, at)


def sealed(outcome: Outcome, codec: Codec) -> Outcome:
    """Returns an outcome of a handler with what may quote the payload sealed: its error, and why a result was
    refused.
    """
    if not isinstance(outcome, Failed | Cancelled) or outcome.error is None:
        return outcome
    error = sealed_failure(outcome.error, codec)
    if isinstance(outcome, Cancelled) and outcome.cause is Cause.RESULT:
        return replace(outcome, error=error, reason="the result could not be stored")
    return replace(outcome, error=error)


def describe(error: BaseException) -> Document:
    """Returns an exception as a job's `error`, even one that cannot be printed."""
    if isinstance(error, Reported):
        return error.document
    if isinstance(error, Retry):
        return failure("Retry", _text(error.reason))
    try:
        trace = "".join(traceback.format_exception(error))
    except BaseException as broken:  # noqa: BLE001 - as in _text
        trace = f"<traceback raised {type(broken).__name__}>"
    return failure(type(error).__name__, _text(error), trace)


def end_flawed(document: Document, reason: str, now: datetime, *, retention: float, worker: str | None) -> Document:
    """Returns the update that ends a job whose document has a flaw, and keeps that for whoever looks into it.

    It relies on nothing in the document: what would be pushed or counted up is set. `retention` is in seconds.
    """
    attempts = document.get("attempts")
    attempt = attempts if type(attempts) is int else 0
    return {
        "$set": {
            "state": State.CANCELLED.value,
            "cause": Cause.INVALID.value,
            "attempts": attempt,
            "lost": 0,
            "finished_at": now,
            "expire_at": now + timedelta(seconds=retention),
            "error": failure("InvalidRecord", reason),
            "events": [event("cancel", now, attempt=attempt, worker=worker, reason=reason)],
        },
        "$unset": {"available_at": "", "cancel": ""},
    }


def _text(value: object) -> str:
    try:
        return str(value)
    except BaseException as broken:  # noqa: BLE001 - a __str__ may raise anything, SystemExit too; the job must still end
        return f"<{type(value).__name__} whose text raised {type(broken).__name__}>"


def _kept(record: Record) -> Document | None:
    return None if record.error is None else dict(record.error)


def _allowed(record: Record, limits: Limits) -> int:
    return limits.max_attempts if record.max_attempts is None else record.max_attempts


def _again(error: BaseException, record: Record, limits: Limits) -> tuple[float, datetime | None]:
    if isinstance(error, Retry) and error.at is not None:
        return 0.0, aware(error.at, "Retry(at=)")
    if isinstance(error, Retry) and error.delay is not None:
        return seconds(error.delay, "Retry(delay=)"), None
    return limits.backoff.delay(record.attempts), None


def _snoozed(error: Snooze) -> Snoozed:
    if (error.delay is None) == (error.at is None):
        raise ConfigurationError("Snooze takes exactly one of delay= and at=")
    if error.at is not None:
        return Snoozed(at=aware(error.at, "Snooze(at=)"))
    assert error.delay is not None
    return Snoozed(seconds(error.delay, "Snooze(delay=)"))


def due(now: datetime, delay: float, at: datetime | None) -> datetime:
    """Returns the moment `at`, or `delay` seconds after `now`."""
    return at if at is not None else now + timedelta(seconds=delay)
