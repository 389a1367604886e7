"""How a task with more due jobs than a page is read: in windows, so that a read costs its page and not the
backlog.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

from axeq.documents.record import Document
from axeq.rules.due import BOARD, Candidate, read
from axeq.wire.wire import JOBS, Find, Op

__all__ = ["Backlog"]

_MOST_PRIORITIES = 32
_SHORTEST_SPAN = timedelta(milliseconds=1)
_FEWEST = 0.01


@dataclass(slots=True)
class Backlog:
    """The due jobs of one task, and how far each of its priorities has been read.

    `ends` holds that by priority; `cut` those of which more was due than the last page held; `tied` how many jobs
    of it shared its last due time, so that as many may be left of it; `densities` the jobs per second of due time.
    The version is asked for only once a newer one was met (`mixed`): a second range makes some servers give up the
    bounds of the first. A `flat` one has its jobs in order of due time alone, as if all had one priority.
    """

    queue: str
    name: str
    version: int
    ends: dict[int, datetime] = field(default_factory=dict)
    cut: set[int] = field(default_factory=set)
    tied: dict[int, int] = field(default_factory=dict)
    densities: dict[int, float] = field(default_factory=dict)
    mixed: bool = False
    flat: bool = False

    def met(self, candidates: Sequence[Candidate]) -> None:
        """Learns from a first page, in order, where the next one begins, and how dense the jobs are."""
        for priority in {candidate.priority for candidate in candidates}:
            moments = [candidate.available_at for candidate in candidates if candidate.priority == priority]
            self._passed(priority, moments, moments[-1], cut=priority == candidates[-1].priority)
            self._measure(priority, moments)

    @property
    def readable(self) -> bool:
        """Whether windows serve: with very many priorities a plain read is cheaper."""
        return len(self.ends) <= _MOST_PRIORITIES

    def discover(self, now: datetime) -> Op[None]:
        """Looks for priorities between and beyond the known ones. Each look is bounded by them, and so cheap."""
        if self.flat:
            return
        known = sorted(self.ends)
        for below, above in pairwise([None, *known, None]):
            bounds = {key: value for key, value in (("$gt", below), ("$lt", above)) if value is not None}
            query = {**self._query({"$lte": now}), "priority": bounds}
            for document in (yield Find(JOBS, query, {"_id": 0, "priority": 1}, sort=[("priority", 1)], limit=1)):
                if isinstance(document["priority"], int):  # others are no priorities, and found by a plain read
                    self.ends[document["priority"]] = now
                    self.densities[document["priority"]] = _FEWEST

    def head(self, now: datetime, *, limit: int) -> Op[list[Candidate]]:
        """Returns up to `limit` of the jobs that come first: what has been read before and still waits, what came
        among it since, and what is new of priorities that had been read to the end.

        In order of priority, then of due time.
        """
        page: list[Candidate] = []
        for priority, end in sorted(self.ends.items()):
            room = limit - len(page)
            if room <= 0:
                break
            known = priority in self.cut
            found = yield from self._read(priority, {"$lte": end if known else now}, now, room)
            if not known:
                moments = [candidate.available_at for candidate in found]
                full = len(found) == room
                self._passed(priority, moments, moments[-1] if full else now, cut=full)
            page += found
        return page

    def further(self, now: datetime, *, limit: int) -> Op[list[Candidate]]:
        """Returns about `limit` more jobs due by `now`, in order of priority, then of due time."""
        page: list[Candidate] = []
        for priority in sorted(self.ends):
            if len(page) < limit:
                page += yield from self._window(priority, now, limit - len(page))
        return page

    def _window(self, priority: int, now: datetime, limit: int) -> Op[list[Candidate]]:
        start, limit = self.ends[priority], limit + self.tied.get(priority, 0)
        page: list[Candidate] = []
        span = self._span(priority, limit)
        end = min(start + span, now)
        bounds = {"$gte": start, "$lte": end}
        while True:
            page += yield from self._read(priority, bounds, now, limit - len(page))
            moments = [candidate.available_at for candidate in page]
            if page:
                self._measure(priority, [start, *moments])
            full = len(page) == limit
            if full or end == now:
                self._passed(priority, moments, moments[-1] if full else end, cut=full)
                return page
            # At least twice as far as before: beyond the last dense stretch there may be hours of nothing.
            span = max(self._span(priority, limit - len(page)), 2 * span)
            bounds = {"$gt": end, "$lte": min(end + span, now)}
            end = bounds["$lte"]

    def _read(self, priority: int, bounds: Document, now: datetime, limit: int) -> Op[list[Candidate]]:
        query = self._query(bounds)
        if not self.flat:
            query["priority"] = priority
        find = Find(JOBS, query, BOARD, sort=[("available_at", 1)], limit=limit)
        found = yield from read(find, now, flat=self.flat)
        if not self.mixed and any(candidate.version > self.version for candidate in found):
            self.mixed = True
            return (yield from self._read(priority, bounds, now, limit))
        return found

    def _passed(self, priority: int, moments: Sequence[datetime], end: datetime, *, cut: bool) -> None:
        self.ends[priority] = end
        self.tied[priority] = moments.count(end)
        (self.cut.add if cut else self.cut.discard)(priority)

    def _span(self, priority: int, count: int) -> timedelta:
        """Returns the time that `count` more jobs should fill, and some more, for they do not come evenly."""
        return max(timedelta(seconds=1.25 * count / self.densities[priority]), _SHORTEST_SPAN)

    def _measure(self, priority: int, moments: Sequence[datetime]) -> None:
        width = max((moments[-1] - moments[0]).total_seconds(), _SHORTEST_SPAN.total_seconds())
        self.densities[priority] = max(len(moments) / width, _FEWEST)

    def _query(self, due: Any) -> Document:
        query: Document = {"queue": self.queue, "name": self.name, "available_at": due}
        if self.mixed:
            query["version"] = {"$lte": self.version}
        return query
