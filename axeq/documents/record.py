"""The stored job: the names of its fields, and a typed view of its document."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from bson.objectid import ObjectId

from axeq.documents.codec import Codec, opened, seal
from axeq.words.duration import seconds
from axeq.words.errors import ConfigurationError, PayloadSealed, redact
from axeq.words.states import FINAL, Cause, Phase, State

__all__ = [
    "EVENTS_KEPT",
    "Document",
    "FailedAttempt",
    "Record",
    "event",
    "excerpt",
    "failure",
    "flaw",
    "identity",
    "opened_failure",
    "phase_at",
    "raised",
    "sealed_failure",
    "shortened",
    "usual",
]

Document = dict[str, Any]
"""A job as MongoDB stores it."""

EVENTS_KEPT = 50
"""How many events a job keeps; older ones make way, so that a job that fails for ever stays small."""

_COMPLETED = State.COMPLETED.value
_IDENTITIES = (ObjectId, str, int, UUID, bytes, datetime)
_TYPE_LENGTH = 256
_MESSAGE_LENGTH = 2048
_TRACEBACK_LENGTH = 16_384
_EXCERPT_LENGTH = 1024
_LATEST = datetime(9000, 1, 1, tzinfo=UTC)
"""Later than any job was enqueued: sums with it must stay within the years that a datetime holds."""
_MOST = 2**53
_SELDOM = frozenset(("cancel", "deadline", "group", "max_attempts", "retention", "timeout"))
_NO_ERROR: Document = {}
_NO_EVENTS: list[Document] = []


@dataclass(frozen=True, slots=True)
class FailedAttempt:
    """One failure of a job: the exception's `type` and `message`, the end of its `traceback`, when, and in which
    attempt.
    """

    type: str
    message: str
    traceback: str
    at: datetime
    attempt: int


class Record:
    """A typed, read-only view of a job's document. Times are aware, UTC, to the millisecond, by the server's
    clock.
    """

    __slots__ = ("document",)

    def __init__(self, document: Document) -> None:
        self.document = document

    @property
    def id(self) -> Any:
        """The job's id: an ObjectId, unless the enqueue gave another."""
        return self.document["_id"]

    @property
    def name(self) -> str:
        """The task's name."""
        return str(self.document["name"])

    @property
    def queue(self) -> str:
        """The queue's name."""
        return str(self.document["queue"])

    @property
    def version(self) -> int:
        """The version of the payload's shape."""
        return int(self.document.get("version", 1))

    @property
    def label(self) -> str | None:
        """The label, unique among the live jobs of the task; None without one."""
        return self.document.get("label")

    @property
    def group(self) -> str | None:
        """The group of jobs that it is handled with; None without one."""
        return self.document.get("group")

    @property
    def data(self) -> Any:
        """The payload as it is stored; a binary where a codec sealed it."""
        return self.document.get("data")

    @property
    def state(self) -> State:
        """Where the job stands."""
        return State(self.document["state"])

    @property
    def final(self) -> bool:
        """Whether the job has ended."""
        return self.state in FINAL

    @property
    def priority(self) -> int:
        """The priority: lower runs sooner, default 0."""
        return int(self.document.get("priority", 0))

    @property
    def created_at(self) -> datetime:
        """When it was enqueued."""
        return _moment(self.document["created_at"])

    @property
    def available_at(self) -> datetime | None:
        """While live: when it is due, or for a dequeued job when its lease ends. None once it has ended."""
        return self.document.get("available_at")

    @property
    def started_at(self) -> datetime | None:
        """When the handler of its last settled attempt started."""
        return self.document.get("started_at")

    @property
    def ended_at(self) -> datetime | None:
        """When the handler of its last settled attempt stopped."""
        return self.document.get("ended_at")

    @property
    def finished_at(self) -> datetime | None:
        """When it completed or was cancelled."""
        return self.document.get("finished_at")

    @property
    def expire_at(self) -> datetime | None:
        """When the server may remove it; None while it is live."""
        return self.document.get("expire_at")

    @property
    def attempts(self) -> int:
        """How many attempts it has had; releases, snoozes and lost leases are not counted."""
        return int(self.document.get("attempts", 0))

    @property
    def lost(self) -> int:
        """How many claims in a row have not been settled; 1 while the first attempt runs."""
        return int(self.document.get("lost", 0))

    @property
    def max_attempts(self) -> int | None:
        """The job's own limit of attempts; None leaves it to the task."""
        return self.document.get("max_attempts")

    @property
    def timeout(self) -> float | None:
        """The job's own limit of one attempt in seconds; None leaves it to the task."""
        return self.document.get("timeout")

    @property
    def deadline(self) -> datetime | None:
        """The moment after which it is not run any more; None for never."""
        return self.document.get("deadline")

    @property
    def retention(self) -> float | None:
        """Its own retention after it ends in seconds; None leaves it to the task."""
        return self.document.get("retention")

    @property
    def token(self) -> Any:
        """The token of its last claim, which fences every write of its worker; None before the first."""
        return (self.document.get("claim") or {}).get("token")

    @property
    def worker(self) -> str | None:
        """The id of the pool that claimed it last."""
        return (self.document.get("claim") or {}).get("worker")

    @property
    def cancel_requested(self) -> bool:
        """Whether somebody asked for it to be cancelled while it ran."""
        return "cancel" in self.document

    @property
    def cancel_reason(self) -> str | None:
        """The reason given with that request."""
        return (self.document.get("cancel") or {}).get("reason")

    @property
    def result(self) -> Any:
        """The handler's return value as it is stored, or while it runs what it has reported so far; a binary where a
        codec sealed it, None without one.
        """
        return self.document.get("result")

    @property
    def progress(self) -> float | None:
        """How much is done, from 0 to 1, as its handler last reported; 1 once completed, None where it has reported
        nothing.
        """
        return 1.0 if self.document["state"] == _COMPLETED else self.document.get("progress")

    @property
    def status(self) -> str | None:
        """What its handler last said it is doing; None where it has said nothing."""
        return self.document.get("status")

    @property
    def checkpoint(self) -> Any:
        """The state that its handler stored last, for its next attempt, as it is stored; a binary where a codec
        sealed it, None without one.
        """
        return self.document.get("checkpoint")

    @property
    def error(self) -> Mapping[str, Any] | None:
        """The last failure as `type`, `message` and `traceback`; None without one. Where a codec sealed them, the
        message says so.
        """
        return self.document.get("error")

    @property
    def cause(self) -> str | None:
        """Why it was cancelled; None unless it was."""
        return self.document.get("cause")

    @property
    def events(self) -> list[Mapping[str, Any]]:
        """Its last failures, snoozes, releases, cancellations and retries by hand, oldest first."""
        return list(self.document.get("events", ()))

    @property
    def errors(self) -> list[FailedAttempt]:
        """Its last failures, oldest first, each with at most 1,024 bytes of its traceback's end. Where a codec
        sealed one, its message says so.
        """
        return [raised(entry) for entry in self._told() if "type" in entry]

    @property
    def timeline(self) -> list[Mapping[str, Any]]:
        """What happened to it, oldest first: `events`, and its enqueue, the start and end of the handler of its
        last settled attempt, and its completion.
        """
        told, ended = self._told(), self.ended_at
        # What was replaced has been enqueued since.
        anew = max((place for place, entry in enumerate(told) if entry.get("verb") == "replace"), default=0)
        earlier, told = told[:anew], told[anew:]
        since = len(told) if ended is None else sum(entry["at"] < ended for entry in told)
        before, after = told[:since], told[since:]
        attempt = after[0]["attempt"] if after else self.attempts
        steps = [
            {"verb": verb, "at": at, "attempt": attempt}
            for verb, at in (("start", self.started_at), ("end", ended))
            if at is not None
        ]
        if self.state is State.COMPLETED and self.finished_at is not None:
            after = [*after, {"verb": "complete", "at": self.finished_at, "attempt": self.attempts}]
        enqueued = {"verb": "enqueue", "at": self.created_at, "attempt": 0}
        return [*earlier, enqueued, *sorted((*before, *steps, *after), key=lambda entry: entry["at"])]

    def _told(self) -> list[Mapping[str, Any]]:
        """Returns its events without those that a hand at the database has spoilt."""
        return [
            entry
            for entry in self.events
            if isinstance(entry, Mapping)
            and isinstance(entry.get("at"), datetime)
            and isinstance(entry.get("attempt"), int)
        ]

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id} {self.name!r} {self.state} attempts={self.attempts}>"


def identity(value: Any) -> Any:
    """Returns `value` if it can be a job's id: never what a filter takes for an operator or a pattern, and equal in
    Python to what is equal in MongoDB.

    Raises `ConfigurationError` otherwise.
    """
    if isinstance(value, _IDENTITIES) and not isinstance(value, bool):
        return value
    raise ConfigurationError(f"id must be an ObjectId, text, an int, a UUID, bytes or a datetime, not {_kind(value)}")


def usual(document: Document) -> bool:
    """Whether a claimed job's document looks, at a glance, as almost all do, and so has no flaw."""
    get = document.get
    return (
        type(get("attempts")) is int
        and type(get("lost")) is int
        and type(get("version")) is int
        and type(get("priority")) is int
        and type(created_at := get("created_at")) is datetime
        and created_at < _LATEST
        and type(get("error", _NO_ERROR)) is dict
        and type(get("events", _NO_EVENTS)) is list
        and _SELDOM.isdisjoint(document)
    )


def flaw(document: Document) -> str | None:
    """Returns what in a live job's document no rule can work with, None where there is nothing.

    It names the field and never quotes its value. What the claim replaces is not looked at.
    """
    for field, (wanted, fits, needed) in _FIELDS.items():
        if field not in document:
            if needed:
                return f"{field} is missing"
        elif not fits(document[field]):
            return f"{field} must be {wanted}, not {type(document[field]).__name__}"
    return None


def phase_at(record: Record, now: datetime) -> Phase:
    """Returns how a job's state looks at `now` by the server's clock."""
    due = record.available_at is None or record.available_at <= now
    match record.state:
        case State.ENQUEUED if not due:
            return Phase.SCHEDULED
        case State.ENQUEUED:
            return Phase.AGGREGATING if record.group is not None else Phase.PENDING
        case State.DEQUEUED:
            return Phase.ORPHANED if due else Phase.ACTIVE
        case State.FAILED:
            return Phase.RETRYING
        case State.COMPLETED:
            return Phase.COMPLETED
        case State.CANCELLED:
            return Phase.CANCELLED if record.cause == Cause.REQUESTED else Phase.DEAD


def event(
    verb: str,
    at: datetime,
    *,
    attempt: int,
    worker: str | None = None,
    reason: str | None = None,
    error: Document | None = None,
) -> Document:
    """Returns an entry of a job's event log; `error` is the excerpt of an attempt's failure."""
    entry: Document = {"verb": verb, "at": at, "attempt": attempt}
    if worker is not None:
        entry["worker"] = worker
    if reason:
        entry["reason"] = shortened(reason)
    if error is not None:
        told = entry.get("reason")
        entry.update({key: value for key, value in error.items() if value and (key, value) != ("message", told)})
    return entry


def raised(entry: Mapping[str, Any], codec: Codec | None = None) -> FailedAttempt:
    """Returns the failure that an event tells of, opened by `codec` where that is needed and can be."""
    error: Mapping[str, Any] = {"message": entry.get("reason", ""), "traceback": "", **entry}
    error = opened_failure(error, codec) or error
    return FailedAttempt(
        str(entry["type"]), str(error["message"]), str(error["traceback"]), entry["at"], int(entry["attempt"])
    )


def excerpt(error: Document) -> Document:
    """Returns what an event keeps of a job's `error`: the end of the traceback at most."""
    return {**error, "traceback": _cut(error.get("traceback", ""), _EXCERPT_LENGTH, keep_end=True)}


def failure(kind: str, message: str, traceback: str = "") -> Document:
    """Returns a job's `error`: at most 2 KiB of message and 16 KiB of traceback, without credentials."""
    return {
        "type": _cut(kind, _TYPE_LENGTH),
        "message": _cut(redact(message), _MESSAGE_LENGTH),
        "traceback": _cut(redact(traceback), _TRACEBACK_LENGTH, keep_end=True),
    }


def sealed_failure(error: Document, codec: Codec) -> Document:
    """Returns a job's `error` with its message and traceback sealed: exceptions tend to quote what they choke on.

    Its type stays readable. Where the codec fails, the two are dropped rather than stored as they are.
    """
    try:
        sealed = seal({"message": error["message"], "traceback": error["traceback"]}, codec, root="error")
    except PayloadSealed:
        return {"type": error["type"], "message": "(not kept: the codec could not seal it)", "traceback": ""}
    return {"type": error["type"], "message": "(sealed)", "traceback": "", "sealed": sealed}


def opened_failure(error: Mapping[str, Any] | None, codec: Codec | None) -> Mapping[str, Any] | None:
    """Returns a job's `error` with what `codec` can open of it."""
    if error is None or codec is None or "sealed" not in error:
        return error
    try:
        return {"type": error.get("type"), **opened(error["sealed"], codec, root="error")}
    except PayloadSealed:
        return error


def shortened(reason: object) -> str:
    """Returns the text of a reason, cut to the 2 KiB that are kept."""
    return _cut(str(reason), _MESSAGE_LENGTH)


def _cut(text: str, length: int, *, keep_end: bool = False) -> str:
    """Returns `text` cut to `length` bytes, and without what UTF-8 cannot hold."""
    written = text.encode("utf-8", "replace")
    if len(written) <= length:
        return written.decode()
    kept = written[3 - length :] if keep_end else written[: length - 3]
    clean = kept.decode("utf-8", "ignore")
    return f"...{clean}" if keep_end else f"{clean}..."


def _kind(value: Any) -> str:
    return f"a {type(value).__module__}.{type(value).__qualname__}"


def _moment(value: Any) -> datetime:
    assert isinstance(value, datetime)
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _MOST  # never so for NaN


def _is_count(value: Any) -> bool:
    return _is_number(value) and value >= 0


def _is_duration(value: Any, *, zero: bool) -> bool:
    try:
        seconds(value, "", zero=zero)
    except ConfigurationError:
        return False
    return True


def _is_hashable(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


def _is_moment(value: Any) -> bool:
    return isinstance(value, datetime) and value < _LATEST


_FIELDS: Mapping[str, tuple[str, Callable[[Any], bool], bool]] = {
    "_id": ("of a type that ids have", _is_hashable, True),
    "name": ("text", lambda value: isinstance(value, str), True),
    "version": ("a number", _is_number, False),
    "priority": ("a number", _is_number, False),
    "group": ("text", lambda value: isinstance(value, str), False),
    "created_at": ("a date", _is_moment, True),
    "available_at": ("a date", lambda value: isinstance(value, datetime), True),
    "attempts": ("a number", _is_number, False),
    "lost": ("a number from 0", _is_count, True),
    "max_attempts": ("a number", lambda value: value is None or _is_number(value), False),
    "timeout": ("seconds", lambda value: value is None or _is_duration(value, zero=False), False),
    "retention": ("seconds", lambda value: value is None or _is_duration(value, zero=True), False),
    "deadline": ("a date", lambda value: value is None or isinstance(value, datetime), False),
    "cancel": ("an object", lambda value: value is None or isinstance(value, Mapping), False),
    "error": ("an object", lambda value: value is None or isinstance(value, Mapping), False),
    "events": ("an array", lambda value: isinstance(value, list), False),
}
"""Of each field that rules work with: what it must be, the test of that, and whether it must be there."""
