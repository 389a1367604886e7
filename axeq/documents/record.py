"""The stored job: the names of its fields, and a typed view of its document."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any
from uuid import UUID

from bson.objectid import ObjectId

from axeq.documents.failure import FailedAttempt, raised, shortened
from axeq.words.clock import milliseconds
from axeq.words.duration import aware
from axeq.words.errors import ConfigurationError
from axeq.words.states import FINAL, Cause, Phase, State

__all__ = ["EVENTS_KEPT", "Document", "Record", "event", "identity", "phase_at"]

Document = dict[str, Any]
"""A job as MongoDB stores it."""

EVENTS_KEPT = 50
"""How many events a job keeps; older ones make way, so that a job that fails for ever stays small."""

_COMPLETED = State.COMPLETED.value
_IDENTITIES = (ObjectId, str, int, UUID, bytes, datetime)


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
    Python to what is equal in MongoDB. A moment is cut to the millisecond that is stored.

    Raises `ConfigurationError` otherwise.
    """
    if isinstance(value, datetime):
        return milliseconds(aware(value, "id"))
    if isinstance(value, _IDENTITIES) and not isinstance(value, bool):
        return value
    if isinstance(value, Record):
        raise ConfigurationError(f"id must be the job's, not the job itself: give its .id, {value.id!r}")
    raise ConfigurationError(f"id must be an ObjectId, text, an int, a UUID, bytes or a datetime, not {_kind(value)}")


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


def _kind(value: Any) -> str:
    kind = type(value)
    return f"a {kind.__qualname__}" if kind.__module__ == "builtins" else f"a {kind.__module__}.{kind.__qualname__}"


def _moment(value: Any) -> datetime:
    assert isinstance(value, datetime)
    return value
