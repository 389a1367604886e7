"""The enqueue: one job or many, retried safely, in the caller's transaction where there is one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from bson.objectid import ObjectId

from axeq.clock import Clock, milliseconds
from axeq.errors import DuplicateKey, EnqueueUnknown, LabelTaken, StoreUnavailable
from axeq.record import Document
from axeq.states import State
from axeq.wire import JOBS, Call, Find, Op, Sleep

__all__ = ["PATIENCE", "Draft", "insert", "insert_joined", "insert_many"]

PATIENCE = 30.0
"""For how many seconds an unanswered write is sent again. An election takes about 12 s (MongoDB manual, Replica
Set Elections).
"""

_KEPT_LONG_ENOUGH = 60.0
_ENQUEUED = State.ENQUEUED.value


@dataclass(slots=True)
class Draft:
    """A job to be. `id` is None for a new one; durations are in seconds."""

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


def insert(draft: Draft, clock: Clock) -> Op[Document]:
    """Stores one job and returns its document, or the one that has its id already.

    An unanswered insert is sent again with the same id for `PATIENCE` seconds.
    Raises `LabelTaken`; `StoreUnavailable` where nothing can have been stored; `EnqueueUnknown` otherwise.
    """
    document = draft.document(clock, clock.earliest())
    unanswered = False
    deadline = clock.monotonic() + PATIENCE
    for pause in _pauses():
        try:
            stored = yield from _inserted(document, unanswered)
        except StoreUnavailable as error:  # of the insert, or of the look-up after one
            unanswered = unanswered or error.sent
            yield from _wait_or_give_up([document], clock, deadline, pause, error, unanswered)
        else:
            if stored is not None:
                return stored
    raise AssertionError("pauses have no end")


def insert_many(drafts: Sequence[Draft], clock: Clock) -> Op[list[Document]]:
    """Stores jobs without labels in one command and returns their documents; retried as `insert` is."""
    now = clock.earliest()
    documents = [draft.document(clock, now) for draft in drafts]
    unanswered = False
    deadline = clock.monotonic() + PATIENCE
    for pause in _pauses():
        try:
            yield Call(JOBS, "insert_many", (documents,), {"ordered": False})
        except DuplicateKey:
            return documents  # their ids are new, so an unanswered try stored those before
        except StoreUnavailable as error:
            unanswered = unanswered or error.sent
            yield from _wait_or_give_up(documents, clock, deadline, pause, error, unanswered)
        else:
            return documents
    raise AssertionError("pauses have no end")


def insert_joined(drafts: Sequence[Draft], clock: Clock) -> Op[list[Document]]:
    """Stores jobs inside the caller's transaction, which alone decides whether they exist.

    A label is looked up first, for a duplicate key would abort the transaction; one taken in between is raised
    as such.
    """
    now = clock.earliest()
    documents = [draft.document(clock, now) for draft in drafts]
    for document in documents:
        if "label" in document:
            yield from _refuse_taken(document)
    try:
        if documents:
            yield Call(JOBS, "insert_many", (documents,))
    except DuplicateKey as error:
        refused = documents[error.positions[0]]
        raise LabelTaken(refused["name"], str(refused.get("label", refused["_id"])), aborted=True) from None
    return documents


def _pauses() -> Any:
    pause = 0.05
    while True:
        yield pause
        pause = min(pause * 2, 2.0)


def _wait_or_give_up(
    documents: Sequence[Document],
    clock: Clock,
    deadline: float,
    pause: float,
    error: StoreUnavailable,
    unanswered: bool,
) -> Op[None]:
    # A job that is kept for less than a minute may have come, run and gone: sending it again could run it twice.
    repeatable = all(document.get("retention", _KEPT_LONG_ENOUGH) >= _KEPT_LONG_ENOUGH for document in documents)
    if clock.monotonic() + pause < deadline and (repeatable or not unanswered):
        yield Sleep(pause)
        return
    if unanswered:
        raise EnqueueUnknown([document["_id"] for document in documents], error) from None
    raise error


def _inserted(document: Document, unanswered: bool) -> Op[Document | None]:
    """Sends an insert once and returns what is stored under its id; None where what stood in its way has gone."""
    try:
        yield Call(JOBS, "insert_one", (document,))
    except DuplicateKey as error:
        stored = yield from _stored_or_taken(document)
        if stored is None and unanswered:  # it may have been stored, and have come and gone since
            raise EnqueueUnknown([document["_id"]], error) from None
        return stored
    return document


def _stored_or_taken(document: Document) -> Op[Document | None]:
    """Returns the job that has the document's id; None where what stood in its way has gone. Raises `LabelTaken`."""
    stored = yield Find(JOBS, {"_id": document["_id"]}, limit=1)
    if stored:
        found: Document = stored[0]
        return found
    if "label" in document:
        yield from _refuse_taken(document)
    return None


def _refuse_taken(document: Document) -> Op[None]:
    holder = yield from _holder(document)
    if holder is not None:
        raise LabelTaken(document["name"], document["label"], existing_id=holder)


def _holder(document: Document) -> Op[Any]:
    live = {"name": document["name"], "label": document.get("label"), "available_at": {"$exists": True}}
    found = yield Find(JOBS, live, {"_id": 1}, limit=1)
    return found[0]["_id"] if found else None
