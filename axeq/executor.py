"""One attempt, from the claimed record to its outcome, as named steps: decode, handle, decide."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextvars import copy_context
from datetime import datetime
from enum import Enum
from functools import partial
from typing import Any

from pydantic import ValidationError

from axeq.clock import Clock
from axeq.context import Context
from axeq.errors import AxeqError, Cancel, PayloadSealed, Retry, Snooze
from axeq.outcome import Cancelled, Completed, Outcome, Released, Snoozed, decide, sealed
from axeq.processes import Processes
from axeq.record import Record, failure
from axeq.states import Cause
from axeq.store import Store
from axeq.task import Task
from axeq.threads import Threads

__all__ = ["Attempt", "Executor", "Stop"]

_LOGGER = logging.getLogger("axeq.pool")
_SEALED_PAUSE = 60.0
"""Seconds that a job is left to pools that can open it."""


class Stop(Enum):
    """Why a handler was told to stop."""

    TIMEOUT = "timeout"
    CANCEL = "cancel"
    SHUTDOWN = "shutdown"
    LOST = "lost"


class Attempt:
    """A claimed job on its way through the pool."""

    __slots__ = (
        "_interrupt",
        "abandoned",
        "context",
        "ended_at",
        "reason",
        "record",
        "running",
        "started_at",
        "stop",
        "task",
        "timers",
    )

    def __init__(self, record: Record, task: Task[Any, Any]) -> None:
        self.record = record
        self.task = task
        self.context: Context[Any, Any] | None = None
        self.stop: Stop | None = None
        self.reason = ""
        self.running = False
        self.abandoned = False
        self.started_at: datetime | None = None
        self.ended_at: datetime | None = None
        self.timers: list[asyncio.TimerHandle] = []
        self._interrupt: Callable[[], None] | None = None

    @property
    def timeout(self) -> float:
        """The limit of this attempt in seconds."""
        return self.task.timeout if self.record.timeout is None else self.record.timeout

    def request_stop(self, stop: Stop, reason: str = "") -> None:
        """Tells the handler to stop; the first reason counts, but for a lost lease, which overrides any."""
        if self.stop is None or stop is Stop.LOST:
            self.stop, self.reason = stop, reason
        if self.context is not None:
            self.context._request_stop()
        if self.running and self._interrupt is not None:
            self._interrupt()

    def begin(self, context: Context[Any, Any], started_at: datetime, interrupt: Callable[[], None] | None) -> None:
        """Notes that the handler starts; `interrupt` stops it, None where it only looks at the context."""
        self.context, self.started_at = context, started_at
        self._interrupt = interrupt
        self.running = True

    def end(self, ended_at: datetime) -> None:
        """Notes that the handler has stopped."""
        self.ended_at = ended_at
        self.running = False
        for timer in self.timers:
            timer.cancel()
        self.timers.clear()


class Executor:
    """Runs attempts: async handlers on the loop, plain functions in threads or processes."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._threads = Threads("axeq-handler")
        self._processes = Processes(self._threads)
        self._sealed: set[str] = set()

    async def execute(self, attempt: Attempt) -> Outcome | None:
        """Runs one attempt to its end and returns what becomes of the job; None where its lease is lost.

        It returns only when the handler has stopped.
        """
        try:
            model = attempt.task.binding.decode(attempt.record.data, attempt.record.version, self._store.codec)
        except PayloadSealed as error:
            return self._left_to_others(attempt.record, error)
        except Exception as error:  # noqa: BLE001 - an upgrade hook may raise anything; the raw data is kept
            return self._kept(_invalid(error))
        if attempt.stop is not None:
            return self._kept(_stopped(attempt, None))
        clock = self._store.clock
        context: Context[Any, Any] = Context(
            model=model,
            job=attempt.record,
            result_type=attempt.task.binding.result,
            store=self._store,
        )
        attempt.begin(context, clock.earliest(), self._interrupt(attempt))
        ended_by: BaseException | None = None
        value: Any = None
        try:
            value = await self._handle(attempt, context)
        except BaseException as error:  # noqa: BLE001 - SystemExit from a handler is the job's failure, not the pool's end
            ended_by = error
        return self._ended(attempt, value, ended_by, clock)

    async def close(self) -> None:
        """Ends the processes, and the threads that are idle."""
        await self._processes.close()
        self._threads.close()

    def _interrupt(self, attempt: Attempt) -> Callable[[], None] | None:
        if attempt.task.executor == "thread":
            return None
        if attempt.task.executor == "process":
            return partial(self._processes.kill, attempt)
        current = asyncio.current_task()
        assert current is not None
        return partial(_cancel, current)

    async def _handle(self, attempt: Attempt, context: Context[Any, Any]) -> Any:
        handler = attempt.task.handler
        if attempt.task.executor == "loop":
            return await handler(context)
        if attempt.task.executor == "thread":
            return await self._threads.call(partial(_in_thread, handler, context))
        return await self._processes.call(attempt, handler, context)

    def _ended(self, attempt: Attempt, value: Any, error: BaseException | None, clock: Clock) -> Outcome | None:
        attempt.end(clock.earliest())
        if attempt.stop is not None:
            _forget_cancellation()
            if error is not None or attempt.stop in (Stop.LOST, Stop.TIMEOUT):
                return self._kept(_stopped(attempt, error))
        if error is not None:
            return self._kept(decide(_failure(error), attempt.record, attempt.task.limits))
        try:
            return Completed(attempt.task.binding.encode_result(value, attempt.task.max_result, self._store.codec))
        except AxeqError as invalid:
            return self._kept(decide(invalid, attempt.record, attempt.task.limits))

    def _kept(self, outcome: Outcome | None) -> Outcome | None:
        """Returns an outcome as it may be stored."""
        codec = self._store.codec
        return outcome if codec is None or outcome is None else sealed(outcome, codec)

    def _left_to_others(self, record: Record, error: PayloadSealed) -> Outcome:
        """Puts a job back, uncounted: another pool may have the codec, or this one after its next start."""
        if record.name not in self._sealed:
            self._sealed.add(record.name)
            _LOGGER.error("jobs of %r are put back for %g s at a time: %s", record.name, _SEALED_PAUSE, error)
        return Snoozed(_SEALED_PAUSE, reason=str(error))


def _forget_cancellation() -> None:
    task = asyncio.current_task()
    while task is not None and task.cancelling():
        task.uncancel()


def _cancel(task: asyncio.Task[Any]) -> None:
    task.cancel()


def _in_thread(handler: Any, context: Context[Any, Any]) -> Any:
    return copy_context().run(handler, context)


def _failure(error: BaseException) -> BaseException:
    if isinstance(error, asyncio.CancelledError):
        return RuntimeError("the handler raised CancelledError though nothing had asked it to stop")
    return error


def _stopped(attempt: Attempt, error: BaseException | None) -> Outcome | None:
    """Returns what becomes of a job whose handler was told to stop."""
    if attempt.stop is Stop.LOST:
        return None
    if attempt.stop is Stop.TIMEOUT:
        late = TimeoutError(f"the attempt ran longer than its {attempt.timeout:g} s")
        late.__cause__ = None if isinstance(error, asyncio.CancelledError) else error
        return decide(late, attempt.record, attempt.task.limits)
    if attempt.stop is Stop.CANCEL:
        return Cancelled(Cause.REQUESTED, attempt.reason)
    if isinstance(error, Retry | Cancel | Snooze):
        return decide(error, attempt.record, attempt.task.limits)
    return Released(attempt.reason or "shutdown")


def _invalid(error: Exception) -> Cancelled:
    if isinstance(error, ValidationError):
        problems = error.errors(include_url=False, include_input=False, include_context=False)
        text = "; ".join(
            f"{'.'.join(str(part) for part in problem['loc']) or 'payload'}: {problem['msg']}" for problem in problems
        )
        return Cancelled(Cause.INVALID, "the stored payload no longer validates", failure("ValidationError", text))
    return Cancelled(Cause.INVALID, "the stored payload could not be read", failure(type(error).__name__, str(error)))
