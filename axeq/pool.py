"""The pool: tasks, a start and an end. What happens in between is the dispatcher's and the crew's."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import socket
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from types import TracebackType
from typing import Any, Literal, Self, TypeVar, Unpack, overload

from axeq.duration import Duration, seconds
from axeq.errors import AlreadyRunning, ConfigurationError, TaskExists
from axeq.hooks import Hook, Hooks, Moment
from axeq.model import M, Payload, R, name_of
from axeq.settings import duration
from axeq.shift import Plan, Shift
from axeq.store import Store
from axeq.task import Handler, Task, TaskOptions

__all__ = ["Pool"]

T = TypeVar("T")

_SHORTEST_LEASE = 0.5


class Pool:
    """Runs tasks on the jobs of one queue.

    `queue` is its name, default "default". `lease` (default 30 s) is how long a job stays with a worker that
    has died; live workers extend it by themselves. `drain` (default 25 s) is how long a shutdown lets handlers
    finish. `max_lag` (default 100 ms) is the longest that it leaves a due job to competing pools: `lag`
    "ranked", the default, by an order that the live pools share, "random" by chance. `worker` names the pool,
    default host, process and a random part. Durations are `timedelta` or seconds. Raises `ConfigurationError`
    for an option that cannot work.

    `lifespan` is a function of the pool that returns an async context manager, entered before the first claim and
    left after the last handler has stopped; what it gives is `ctx.resources`, an error in it ends `run` with that
    error. `health_interval` (default 15 s) is the time between two checks that the server answers.

    Left out, these are what the environment says: `AXEQ_LEASE`, `AXEQ_DRAIN`, `AXEQ_MAX_LAG`.
    """

    def __init__(
        self,
        store: Store,
        *,
        queue: str = "default",
        lease: Duration | None = None,
        drain: Duration | None = None,
        max_lag: Duration | None = None,
        lag: Literal["ranked", "random"] = "ranked",
        worker: str | None = None,
        lifespan: Callable[[Pool], AbstractAsyncContextManager[Any]] | None = None,
        health_interval: Duration = 15,
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
        self._lease = _checked_lease(lease)
        self._drain = duration(drain, "drain", "AXEQ_DRAIN", 25)
        self._max_lag = duration(max_lag, "max_lag", "AXEQ_MAX_LAG", 0.1)
        self._lifespan = _checked_lifespan(lifespan)
        self._health_interval = seconds(health_interval, "health_interval", zero=False)
        self._hooks = Hooks()
        if lag not in ("ranked", "random"):
            raise ConfigurationError(f'lag must be "ranked" or "random", not {lag!r}')
        self._lag = lag
        self._tasks: dict[str, Task[Any, Any]] = {}
        self._running = threading.Lock()
        self._shift: Shift | None = None
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

    def on(self, moment: Moment) -> Callable[[Hook], Hook]:
        """Returns a decorator that has its function called at each such moment.

        - "claimed", with the job (a `Record`): a worker will come to it soon
        - "started", with the job: its handler is called
        - "done", with the job as the store has it now: completed, failed, cancelled, or enqueued again where it was
          snoozed or given back
        - "lost", with the job: its lease has passed to another worker, or it is gone
        - "unknown", with a name and a count: jobs of it are due, and no task here understands them
        - "error", with an exception and the job: what a handler raised that is no outcome, the `TimeoutError` of one
          that ran too long, a payload or result that does not fit, and what `notify` raised. From a process executor
          comes a stand-in with `type`, `message` and `traceback`
        - "health", with None or an error: each `health_interval`, whether the server answers

        Functions, plain or async, are called on the pool's loop, so plain ones must not block; async ones run beside
        what the pool does. They cannot change it, and their errors are only logged. Raises `ConfigurationError`.
        """

        def decorate(function: Hook) -> Hook:
            self._hooks.add(moment, function)
            return function

        return decorate

    @property
    def healthy(self) -> bool:
        """Whether the pool runs, the server confirms its leases, and has answered when it was last asked."""
        shift = self._shift
        return shift is not None and self.ready.is_set() and shift.healthy

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

    def _plan(self) -> Plan:
        return Plan(
            store=self.store,
            queue=self.queue,
            tasks=self.tasks,
            worker=self.worker,
            lease=self._lease,
            drain=self._drain,
            max_lag=self._max_lag,
            lag=self._lag,
            counts=self.counts,
            unknown=self.unknown,
            hooks=self._hooks,
            lifespan=None if self._lifespan is None else partial(self._lifespan, self),
            health_interval=self._health_interval,
        )

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
                self._shift = Shift(self._plan())
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


def _checked_lease(lease: Duration | None) -> float:
    length = duration(lease, "lease", "AXEQ_LEASE", 30)
    if length < _SHORTEST_LEASE:
        named = "AXEQ_LEASE" if lease is None else "lease"
        raise ConfigurationError(f"{named} must be at least {_SHORTEST_LEASE} s, not {length:g} s")
    return length


def _checked_lifespan(lifespan: Any) -> Any:
    if lifespan is not None and not callable(lifespan):
        raise ConfigurationError(f"lifespan must be a function of the pool, not {type(lifespan).__name__}")
    return lifespan


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
