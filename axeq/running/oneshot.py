"""A pool's work without the pool: runs what is due and returns, for tests, scripts and timers of one's own."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from types import TracebackType
from typing import Any, Self

from axeq.attempts.leases import Leases
from axeq.attempts.lifespan import Lifespan
from axeq.documents.record import Record
from axeq.rules import manage
from axeq.rules.due import Candidate, due_page
from axeq.rules.group import Arrival, Gathering, arrivals, gather
from axeq.rules.lifecycle import Holding
from axeq.rules.outcome import Failed, Outcome, Snoozed, due
from axeq.rules.strangers import welcome
from axeq.running.claims import Claims
from axeq.running.lane import Lane, Places
from axeq.running.plan import Plan
from axeq.running.rounds import rest
from axeq.running.shift import create_indexes, crew_of
from axeq.supply.shares import Shares

__all__ = ["OneShot"]

_PAGE = 500
_CONTROLS_EVERY = 1.0
_NOW = timedelta(seconds=0.5)
"""What falls due so soon is due now: "now" is written from the upper bound of the server's time, which was wider when
it was known less well.
"""


class OneShot:
    """Runs the due jobs of a plan on the running loop, with a pool's crew, leases and judgement, but without its
    board and its rounds.

    Entered and left as a context manager; left with an error it gives back at once what still runs.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = replace(plan, hooks=plan.hooks.with_also(started=self._started))
        self._store = plan.store
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()
        self._hurry = asyncio.Event()
        self._ending = False
        self._places = None if plan.concurrency is None else Places(plan.concurrency)
        self._lanes = {task.name: Lane(task, self._places) for task in plan.tasks}
        self._leases = Leases(self._store, lease=plan.lease, report=self._report)
        self._crew = crew_of(
            self._plan,
            self._lanes,
            self._leases,
            wake=self._changed.set,
            freed=self._changed.set,
            put_back=lambda queue, moment: self._changed.set(),
            decided=self._decided,
        )
        self._claims = Claims(self._store, worker=plan.worker, lease=plan.lease)
        self._lifespan = Lifespan(plan.lifespan) if plan.lifespan is not None else None
        self._left: set[Any] = set()
        """Jobs that this run does not come to again: put off until later, or claimed by others."""
        self._paused: dict[str, frozenset[str | None]] = {}
        self._paused_at = float("-inf")
        self._holding = False
        self.attempts = 0
        """How many handlers were called."""

    async def __aenter__(self) -> Self:
        await self._store.acapabilities()
        await create_indexes(self._store)
        names = [task.name for task in self._plan.tasks]
        await self._store.arun(welcome(list(self._plan.queues), names, self._store.clock))
        if self._lifespan is not None:
            self._crew.share(await self._lifespan.enter())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._hurry.set()
        await asyncio.shield(self._loop.create_task(self._close()))

    async def run(self, *, most: int | None = None) -> int:
        """Runs what is due now, also what is enqueued for now meanwhile, and returns how many jobs it has taken on, a
        group counted as one.

        `most` bounds them. A job that is put off until later, however soon, is left for the next time.
        """
        taken = 0
        while not self._ending:
            self._changed.clear()
            busy = self._crew.busy  # before the read: what ends meanwhile may be due again, or have enqueued more
            room = None if most is None else most - taken
            claimed, soon = (0, 0.0) if room == 0 else await self._claim(room)
            taken += claimed
            if claimed:
                continue
            if not soon and not busy:
                break
            await self._rest(soon or self._plan.lease / 10)
        return taken

    def ask_to_end(self) -> None:
        """Has `run` return once what runs has ended. From any thread."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._end)

    def signalled(self) -> None:
        """As `ask_to_end`, and at a second signal at once. On its loop."""
        if self._ending:
            self._hurry.set()
        self._end()

    @property
    def healthy(self) -> bool:
        """Whether the server confirms leases."""
        return self._leases.healthy

    def _end(self) -> None:
        self._ending = True
        self._changed.set()

    async def _close(self) -> None:
        try:
            await self._crew.close(drain=self._plan.drain, hurry=self._hurry)
        finally:
            await asyncio.to_thread(self._leases.stop)
            if self._lifespan is not None:
                await self._lifespan.leave()

    async def _rest(self, seconds: float) -> None:
        await rest(self._changed, seconds)
        self._crew.watch()

    async def _claim(self, room: int | None) -> tuple[int, float]:
        """Claims for up to `room` calls of handlers, and returns for how many it has, and in how many seconds more may
        be due, 0 for none.
        """
        await self._read_controls()
        candidates, soon = await self._due()
        claimed = 0
        for batch in self._chosen(candidates, room):
            claimed += await self._take(batch)
        groups, soon_of_groups = await self._groups()
        for group in groups:
            called_alone = group.lost > 1 and self._crew.watches_suspect
            if self._lanes[group.name].free and not called_alone and (room is None or claimed < room):
                claimed += min(await self._take(group.candidates, together=True), 1)
        return claimed, min(filter(None, (soon, soon_of_groups)), default=0.0)

    async def _take(self, candidates: Sequence[Candidate], *, together: bool = False) -> int:
        """Claims candidates, `together` for one call, and returns how many; those that it does not get are others'."""
        records = await (self._claims.claim_together if together else self._claims.claim)(candidates)
        if records and not self._holding:
            self._holding = True
            self._leases.start()
        self._left.update({candidate.id for candidate in candidates} - {record.id for record in records})
        if together:
            arrivals_by_id = {candidate.id: candidate.available_at for candidate in candidates}
            self._crew.take_on_together(records, arrivals_by_id, since=records.since)
        else:
            self._crew.take_on(records, since=records.since)
        return len(records)

    async def _due(self) -> tuple[list[Candidate], float]:
        """Reads the due jobs of every task that has a free worker, in order, those of the heaviest queue first; and in
        how many seconds the first of those is due that were enqueued for now, and certainly are not yet.
        """
        clock, apart, flat = self._store.clock, self._apart, self._plan.order == "due"
        horizon = clock.latest() + _NOW
        ready: list[Candidate] = []
        soon: list[float] = []
        for queue in Shares(self._plan.queues).order:
            found: list[Candidate] = []
            for versions in self._hungry(queue, grouped=False):
                page = due_page(queue, versions, horizon, limit=_PAGE + len(apart), flat=flat)
                found += [candidate for candidate in await self._store.arun(page) if candidate.id not in apart]
            now = clock.earliest()
            found = [each for each in found if not _is_held(each, now)]
            soon += [(each.available_at - now).total_seconds() for each in found if each.available_at > now]
            ready += sorted((each for each in found if each.available_at <= now), key=_order)
        return ready, min(soon, default=0.0)

    async def _groups(self) -> tuple[list[Gathering], float]:
        """As `_due` for the tasks that take groups: all of them are ready at once. A task of which more is enqueued for
        now waits for that, so that a group is not split.
        """
        clock, apart = self._store.clock, self._apart
        ready: list[Gathering] = []
        soon: list[float] = []
        for queue in Shares(self._plan.queues).order:
            waiting: defaultdict[str, list[Arrival]] = defaultdict(list)
            for versions in self._hungry(queue, grouped=True):
                for arrival in await self._store.arun(arrivals(queue, versions, clock.latest() + _NOW)):
                    if arrival.candidate.id not in apart:
                        waiting[arrival.candidate.name].append(arrival)
            now = clock.earliest()
            for name, seen in waiting.items():
                arrived = [each for each in seen if not _is_held(each.candidate, now)]
                task, last = self._lanes[name].task, max((each.candidate.available_at for each in arrived), default=now)
                if last > now:
                    soon.append((last - now).total_seconds())
                elif task.group is not None:
                    ready += gather(arrived, task.group, max_lost=task.limits.max_lost)
        return ready, min(soon, default=0.0)

    def _hungry(self, queue: str, *, grouped: bool) -> list[dict[str, int]]:
        """Returns the tasks that may take more jobs of a queue, and the newest version of each, those of one version
        together: so a page holds none that are too new.
        """
        paused = self._paused[queue]
        by_version: defaultdict[int, dict[str, int]] = defaultdict(dict)
        for name, lane in self._lanes.items():
            wants = lane.free if grouped else lane.wanted
            if wants and (lane.task.group is not None) == grouped and not paused & {name, None}:
                version = lane.task.binding.version
                by_version[version][name] = version
        return list(by_version.values())

    async def _read_controls(self) -> None:
        now = time.monotonic()
        if now - self._paused_at > _CONTROLS_EVERY:
            self._paused = await self._store.arun(manage.paused(list(self._plan.queues)))
            self._paused_at = now

    @property
    def _apart(self) -> set[Any]:
        """The jobs that must not be claimed here."""
        return self._left.union(self._crew.ids, self._claims.left_alone)

    def _chosen(self, candidates: Sequence[Candidate], room: int | None) -> list[list[Candidate]]:
        """Returns what to claim now: jobs that have lost a lease each alone and for a free worker, the others
        together.
        """
        basket = _Basket(self._lanes, self._places, room, suspect=self._crew.watches_suspect)
        for candidate in candidates:
            basket.offer(candidate)
        alone = [[candidate] for candidate in basket.alone]
        return [*alone, basket.together] if basket.together else alone

    def _started(self, job: Record) -> None:
        self.attempts += 1

    def _decided(self, record: Record, outcome: Outcome) -> None:
        if isinstance(outcome, Failed | Snoozed):
            now = self._store.clock.latest()
            if due(now, outcome.delay, outcome.at) > now:
                self._left.add(record.id)

    def _report(self, holding: Holding) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._crew.heard, holding)


class _Basket:
    """What a claim takes: no more than the lanes want, and of jobs that have lost a lease no more than are free."""

    def __init__(self, lanes: Mapping[str, Lane], places: Places | None, room: int | None, *, suspect: bool) -> None:
        self.alone: list[Candidate] = []
        self.together: list[Candidate] = []
        self._wanted = {name: lane.wanted for name, lane in lanes.items()}
        self._free = {name: lane.free for name, lane in lanes.items()}
        limits = [limit for limit in (room, None if places is None else places.room) if limit is not None]
        self._room = min(limits, default=sum(self._wanted.values()))
        self._places = self._room if places is None else places.free
        self._suspect = suspect

    def offer(self, candidate: Candidate) -> None:
        """Takes a candidate where there is room for it."""
        name = candidate.name
        if self._room <= 0 or self._wanted[name] <= 0:
            return
        if candidate.lost:
            if min(self._free[name], self._places) <= 0 or (candidate.lost > 1 and self._suspect):
                return
            self._suspect = self._suspect or candidate.lost > 1
        (self.alone if candidate.lost else self.together).append(candidate)
        self._room -= 1
        self._places -= 1
        self._wanted[name] -= 1
        self._free[name] -= 1


def _is_held(candidate: Candidate, now: datetime) -> bool:
    """Whether another pool runs a job: what it holds falls due with its lease, which it will extend."""
    return candidate.lost > 0 and candidate.available_at > now


def _order(candidate: Candidate) -> tuple[int, datetime]:
    return candidate.priority, candidate.available_at
