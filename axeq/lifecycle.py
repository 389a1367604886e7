"""A job's life in a worker's hands: dequeue, extend, and the settling of attempts, every write fenced.

The fence: after the claim, every write filters on the job's id, the claim's token and the state `dequeued`. So
a worker that lost its lease can no longer change the job, and a write whose reply was lost can be sent again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from bson.objectid import ObjectId

from axeq.clock import Clock, milliseconds
from axeq.enqueue import PATIENCE
from axeq.errors import StoreUnavailable
from axeq.outcome import Cancelled, Completed, Failed, Limits, Outcome, Released, Snoozed, due
from axeq.record import EVENTS_KEPT, Document, Record, event
from axeq.states import TRANSITIONS, Cause, State
from axeq.wire import JOBS, Call, Find, Op, Sleep, Update

__all__ = [
    "Candidate",
    "Held",
    "Holding",
    "Settled",
    "Settlement",
    "claim_many",
    "claim_one",
    "due_page",
    "extend",
    "flags",
    "next_due",
    "settle",
    "settlement",
]

_DEQUEUED = State.DEQUEUED.value
_BOARD = {"_id": 1, "name": 1, "priority": 1, "available_at": 1, "version": 1, "lost": 1}
_FENCE = {"_id": 1, "state": 1, "claim.token": 1, "cancel": 1}


@dataclass(frozen=True, slots=True)
class Candidate:
    """A job seen to be due: what a board knows of it."""

    id: Any
    name: str
    priority: int
    available_at: datetime
    version: int
    lost: int

    @classmethod
    def of(cls, document: Document) -> Candidate:
        """Returns the candidate that a board read brought."""
        return cls(
            document["_id"],
            document["name"],
            document.get("priority", 0),
            document["available_at"],
            document.get("version", 1),
            document.get("lost", 0),
        )


def due_page(queue: str, versions: Mapping[str, int], now: datetime, *, limit: int) -> Op[list[Candidate]]:
    """Returns up to `limit` jobs due by `now` of the tasks in `versions` (name to the newest version understood).

    In order of priority, then of due time. Covered by the claim index.
    """
    names = list(versions)
    query: Document = {
        "queue": queue,
        "name": names[0] if len(names) == 1 else {"$in": names},
        "available_at": {"$lte": now},
        "version": {"$lte": max(versions.values())},
    }
    found = yield Find(JOBS, query, _BOARD, sort=[("priority", 1), ("available_at", 1)], limit=limit)
    candidates = [Candidate.of(document) for document in found]
    return [candidate for candidate in candidates if candidate.version <= versions[candidate.name]]


def next_due(queue: str, names: Sequence[str], clock: Clock) -> Op[datetime | None]:
    """Returns when the next job of these tasks falls due, None where none waits. Served by the due index."""
    query = {"queue": queue, "name": {"$in": list(names)}, "available_at": {"$gt": clock.earliest()}}
    found = yield Find(JOBS, query, {"_id": 0, "available_at": 1}, sort=[("available_at", 1)], limit=1)
    return found[0]["available_at"] if found else None


def claim_many(ids: Sequence[Any], clock: Clock, *, worker: str, lease: float, patience: float) -> Op[list[Record]]:
    """Claims those of `ids` that are due and have never lost a lease, under one fresh token, and returns them
    as claimed.

    `lease` is in seconds. `patience` is the command's own deadline in seconds: for so long after an unanswered
    claim the server may still be carrying it out.
    """
    token = ObjectId()
    query = {"_id": {"$in": list(ids)}, "available_at": {"$lte": clock.earliest()}, "lost": 0}
    claimed = _claimed(token, worker, clock, lease, attempts=1)
    sent = clock.monotonic()
    try:
        result = yield Call(JOBS, "update_many", (query, claimed))
    except StoreUnavailable as error:
        if not error.sent:
            raise
    else:
        if not result.matched_count:
            return []
        with suppress(StoreUnavailable):
            return (yield from _read_back(ids, token))
    return (yield from _recovered(ids, token, clock, lease, until=sent + patience))


def claim_one(candidate: Candidate, clock: Clock, *, worker: str, lease: float, patience: float) -> Op[list[Record]]:
    """Claims one job in one round trip, and returns it as claimed, or nothing where another was faster.

    A job that has lost a lease is claimed by this alone; its claim adds to `lost`, not to `attempts`.
    """
    token = ObjectId()
    query = {
        "_id": candidate.id,
        "available_at": {"$lte": clock.earliest()},
        "lost": {"$gt": 0} if candidate.lost else 0,
    }
    claimed = _claimed(token, worker, clock, lease, attempts=0 if candidate.lost else 1)
    sent = clock.monotonic()
    try:
        document = yield Call(JOBS, "find_one_and_update", (query, claimed), {"return_document": True})
    except StoreUnavailable as error:
        if not error.sent:
            raise
    else:
        return [Record(document)] if document else []
    return (yield from _recovered([candidate.id], token, clock, lease, until=sent + patience))


def _claimed(token: ObjectId, worker: str, clock: Clock, lease: float, *, attempts: int) -> Document:
    increments = {"attempts": attempts, "lost": 1} if attempts else {"lost": 1}
    return {
        "$set": {
            "state": TRANSITIONS["dequeue"].target.value,
            "claim": {"token": token, "worker": worker},
            "available_at": _lease_end(clock, lease),
        },
        "$inc": increments,
    }


def _read_back(ids: Sequence[Any], token: ObjectId) -> Op[list[Record]]:
    documents = yield Find(JOBS, {"_id": {"$in": list(ids)}, "claim.token": token, "state": _DEQUEUED})
    return [Record(document) for document in documents]


def _recovered(ids: Sequence[Any], token: ObjectId, clock: Clock, lease: float, *, until: float) -> Op[list[Record]]:
    """Finds out what an unanswered claim took.

    The extension is a majority write on the same documents, and so a barrier before the read. The claim may
    still be running at the server until its own deadline, so both are repeated until then.
    """
    records: list[Record] = []
    while True:
        over = clock.monotonic() >= until
        try:
            held = {"_id": {"$in": list(ids)}, "claim.token": token, "state": _DEQUEUED}
            yield Call(JOBS, "update_many", (held, {"$max": {"available_at": _lease_end(clock, lease)}}))
            records = yield from _read_back(ids, token)
        except StoreUnavailable:
            if over:
                raise  # what it took, if anything, lapses with its lease
        if over or len(records) == len(ids):
            return records
        yield Sleep(min(0.25, max(until - clock.monotonic(), 0.0)))


@dataclass(frozen=True, slots=True)
class Held:
    """A job in a pool's hands: its id and the token of its claim."""

    id: Any
    token: Any


@dataclass(frozen=True, slots=True)
class Holding:
    """What one beat of the lease thread learned: claims that are lost, and those to cancel, with reasons."""

    lost: frozenset[Held] = frozenset()
    cancelled: Mapping[Held, str] = field(default_factory=dict)


def extend(held: Sequence[Held], clock: Clock, *, lease: float) -> Op[Holding]:
    """Moves the lease end of every held job to `lease` seconds from now, never to an earlier moment."""
    query = {**_among(held), "state": _DEQUEUED}
    result = yield Call(JOBS, "update_many", (query, {"$max": {"available_at": _lease_end(clock, lease)}}))
    if result.matched_count >= len(held):
        return (yield from flags(held))
    documents = yield Find(JOBS, {"_id": {"$in": [job.id for job in held]}}, _FENCE)
    found = {document["_id"]: document for document in documents}
    lost = frozenset(job for job in held if not _owns(found.get(job.id), job.token))
    return Holding(lost, _reasons(found[job.id] for job in held if job not in lost))


def flags(held: Sequence[Held]) -> Op[Holding]:
    """Returns which held jobs somebody asked to cancel."""
    documents = yield Find(JOBS, {**_among(held), "cancel": {"$exists": True}}, _FENCE)
    return Holding(cancelled=_reasons(documents))


def _among(held: Sequence[Held]) -> Document:
    tokens = list({job.token for job in held})
    return {"_id": {"$in": [job.id for job in held]}, "claim.token": {"$in": tokens}}


def _reasons(documents: Iterable[Document]) -> dict[Held, str]:
    return {
        Held(document["_id"], _token(document)): _reason(document) for document in documents if "cancel" in document
    }


def _reason(document: Document) -> str:
    return str((document.get("cancel") or {}).get("reason") or "")


def _owns(document: Document | None, token: Any) -> bool:
    return document is not None and document["state"] == _DEQUEUED and _token(document) == token


def _token(document: Document) -> Any:
    return (document.get("claim") or {}).get("token")


@dataclass(frozen=True, slots=True)
class Settlement:
    """One outcome on its way to the store.

    `instead` makes the cancellation that takes its place where somebody asked for one meanwhile, from the reason.
    """

    id: Any
    token: Any
    verb: str
    update: Document
    instead: Callable[[str], Document] | None = None

    @property
    def write(self) -> Update:
        """The fenced write."""
        fence: Document = {"_id": self.id, "claim.token": self.token, "state": _DEQUEUED}
        if self.instead is not None:
            fence["cancel"] = {"$exists": False}
        return Update(fence, self.update)

    def cancelled(self, reason: str) -> Settlement:
        """Returns the cancellation that takes its place."""
        assert self.instead is not None
        return Settlement(self.id, self.token, "cancel", self.instead(reason))

    def shown_by(self, document: Document | None) -> bool:
        """Whether `document` shows that an earlier, unanswered try has written it."""
        return (
            document is not None
            and _token(document) == self.token
            and document["state"] == TRANSITIONS[self.verb].target.value
        )


@dataclass(frozen=True, slots=True)
class Settled:
    """What became of a batch: ids whose lease was lost, and ids that ended cancelled because somebody had asked."""

    lost: frozenset[Any] = frozenset()
    cancelled: frozenset[Any] = frozenset()


def settlement(
    record: Record,
    outcome: Outcome,
    limits: Limits,
    clock: Clock,
    *,
    started_at: datetime | None = None,
    ended_at: datetime | None = None,
) -> Settlement:
    """Returns the write that carries out `outcome`. The clock must have been measured."""
    times = {"started_at": started_at, "ended_at": ended_at}
    stamped = {key: value for key, value in times.items() if value is not None}
    update = _UPDATES[type(outcome)](record, outcome, limits, clock, stamped)
    instead = None
    if not isinstance(outcome, Completed | Cancelled):
        instead = partial(_cancel_asked, record, limits, clock, stamped)
    return Settlement(record.id, record.token, _VERBS[type(outcome)], update, instead)


def settle(batch: Sequence[Settlement], clock: Clock) -> Op[Settled]:
    """Writes a batch of outcomes, each under its fence, and tells which leases were lost.

    An unanswered write is sent again for `PATIENCE` seconds, then `StoreUnavailable` is raised and the leases
    lapse.
    """
    missing = yield from _written(batch, clock)
    if not missing:
        return Settled()
    documents = yield from _patiently(Find(JOBS, {"_id": {"$in": [entry.id for entry in missing]}}, _FENCE), clock)
    found = {document["_id"]: document for document in documents}
    flagged = [
        entry.cancelled(_reason(found[entry.id]))
        for entry in missing
        if entry.instead is not None and _owns(found.get(entry.id), entry.token) and "cancel" in found[entry.id]
    ]
    flagged_ids = frozenset(entry.id for entry in flagged)
    lost = {entry.id for entry in missing if entry.id not in flagged_ids and not entry.shown_by(found.get(entry.id))}
    if flagged:
        lost |= (yield from settle(flagged, clock)).lost
    return Settled(frozenset(lost), flagged_ids - lost)


def _written(batch: Sequence[Settlement], clock: Clock) -> Op[Sequence[Settlement]]:
    """Returns nothing where every write matched; else the whole batch, for the bulk's reply does not say which
    did not.
    """
    writes = [entry.write for entry in batch]
    command = (
        Call(JOBS, "update_one", (writes[0].filter, writes[0].update))
        if len(writes) == 1
        else Call(JOBS, "bulk_write", (writes,), {"ordered": False})
    )
    result = yield from _patiently(command, clock)
    return [] if result.matched_count == len(batch) else batch


def _patiently(command: Call | Find, clock: Clock) -> Op[Any]:
    deadline = clock.monotonic() + PATIENCE
    pause = 0.05
    while True:
        try:
            return (yield command)
        except StoreUnavailable:
            if clock.monotonic() + pause >= deadline:
                raise
        yield Sleep(pause)
        pause = min(pause * 2, 2.0)


def _complete(record: Record, outcome: Completed, limits: Limits, clock: Clock, stamped: Document) -> Document:
    now = clock.earliest()
    fields = {
        **stamped,
        "state": State.COMPLETED.value,
        "lost": 0,
        "finished_at": now,
        "expire_at": expiry(record, now, limits.retention),
    }
    if outcome.result is not None:
        fields["result"] = outcome.result
    return {"$set": fields, "$unset": {"available_at": "", "cancel": "", "error": ""}}


def _fail(record: Record, outcome: Failed, limits: Limits, clock: Clock, stamped: Document) -> Document:
    at = milliseconds(due(clock.latest(), outcome.delay, outcome.at), up=True)
    return {
        "$set": {
            **stamped,
            "state": State.FAILED.value,
            "lost": 0,
            "available_at": at,
            "error": outcome.error,
        },
        **_log(record, "fail", clock, outcome.error["message"]),
    }


def _cancel(record: Record, outcome: Cancelled, limits: Limits, clock: Clock, stamped: Document) -> Document:
    now = clock.earliest()
    fields = {
        **stamped,
        "state": State.CANCELLED.value,
        "lost": 0,
        "cause": outcome.cause.value,
        "finished_at": now,
        "expire_at": expiry(record, now, limits.cancelled_retention),
    }
    if outcome.error is not None:
        fields["error"] = outcome.error
    return {
        "$set": fields,
        "$unset": {"available_at": "", "cancel": ""},
        **_log(record, "cancel", clock, outcome.reason or outcome.cause.value),
    }


def _cancel_asked(record: Record, limits: Limits, clock: Clock, stamped: Document, reason: str) -> Document:
    return _cancel(record, Cancelled(Cause.REQUESTED, reason), limits, clock, stamped)


def _snooze(record: Record, outcome: Snoozed, limits: Limits, clock: Clock, stamped: Document) -> Document:
    at = milliseconds(due(clock.latest(), outcome.delay, outcome.at), up=True)
    return {
        "$set": {**stamped, "state": State.ENQUEUED.value, "lost": 0, "available_at": at},
        "$inc": {"attempts": -1},
        **_log(record, "snooze", clock),
    }


def _release(record: Record, outcome: Released, limits: Limits, clock: Clock, stamped: Document) -> Document:
    # Exactly what the claim took: one that followed a lost lease took no attempt.
    taken = {"lost": -1} if record.lost > 1 else {"lost": -1, "attempts": -1}
    return {
        "$set": {"state": State.ENQUEUED.value, "available_at": clock.earliest()},
        "$inc": taken,
        **_log(record, "release", clock, outcome.reason),
    }


_UPDATES: Mapping[type, Any] = {
    Completed: _complete,
    Failed: _fail,
    Cancelled: _cancel,
    Snoozed: _snooze,
    Released: _release,
}
_VERBS: Mapping[type, str] = {
    Completed: "complete",
    Failed: "fail",
    Cancelled: "cancel",
    Snoozed: "snooze",
    Released: "release",
}


def expiry(record: Record, now: datetime, retention: float) -> datetime:
    """Returns when a job that ended `now` may be removed; the job's own retention goes before the task's, in
    seconds.

    An enqueue whose reply was lost is sent again for half a minute, so a job without its own retention is kept
    a minute from its enqueue at the least: it must not have come, run and gone.
    """
    if record.retention is not None:
        return now + timedelta(seconds=record.retention)
    return max(now + timedelta(seconds=retention), record.created_at + timedelta(seconds=60))


def _log(record: Record, verb: str, clock: Clock, reason: str = "") -> Document:
    entry = event(verb, clock.earliest(), attempt=record.attempts, worker=record.worker, reason=reason)
    return {"$push": {"events": {"$each": [entry], "$slice": -EVENTS_KEPT}}}


def _lease_end(clock: Clock, lease: float) -> datetime:
    return clock.latest() + timedelta(seconds=lease)
