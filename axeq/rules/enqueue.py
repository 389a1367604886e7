"""The enqueue of one job: stored once or an honest error, and what a label that is taken makes of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal, TypeVar

from bson.objectid import ObjectId

from axeq.documents.record import Document
from axeq.wire.wire import JOBS, Call, Find, Op, Sleep
from axeq.words.clock import Clock, milliseconds
from axeq.words.errors import DuplicateKey, EnqueueUnknown, LabelTaken, StoreUnavailable
from axeq.words.states import State

__all__ = [
    "PATIENCE",
    "Conflict",
    "Draft",
    "Stored",
    "holder_of",
    "in_the_way",
    "insert",
    "labelled",
    "own",
    "repeatable",
    "repeated",
]

T = TypeVar("T")

Conflict = Literal["raise", "ignore", "replace"]
"""What an enqueue does where a live job has its label: raise, leave that job as it is, or change it in place."""

PATIENCE = 30.0
"""For how many seconds an unanswered write is sent again. An election takes about 12 s (MongoDB manual, Replica
Set Elections).
"""

_KEPT_LONG_ENOUGH = 60.0
_MOST_ROUNDS = 1000
"""How often what stands in the way of an enqueue may have gone by the time that it is looked at."""
_ENQUEUED = State.ENQUEUED.value


@dataclass(slots=True)
class Draft:
    """A job to be. `id` is None for a new one; durations are in seconds. `on_conflict` and `isolation` say on what
    terms it is enqueued, and are not stored.
    """

    name: str
    version: int
    queue: str
    data: Document
    id: Any = None
    label: str | None = None
    group: str | None = None
    priority: int = 0
    delay: float = 0.0
    run_at: datetime | None = None
    deadline: datetime | None = None
    max_attempts: int | None = None
    timeout: float | None = None
    retention: float | None = None
    on_conflict: Conflict = "raise"
    isolation: float | None = None

    def document(self, clock: Clock, now: datetime) -> Document:
        """Returns the job as it is stored, due by the server's clock; `now` is that clock's lower bound."""
        document: Document = {
            "_id": ObjectId() if self.id is None else self.id,
            "name": self.name,
            "queue": self.queue,
            "version": self.version,
            "data": self.data,
            "state": _ENQUEUED,
            "priority": self.priority,
            "created_at": now,
            "available_at": self._due(now, clock),
            "attempts": 0,
            "lost": 0,
        }
        if self.label is not None:
            document["label"] = self.label
        if self.group is not None:
            document["group"] = self.group
        if self.deadline is not None:
            document["deadline"] = milliseconds(self.deadline)
        if self.max_attempts is not None:
            document["max_attempts"] = self.max_attempts
        if self.timeout is not None:
            document["timeout"] = self.timeout
        if self.retention is not None:
            document["retention"] = self.retention
        return document

    def _due(self, now: datetime, clock: Clock) -> datetime:
        if self.run_at is not None:
            return max(milliseconds(self.run_at, up=True), now)
        if self.delay:
            return milliseconds(clock.latest() + timedelta(seconds=self.delay), up=True)
        return now  # at once: nothing is promised to wait, so the lower bound lets it start sooner


@dataclass(slots=True)
class Stored:
    """What an enqueue led to: the job as it is stored, and whether this enqueue `created` it."""

    document: Document
    created: bool = True


def insert(draft: Draft, clock: Clock) -> Op[Stored]:
    """Stores one job and returns it, or the one that has its id already, or, where conflicts are to be ignored, the
    live one that has its label.

    An unanswered insert is sent again with the same id for `PATIENCE` seconds.
    Raises `LabelTaken`; `StoreUnavailable` where nothing can have been stored; `EnqueueUnknown` otherwise.
    """
    document = draft.document(clock, clock.earliest())
    ignoring = draft.on_conflict == "ignore"

    def attempt(unanswered: bool) -> Op[Stored | None]:
        return _inserted(document, unanswered, ignoring)

    return (yield from repeated([document["_id"]], clock, attempt, again=repeatable([document])))


def repeated(ids: Sequence[Any], clock: Clock, attempt: Callable[[bool], Op[T | None]], *, again: bool) -> Op[T]:
    """Makes attempts at an enqueue of `ids` until one has an answer, and returns that.

    Each attempt learns whether one before it may have been carried out without an answer. `again` says whether such
    a one may be repeated. Raises `StoreUnavailable` after `PATIENCE` seconds where nothing can have been stored,
    `EnqueueUnknown` otherwise.
    """
    unanswered, rounds = False, 0
    deadline = clock.monotonic() + PATIENCE
    for pause in _pauses():
        try:
            answer = yield from attempt(unanswered)
        except StoreUnavailable as error:
            unanswered = unanswered or error.sent
            if clock.monotonic() + pause < deadline and (again or not unanswered):
                yield Sleep(pause)
                continue
            if unanswered:
                raise EnqueueUnknown(ids, error) from None
            raise
        if answer is not None:
            return answer
        rounds += 1
        if rounds == _MOST_ROUNDS:
            raise DuplicateKey  # of an index that axeq does not know, for no job of its own stands in the way
    raise AssertionError("pauses have no end")


def repeatable(documents: Sequence[Document]) -> bool:
    """Whether an enqueue that was not answered may be sent again: a job that is kept for less than a minute may have
    come, run and gone, and would run twice.
    """
    return all(document.get("retention", _KEPT_LONG_ENOUGH) >= _KEPT_LONG_ENOUGH for document in documents)


def own(document: Document, unanswered: bool) -> Op[Stored | None]:
    """Returns the job that has the document's id, None where there is none."""
    found = yield Find(JOBS, {"_id": document["_id"]}, limit=1)
    if not found:
        return None
    # An id that the caller chose may have been there before; one that came of a lost try has its moment.
    created = unanswered and found[0].get("created_at") == document["created_at"]
    return Stored(found[0], created)


def holder_of(document: Document, *, whole: bool) -> Op[Document | None]:
    """Returns the live job that has the document's label, `whole` or its id alone; None where there is none."""
    live = {"name": document["name"], "label": document["label"], "available_at": {"$exists": True}}
    found = yield Find(JOBS, live, None if whole else {"_id": 1}, limit=1)
    return found[0] if found else None


def _pauses() -> Iterator[float]:
    pause = 0.05
    while True:
        yield pause
        pause = min(pause * 2, 2.0)


def _inserted(document: Document, unanswered: bool, ignoring: bool) -> Op[Stored | None]:
    """Sends an insert once and returns what is stored under its id, or in its place; None where what stood in its
    way has gone.
    """
    try:
        yield Call(JOBS, "insert_one", (document,))
    except DuplicateKey as error:
        stored = yield from in_the_way(document, unanswered, ignoring)
        if stored is None and unanswered:  # it may have been stored, and have come and gone since
            raise EnqueueUnknown([document["_id"]], error) from None
        return stored
    return Stored(document)


def in_the_way(document: Document, unanswered: bool, ignoring: bool) -> Op[Stored | None]:
    """Returns the job that kept the document from being inserted, which may be an earlier try's own; None where it
    has gone. Raises `LabelTaken` where that is not to be ignored.
    """
    stored = yield from own(document, unanswered)
    if stored is None and "label" in document:
        stored = yield from labelled(document, ignoring)
    return stored


def labelled(document: Document, ignoring: bool) -> Op[Stored | None]:
    """Returns the live job that has the document's label; None where there is none. Raises `LabelTaken` where that is
    not to be ignored.
    """
    holder = yield from holder_of(document, whole=ignoring)
    if holder is None:
        return None
    if not ignoring:
        raise LabelTaken(document["name"], document["label"], existing_id=holder["_id"])
    return Stored(holder, created=False)
