"""The enqueue that changes the live job with its label in place, where that one is not running."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from bson.objectid import ObjectId

from axeq.documents.record import EVENTS_KEPT, Document, event
from axeq.rules.enqueue import Draft, Stored, holder_of, own, repeatable, repeated
from axeq.wire.wire import JOBS, Call, Find, Op
from axeq.words.clock import Clock
from axeq.words.errors import DuplicateKey, EnqueueUnknown, LabelTaken
from axeq.words.states import State, sources

__all__ = ["replace"]

_KEPT = frozenset({"_id", "events"})


def replace(draft: Draft, clock: Clock) -> Op[Stored]:
    """Stores a job, or makes the live one with its label what it would be: as if it were enqueued now, but for its id
    and its events. Retried as `insert` is.

    Raises `LabelTaken` where that one runs.
    """
    document = draft.document(clock, clock.earliest())
    stamp = ObjectId()
    ids: list[Any] = [document["_id"]]

    def attempt(unanswered: bool) -> Op[Stored | None]:
        if unanswered and (found := (yield from _written(ids[0], document, stamp))) is not None:
            return found
        holder = yield from holder_of(document, whole=True)
        if holder is None:
            ids[0] = document["_id"]
            return (yield from _inserted(document))
        if not _is_free(holder, clock.earliest()):
            raise LabelTaken(document["name"], document["label"], existing_id=holder["_id"])
        ids[0] = holder["_id"]
        return (yield from _changed(holder, document, stamp))

    return (yield from repeated(ids, clock, attempt, again=repeatable([document])))


def _written(identity: Any, document: Document, stamp: ObjectId) -> Op[Stored | None]:
    """Returns what an unanswered try has written, None where it has written nothing."""
    if identity == document["_id"]:
        return (yield from own(document, unanswered=True))
    found = yield Find(JOBS, {"_id": identity}, limit=1)
    if not found:
        raise EnqueueUnknown([identity], "the job that was to be replaced is gone")
    return Stored(found[0], created=False) if _shows(found[0], stamp) else None


def _inserted(document: Document) -> Op[Stored | None]:
    try:
        yield Call(JOBS, "insert_one", (document,))
    except DuplicateKey:
        return None  # another has the label by now
    return Stored(document)


def _is_free(holder: Document, now: datetime) -> bool:
    """Whether a live job is not running: it waits, or its lease has lapsed."""
    state = holder["state"]
    return state in sources("replace") and (state != State.DEQUEUED.value or holder["available_at"] <= now)


def _changed(holder: Document, document: Document, stamp: ObjectId) -> Op[Stored | None]:
    """Changes `holder` in place, unless somebody has changed it since it was read."""
    unchanged = {field: holder[field] for field in ("_id", "state", "available_at", "created_at")}
    fields = {field: value for field, value in document.items() if field != "_id"}
    entry = {**event("replace", document["created_at"], attempt=holder.get("attempts", 0)), "token": stamp}
    update: Document = {"$set": fields, "$push": {"events": {"$each": [entry], "$slice": -EVENTS_KEPT}}}
    if gone := holder.keys() - document.keys() - _KEPT:
        update["$unset"] = dict.fromkeys(sorted(gone), "")
    found = yield Call(JOBS, "find_one_and_update", (unchanged, update), {"return_document": True})
    return None if found is None else Stored(found, created=False)


def _shows(document: Document, stamp: ObjectId) -> bool:
    return any(entry.get("token") == stamp for entry in document.get("events", ()))
