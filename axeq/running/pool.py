"""The pool: tasks, a start and an end. What happens in between is the dispatcher's and the crew's."""

from __future__ import annotations

import asyncio
import inspect
import signal
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from types import MappingProxyType, TracebackType
from typing import Any, Self, TypeVar, Unpack, overload

from axeq.attempts.hooks import Hook, Moment, said_at
from axeq.documents.model import M, Payload, R, bind
from axeq.faces.limits import named
from axeq.faces.task import Handler, Task, TaskOptions
from axeq.running.oneshot import OneShot
from axeq.running.plan import PoolOptions, planned
from axeq.running.shift import Shift
from axeq.wire.store import Store
from axeq.words.errors import AlreadyRunning, ConfigurationError, TaskExists

__all__ = ["Pool"]

T = TypeVar("T")

_AWAITED = "{0}() would block the running loop: use `await pool.a{0}()`"


class Pool:
    """Runs tasks on the jobs of one queue or several.

    Keyword options, durations as `timedelta` or seconds:

    - `queue`: the queue's name, default "default"
    - `queues`: several queues in its place, each served by every task: weights of 1 to 1,000 by name, which are their
      shares of what the pool claims as long as all have jobs; or a list of names, for equal shares. Jobs of periodic
      tasks go to the first
    - `strict`: the heaviest queue first, and of equal ones the first, whatever it leaves to the others; default False
    - `order`: of the jobs in a queue, "priority" (and then due time), the default, or "due" (time alone)
    - `concurrency`: how many attempts run at once over all tasks, default as many as their workers
    - `lease`: how long a job stays with a worker that has died, default 30 s; live workers extend it by themselves
    - `drain`: how long a shutdown lets handlers finish, default 25 s
    - `max_lag`: the longest that the pool leaves a due job to competing pools, default 100 ms
    - `lag`: "ranked", the default, by an order that the live pools share, or "random", by chance
    - `max_interval`: the longest pause between two looks for jobs where the server has no change streams, default 1 s
    - `unknown`: what becomes of due jobs that no task here understands: "leave", the default, counts them; "park" has
      those that no live pool serves wait for 5 min, and until one comes that does; a handler runs those, two at once,
      with whatever fields they have in `ctx.model`
    - `worker`: the pool's name, default host, process and a random part
    - `lifespan`: a function of the pool that returns an async context manager, entered before the first claim and
      left after the last handler has stopped; what it gives is `ctx.resources`, an error in it ends `run` with that
      error
    - `health_interval`: the time between two checks that the server answers, default 15 s

    Left out, these are what the environment says: `AXEQ_QUEUES`, `AXEQ_CONCURRENCY`, `AXEQ_LEASE`, `AXEQ_DRAIN`,
    `AXEQ_MAX_LAG`. Raises `ConfigurationError` for an option that cannot work.
    """

    def __init__(self, store: Store, **options: Unpack[PoolOptions]) -> None:
        self._plan = planned(store, options)
        if self._plan.lifespan is not None:
            self._plan.lifespan = partial(self._plan.lifespan, self)
        self.store = store
        self.queues: Mapping[str, int] = MappingProxyType(dict(self._plan.queues))
        """The queues that it serves, with their weights."""
        self.worker = self._plan.worker
        self.counts = self._plan.counts
        """How often each verb happened here; `lost` leases, `abandon`ed handlers; claims `attempted`, and of
        those `raced`: gone to others.
        """
        self.unknown = self._plan.unknown
        """Due jobs that nothing here understands, by name, as last counted (up to 1,000 a queue)."""
        self.ready = threading.Event()
        """Set while the pool is claiming jobs."""
        self._hooks = self._plan.hooks
        self._tasks: dict[str, Task[Any, Any]] = {}
        self._running = threading.Lock()
        self._shift: Shift | OneShot | None = None
        self._stopping = threading.Lock()
        self._stop_asked = False

    @property
    def tasks(self) -> list[Task[Any, Any]]:
        """The tasks that were added, in order."""
        return list(self._tasks.values())

    def add(self, task: Task[M, R]) -> Task[M, R]:
        """Adds a task and returns it. Raises `TaskExists`, and `AlreadyRunning` once the pool runs."""
        if not isinstance(task, Task):
            raise ConfigurationError(f"a pool takes an axeq.Task, not {task!r:.100}: add(axeq.Task(Model, handler))")
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
        if inspect.isroutine(model):
            raise ConfigurationError(f"task takes the model of {named(model)}, as in @pool.task(Thumbnail)")
        bind(model, name=name)

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
        said_at(moment)

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
        """Runs the pool until it is stopped, by `stop`, SIGTERM or SIGINT; a second signal ends it at once, as does
        one while it starts.

        Blocks; may be called from any thread, but signals reach it only in the main one. Raises `AlreadyRunning`,
        `ConfigurationError` without tasks, and `StoreError` where the server cannot be used at the start.
        """
        _blocking(self._run, "run() would block the running loop: use `async with pool`")

    def work_one(self) -> bool:
        """Runs one due job, the first in order over all tasks, or one group, and returns whether there was one.

        Blocks until its outcome is stored. Limits, leases, pauses and hooks are as in `run`; like `run`, it cannot be
        called while the pool runs. It neither waits for jobs nor enqueues those of periodic tasks. A job that can no
        longer be run is ended as a pool does. Raises `StoreError` where the server cannot be used.
        """
        return _blocking(lambda: self._alone(self.awork_one), _AWAITED.format("work_one"))

    def drain(self) -> int:
        """Runs all that is due, and what handlers enqueue for now meanwhile, then returns how many attempts it took.

        Blocks. A job that fails and is to be tried again later, or is snoozed, stays for the next time, however short
        its delay; any other that falls due within half a second counts as due. Groups
        wait for nobody. Otherwise as `work_one`.
        """
        return _blocking(lambda: self._alone(self.adrain), _AWAITED.format("drain"))

    async def awork_one(self) -> bool:
        """As `work_one`, on the running loop."""
        async with self._once() as turn:
            return await turn.run(most=1) > 0

    async def adrain(self) -> int:
        """As `drain`, on the running loop."""
        async with self._once() as turn:
            await turn.run()
        return turn.attempts

    def stop(self) -> None:
        """Has the pool end: it stops claiming, lets handlers finish for `drain`, and gives the rest back.

        From any thread; returns at once. While the pool does not run, it ends the next run as that starts.
        """
        with self._stopping:
            self._stop_asked = True
            if self._shift is not None:
                self._shift.ask_to_end()

    def _check(self) -> None:
        if not self._tasks:
            raise ConfigurationError("the pool has no tasks: add one with @pool.task(Model)")
        if any(task.executor == "process" for task in self.tasks) and not self.store.portable:
            raise ConfigurationError(
                "executor='process' needs a store made from a URI, which can go to another process"
            )

    async def __aenter__(self) -> Self:
        self._check()
        if not self._running.acquire(blocking=False):
            raise AlreadyRunning("the pool is running already")
        try:
            with self._stopping:
                self._shift = Shift(replace(self._plan, tasks=self.tasks))
                if self._stop_asked:
                    self._shift.ask_to_end()
            await self._shift.start()
        except BaseException:
            self._over()
            raise
        self.ready.set()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        shift = self._shift
        assert isinstance(shift, Shift)
        try:
            self.ready.clear()
            await shift.end()
        finally:
            self._over()

    def _over(self) -> None:
        """Takes note that nothing runs any more; a `stop` from now on is for the next run."""
        with self._stopping:
            self._shift = None
            self._stop_asked = False
        self._running.release()

    @asynccontextmanager
    async def _once(self) -> AsyncIterator[OneShot]:
        self._check()
        if not self._running.acquire(blocking=False):
            raise AlreadyRunning("the pool is running already")
        try:
            with self._stopping:
                self._shift = turn = OneShot(replace(self._plan, tasks=self.tasks))
                if self._stop_asked:
                    turn.ask_to_end()
            async with turn:
                yield turn
        finally:
            self._over()

    async def _alone(self, work: Callable[[], Awaitable[T]]) -> T:
        """Does `work` on a loop of its own, which signals end."""
        try:
            with _signals(self._signalled):
                return await work()
        finally:
            await self.store.leave_loop()

    def _signalled(self, starting: asyncio.Task[Any] | None = None) -> None:
        """Has what runs end, and a start that is under way at once: nothing has been claimed then."""
        if self._shift is not None:
            self._shift.signalled()
        if starting is not None:
            starting.cancel()

    async def _run(self) -> None:
        try:
            starting = asyncio.create_task(self.__aenter__())
            with _signals(lambda: self._signalled(starting)):
                await asyncio.wait([starting])
                if starting.cancelled():
                    return
                starting.result()
                try:
                    await self._asked_to_end()
                finally:
                    await self.__aexit__(None, None, None)
        finally:
            await self.store.leave_loop()

    async def _asked_to_end(self) -> None:
        assert isinstance(self._shift, Shift)
        await self._shift.asked_to_end()

    def __repr__(self) -> str:
        return f"<Pool {self.worker} of {', '.join(self.queues)}: {', '.join(self._tasks) or 'no tasks'}>"


def _blocking(work: Callable[[], Coroutine[Any, Any, T]], otherwise: str) -> T:
    """Does `work` on a loop of its own; where one runs, `otherwise` says what to use."""
    if _in_a_loop():
        raise ConfigurationError(otherwise)
    return asyncio.run(work())


def _in_a_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


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
