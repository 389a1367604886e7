"""Claims groups for a pool: sees which are ready, and hands each to one call of its handler."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from axeq.attempts.leases import Leases
from axeq.documents.record import Document
from axeq.rules.due import Candidate, next_due
from axeq.rules.group import Arrival, Gathering, Group, arrivals, gather
from axeq.running.claims import Claims
from axeq.running.crew import Crew
from axeq.running.lane import Lane
from axeq.running.rounds import LONGEST_REST, Rounds
from axeq.supply.source import Source
from axeq.wire.store import Store

__all__ = ["Gatherer"]

_UNHEALTHY_REST = 1.0
_POLL_WITH_STREAM = 10.0
_LOOKS_APART = 0.5
"""Seconds at the least between looks because some job was changed: most are none of a group's."""
_LAG = 10.0
"""How many times longer than for a job a pool leaves a group to others: the claim of one takes longer to be seen."""
_FRESH_FOR = 1.0
"""Seconds from the end of a look for which it is claimed from."""
_NEVER = float("inf")


class Gatherer(Rounds):
    """Claims groups for the lanes of those tasks that take them, until told to end.

    `sources` are the pool's queues in order; where the pool is `strict`, a later one has its turn once earlier ones
    have no group that is ready. `interval` to `max_interval` in seconds is how often it looks without a change stream.
    """

    def __init__(
        self,
        store: Store,
        lanes: Mapping[str, Lane],
        *,
        sources: Sequence[Source],
        strict: bool,
        crew: Crew,
        leases: Leases,
        claims: Claims,
        interval: float,
        max_interval: float,
    ) -> None:
        super().__init__()
        self._store = store
        self._lanes = lanes
        self._sources = sources
        self._strict = strict
        self._crew = crew
        self._leases = leases
        self._claims = claims
        self._interval = self._poll = interval
        self._max_interval = max_interval
        self._look_at = 0.0
        self._looked_at = -_NEVER
        self._known: dict[tuple[str, str, str | None], int] = {}
        self._at_work: dict[str, tuple[int, bool]] = {}
        self._starved: set[str] = set()
        self._suspects_wait = False

    @property
    def names(self) -> Collection[str]:
        """The tasks that take groups."""
        return self._lanes.keys()

    def doubt(self) -> None:
        """Has the next round look: something may have been missed."""
        self._look_by(asyncio.get_running_loop().time())

    def arrived(self, document: Document) -> None:
        """Takes note of a job of these tasks that somebody has stored."""
        candidate = Candidate.of(document)
        if candidate.flawed or candidate.version > self._lanes[candidate.name].task.binding.version:
            return
        terms = self._terms(candidate.name)
        key = (str(document["queue"]), candidate.name, document.get("group"))
        self._known[key] = count = self._known.get(key, 0) + 1
        self._look_when(candidate.available_at + (timedelta() if count >= terms.max_size else terms.patience))

    def changed(self, due_at: datetime) -> None:
        """Takes note of some job, maybe one of these tasks, that will fall due again, or is."""
        past = due_at <= self._store.clock.earliest()
        soonest = self._looked_at + _LOOKS_APART
        self._look_when(due_at if past else due_at + self._patience, soonest=soonest)

    async def run(self) -> None:
        """Goes round until `end`, or not at all where no task takes groups."""
        if self._lanes:
            await super().run()

    def _failed(self) -> None:
        self._look_at = 0.0

    async def _round(self) -> float:
        """Looks, if it is time to, and returns the seconds to rest."""
        if not self._leases.healthy:
            return _UNHEALTHY_REST
        ended = self._has_ended()
        free = [lane for lane in self._lanes.values() if lane.free]
        if not free:
            return LONGEST_REST
        loop = asyncio.get_running_loop()
        if ended or loop.time() >= self._look_at or self._may_go_on(free):
            await self._look(free)
        return self._look_at - loop.time()

    def _has_ended(self) -> bool:
        """Whether a call has ended, or outcomes are stored, since this was asked last: what they left is to be seen."""
        before = self._at_work
        self._at_work = {name: (lane.running, bool(lane.unsettled)) for name, lane in self._lanes.items()}
        nothing = (0, False)
        return any(
            running < before.get(name, nothing)[0] or unsettled < before.get(name, nothing)[1]
            for name, (running, unsettled) in self._at_work.items()
        )

    def _may_go_on(self, free: Sequence[Lane]) -> bool:
        """Whether there may be a worker, now, for what had none."""
        if self._suspects_wait and not self._crew.watches_suspect:
            return True
        return any(lane.task.name in self._starved for lane in free)

    async def _look(self, lanes: Sequence[Lane]) -> None:
        """Reads who waits, claims the groups that are ready, and sets when to look next."""
        loop, now = asyncio.get_running_loop(), self._store.clock.earliest()
        self._look_at, self._looked_at = _NEVER, loop.time()
        self._known.clear()
        self._starved = self._lanes.keys() - {lane.task.name for lane in lanes}
        self._suspects_wait = False
        ready, upcoming = await self._waiting(lanes, now)
        claimed = await self._claim(ready, seen=loop.time())
        self._poll = self._interval if claimed else min(self._poll * 1.5, self._max_interval)
        streaming = any(source.feed.streaming for source in self._sources)
        if streaming and not claimed:
            upcoming += [moment + self._patience for moment in await self._next_due(lanes, now)]
        wait = _POLL_WITH_STREAM if streaming else self._poll
        self._look_by(loop.time() + wait * (0.75 + random.random() / 2))  # noqa: S311 - keeps pools apart
        if upcoming:
            self._look_when(min(upcoming))

    async def _waiting(self, lanes: Sequence[Lane], now: datetime) -> tuple[list[Gathering], list[datetime]]:
        """Returns the calls that are ready and this pool's to make, in order, and when others will be."""
        ready: list[tuple[Any, Gathering]] = []
        upcoming: list[datetime] = []
        for place, source in enumerate(self._sources):
            tasks = {lane.task.name: lane.task for lane in lanes if source.is_open(lane.task.name)}
            if not tasks:
                continue
            versions = {name: task.binding.version for name, task in tasks.items()}
            waiting = await self._store.arun(arrivals(source.queue, versions, now))
            for gathering in self._gathered(source.queue, waiting):
                visible = gathering.ready_at + self._left_to_others(source, gathering)
                if visible <= now:
                    ready.append(((place if self._strict else 0, *gathering.order), gathering))
                else:
                    upcoming.append(visible)
        return [gathering for _, gathering in sorted(ready, key=lambda found: found[0])], upcoming

    def _gathered(self, queue: str, waiting: Sequence[Arrival]) -> list[Gathering]:
        here, left_alone = self._crew.ids, self._claims.left_alone
        by_name: dict[str, list[Arrival]] = {}
        for arrival in waiting:
            candidate = arrival.candidate
            if candidate.id in here or candidate.id in left_alone:
                continue
            by_name.setdefault(candidate.name, []).append(arrival)
            if not candidate.lost:
                key = (queue, candidate.name, arrival.group)
                self._known[key] = self._known.get(key, 0) + 1
        gatherings: list[Gathering] = []
        for name, arrived in by_name.items():
            limits = self._lanes[name].task.limits
            gatherings += gather(arrived, self._terms(name), max_lost=limits.max_lost)
        return gatherings

    def _left_to_others(self, source: Source, gathering: Gathering) -> timedelta:
        _, wait = source.lag.delay(gathering.stands_for(source.queue))
        return timedelta(seconds=_LAG * wait)

    async def _claim(self, ready: Sequence[Gathering], *, seen: float) -> int:
        """Claims what is ready and has a worker, as `seen` then by the loop's time, and returns how many calls that
        makes.
        """
        claimed = 0
        for gathering in ready:
            lane = self._lanes[gathering.name]
            if not lane.free:
                self._starved.add(gathering.name)
                continue
            if gathering.lost > 1 and self._crew.watches_suspect:
                self._suspects_wait = True
                continue
            if self._ending:
                break
            if asyncio.get_running_loop().time() - seen > _FRESH_FOR:
                self._look_at = 0.0
                break
            records = await self._claims.claim_together(gathering.candidates)
            came = {candidate.id: candidate.available_at for candidate in gathering.candidates}
            self._crew.take_on_together(records, came, since=records.since)
            claimed += bool(records)
        return claimed

    async def _next_due(self, lanes: Sequence[Lane], now: datetime) -> list[datetime]:
        names = [lane.task.name for lane in lanes]
        found = [await self._store.arun(next_due(source.queue, names, now)) for source in self._sources]
        return [moment for moment in found if moment is not None]

    @property
    def _patience(self) -> timedelta:
        return min(self._terms(name).patience for name in self._lanes)

    def _terms(self, name: str) -> Group:
        terms = self._lanes[name].task.group
        assert terms is not None
        return terms

    def _look_when(self, moment: datetime, *, soonest: float = 0.0) -> None:
        away = (moment - self._store.clock.earliest()).total_seconds()
        self._look_by(max(asyncio.get_running_loop().time() + max(away, 0.001), soonest))

    def _look_by(self, when: float) -> None:
        if when < self._look_at:
            self._look_at = when
            self.wake()
