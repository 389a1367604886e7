"""One run of a pool, from its start to its end, on one loop: the parts, and what they do now and then."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable, Mapping
from contextlib import suppress
from datetime import datetime
from typing import Any

from axeq.attempts.leases import Leases
from axeq.attempts.lifespan import Lifespan
from axeq.documents.record import Record
from axeq.faces.task import Task
from axeq.rules import indexes, manage, workers
from axeq.rules.lifecycle import Holding
from axeq.rules.outcome import Outcome
from axeq.rules.strangers import welcome
from axeq.rules.workers import Serving
from axeq.running.claims import Claims
from axeq.running.crew import Crew
from axeq.running.dispatcher import Dispatcher
from axeq.running.gatherer import Gatherer
from axeq.running.lane import Lane, Places
from axeq.running.plan import Plan
from axeq.running.ticker import Ticker
from axeq.running.unknown import Unknown
from axeq.supply.board import Board
from axeq.supply.feed import Feed
from axeq.supply.hints import Hints
from axeq.supply.lag import RandomLag, RankedLag
from axeq.supply.source import Source
from axeq.wire.store import Store
from axeq.words.errors import AccessDenied, StoreError, StoreUnavailable, redact

__all__ = ["Shift", "create_indexes", "crew_of"]

_LOGGER = logging.getLogger("axeq.pool")
_CONTROLS_EVERY = 5.0
_UNKNOWN_EVERY = 60.0
_ADOPTED_EVERY = 5.0
_INDEXES_EVERY = 60.0


def crew_of(
    plan: Plan,
    lanes: Mapping[str, Lane],
    leases: Leases,
    *,
    wake: Callable[[], None],
    freed: Callable[[], None],
    put_back: Callable[[str, datetime], None],
    decided: Callable[[Record, Outcome], None] | None = None,
) -> Crew:
    """Returns the crew for a plan's tasks."""
    return Crew(
        plan.store,
        lanes,
        leases,
        lease=plan.lease,
        counts=plan.counts,
        hooks=plan.hooks,
        wake=wake,
        freed=freed,
        put_back=put_back,
        decided=decided,
    )


async def create_indexes(store: Store) -> None:
    """Creates the indexes that are missing; where it may not, the log says who should."""
    try:
        await store.arun(indexes.ensure())
    except AccessDenied as error:
        _LOGGER.warning("indexes not created, run `axeq indexes ensure` as somebody who may: %s", error)
    except StoreUnavailable:
        raise
    except StoreError as error:
        _LOGGER.warning("indexes not created, see `axeq indexes ensure`: %s", error)


class Shift:
    """One run of a pool, from its start to its end, on one loop."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._store = plan.store
        self._loop = asyncio.get_running_loop()
        self._ending = asyncio.Event()
        self._hurry = asyncio.Event()
        self._claimed_last = asyncio.Event()
        self._background: list[asyncio.Task[None]] = []
        self._ended: asyncio.Task[None] | None = None
        self._places = None if plan.concurrency is None else Places(plan.concurrency)
        self._lanes = {task.name: Lane(task, self._places) for task in plan.tasks}
        self._versions = {task.name: task.binding.version for task in plan.tasks}
        self._leases = Leases(self._store, lease=plan.lease, report=self._report)
        self._crew = crew_of(
            plan, self._lanes, self._leases, wake=self._wake, freed=self._freed, put_back=self._put_back
        )
        self._lifespan = Lifespan(plan.lifespan) if plan.lifespan is not None else None
        self._unhealthy: StoreError | None = None
        self._absent: list[indexes.Index] = []
        self._sources = {queue: self._source(queue) for queue in plan.queues}
        grouped = {name: lane for name, lane in self._lanes.items() if lane.task.group is not None}
        self._ungrouped = {name: lane for name, lane in self._lanes.items() if name not in grouped}
        self._gatherer = self._gatherer_of(grouped)
        self._hints = self._hints_of(self._gatherer if grouped else None)
        self._unknown = Unknown(plan, self._sources, self._versions, self._hints, self._adopt)
        self._dispatcher = Dispatcher(
            self._store,
            self._ungrouped,
            sources=self._sources,
            weights=plan.queues,
            strict=plan.strict,
            hints=self._hints,
            crew=self._crew,
            leases=self._leases,
            counts=plan.counts,
            worker=plan.worker,
            lease=plan.lease,
        )
        first = self._sources[next(iter(plan.queues))]
        self._ticker = Ticker(self._store, first.queue, plan.tasks, lag=first.lag, resting=self._rests)

    def _hints_of(self, groups: Gatherer | None) -> Hints:
        names = None if self._takes_anything else self._versions
        feeds = {queue: source.feed for queue, source in self._sources.items()}
        return Hints(self._store, feeds, names=names, groups=groups, cancelled=self._crew.cancel)

    def _gatherer_of(self, lanes: Mapping[str, Lane]) -> Gatherer:
        plan = self._plan
        return Gatherer(
            self._store,
            lanes,
            sources=list(self._sources.values()),
            strict=plan.strict,
            crew=self._crew,
            leases=self._leases,
            claims=Claims(self._store, worker=plan.worker, lease=plan.lease),
            interval=min(task.interval for task in plan.tasks),
            max_interval=plan.max_interval,
        )

    def _source(self, queue: str) -> Source:
        plan, clock = self._plan, self._store.clock
        lag = _lag(plan)
        board = Board(lag, monotonic=clock.monotonic)
        feed = Feed(
            self._store,
            queue,
            {task.name: task.binding.version for task in plan.tasks if task.group is None},
            board,
            interval=min(task.interval for task in plan.tasks),
            max_interval=plan.max_interval,
            wake=self._wake,
            flat=plan.order == "due",
        )
        return Source(queue, board=board, feed=feed, lag=lag, clock=clock)

    async def start(self) -> None:
        await self._store.acapabilities()
        await create_indexes(self._store)
        await self._read_controls()
        if self._lifespan is not None:
            self._crew.share(await self._lifespan.enter())
        try:
            await self._announce()
            names = None if self._takes_anything else list(self._versions)
            await self._store.arun(welcome(list(self._sources), names, self._store.clock))
        except BaseException:
            try:
                await self._leave()
            finally:
                await self._leave_lifespan()
            raise
        self._leases.start()
        for work in (
            self._dispatcher.run(),
            self._gatherer.run(),
            self._keep_announced(),
            self._hints.run(),
            self._ticker.run(),
            self._every(_CONTROLS_EVERY, self._read_controls),
            self._every(self._unknown_every, self._look_after_unknown, at_once=True),
            self._every(self._plan.lease / 10, self._watch),
            self._every(self._plan.health_interval, self._check_health),
            self._every(_INDEXES_EVERY, self._keep_indexes),
        ):
            self._background.append(self._loop.create_task(work))
        if self._lifespan is not None and self._lifespan.task is not None:
            self._lifespan.task.add_done_callback(self._noticed)
        for task in self._background:
            task.add_done_callback(self._noticed)

    @property
    def healthy(self) -> bool:
        """Whether the server confirms leases, and has answered when it was last asked."""
        return self._unhealthy is None and self._leases.healthy

    def ask_to_end(self) -> None:
        """Has the shift end. From any thread."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._ending.set)

    def signalled(self) -> None:
        """Has the shift end, and at a second signal at once. On its loop."""
        if self._ending.is_set():
            self._hurry.set()
        self._ending.set()

    async def asked_to_end(self) -> None:
        """Waits until somebody asks the shift to end, or part of it has failed."""
        await self._ending.wait()

    async def end(self) -> None:
        """Ends the shift; safe to call twice, and not undone where its caller is cancelled."""
        if self._ended is None:
            self._ended = self._loop.create_task(self._end())
        await asyncio.shield(self._ended)

    async def _end(self) -> None:
        self._ending.set()
        dispatching, gathering, announcing, *others = self._background
        self._dispatcher.end()
        self._gatherer.end()
        await asyncio.wait([dispatching, gathering])  # the claim under way ends, and what it brought is given back
        self._claimed_last.set()
        # Beside the drain, which begins at once even where the server is silent.
        leaving = self._loop.create_task(self._leave_after(announcing))
        self._background.append(leaving)
        try:
            await self._crew.close(drain=self._plan.drain, hurry=self._hurry)
        finally:
            await asyncio.wait([leaving])
            await _cancelled([*others, *(read for source in self._sources.values() for read in source.feed.reads)])
            await asyncio.to_thread(self._leases.stop)
            await self._leave_lifespan()  # in the last place: handlers have stopped, and its error ends the run
        for task in self._background:
            if not task.cancelled() and task.exception() is not None:
                raise task.exception() or AssertionError

    async def _leave_lifespan(self) -> None:
        if self._lifespan is not None:
            await self._lifespan.leave()

    def _noticed(self, task: asyncio.Task[None]) -> None:
        """Ends the pool where part of it has failed: half a pool would hold jobs that nobody runs."""
        if not task.cancelled() and task.exception() is not None:
            _LOGGER.error("the pool ends: %s", redact(repr(task.exception())))
            self._ending.set()

    def _wake(self) -> None:
        self._dispatcher.wake()
        self._gatherer.wake()

    def _rests(self, name: str) -> bool:
        """Whether a task, by name, is not to be begun."""
        first = self._sources[next(iter(self._plan.queues))]
        return self._ending.is_set() or not first.is_open(name)

    def _put_back(self, queue: str, moment: datetime) -> None:
        self._hints.put_back(queue, moment)

    def _freed(self) -> None:
        for source in self._sources.values():
            source.feed.hint()
        self._gatherer.doubt()

    def _report(self, holding: Holding) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._heard, holding)

    def _heard(self, holding: Holding) -> None:
        self._crew.heard(holding)
        self._wake()

    async def _read_controls(self) -> None:
        for queue, paused in (await self._store.arun(manage.paused(list(self._sources)))).items():
            if paused != self._sources[queue].paused:
                self._sources[queue].paused = paused
                self._gatherer.doubt()
                self._wake()

    async def _announce(self) -> None:
        serving = Serving(
            list(self._sources), list(self._versions), self._unknown.adopted, anything=self._takes_anything
        )
        others = await self._store.arun(workers.announce(self._plan.worker, serving, self._store.clock))
        for queue, source in self._sources.items():
            rivals = {
                worker: [*other.names, *other.others] for worker, other in others.items() if queue in other.queues
            }
            if isinstance(source.lag, RankedLag) and source.lag.meet(rivals):
                source.board.rank_anew(self._store.clock.earliest())
                self._wake()

    async def _keep_announced(self) -> None:
        """Says now and then that the pool is live, until it claims no more."""
        while not self._claimed_last.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(self._claimed_last.wait(), workers.HEARTBEAT)
                return
            await _tried(self._announce)

    async def _leave_after(self, announcing: asyncio.Task[None]) -> None:
        """Takes the pool's word back, once the last one has been said: one under way would come after it."""
        await asyncio.wait([announcing])
        await self._leave()

    async def _leave(self) -> None:
        try:
            await self._store.arun(workers.leave(self._plan.worker, self._store.clock))
        except StoreError as error:
            _LOGGER.warning("other pools learn late that this one has ended: %s", error)

    @property
    def _takes_anything(self) -> bool:
        """Whether the pool has a handler for jobs that nobody has a task for."""
        return not isinstance(self._plan.strangers, str)

    @property
    def _unknown_every(self) -> float:
        return _ADOPTED_EVERY if self._takes_anything else _UNKNOWN_EVERY

    async def _look_after_unknown(self) -> None:
        await self._unknown.look(self._unknown_every)

    def _adopt(self, task: Task[Any, Any]) -> None:
        """Has another task's jobs run from now on."""
        self._lanes[task.name] = self._ungrouped[task.name] = Lane(task, self._places)
        self._dispatcher.renew()

    async def _check_health(self) -> None:
        try:
            await self._store.arun(manage.ping())
        except StoreError as error:
            self._unhealthy = error
        else:
            self._unhealthy = None
        unconfirmed = None if self._leases.healthy else StoreUnavailable(self._store.place.host, "leases not confirmed")
        self._plan.hooks.tell("health", self._unhealthy or unconfirmed)

    async def _keep_indexes(self) -> None:
        """Creates indexes anew where somebody has dropped them, as with their collection."""
        with suppress(AccessDenied):
            absent = await self._store.arun(indexes.missing())
            if absent and absent != self._absent:  # what cannot be created is said once
                await create_indexes(self._store)
            self._absent = absent

    async def _watch(self) -> None:
        self._crew.watch()

    async def _every(
        self, period: float, work: Callable[[], Coroutine[Any, Any, None]], *, at_once: bool = False
    ) -> None:
        if not at_once:
            await asyncio.sleep(period)
        while True:
            await _tried(work)
            await asyncio.sleep(period)


def _lag(plan: Plan) -> RankedLag | RandomLag:
    return RankedLag(plan.worker, plan.max_lag) if plan.lag == "ranked" else RandomLag(plan.max_lag)


async def _tried(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    try:
        await work()
    except StoreError as error:
        _LOGGER.warning("%s", error)


async def _cancelled(tasks: Iterable[asyncio.Task[None]]) -> None:
    """Cancels tasks until they have ended: a driver in the middle of a command may swallow a cancellation."""
    pending = {task for task in tasks if not task.done()}
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=1.0)
