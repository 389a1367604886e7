"""One run of a pool, from its start to its end, on one loop: the parts, and what they do now and then."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass, field
from typing import Any, Literal

from axeq import indexes, manage, workers
from axeq.board import Board
from axeq.crew import Crew
from axeq.dispatcher import Dispatcher
from axeq.errors import AccessDenied, StoreError, StoreUnavailable, redact
from axeq.feed import Feed
from axeq.hooks import Hooks
from axeq.lag import RandomLag, RankedLag
from axeq.lane import Lane
from axeq.leases import Leases
from axeq.lifecycle import Holding
from axeq.lifespan import Lifespan
from axeq.store import Store
from axeq.task import Task
from axeq.ticker import Ticker

__all__ = ["Plan", "Shift"]

_LOGGER = logging.getLogger("axeq.pool")
_CONTROLS_EVERY = 5.0
_UNKNOWN_EVERY = 60.0
_UNKNOWN_CAP = 1000


@dataclass(slots=True)
class Plan:
    """What a pool was told to run, and on what terms: durations in seconds. `counts` and `unknown` are kept up to
    date as it runs.
    """

    store: Store
    queue: str
    tasks: Sequence[Task[Any, Any]]
    worker: str
    lease: float
    drain: float
    max_lag: float
    lag: Literal["ranked", "random"]
    counts: Counter[str] = field(default_factory=Counter)
    unknown: dict[str, int] = field(default_factory=dict)
    hooks: Hooks = field(default_factory=Hooks)
    lifespan: Callable[[], AbstractAsyncContextManager[Any]] | None = None
    health_interval: float = 15.0


def crew_of(
    plan: Plan, lanes: Mapping[str, Lane], leases: Leases, *, wake: Callable[[], None], freed: Callable[[], None]
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
    )


class Shift:
    """One run of a pool, from its start to its end, on one loop."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._store = plan.store
        self._loop = asyncio.get_running_loop()
        self._ending = asyncio.Event()
        self._hurry = asyncio.Event()
        self._background: list[asyncio.Task[None]] = []
        self._ended: asyncio.Task[None] | None = None
        lanes = {task.name: Lane(task) for task in plan.tasks}
        self._versions = {task.name: task.binding.version for task in plan.tasks}
        self._leases = Leases(self._store, lease=plan.lease, report=self._report)
        self._crew = crew_of(plan, lanes, self._leases, wake=self._wake, freed=self._freed)
        self._lifespan = Lifespan(plan.lifespan) if plan.lifespan is not None else None
        self._unhealthy: StoreError | None = None
        self._lag = _lag(plan)
        self._board = board = Board(self._lag, monotonic=self._store.clock.monotonic)
        self._feed = Feed(
            self._store,
            plan.queue,
            self._versions,
            board,
            interval=min(task.interval for task in plan.tasks),
            wake=self._wake,
            cancelled=self._crew.cancel,
        )
        self._dispatcher = Dispatcher(
            self._store,
            lanes,
            board=board,
            feed=self._feed,
            crew=self._crew,
            leases=self._leases,
            lag=self._lag,
            counts=plan.counts,
            worker=plan.worker,
            lease=plan.lease,
        )
        self._ticker = Ticker(self._store, plan.queue, plan.tasks, lag=self._lag, resting=self._rests)

    async def start(self) -> None:
        await self._store.acapabilities()
        await self._create_indexes()
        await self._read_controls()
        if self._lifespan is not None:
            self._crew.share(await self._lifespan.enter())
        try:
            await self._announce()
        except BaseException:
            await self._leave_lifespan()
            raise
        self._leases.start()
        for work in (
            self._dispatcher.run(),
            self._feed.run(),
            self._ticker.run(),
            self._every(_CONTROLS_EVERY, self._read_controls),
            self._every(workers.HEARTBEAT, self._announce),
            self._every(_UNKNOWN_EVERY, self._count_unknown, at_once=True),
            self._every(self._plan.lease / 10, self._watch_held),
            self._every(self._plan.health_interval, self._check_health),
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
        dispatching, *others = self._background
        self._dispatcher.end()
        await asyncio.wait([dispatching])  # the claim under way ends, and what it brought is given back
        await self._leave()
        await self._crew.close(drain=self._plan.drain, hurry=self._hurry)
        await _cancelled([*others, *self._feed.reads])
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

    def _rests(self, name: str) -> bool:
        """Whether a task, by name, is not to be begun."""
        return self._ending.is_set() or not self._dispatcher.paused.isdisjoint((None, name))

    def _freed(self) -> None:
        self._feed.hint()

    def _report(self, holding: Holding) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._crew.heard, holding)

    async def _create_indexes(self) -> None:
        try:
            await self._store.arun(indexes.ensure())
        except AccessDenied as error:
            _LOGGER.warning("indexes not created, run `axeq indexes ensure` as somebody who may: %s", error)
        except StoreUnavailable:
            raise
        except StoreError as error:
            _LOGGER.warning("indexes not created, see `axeq indexes ensure`: %s", error)

    async def _read_controls(self) -> None:
        paused = await self._store.arun(manage.paused(self._plan.queue))
        if paused != self._dispatcher.paused:
            self._dispatcher.paused = paused
            self._wake()

    async def _announce(self) -> None:
        others = await self._store.arun(
            workers.announce(self._plan.worker, self._plan.queue, list(self._versions), self._store.clock)
        )
        if isinstance(self._lag, RankedLag) and self._lag.meet(others):
            self._board.rank_anew(self._store.clock.earliest())
            self._wake()

    async def _leave(self) -> None:
        try:
            await self._store.arun(workers.leave(self._plan.worker, self._store.clock))
        except StoreError as error:
            _LOGGER.warning("other pools learn late that this one has ended: %s", error)

    async def _count_unknown(self) -> None:
        with suppress(TimeoutError):  # its reads cost as much as a page or more: a busy pool has better to do
            await asyncio.wait_for(self._feed.resting(), _UNKNOWN_EVERY)
        rule = manage.count_unknown(self._plan.queue, self._versions, self._store.clock, cap=_UNKNOWN_CAP)
        counts = await self._store.arun(rule)
        for name in counts.keys() - self._plan.unknown.keys():
            _LOGGER.warning("jobs of %r are due, and no task here understands them: left alone", name)
            self._plan.hooks.tell("unknown", name, counts[name])
        self._plan.unknown.clear()
        self._plan.unknown.update(counts)

    async def _check_health(self) -> None:
        try:
            await self._store.arun(manage.ping())
        except StoreError as error:
            self._unhealthy = error
        else:
            self._unhealthy = None
        unconfirmed = None if self._leases.healthy else StoreUnavailable(self._store.place.host, "leases not confirmed")
        self._plan.hooks.tell("health", self._unhealthy or unconfirmed)

    async def _watch_held(self) -> None:
        for held in self._leases.lapsed():
            self._crew.lose(held, "no extension was acknowledged for a whole lease")
        self._crew.give_back_surplus()

    async def _every(
        self, period: float, work: Callable[[], Coroutine[Any, Any, None]], *, at_once: bool = False
    ) -> None:
        if not at_once:
            await asyncio.sleep(period)
        while True:
            try:
                await work()
            except StoreError as error:
                _LOGGER.warning("%s", error)
            await asyncio.sleep(period)


def _lag(plan: Plan) -> RankedLag | RandomLag:
    return RankedLag(plan.worker, plan.max_lag) if plan.lag == "ranked" else RandomLag(plan.max_lag)


async def _cancelled(tasks: Iterable[asyncio.Task[None]]) -> None:
    """Cancels tasks until they have ended: a driver in the middle of a command may swallow a cancellation."""
    pending = {task for task in tasks if not task.done()}
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=1.0)
