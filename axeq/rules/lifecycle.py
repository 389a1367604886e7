"""A job in a worker's hands: dequeue and extend, every write after the claim fenced.

The fence: after the claim, every write filters on the job's id, the claim's token and the state `dequeued`. So
a worker that lost its lease can no longer change the job, and a write whose reply was lost can be sent again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from bson.objectid import ObjectId

from axeq.documents.record import Document, Record
from axeq.rules.due import Candidate
from axeq.wire.wire import JOBS, Call, Find, Op, Sleep
from axeq.words.clock import Clock
from axeq.words.errors import AccessDenied, StoreError, StoreUnavailable
from axeq.words.states import TRANSITIONS, State

__all__ = [
    "FENCE",
    "Claim",
    "Held",
    "Holding",
    "cancel_reason",
    "claim_many",
    "claim_one",
    "extend",
    "fence",
    "fence_all",
    "flags",
    "lease_end",
    "owns",
    "token_of",
]

_DEQUEUED = State.DEQUEUED.value
FENCE = {"_id": 1, "state": 1, "claim.token": 1, "cancel": 1}
"""What is read of a job to see whether a claim still holds."""


class Claim(list[Record]):
    """Claimed jobs, in order. `since` is when (monotonic) the last write was sent that all of their leases had: the
    claim, or what extended them after a claim whose answer was lost.
    """

    def __init__(self, records: Iterable[Record] = (), *, since: float = float("inf")) -> None:
        super().__init__(records)
        self.since = since


def claim_many(
    ids: Sequence[Any], clock: Clock, *, worker: str, lease: float, patience: float, lost: int = 0
) -> Op[Claim]:
    """Claims those of `ids` that are due and have lost `lost` leases (default none), under one fresh token, and
    returns them as claimed.

    Of jobs that have lost one it adds to `lost`, not to `attempts`. `lease` is in seconds. `patience` is the claim's
    own deadline in seconds: for so long after an unanswered claim the server may still be carrying it out.
    """
    token = ObjectId()
    query = {"_id": {"$in": list(ids)}, "available_at": {"$lte": clock.earliest()}, "lost": lost}
    claimed = _claimed(token, worker, clock, lease, attempts=0 if lost else 1)
    sent = clock.monotonic()
    try:
        result = yield Call(JOBS, "update_many", (query, claimed), timeout=patience)
    except StoreUnavailable as error:
        if not error.sent:
            raise
    except AccessDenied:
        raise
    except StoreError:
        # It went as far as a document that cannot be claimed, such as one whose attempts are text.
        claimed_before = yield from _recovered(ids, token, clock, lease, sent=sent, until=sent)
        if not claimed_before:
            raise
        return claimed_before
    else:
        if not result.matched_count:
            return Claim()
        with suppress(StoreUnavailable):
            return Claim((yield from _read_back(ids, token)), since=sent)
    return (yield from _recovered(ids, token, clock, lease, sent=sent, until=sent + patience))


def claim_one(candidate: Candidate, clock: Clock, *, worker: str, lease: float, patience: float) -> Op[Claim]:
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
        document = yield Call(JOBS, "find_one_and_update", (query, claimed), {"return_document": True}, patience)
    except StoreUnavailable as error:
        if not error.sent:
            raise
    else:
        return Claim([Record(document)], since=sent) if document else Claim()
    return (yield from _recovered([candidate.id], token, clock, lease, sent=sent, until=sent + patience))


def _claimed(token: ObjectId, worker: str, clock: Clock, lease: float, *, attempts: int) -> Document:
    increments = {"attempts": attempts, "lost": 1} if attempts else {"lost": 1}
    return {
        "$set": {
            "state": TRANSITIONS["dequeue"].target.value,
            "claim": {"token": token, "worker": worker},
            "available_at": lease_end(clock, lease),
        },
        "$inc": increments,
    }


def _read_back(ids: Sequence[Any], token: ObjectId) -> Op[list[Record]]:
    """Returns what carries the token, in the order of `ids`: the server has its own."""
    held = {"_id": {"$in": list(ids)}, "claim.token": token, "state": _DEQUEUED}
    found = {document["_id"]: document for document in (yield Find(JOBS, held, limit=len(ids)))}
    return [Record(found[identity]) for identity in ids if identity in found]


def _recovered(
    ids: Sequence[Any], token: ObjectId, clock: Clock, lease: float, *, sent: float, until: float
) -> Op[Claim]:
    """Finds out what an unanswered claim took that was sent at `sent`.

    The extension is a majority write on the same documents, and so a barrier before the read. The claim may
    still be running at the server until its own deadline, so both are repeated until then.
    """
    claim = Claim(since=sent)
    while True:
        begun = clock.monotonic()
        over = begun >= until
        try:
            held = {"_id": {"$in": list(ids)}, "claim.token": token, "state": _DEQUEUED}
            result = yield Call(JOBS, "update_many", (held, {"$max": {"available_at": lease_end(clock, lease)}}))
            records = yield from _read_back(ids, token)
            # What the claim took between the two has the claim's own lease.
            claim = Claim(records, since=begun if result.matched_count >= len(records) else claim.since)
        except StoreUnavailable:
            if over:
                raise  # what it took, if anything, lapses with its lease
        if over or len(claim) == len(ids):
            return claim
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


def fence(held: Held) -> Document:
    """Returns the filter that only the holder of the claim passes."""
    return {"_id": held.id, "claim.token": held.token, "state": _DEQUEUED}


def fence_all(held: Sequence[Held]) -> Document:
    """Returns the filter that only the holder of all of these claims passes, for each of them."""
    return {**_among(held), "state": _DEQUEUED}


def extend(
    held: Sequence[Held], clock: Clock, *, lease: float, beside: Sequence[Held] = (), patience: float | None = None
) -> Op[Holding]:
    """Moves the lease end of every held job to `lease` seconds from now, never to an earlier moment; waits at most
    `patience` seconds for the answer, default the wire's own.

    Those `beside` are not written: of them it only reads which somebody asked to cancel. Where that read fails after
    the extension was acknowledged, the extension counts, and nothing is known of cancels.
    """
    if not held:
        return (yield from flags(beside))
    update = {"$max": {"available_at": lease_end(clock, lease)}}
    result = yield Call(JOBS, "update_many", (fence_all(held), update), timeout=patience)
    if result.matched_count >= len(held):
        try:
            return (yield from flags([*held, *beside]))
        except StoreError:
            return Holding()
    documents = yield Find(JOBS, {"_id": {"$in": [job.id for job in held]}}, FENCE)
    found = {document["_id"]: document for document in documents}
    lost = frozenset(job for job in held if not owns(found.get(job.id), job.token))
    return Holding(lost, _reasons(found[job.id] for job in held if job not in lost))


def flags(held: Sequence[Held]) -> Op[Holding]:
    """Returns which held jobs somebody asked to cancel."""
    documents = yield Find(JOBS, {**_among(held), "cancel": {"$exists": True}}, FENCE)
    return Holding(cancelled=_reasons(documents))


def _among(held: Sequence[Held]) -> Document:
    tokens = list({job.token for job in held})
    return {"_id": {"$in": [job.id for job in held]}, "claim.token": {"$in": tokens}}


def _reasons(documents: Iterable[Document]) -> dict[Held, str]:
    return {
        Held(document["_id"], token_of(document)): cancel_reason(document)
        for document in documents
        if "cancel" in document
    }


def cancel_reason(document: Document) -> str:
    """Returns the reason of the cancel that was asked for, empty without one."""
    return str(_part(document, "cancel").get("reason") or "")


def owns(document: Document | None, token: Any) -> bool:
    """Returns whether `document` shows the claim of `token` to hold."""
    return document is not None and document.get("state") == _DEQUEUED and token_of(document) == token


def token_of(document: Document) -> Any:
    """Returns the token of the last claim, None before the first."""
    return _part(document, "claim").get("token")


def _part(document: Document, field: str) -> Mapping[str, Any]:
    """Returns an object within a document, an empty one where a hand at the database has put something else."""
    found = document.get(field)
    return found if isinstance(found, Mapping) else {}


def lease_end(clock: Clock, lease: float) -> datetime:
    """Returns when a lease that is taken or extended now ends."""
    return clock.latest() + timedelta(seconds=lease)
