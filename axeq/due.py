"""Which jobs are due: the board's reads, and when the next one falls due."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

from axeq.clock import Clock
from axeq.record import Document
from axeq.wire import JOBS, Find, Op

__all__ = ["Backlog", "Candidate", "due_page", "next_due", "understood"]

_BOARD = {"_id": 1, "name": 1, "priority": 1, "available_at": 1, "version": 1, "lost": 1}
_MOST_PRIORITIES = 32
_SHORTEST_SPAN = timedelta(milliseconds=1)


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


def next_due(queue: str, names: Sequence[str], clock: Clock) -> Op[datetime | None]:
    """Returns when the next job of these tasks falls due, None where none waits. Served by the due index."""
    query = {"queue": queue, "name": {"$in": list(names)}, "available_at": {"$gt": clock.earliest()}}
    found = yield Find(JOBS, query, {"_id": 0, "available_at": 1}, sort=[("available_at", 1)], limit=1)
    return found[0]["available_at"] if found else None


@dataclass(slots=True)
class Backlog:
    """How a task with more due jobs than a page is read: in windows, so that a read costs its page, not the backlog.

    A window of a priority is open towards the past, where claims have left little, and ends at a due time that
    moves on by about a page. `spans` says by how much; both are by priority.
    """

    queue: str
    name: str
    version: int
    ends: dict[int, datetime] = field(default_factory=dict)
    spans: dict[int, timedelta] = field(default_factory=dict)

    def met(self, candidates: Sequence[Candidate]) -> None:
        """Learns from a full page, in order, how dense each of its priorities is."""
        for priority in {candidate.priority for candidate in candidates}:
            moments = [candidate.available_at for candidate in candidates if candidate.priority == priority]
            span = max(moments[-1] - moments[0], _SHORTEST_SPAN)
            self.spans[priority] = span
            self.ends[priority] = moments[-1] + span

    @property
    def readable(self) -> bool:
        """Whether windows serve: with very many priorities a plain read is cheaper."""
        return len(self.ends) <= _MOST_PRIORITIES

    def discover(self, now: datetime) -> Op[None]:
        """Looks for priorities between and beyond the known ones. Each look is bounded by them, and so cheap."""
        known = sorted(self.ends)
        for below, above in pairwise([None, *known, None]):
            bounds = {key: value for key, value in (("$gt", below), ("$lt", above)) if value is not None}
            query = {**self._query(now), "priority": bounds}
            for document in (yield Find(JOBS, query, {"_id": 0, "priority": 1}, sort=[("priority", 1)], limit=1)):
                self.ends[document["priority"]] = now
                self.spans[document["priority"]] = _SHORTEST_SPAN

    def page(self, now: datetime, *, limit: int) -> Op[list[Candidate]]:
        """Returns up to `limit` jobs due by `now`, in order of priority, then of due time."""
        page: list[Candidate] = []
        for priority in sorted(self.ends):
            if len(page) < limit:
                page += yield from self._window(priority, now, limit=limit - len(page))
        return page

    def _window(self, priority: int, now: datetime, *, limit: int) -> Op[list[Candidate]]:
        while True:
            end = min(self.ends[priority], now)
            query = {**self._query(end), "priority": priority}
            found = yield Find(JOBS, query, _BOARD, sort=[("available_at", 1)], limit=limit)
            candidates = [Candidate.of(document) for document in found]
            if len(candidates) == limit:
                self.met(candidates)
                return candidates
            if end == now:
                return candidates
            self.spans[priority] *= 2
            self.ends[priority] = end + self.spans[priority]

    def _query(self, end: datetime) -> Document:
        return {
            "queue": self.queue,
            "name": self.name,
            "available_at": {"$lte": end},
            "version": {"$lte": self.version},
        }
