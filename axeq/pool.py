"""The pool: tasks, a start and an end. What happens in between is the dispatcher's and the crew's."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import signal
import socket
import threading
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from types import TracebackType
from typing import Any, Literal, Self, TypeVar, Unpack, overload

from axeq import indexes, manage, workers
from axeq.board import Board
from axeq.crew import Crew
from axeq.dispatcher import Dispatcher
from axeq.duration import Duration, seconds
from axeq.errors import (
    AccessDenied,
    AlreadyRunning,
    ConfigurationError,
    StoreError,
    StoreUnavailable,
    TaskExists,
    redact,
)
from axeq.feed import Feed
from axeq.lag import RandomLag, RankedLag
from axeq.lane import Lane
from axeq.leases import Leases
from axeq.lifecycle import Holding
from axeq.model import M, Payload, R, name_of
from axeq.store import Store
from axeq.task import Handler, Task, TaskOptions

__all__ = ["Pool"]

T = TypeVar("T")

_LOGGER = logging.getLogger("axeq.pool")
_CONTROLS_EVERY = 5.0
_UNKNOWN_EVERY = 60.0
_UNKNOWN_CAP = 1000
_SHORTEST_LEASE = 0.5


class Pool:
    """Runs tasks on the jobs of one queue.

    `queue` is its name, default "default". `lease` (default 30 s) is how long a job stays with a worker that
    has died; live workers extend it by themselves. `drain` (default 25 s) is how long a shutdown lets handlers
    finish. `max_lag` (default 100 ms) is the longest that it leaves a due job to competing pools: `lag`
    "ranked", the default, by an order that the live pools share, "random" by chance. `worker` names the pool,
    default host, process and a random part. Durations are `timedelta` or seconds. Raises `ConfigurationError`
    for an option that cannot work.
    """

    def __init__(
        self,
        store: Store,
        *,
        queue: str = "default",
        lease: Duration = 30,
        drain: Duration = 25,
        max_lag: Duration = 0.1,
        lag: Literal["ranked", "random"] = "ranked",
        worker: str | None = None,
    ) -> None:
        if not isinstance(store, Store):
            raise ConfigurationError(f"a pool takes an axeq.Store, not {type(store).__name__}: Pool(Store(...))")
        self.store = store
        self.queue = name_of(queue)
        self.worker = worker or f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(3)}"
        self.counts: Counter[str] = Counter()
        """How often each verb happened here; `lost` leases, `abandon`ed handlers; claims `attempted`, and of
        those `raced`: gone to others.
        """
        self.unknown: dict[str, int] = {}
        """Due jobs that no task here understands, by name, as last counted (up to 1,000); they are left alone."""
        self.ready = threading.Event()
        """Set while the pool is claiming jobs."""
        self._lease = seconds(lease, "lease")
        if self._lease < _SHORTEST_LEASE:
            raise ConfigurationError(f"lease must be at least {_SHORTEST_LEASE} s, not {self._lease:g} s")
        self._drain = seconds(drain, "drain")
        self._max_lag = seconds(max_lag, "max_lag")
        if lag not in ("ranked", "random"):
            raise ConfigurationError(f'lag must be "ranked" or "random", not {lag!r}')
        self._lag = lag
        self._tasks: dict[str, Task[Any, Any]] = {}
        self._running = threading.Lock()
        self._shift: _Shift | None = None
        self._stopping = threading.Lock()
        self._stop_asked = False

    @property
    def tasks(self) -> list[Task[Any, Any]]:
        """The tasks that were added, in order."""
        return list(self._tasks.values())

    def add(self, task: Task[M, R]) -> Task[M, R]:
        """Adds a task and returns it. Raises `TaskExists`, and `AlreadyRunning` once the pool runs."""
        if self._shift is not None:
            raise AlreadyRunning(f"the pool is running: add {task.name!r} before it starts")
        if task.name in self._tasks:
            raise TaskExists(f"the pool has a task {task.name!r} already: give one of the two models another name")
        self._tasks[task.name] = task
        return task

    @overload
    def task(
        self, model: type[Payload[M, R]], **options: Unpack[TaskOptions]
    ) -> Callable[[Handler[M, R]], Handler[M, R]]: ...
    @overload
    def task(
        self, model: type[M], *, name: str, **options: Unpack[TaskOptions]
    ) -> Callable[[Handler[M, T]], Handler[M, T]]: ...
    def task(self, model: Any, *, name: str | None = None, **options: Unpack[TaskOptions]) -> Callable[[Any], Any]:
        """Returns a decorator that adds its function as the handler of `model`; options as for `Task`."""

        def decorate(handler: Any) -> Any:
            task: Any = Task(model, handler, name=name, **options) if name else Task(model, handler, **options)
            self.add(task)
            return handler

        return decorate

    def run(self) -> None:
        """Runs the pool until it is stopped, by `stop`, SIGTERM or SIGINT; a second signal ends it at once.

        Blocks; may be called from any thread, but signals reach it only in the main one. Raises `AlreadyRunning`,
        `ConfigurationError` without tasks, and `StoreError` where the server cannot be used at the start.
        """
        asyncio.run(self._run())

    def stop(self) -> None:
        """Has the pool end: it stops claiming, lets handlers finish for `drain`, and gives the rest back.

        From any thread; returns at once. While the pool does not run, it ends the next run as that starts.
        """
        with self._stopping:
            self._stop_asked = True
            if self._shift is not None:
                self._shift.ask_to_end()

    async def __aenter__(self) -> Self:
        if not self._tasks:
            raise ConfigurationError("the pool has no tasks: add one with @pool.task(Model)")
        if any(task.executor == "process" for task in self.tasks) and not self.store.portable:
            raise ConfigurationError(
                "executor='process' needs a store made from a URI, which can go to another process"
            )
        if not self._running.acquire(blocking=False):
            raise AlreadyRunning("the pool is running already")
        try:
            with self._stopping:
                self._shift = _Shift(self)
                if self._stop_asked:
                    self._shift.ask_to_end()
            await self._shift.start()
        except BaseException:
            self._shift = None
            self._running.release()
            raise
        self.ready.set()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        shift = self._shift
        assert shift is not None
        try:
            self.ready.clear()
            await shift.end()
        finally:
            with self._stopping:
                self._shift = None
                self._stop_asked = False
            self._running.release()

    async def _run(self) -> None:
        try:
            async with self:
                assert self._shift is not None
                with _signals(self._shift.signalled):
                    await self._shift.asked_to_end()
                    await self._shift.end()
        finally:
            await self.store.leave_loop()

    def __repr__(self) -> str:
        return f"<Pool {self.worker} of {self.queue!r}: {', '.join(self._tasks) or 'no tasks'}>"


class _Shift:
    """One run of a pool, from its start to its end, on one loop."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._store = pool.store
        self._loop = asyncio.get_running_loop()
        self._ending = asyncio.Event()
        self._hurry = asyncio.Event()
        self._background: list[asyncio.Task[None]] = []
        self._ended: asyncio.Task[None] | None = None
        lanes = {task.name: Lane(task) for task in pool.tasks}
        self._versions = {task.name: task.binding.version for task in pool.tasks}
        self._leases = Leases(self._store, lease=pool._lease, report=self._report)
        self._crew = Crew(
            self._store, lanes, self._leases, lease=pool._lease, counts=pool.counts, wake=self._wake, freed=self._freed
        )
        self._lag: RankedLag | RandomLag = (
            RankedLag(pool.worker, pool._max_lag) if pool._lag == "ranked" else RandomLag(pool._max_lag)
        )
        self._board = board = Board(self._lag, monotonic=self._store.clock.monotonic)
        self._feed = Feed(
            self._store,
            pool.queue,
            self._versions,
            board,
            interval=min(task.interval for task in pool.tasks),
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
            counts=pool.counts,
            worker=pool.worker,
            lease=pool._lease,
        )

    async def start(self) -> None:
        await self._store.acapabilities()
        await self._create_indexes()
        await self._read_controls()
        await self._announce()
        self._leases.start()
        for work in (
            self._dispatcher.run(),
            self._feed.run(),
            self._every(_CONTROLS_EVERY, self._read_controls),
            self._every(workers.HEARTBEAT, self._announce),
            self._every(_UNKNOWN_EVERY, self._count_unknown, at_once=True),
            self._every(self._pool._lease / 10, self._watch_held),
        ):
            task = self._loop.create_task(work)
            task.add_done_callback(self._noticed)
            self._background.append(task)

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
        await self._crew.close(drain=self._pool._drain, hurry=self._hurry)
        await _cancelled([*others, *self._feed.reads])
        await asyncio.to_thread(self._leases.stop)
        for task in self._background:
            if not task.cancelled() and task.exception() is not None:
                raise task.exception() or AssertionError

    def _noticed(self, task: asyncio.Task[None]) -> None:
        """Ends the pool where part of it has failed: half a pool would hold jobs that nobody runs."""
        if not task.cancelled() and task.exception() is not None:
            _LOGGER.error("the pool ends: %s", redact(repr(task.exception())))
            self._ending.set()

    def _wake(self) -> None:
        self._dispatcher.wake()

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
        paused = await self._store.arun(manage.paused(self._pool.queue))
        if paused != self._dispatcher.paused:
            self._dispatcher.paused = paused
            self._wake()

    async def _announce(self) -> None:
        others = await self._store.arun(
            workers.announce(self._pool.worker, self._pool.queue, list(self._versions), self._store.clock)
        )
        if isinstance(self._lag, RankedLag) and self._lag.meet(others):
            self._board.rank_anew(self._store.clock.earliest())
            self._wake()

    async def _leave(self) -> None:
        try:
            await self._store.arun(workers.leave(self._pool.worker, self._store.clock))
        except StoreError as error:
            _LOGGER.warning("other pools learn late that this one has ended: %s", error)

    async def _count_unknown(self) -> None:
        with suppress(TimeoutError):  # its reads cost as much as a page or more: a busy pool has better to do
            await asyncio.wait_for(self._feed.resting(), _UNKNOWN_EVERY)
        rule = manage.count_unknown(self._pool.queue, self._versions, self._store.clock, cap=_UNKNOWN_CAP)
        counts = await self._store.arun(rule)
        for name in counts.keys() - self._pool.unknown.keys():
            _LOGGER.warning("jobs of %r are due, and no task here understands them: left alone", name)
        self._pool.unknown = counts

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


async def _cancelled(tasks: Iterable[asyncio.Task[None]]) -> None:
    """Cancels tasks until they have ended: a driver in the middle of a command may swallow a cancellation."""
    pending = {task for task in tasks if not task.done()}
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=1.0)


class _signals:  # noqa: N801 - used as a statement
    """Has SIGTERM and SIGINT call `act` while it is entered, in the main thread; elsewhere it does nothing."""

    def __init__(self, act: Callable[[], None]) -> None:
        self._act = act
        self._handled: list[signal.Signals] = []

    def __enter__(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._act)
            self._handled.append(number)

    def __exit__(self, *_: object) -> None:
        loop = asyncio.get_running_loop()
        for number in self._handled:
            loop.remove_signal_handler(number)
