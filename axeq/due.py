"""Which jobs are due: the board's reads, and when the next one falls due."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from axeq.record import Document
from axeq.wire import JOBS, Find, Op

__all__ = ["Candidate", "due_page", "next_due", "understood"]

_BOARD = {"_id": 1, "name": 1, "priority": 1, "available_at": 1, "version": 1, "lost": 1}


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

    In order of priority, then of due time. Covered by the claim index. Where the tasks' versions differ, jobs of a
    newer version than their own task's are among them.
    """
    names = list(versions)
    query: Document = {
        "queue": queue,
        "name": names[0] if len(names) == 1 else {"$in": names},
        "available_at": {"$lte": now},
        "version": {"$lte": max(versions.values())},
    }
    found = yield Find(JOBS, query, _BOARD, sort=[("priority", 1), ("available_at", 1)], limit=limit)
    return [Candidate.of(document) for document in found]


def understood(candidates: Iterable[Candidate], versions: Mapping[str, int]) -> list[Candidate]:
    """Returns the candidates whose version is no newer than their task's."""
    return [candidate for candidate in candidates if candidate.version <= versions[candidate.name]]


def next_due(queue: str, names: Sequence[str], since: datetime) -> Op[datetime | None]:
    """Returns when the next job of these tasks falls due after `since`, None where none waits. Served by the due
    index.
    """
    query = {"queue": queue, "name": {"$in": list(names)}, "available_at": {"$gt": since}}
    found = yield Find(JOBS, query, {"_id": 0, "available_at": 1}, sort=[("available_at", 1)], limit=1)
    return found[0]["available_at"] if found else None
