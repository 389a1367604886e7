"""The enqueue that keeps others of its label away for a while, also when its job has long been removed.

What keeps them away is a marker, a document of its own for each task and label. It is written together with the job
in one transaction. Without transactions it is written first, and confirmed once the job is there; one that nobody
confirms is void after `VOID_AFTER`, unless whoever finds it finds its job as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from datetime import datetime, timedelta
from itertools import count

from bson.objectid import ObjectId

from axeq.documents.record import Document
from axeq.rules.enqueue import Draft, Stored, in_the_way, labelled, own, repeatable, repeated
from axeq.wire.wire import ISOLATIONS, JOBS, Call, Find, Op, Sleep, Transaction
from axeq.words.clock import Clock, milliseconds
from axeq.words.errors import AxeqError, DuplicateKey, Isolated, LabelTaken, StoreUnavailable
from axeq.words.states import State

__all__ = ["VOID_AFTER", "insert_isolated", "insert_isolated_joined"]

VOID_AFTER = 30.0
"""For how many seconds a marker stands that nobody has confirmed: longer than an insert takes."""

_LOOK_AGAIN = 0.1
_MARGIN = 1.0


class _Held(AxeqError):
    """Another enqueue's marker stands."""


def insert_isolated(draft: Draft, clock: Clock, *, transactions: bool) -> Op[Stored]:
    """Stores one job unless one of its task and label was stored too short a while ago; retried as `insert` is.

    Raises `Isolated` or `LabelTaken`; where conflicts are to be ignored the job that was stored before comes back, as
    it was enqueued where it is gone.
    """
    document = draft.document(clock, clock.earliest())
    marker = _marker(draft, document, clock)
    ignoring = draft.on_conflict == "ignore"
    patience = clock.monotonic() + VOID_AFTER + _MARGIN
    tries = count()

    def attempt(unanswered: bool) -> Op[Stored | None]:
        again = next(tries) > 0
        try:
            if transactions:
                return (yield from _in_a_transaction(document, marker))
            return (yield from _in_two_steps(document, marker, clock, again, unanswered))
        except _Held:
            waits = ignoring and clock.monotonic() < patience
            return (yield from _behind(marker, clock, ignoring=ignoring, waits=waits))
        except DuplicateKey:
            return (yield from in_the_way(document, unanswered, ignoring))

    return (yield from repeated([document["_id"]], clock, attempt, again=repeatable([document])))


def insert_isolated_joined(draft: Draft, clock: Clock) -> Op[Stored]:
    """Stores one job and its marker inside the caller's transaction; otherwise as `insert_isolated`.

    Both are looked up first, for a duplicate key would abort the transaction; one taken in between is raised as such.
    """
    document = draft.document(clock, clock.earliest())
    marker = _marker(draft, document, clock)
    ignoring = draft.on_conflict == "ignore"
    found = yield Find(ISOLATIONS, {"_id": marker["_id"]}, limit=1)
    stored = (yield from _judged(found[0], marker, clock, ignoring=ignoring, waits=False)) if found else None
    if stored is None and draft.id is not None:
        stored = yield from own(document, unanswered=False)
    if stored is None and "label" in document:
        stored = yield from labelled(document, ignoring)
    if stored is not None:
        return stored
    try:
        yield from _taken(marker)
    except _Held:
        until: datetime = marker["until"]
        raise Isolated(draft.name, draft.label, until=until, aborted=True) from None
    try:
        yield Call(JOBS, "insert_one", (document,))
    except DuplicateKey:
        raise LabelTaken(draft.name, draft.label or str(document["_id"]), aborted=True) from None
    return Stored(document)


def _marker(draft: Draft, document: Document, clock: Clock) -> Document:
    """Returns the marker of an enqueue, which keeps the job as it was enqueued."""
    assert draft.isolation is not None
    # A task's name has no spaces.
    key = draft.name if draft.label is None else f"{draft.name} {draft.label}"
    born: datetime = document["created_at"]
    # A machine's clock may be set back between two looks at it.
    until = milliseconds(max(clock.latest(), born) + timedelta(seconds=draft.isolation), up=True)
    return {"_id": key, "token": ObjectId(), "until": until, "job": document}


def _in_a_transaction(document: Document, marker: Document) -> Op[Stored]:
    def both() -> Op[None]:
        yield from _taken(marker)
        yield Call(JOBS, "insert_one", (document,))

    yield Transaction(both)
    return Stored(document)


def _in_two_steps(document: Document, marker: Document, clock: Clock, again: bool, unanswered: bool) -> Op[Stored]:
    """Marks, inserts, confirms. Done `again`, it begins with having its own marker stand for longer."""
    mine = {"_id": marker["_id"], "token": marker["token"]}
    void_at = milliseconds(clock.latest() + timedelta(seconds=VOID_AFTER), up=True)
    provisional = {"until": max(marker["until"], void_at), "void_at": void_at}
    if not (again and (yield Call(ISOLATIONS, "update_one", (mine, {"$set": provisional}))).matched_count):
        yield from _taken({**marker, **provisional})
    stored = yield from _inserted_or_unmarked(document, mine, unanswered)
    if not stored.created:
        return stored
    confirmed = {"$set": {"until": marker["until"]}, "$unset": {"void_at": ""}}
    with _once_stored():
        kept = yield Call(ISOLATIONS, "update_one", (mine, confirmed))
        if not kept.matched_count and (yield from _withdrawn(document)):
            raise _Held
    return stored


def _inserted_or_unmarked(document: Document, mine: Document, unanswered: bool) -> Op[Stored]:
    """Stores the job, or takes its marker away again where another job stands in its way."""
    try:
        yield Call(JOBS, "insert_one", (document,))
    except DuplicateKey:
        stored = yield from own(document, unanswered)
        if stored is None or not stored.created:
            yield Call(ISOLATIONS, "delete_one", (mine,))
        if stored is None:
            raise
        return stored
    return Stored(document)


@contextmanager
def _once_stored() -> Iterator[None]:
    """Has failures tell that the job may be there: it has been stored before."""
    try:
        yield
    except StoreUnavailable as error:
        told = copy(error)
        told.sent = True
        raise told from error


def _withdrawn(document: Document) -> Op[bool]:
    """Takes a job back whose marker was void before it came, and returns whether no worker has had it."""
    untouched = {"_id": document["_id"], "state": State.ENQUEUED.value, "attempts": 0, "lost": 0}
    return bool((yield Call(JOBS, "delete_one", (untouched,))).deleted_count)


def _taken(marker: Document) -> Op[None]:
    """Writes a marker where none stands; raises `_Held` where one does, or one that is to be judged."""
    passed = {"_id": marker["_id"], "until": {"$lte": marker["job"]["created_at"]}, "void_at": {"$exists": False}}
    fields = {field: value for field, value in marker.items() if field != "_id"}
    try:
        yield Call(ISOLATIONS, "update_one", (passed, {"$set": fields}), {"upsert": True})
    except DuplicateKey:
        raise _Held from None


def _behind(marker: Document, clock: Clock, *, ignoring: bool, waits: bool) -> Op[Stored | None]:
    """Returns what an enqueue that found a marker standing leads to; None where it may try again."""
    found = yield Find(ISOLATIONS, {"_id": marker["_id"]}, limit=1)
    if not found:
        return None
    standing = found[0]
    if standing["token"] == marker["token"]:  # an earlier try committed both
        return Stored(marker["job"])
    return (yield from _judged(standing, marker, clock, ignoring=ignoring, waits=waits))


def _judged(standing: Document, marker: Document, clock: Clock, *, ignoring: bool, waits: bool) -> Op[Stored | None]:
    """Returns the job of a marker that stands, and raises `Isolated` unless that is what was asked for; None where
    the marker stands no more.

    Nobody knows whether there will be a job before its marker is confirmed: who ignores conflicts `waits` until then.
    """
    void_at: datetime | None = standing.get("void_at")
    if void_at is None and standing["until"] <= marker["job"]["created_at"]:
        return None
    if void_at is not None and void_at <= clock.earliest():
        yield from _settled(standing)
        return None
    if void_at is not None and waits:
        yield Sleep(_LOOK_AGAIN)
        return None
    job: Document = standing["job"]
    same = job["_id"] == marker["job"]["_id"]
    if not (ignoring or same) or void_at is not None:
        label = marker["job"].get("label")
        until: datetime = standing["until"] if void_at is None else void_at
        raise Isolated(job["name"], label, until=until, existing_id=job["_id"])
    found = yield Find(JOBS, {"_id": job["_id"]}, limit=1)
    return Stored(found[0] if found else job, created=False)


def _settled(standing: Document) -> Op[None]:
    """Confirms a marker whose producer did not come to that where its job is there, and takes it away where not."""
    void = {"_id": standing["_id"], "token": standing["token"], "void_at": standing["void_at"]}
    if (yield Find(JOBS, {"_id": standing["job"]["_id"]}, {"_id": 1}, limit=1)):
        yield Call(ISOLATIONS, "update_one", (void, {"$unset": {"void_at": ""}}))
    else:
        yield Call(ISOLATIONS, "delete_one", (void,))
