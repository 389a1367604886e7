"""What a pool tells its user's functions as it runs. They cannot change what happens, and their mistakes are only
logged.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import typing
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any, Literal, TypeVar

from axeq.attempts.threads import Threads
from axeq.documents.record import Record
from axeq.faces.handle import AsyncJob, Job
from axeq.faces.task import Task, is_async
from axeq.wire.store import Store
from axeq.words.errors import ConfigurationError, redact

__all__ = ["Hook", "Hooks", "Moment", "Notices"]

_LOGGER = logging.getLogger("axeq.pool")
_LAST_SECONDS = 5.0

Moment = Literal["claimed", "started", "done", "lost", "unknown", "error", "health"]
"""What a pool tells: see `Pool.on`."""

Hook = TypeVar("Hook", bound=Callable[..., Any])

_SAYS: dict[str, tuple[str, ...]] = {
    "claimed": ("job",),
    "started": ("job",),
    "done": ("job",),
    "lost": ("job",),
    "unknown": ("name", "count"),
    "error": ("error", "job"),
    "health": ("error",),
}
"""By moment, what a function is called with."""


class Hooks:
    """The functions to be told, by moment: one attribute each, so that a moment without any costs one look."""

    def __init__(self) -> None:
        self.claimed: list[Callable[..., Any]] = []
        self.started: list[Callable[..., Any]] = []
        self.done: list[Callable[..., Any]] = []
        self.lost: list[Callable[..., Any]] = []
        self.unknown: list[Callable[..., Any]] = []
        self.error: list[Callable[..., Any]] = []
        self.health: list[Callable[..., Any]] = []
        self._running: set[asyncio.Task[None]] = set()

    def add(self, moment: Moment, function: Callable[..., Any]) -> None:
        """Has `function` told; raises `ConfigurationError` where it cannot be."""
        says = said_at(moment)
        taken = ", ".join(says)
        if not callable(function):
            raise ConfigurationError(f'on("{moment}") takes a function of ({taken}), not {function!r:.80}')
        try:
            inspect.signature(function).bind(*says)
        except TypeError:
            shown = getattr(function, "__qualname__", repr(function))
            raise ConfigurationError(f'on("{moment}") calls {shown} with ({taken}): it must take that') from None
        except ValueError:
            pass  # a function of C that does not say what it takes
        getattr(self, moment).append(function)

    def with_also(self, **functions: Callable[..., Any]) -> Hooks:
        """Returns hooks that tell these, and one more function of each moment named."""
        more = Hooks()
        for moment in _SAYS:
            getattr(more, moment).extend(getattr(self, moment))
        for moment, function in functions.items():
            getattr(more, moment).append(function)
        return more

    def tell(self, moment: Moment, *what: Any) -> None:
        """Calls the functions of a moment, on the running loop; what is async goes on beside it."""
        for function in getattr(self, moment):
            try:
                answer = function(*what)
            except BaseException as error:  # noqa: BLE001 - SystemExit from a hook must not end the pool either
                _mistaken(moment, error)
            else:
                if inspect.isawaitable(answer):
                    self.beside(_awaited(moment, answer))

    def beside(self, work: Coroutine[Any, Any, None]) -> None:
        """Runs `work` beside what the pool does; `close` waits for it."""
        task = asyncio.get_running_loop().create_task(work, name="axeq-hook")
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def close(self) -> None:
        """Waits a few seconds for what runs beside, then cancels it."""
        until = asyncio.get_running_loop().time() + _LAST_SECONDS
        while self._running and (left := until - asyncio.get_running_loop().time()) > 0:
            await asyncio.wait(self._running, timeout=left)
        for task in tuple(self._running):
            _LOGGER.error("a hook or notification has not ended %g s after the last handler: cancelled", _LAST_SECONDS)
            task.cancel()
        if self._running:
            await asyncio.wait(self._running, timeout=1.0)


def said_at(moment: Any) -> tuple[str, ...]:
    """Returns what the functions of a moment are called with; raises `ConfigurationError` where there is no such."""
    if not (isinstance(moment, str) and moment in _SAYS):
        known = ", ".join(f'"{each}"' for each in typing.get_args(Moment))
        raise ConfigurationError(f"a pool tells of no {moment!r:.80}: on() takes one of {known}")
    return _SAYS[moment]


class Notices:
    """Calls a task's `notify` once the end of a job is stored: an async one on the loop, a plain one in a thread."""

    def __init__(self, store: Store, hooks: Hooks, threads: Threads) -> None:
        self._store = store
        self._hooks = hooks
        self._threads = threads

    def send(self, task: Task[Any, Any], record: Record) -> None:
        """Has the task's function called with the job as it ended."""
        self._hooks.beside(self._notify(task, record))

    async def _notify(self, task: Task[Any, Any], record: Record) -> None:
        notify: Any = task.notify
        try:
            if is_async(notify):
                await notify(AsyncJob(record.document, self._store, task.binding))
            else:
                await self._threads.call(partial(notify, Job(record.document, self._store, task.binding)))
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            _LOGGER.error("notify of job %s (%s) failed: %s", record.id, record.name, _said(error), exc_info=error)
            self._hooks.tell("error", error, record)


async def _awaited(moment: str, answer: Awaitable[Any]) -> None:
    try:
        await answer
    except asyncio.CancelledError:
        raise
    except BaseException as error:  # noqa: BLE001 - SystemExit from a hook must not end the pool either
        _mistaken(moment, error)


def _mistaken(moment: str, error: BaseException) -> None:
    _LOGGER.error("a function of on(%r) failed: %s", moment, _said(error), exc_info=error)


def _said(error: BaseException) -> str:
    return redact(f"{type(error).__name__}: {error}")
