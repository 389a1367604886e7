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
_FEWEST = 0.01


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
    """How a task with more due jobs than a page is read: in windows, so that a read costs its page, not the
    backlog.

    A window of a priority is open towards the past, where claims have left little, and ends at a due time that
    moves on by about a page. `ends` and `densities` (jobs per second of due time) are by priority. The version
    is asked for only once a newer one was met (`mixed`): a second range makes some servers give up the bounds
    of the first.
    """

    queue: str
    name: str
    version: int
    ends: dict[int, datetime] = field(default_factory=dict)
    densities: dict[int, float] = field(default_factory=dict)
    mixed: bool = False

    def met(self, candidates: Sequence[Candidate]) -> None:
        """Learns from a page, in order, how dense each of its priorities is, and where the next page begins."""
        for priority in {candidate.priority for candidate in candidates}:
            moments = [candidate.available_at for candidate in candidates if candidate.priority == priority]
            self.ends[priority] = moments[-1]
            self._measure(priority, moments)

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
                self.densities[document["priority"]] = _FEWEST

    def page(self, now: datetime, *, limit: int) -> Op[list[Candidate]]:
        """Returns up to `limit` jobs due by `now`, in order of priority, then of due time."""
        page: list[Candidate] = []
        for priority in sorted(self.ends):
            if len(page) < limit:
                page += yield from self._window(priority, now, limit=limit - len(page))
        return page

    def _window(self, priority: int, now: datetime, *, limit: int) -> Op[list[Candidate]]:
        end = self.ends[priority]
        span = self._span(priority, limit)
        while True:
            end = min(end + span, now)
            query = {**self._query(end), "priority": priority}
            found = yield Find(JOBS, query, _BOARD, sort=[("available_at", 1)], limit=limit)
            candidates = [Candidate.of(document) for document in found]
            if not self.mixed and any(candidate.version > self.version for candidate in candidates):
                self.mixed = True
                return (yield from self._window(priority, now, limit=limit))
            if candidates:
                self._measure(priority, [candidates[0].available_at, *(each.available_at for each in candidates)])
            if len(candidates) == limit or end == now:
                self.ends[priority] = candidates[-1].available_at if candidates else end
                return candidates
            # At least twice as far as before: beyond the last dense stretch there may be hours of nothing.
            span = max(self._span(priority, limit - len(candidates)), 2 * span)

    def _span(self, priority: int, count: int) -> timedelta:
        """Returns the time that `count` more jobs should fill, and some more, for they do not come evenly."""
        return max(timedelta(seconds=1.25 * count / self.densities[priority]), _SHORTEST_SPAN)

    def _measure(self, priority: int, moments: Sequence[datetime]) -> None:
        width = max((moments[-1] - moments[0]).total_seconds(), _SHORTEST_SPAN.total_seconds())
        self.densities[priority] = max(len(moments) / width, _FEWEST)

    def _query(self, end: datetime) -> Document:
        query: Document = {"queue": self.queue, "name": self.name, "available_at": {"$lte": end}}
        if self.mixed:
            query["version"] = {"$lte": self.version}
        return query
