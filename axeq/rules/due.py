"""Which jobs are due: the board's reads, the end of those that no pool can claim, and when the next one falls due."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from bson.objectid import ObjectId

from axeq.documents.flaw import flaw
from axeq.documents.record import Document
from axeq.rules.outcome import Limits, end_flawed
from axeq.wire.wire import JOBS, Call, Find, Op
from axeq.words.errors import AccessDenied, StoreError, StoreUnavailable
from axeq.words.states import FINAL

__all__ = ["BOARD", "Candidate", "cancel_flawed", "due_page", "due_query", "next_due", "read", "sound", "understood"]

_LOGGER = logging.getLogger("axeq.due")
BOARD = {"_id": 1, "name": 1, "priority": 1, "available_at": 1, "version": 1, "lost": 1}
"""What a board reads of a job, all of it in the claim index."""


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
        """Returns the candidate that a board read brought; where nobody could work with it, one that no version
        understands.
        """
        found = cls(
            document["_id"],
            document["name"],
            document.get("priority", 0),
            document["available_at"],
            document.get("version", 1),
            document.get("lost", -1),  # a claim takes none that has no such field
        )
        usual = (
            type(found.id) in _USUAL_IDS
            and type(found.name) is str
            and type(found.priority) is int
            and type(found.available_at) is datetime
            and type(found.version) is int
            and type(found.lost) is int
            and found.lost >= 0
        )
        return found if usual or flaw({**document, "created_at": _EPOCH}) is None else _NOBODYS

    def flat(self) -> Candidate:
        """Returns the candidate as one of many that all have the same priority."""
        return self if self.priority == 0 else replace(self, priority=0)

    @property
    def flawed(self) -> bool:
        """Whether its fields are of types that nobody can work with."""
        return self is _NOBODYS


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NOBODYS = Candidate(None, "", 0, _EPOCH, sys.maxsize, 0)
_USUAL_IDS = frozenset((ObjectId, str, int, UUID))


def due_query(queue: str, versions: Mapping[str, int], now: datetime) -> Document:
    """Returns the filter of jobs due by `now` of the tasks in `versions` (name to the newest version understood)."""
    names = list(versions)
    return {
        "queue": queue,
        "name": names[0] if len(names) == 1 else {"$in": names},
        "available_at": {"$lte": now},
        "version": {"$lte": max(versions.values())},
    }


def due_page(
    queue: str, versions: Mapping[str, int], now: datetime, *, limit: int, flat: bool = False
) -> Op[list[Candidate]]:
    """Returns up to `limit` jobs due by `now` of the tasks in `versions` (name to the newest version understood).

    In order of priority, then of due time; covered by the claim index. Or `flat`, in order of due time alone, by the
    due index. Where the tasks' versions differ, jobs of a newer version than their own task's are among them.
    """
    query = due_query(queue, versions, now)
    order = [("available_at", 1)] if flat else [("priority", 1), ("available_at", 1)]
    return (yield from read(Find(JOBS, query, BOARD, sort=order, limit=limit), now, flat=flat))


def read(find: Find, now: datetime, *, flat: bool = False) -> Op[list[Candidate]]:
    """Returns the candidates that a read of due jobs brings, once it brings none with a flaw: those are cancelled.
    `flat` ones are all of one priority.
    """
    found = yield from sound(find, now)
    return [candidate.flat() if flat else candidate for candidate, _ in found]


def sound(find: Find, now: datetime) -> Op[list[tuple[Candidate, Document]]]:
    """Returns what a read of due jobs brings, and the candidate that each makes, as `read`."""
    while True:
        found = [(Candidate.of(document), document) for document in (yield find)]
        flawed = [document["_id"] for candidate, document in found if candidate.flawed]
        if not flawed:
            return found
        if not (yield from cancel_flawed(flawed, now)):
            return [each for each in found if not each[0].flawed]


def cancel_flawed(ids: Sequence[Any], now: datetime) -> Op[int]:
    """Ends those of `ids` whose documents have a flaw, for no claim could take them or they would spoil one, and
    returns how many.

    Each as it was read and while it is live, so that nobody's claim is broken into.
    """
    ended = 0
    for document in (yield Find(JOBS, {"_id": {"$in": list(ids)}})):
        reason = flaw(document)
        if reason is None or "available_at" not in document:
            continue
        update = end_flawed(document, reason, now, retention=Limits().cancelled_retention, worker=None)
        try:
            ended += (yield Call(JOBS, "update_one", (_as_read(document), update))).matched_count
        except (AccessDenied, StoreUnavailable):
            raise
        except StoreError as error:
            _LOGGER.error("job %s can neither be claimed nor cancelled: %s: %s", document["_id"], reason, error)
        else:
            _LOGGER.error("job %s is cancelled as invalid: %s", document["_id"], reason)
    return ended


def _as_read(document: Document) -> Document:
    return {
        "_id": {"$eq": document["_id"]},
        "available_at": {"$eq": document["available_at"]},
        "state": {"$nin": sorted(FINAL)},
    }


def understood(candidates: Iterable[Candidate], versions: Mapping[str, int]) -> list[Candidate]:
    """Returns the candidates whose version is no newer than their task's."""
    return [candidate for candidate in candidates if candidate.version <= versions.get(candidate.name, 0)]


def next_due(queue: str, names: Sequence[str], since: datetime) -> Op[datetime | None]:
    """Returns when the next job of these tasks falls due after `since`, None where none waits. Served by the due
    index.
    """
    query = {"queue": queue, "name": {"$in": list(names)}, "available_at": {"$gt": since}}
    found = yield Find(JOBS, query, {"_id": 0, "available_at": 1}, sort=[("available_at", 1)], limit=1)
    moment = found[0]["available_at"] if found else None
    return moment if isinstance(moment, datetime) else None
