"""What becomes of a job: pure decisions, before it runs and after. No IO, no clock of its own."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from axeq.documents.codec import Codec
from axeq.documents.failure import excerpt, failure, sealed_failure
from axeq.documents.flaw import flaw, usual
from axeq.documents.model import problems
from axeq.documents.record import Document, Record, event
from axeq.words import backoff
from axeq.words.duration import aware, seconds
from axeq.words.errors import Cancel, ConfigurationError, ResultInvalid, Retry, Snooze
from axeq.words.states import Cause, State

__all__ = [
    "Cancelled",
    "Collision",
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
    "expired_before",
    "fault",
    "invalid",
    "judge",
    "sealed",
    "unlimited",
]


_COLLIDED = "its transaction collided"
_COLLISION_PAUSE = 0.1
"""Seconds until a job is tried again whose transaction collided with another writer, the first time."""
_MOST_COLLISIONS = 20
"""How many collisions in a row are not charged."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How often and after what a task's job may be tried, and how long it is kept. Durations in seconds.

    `retry_on` None is every exception; `is_failure` None takes each for a failure.
    """

    max_attempts: int = 0
    max_lost: int | None = 5
    backoff: backoff.Curve = backoff.CLASSIC
    retention: float = 7 * 86_400.0
    cancelled_retention: float = 30 * 86_400.0
    retry_on: tuple[type[BaseException], ...] | None = None
    no_retry_on: tuple[type[BaseException], ...] = ()
    is_failure: Callable[[BaseException], bool] | None = None


@dataclass(frozen=True, slots=True)
class Completed:
    """The handler returned; `result` is plain BSON, None for none."""

    result: Any = None


@dataclass(frozen=True, slots=True)
class Failed:
    """To be tried again, `delay` seconds from now or `at` a moment.

    `excerpt` is what its event keeps of a sealed error; `mistake` is for the log: what of the task's own rules
    could not be asked.
    """

    error: Document
    delay: float = 0.0
    at: datetime | None = None
    excerpt: Document | None = None
    mistake: str = ""


@dataclass(frozen=True, slots=True)
class Cancelled:
    """Ended without completing; `error` is this attempt's own, the rest is as for `Failed`."""

    cause: Cause
    reason: str = ""
    error: Document | None = None
    excerpt: Document | None = None
    mistake: str = ""


@dataclass(frozen=True, slots=True)
class Snoozed:
    """Put back, uncounted, for `delay` seconds or until `at`.

    `data` is the payload that replaces the job's, None for none: a model as long as `version` is None, then plain
    BSON of that version. `error` is an exception that was no failure, `mistake` as for `Failed`.
    """

    delay: float = 0.0
    at: datetime | None = None
    reason: str = ""
    data: Any = None
    version: int | None = None
    error: Document | None = None
    mistake: str = ""


@dataclass(frozen=True, slots=True)
class Released:
    """Given back untouched, due now, or since `at`: a member of a group keeps its place in it."""

    reason: str = ""
    at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Flawed:
    """Ended as invalid, because its own document has a flaw that no rule can work with."""

    reason: str


Outcome = Completed | Failed | Cancelled | Snoozed | Released | Flawed


class Reported(Exception):
    """A failure that happened in another process. `document` is the job's `error`, `type`, `message` and `traceback`
    its parts; `outcome` is what was decided there, where the exception itself was.
    """

    def __init__(self, document: Document, outcome: Outcome | None = None) -> None:
        super().__init__(document, outcome)
        self.document = document
        self.outcome = outcome

    @property
    def type(self) -> str:
        """The name of the exception's class."""
        return str(self.document.get("type"))

    @property
    def message(self) -> str:
        """The exception's text."""
        return str(self.document.get("message"))

    @property
    def traceback(self) -> str:
        """Where it was raised."""
        return str(self.document.get("traceback"))

    def __str__(self) -> str:
        return f"{self.type}: {self.message}"


class Collision(Exception):
    """A transaction of the handler collided with another writer: the job is tried again at once, uncharged."""


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
        )
    allowed = _allowed(record, limits)
    if allowed and record.attempts > allowed:
        return Cancelled(Cause.EXHAUSTED, f"no attempt left of {allowed}")
    if record.deadline is not None and record.deadline <= now:
        return Cancelled(Cause.EXPIRED, f"its deadline {record.deadline.isoformat()} has passed")
    return None


def decide(error: BaseException, record: Record, limits: Limits) -> Outcome:
    """Returns what an exception of a handler, or its running too long, makes of the job."""
    if isinstance(error, Reported):
        return error.outcome or fault(error, record, limits)
    if isinstance(error, Cancel):
        return Cancelled(Cause.HANDLER, _text(error.reason))
    if isinstance(error, Collision):
        return _collided(error, record, limits)
    if isinstance(error, ResultInvalid):
        return Cancelled(Cause.RESULT, _text(error), failure(type(error).__name__, _text(error)))
    try:
        if isinstance(error, Snooze):
            return _snoozed(error)
        if isinstance(error, Retry):
            return _failed(error, record, limits, *_asked(error))
    except ConfigurationError as mistaken:
        return fault(mistaken, record, limits)
    return _judged(error, record, limits)


def _collided(error: Collision, record: Record, limits: Limits) -> Snoozed | Failed | Cancelled:
    """Returns what a collision makes of the job: it is put back for longer each time, and charged once it has collided
    so often in a row that it seems to collide with itself.
    """
    collisions = 0
    for entry in reversed(record.events):
        if entry.get("verb") != "snooze" or not str(entry.get("reason", "")).startswith(_COLLIDED):
            break
        collisions += 1
    if collisions >= _MOST_COLLISIONS:
        return fault(error, record, limits)
    return Snoozed(_COLLISION_PAUSE * (collisions + 1), reason=f"{_COLLIDED}: {_text(error)}")


def fault(error: BaseException, record: Record, limits: Limits) -> Failed | Cancelled:
    """Returns what a failure that is not the handler's own makes of the job: it is tried again after the backoff,
    whatever the task's `retry_on` and `is_failure` say of exceptions.
    """
    return _failed(error, record, limits)


def expired_before(outcome: Failed | Snoozed, record: Record, now: datetime) -> Outcome:
    """Returns `outcome`, or the end of a job that would come again only after its deadline: who waits for it need
    not wait so long.
    """
    if record.deadline is None or due(now, outcome.delay, outcome.at) < record.deadline:
        return outcome
    reason = f"its deadline {record.deadline.isoformat()} comes before its next attempt"
    error = outcome.error if isinstance(outcome, Failed) else None
    return Cancelled(Cause.EXPIRED, reason, error, mistake=outcome.mistake)


def invalid(error: Exception) -> Cancelled:
    """Returns the end of a job whose payload could not be read."""
    kind = type(error).__name__
    reason = "no longer validates" if kind == "ValidationError" else "could not be read"
    return Cancelled(Cause.INVALID, f"the stored payload {reason}", failure(kind, problems(error)))


def unlimited(record: Record, limits: Limits) -> bool:
    """Whether a job may be tried for ever."""
    return not _allowed(record, limits)


def _judged(error: BaseException, record: Record, limits: Limits) -> Failed | Cancelled | Snoozed:
    """Returns what the task's rules make of an exception."""
    counted, mistake = _is_failure(error, limits)
    if not counted:
        delay, mistake = _pause(error, record, limits)
        if delay is None:
            return _at_its_end(describe(error), record, mistake)
        return Snoozed(delay, error=describe(error), mistake=mistake)
    wanted = limits.retry_on is None or isinstance(error, limits.retry_on)
    if not wanted or isinstance(error, limits.no_retry_on):
        kind = type(error).__name__
        return Cancelled(Cause.HANDLER, f"{kind} is not tried again", describe(error), mistake=mistake)
    return _failed(error, record, limits, mistake=mistake)


def _failed(
    error: BaseException,
    record: Record,
    limits: Limits,
    delay: float | None = None,
    at: datetime | None = None,
    mistake: str = "",
) -> Failed | Cancelled:
    """Returns the failure of an attempt; without `delay` and `at` its backoff says when the next one is."""
    stored = describe(error)
    allowed = _allowed(record, limits)
    if allowed and record.attempts >= allowed:
        return Cancelled(Cause.EXHAUSTED, f"attempt {record.attempts} of {allowed} failed", stored, mistake=mistake)
    if delay is None and at is None:
        delay, another = _pause(error, record, limits)
        mistake = "; ".join(filter(None, (mistake, another)))
        if delay is None:
            return _at_its_end(stored, record, mistake)
    return Failed(stored, delay or 0.0, at, mistake=mistake)


def _at_its_end(error: Document, record: Record, mistake: str) -> Cancelled:
    reason = f"no attempt after attempt {record.attempts}: so says its backoff"
    return Cancelled(Cause.EXHAUSTED, reason, error, mistake=mistake)


def _is_failure(error: BaseException, limits: Limits) -> tuple[bool, str]:
    """Returns whether an exception counts as a failure, and what is for the log where the task cannot tell."""
    if limits.is_failure is None:
        return True, ""
    try:
        answer = limits.is_failure(error)
    except BaseException as broken:  # noqa: BLE001 - it is the task's code, and the attempt has an error of its own
        return True, f"is_failure raised {_place(broken)}"
    if isinstance(answer, bool):
        return answer, ""
    # What forgets to answer must not put its jobs back for ever.
    return True, f"is_failure returned a {type(answer).__name__}, not a bool"


def _pause(error: BaseException, record: Record, limits: Limits) -> tuple[float | None, str]:
    """Returns the seconds until the next attempt, None where there is to be none, and what is for the log where the
    task's own backoff cannot tell.
    """
    try:
        return backoff.pause(limits.backoff, record.attempts, error, record), ""
    except ConfigurationError as mistaken:
        mistake = str(mistaken)
    except BaseException as broken:  # noqa: BLE001 - as in _is_failure
        mistake = f"backoff raised {_place(broken)}"
    return backoff.CLASSIC(record.attempts, error, record), mistake


def _place(error: BaseException) -> str:
    """Returns an exception's type and line, without its text, which may quote what the job carries."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{type(error).__name__} ({frames[-1].filename}:{frames[-1].lineno})" if frames else type(error).__name__


def sealed(outcome: Outcome, codec: Codec) -> Outcome:
    """Returns an outcome of a handler with what may quote the payload sealed: its error, and why a result was
    refused.
    """
    if not isinstance(outcome, Failed | Cancelled | Snoozed) or outcome.error is None:
        return outcome
    error = sealed_failure(outcome.error, codec)
    if isinstance(outcome, Snoozed):
        return replace(outcome, error=error)
    short = sealed_failure(excerpt(outcome.error), codec)
    if isinstance(outcome, Cancelled) and outcome.cause is Cause.RESULT:
        return replace(outcome, error=error, excerpt=short, reason="the result could not be stored")
    return replace(outcome, error=error, excerpt=short)


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


def _allowed(record: Record, limits: Limits) -> int:
    return limits.max_attempts if record.max_attempts is None else record.max_attempts


def _asked(error: Retry) -> tuple[float | None, datetime | None]:
    """Returns when a handler wants its job tried again; nothing where it leaves that to the backoff."""
    if error.at is not None:
        return None, aware(error.at, "Retry(at=)")
    return None if error.delay is None else seconds(error.delay, "Retry(delay=)"), None


def _snoozed(error: Snooze) -> Snoozed:
    if (error.delay is None) == (error.at is None):
        raise ConfigurationError("Snooze takes exactly one of delay= and at=")
    reason = _text(error.reason)
    if error.at is not None:
        return Snoozed(at=aware(error.at, "Snooze(at=)"), reason=reason, data=error.data)
    assert error.delay is not None
    return Snoozed(seconds(error.delay, "Snooze(delay=)"), reason=reason, data=error.data)


def due(now: datetime, delay: float, at: datetime | None) -> datetime:
    """Returns the moment `at`, or `delay` seconds after `now`."""
    return at if at is not None else now + timedelta(seconds=delay)
