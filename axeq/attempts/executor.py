"""One attempt, from the claimed record to its outcome, as named steps: decode, handle, decide."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextvars import copy_context
from dataclasses import replace
from datetime import datetime
from enum import Enum
from functools import partial
from typing import Any

from axeq.attempts.hooks import Hooks
from axeq.attempts.processes import ProcessDied, Processes
from axeq.attempts.threads import Threads
from axeq.documents.model import LARGEST_PAYLOAD
from axeq.documents.record import Record
from axeq.faces.context import Context
from axeq.faces.hands import Hands
from axeq.faces.task import Task
from axeq.rules.outcome import (
    Cancelled,
    Collision,
    Completed,
    Failed,
    Outcome,
    Released,
    Snoozed,
    decide,
    describe,
    expired_before,
    fault,
    invalid,
    sealed,
    unlimited,
)
from axeq.rules.settlement import Settlement
from axeq.wire.store import Store
from axeq.words.clock import Clock
from axeq.words.errors import Cancel, ConfigurationError, PayloadSealed, ResultInvalid, Retry, Snooze
from axeq.words.states import Cause

__all__ = ["FINAL_STOPS", "Attempt", "Executor", "Stop"]

_LOGGER = logging.getLogger("axeq.pool")
_SEALED_PAUSE = 60.0
"""Seconds that a job is left to pools that can open it."""
_WARN_EVERY = 25
"""Failures of a job without a limit after which the log says so."""


class Stop(Enum):
    """Why a handler was told to stop."""

    TIMEOUT = "timeout"
    DEADLINE = "deadline"
    CANCEL = "cancel"
    SHUTDOWN = "shutdown"
    LOST = "lost"


FINAL_STOPS = (Stop.LOST, Stop.TIMEOUT, Stop.DEADLINE)
"""What a handler's return comes too late for."""
_OF_A_STOP = (asyncio.CancelledError, ProcessDied, Retry, Cancel, Snooze)
"""What says nothing about why a handler that was told to stop did not finish."""


class Attempt:
    """A claimed job on its way through the pool."""

    __slots__ = (
        "_interrupt",
        "abandoned",
        "completed",
        "context",
        "ended_at",
        "in_line",
        "lost_told",
        "reason",
        "record",
        "running",
        "started_at",
        "stop",
        "task",
        "timeout",
        "timers",
        "worker_index",
    )

    def __init__(self, record: Record, task: Task[Any, Any]) -> None:
        self.record = record
        self.task = task
        self.context: Context[Any, Any] | None = None
        self.stop: Stop | None = None
        self.reason = ""
        self.running = False
        self.abandoned = False
        self.lost_told = False
        """Whether the loss of its lease was counted and told."""
        self.started_at: datetime | None = None
        self.ended_at: datetime | None = None
        self.timers: list[asyncio.TimerHandle] = []
        self.worker_index = -1
        self.in_line = 0
        self.timeout = task.timeout if record.timeout is None else record.timeout
        """The limit of this attempt in seconds."""
        self.completed: Sequence[Settlement] | None = None
        """What its handler's transaction has written as the end of its jobs."""
        self._interrupt: Callable[[], None] | None = None

    @property
    def records(self) -> Sequence[Record]:
        """The jobs of this attempt."""
        return [self.record]

    @property
    def ids(self) -> Sequence[Any]:
        """The ids of those jobs."""
        return [self.record.id]

    @property
    def parts(self) -> Sequence[Attempt]:
        """The attempts of those jobs, each by itself."""
        return [self]

    @property
    def called(self) -> Sequence[Attempt]:
        """Those of them that the handler is called for."""
        return self.parts

    @property
    def whole(self) -> Attempt:
        """The attempt that calls the handler: this one, unless it shares the call with others."""
        return self

    def drop(self, attempt: Attempt) -> bool:
        """Takes an attempt out of a call that has not begun, and returns whether any is left."""
        return False

    def abandon(self) -> None:
        """Notes that nobody waits for the handler any more."""
        self.abandoned = True

    def first_end(self, clock: Clock) -> tuple[float, Stop]:
        """Returns in how many seconds the attempt is to end, and why: its timeout from now, or the job's deadline where
        that comes first.
        """
        limit = self.timeout
        deadline = self.record.deadline
        if deadline is None:
            return limit, Stop.TIMEOUT
        left = max((deadline - clock.earliest()).total_seconds(), 0.0)
        return (left, Stop.DEADLINE) if left < limit else (limit, Stop.TIMEOUT)

    def request_stop(self, stop: Stop, reason: str = "", *, interrupting: bool = True) -> None:
        """Tells the handler to stop; the first reason counts, but for a lost lease, which overrides any.

        Without `interrupting` it is left to find out.
        """
        if self.stop is None or stop is Stop.LOST:
            self.stop, self.reason = stop, reason
        if self.context is not None:
            self.context._request_stop()
        if interrupting and self.running and self._interrupt is not None:
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
    """Runs attempts: async handlers on the loop, plain functions in threads or processes.

    `resources` are what handlers in this process share. `hands` serve their contexts; `heard` is called, in a thread,
    with what a handler in a process of its own asks.
    """

    def __init__(
        self, store: Store, hooks: Hooks, hands: Hands, heard: Callable[[Attempt, str, Sequence[Any]], None]
    ) -> None:
        self._store = store
        self._hooks = hooks
        self._hands = hands
        self._heard = heard
        self.resources: Any = None
        self.threads = Threads("axeq-handler")
        self._processes = Processes(self.threads)
        self._sealed: set[str] = set()

    async def execute(self, attempt: Attempt) -> Outcome | None:
        """Runs one attempt to its end and returns what becomes of the job; None where its lease is lost.

        It returns only when the handler has stopped.
        """
        model, unread = self.read(attempt)
        if unread is not None:
            return unread
        self.begins(attempt)
        if attempt.stop is not None:
            return self.stopped(attempt, None)
        value, error = await self.call(attempt, self.context(attempt, model, attempt.record))
        return self.ended(attempt, value, error)

    def read(self, attempt: Attempt) -> tuple[Any, Outcome | None]:
        """Returns the payload of an attempt's job as its model, or what becomes of the job where it cannot be read."""
        if attempt.record.version > attempt.task.binding.version:  # replaced since it was read
            return None, Released("its payload is newer than this pool's model")
        try:
            return attempt.task.binding.decode(attempt.record.data, attempt.record.version, self._store.codec), None
        except PayloadSealed as error:
            return None, self._left_to_others(attempt.record, error)
        except Exception as error:  # noqa: BLE001 - an upgrade hook may raise anything; the raw data is kept
            self._tell(attempt, error)
            return None, self.conclude(attempt, invalid(error))

    def context(self, attempt: Attempt, model: Any, record: Record) -> Context[Any, Any]:
        """Returns what the handler of an attempt gets."""
        context: Context[Any, Any] = Context(
            model=model,
            job=record,
            result_type=attempt.task.binding.result,
            store=self._store,
            worker_index=attempt.worker_index,
        )
        if self.resources is not None:
            context.resources = self.resources
        context._hands, context._attempt = self._hands, attempt
        return context

    def begins(self, attempt: Attempt) -> None:
        """Takes those of the attempt's jobs for lost whose leases have lapsed, as in a process that was stopped."""
        self._hands.begins(attempt)

    async def call(self, attempt: Attempt, context: Context[Any, Any]) -> tuple[Any, BaseException | None]:
        """Calls the handler, and once it has stopped returns what it returned, and what it raised."""
        attempt.begin(context, self._store.clock.earliest(), self._interrupt(attempt))
        if self._hooks.started:
            for record in context.jobs:
                self._hooks.tell("started", record)
        value, ended_by = None, None
        try:
            value = await self._handle(attempt, context)
        except BaseException as error:  # noqa: BLE001 - SystemExit from a handler is the job's failure, not the pool's end
            ended_by = error
        attempt.end(self._store.clock.earliest())
        return value, ended_by

    async def close(self) -> None:
        """Ends the processes, and the threads that are idle."""
        await self._processes.close()
        self.threads.close()

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
            return await self.threads.call(partial(_in_thread, handler, context))
        heard = partial(self._heard, attempt)
        try:
            sure_until = self._hands.sure_until(attempt)
            return await self._processes.call(
                attempt, handler, context, attempt.task.limits, heard, sure_until=sure_until
            )
        except ProcessDied:
            await self._hands.bury(attempt)
            raise

    def ended(self, attempt: Attempt, value: Any, error: BaseException | None) -> Outcome | None:
        """Returns what becomes of the job of an attempt whose handler has stopped; None where its lease is lost, or its
        transaction has completed it.
        """
        if self._hooks.error:
            self._tell(attempt, error)
        context = attempt.context
        assert context is not None
        if attempt.completed is not None:
            _forget_cancellation()
            _log_afterthought(attempt, error)
            return None
        if attempt.stop is not None:
            _forget_cancellation()
            if error is not None or attempt.stop in FINAL_STOPS:
                return self.stopped(attempt, error)
        if error is not None:
            return self.conclude(attempt, _judged(attempt, error))
        value = context._result if value is None else value
        try:
            return Completed(attempt.task.binding.encode_result(value, attempt.task.max_result, self._store.codec))
        except ResultInvalid as invalid:
            self._tell(attempt, invalid)
            return self.conclude(attempt, decide(invalid, attempt.record, attempt.task.limits))
        except PayloadSealed as unsealed:
            self._tell(attempt, unsealed)
            return self.conclude(attempt, fault(unsealed, attempt.record, attempt.task.limits))

    def _tell(self, attempt: Attempt, error: BaseException | None) -> None:
        """Tells what went wrong, unless it is an outcome or what a request to stop leads to."""
        if attempt.stop is Stop.TIMEOUT:
            error = _late(attempt, error)
        elif attempt.stop is not None and isinstance(error, _OF_A_STOP):
            return
        if error is not None and not isinstance(error, Retry | Cancel | Snooze):
            self._hooks.tell("error", _failure(error), attempt.record)

    def conclude(self, attempt: Attempt, outcome: Outcome) -> Outcome:
        """Returns an outcome as it may be stored, and tells the log what is to be known of it."""
        if isinstance(outcome, Snoozed) and outcome.data is not None:
            outcome = self._with_payload(attempt, outcome)
        if isinstance(outcome, Failed | Snoozed) and attempt.record.deadline is not None:
            outcome = expired_before(outcome, attempt.record, self._store.clock.latest())
        _log(attempt, outcome)
        codec = self._store.codec
        return outcome if codec is None else sealed(outcome, codec)

    def _with_payload(self, attempt: Attempt, outcome: Snoozed) -> Outcome:
        """Returns a snooze with its new payload as it is stored; a failure where it cannot be."""
        binding = attempt.task.binding
        try:
            if attempt.whole is not attempt:
                raise ConfigurationError("Snooze(data=) would give all jobs of the call one payload: leave data= out")
            data = binding.encode(outcome.data, LARGEST_PAYLOAD, self._store.codec)
        except Exception as error:  # noqa: BLE001 - a serializer of the model may raise anything
            return fault(error, attempt.record, attempt.task.limits)
        # A handler of whatever jobs there are may have one of a version newer than its model's.
        return replace(outcome, data=data, version=max(binding.version, attempt.record.version))

    def stopped(self, attempt: Attempt, error: BaseException | None) -> Outcome | None:
        """Returns what becomes of a job whose handler was told to stop; None where its lease is lost."""
        return None if attempt.stop is Stop.LOST else self.conclude(attempt, _stopped(attempt, error))

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


def _log(attempt: Attempt, outcome: Outcome) -> None:
    record = attempt.record
    if isinstance(outcome, Failed | Cancelled | Snoozed) and outcome.mistake:
        _LOGGER.error("job %s (%s): %s", record.id, record.name, outcome.mistake)
    if isinstance(outcome, Failed) and record.attempts % _WARN_EVERY == 0 and unlimited(record, attempt.task.limits):
        _LOGGER.warning(
            "job %s (%s) has failed %d times and has no limit: give its task max_attempts",
            record.id,
            record.name,
            record.attempts,
        )


def _log_afterthought(attempt: Attempt, error: BaseException | None) -> None:
    """Says what a handler raised after its transaction had completed the job: it changes nothing."""
    if error is not None and not (attempt.stop is not None and isinstance(error, asyncio.CancelledError)):
        kind = type(error).__name__
        _LOGGER.error("the handler of job %s raised %s after its job had completed", attempt.record.id, kind)


def _judged(attempt: Attempt, error: BaseException) -> Outcome:
    """Returns what becomes of a job whose handler raised, though nothing had told it to stop."""
    assert attempt.context is not None
    if error is attempt.context._collision:
        error = Collision(str(error))
    rule = fault if isinstance(error, ProcessDied) else decide
    return rule(_failure(error), attempt.record, attempt.task.limits)


def _failure(error: BaseException) -> BaseException:
    if isinstance(error, asyncio.CancelledError):
        return RuntimeError("the handler raised CancelledError though nothing had asked it to stop")
    return error


def _stopped(attempt: Attempt, error: BaseException | None) -> Outcome:
    if attempt.stop is Stop.TIMEOUT:
        return decide(_late(attempt, error), attempt.record, attempt.task.limits)
    if attempt.stop is Stop.DEADLINE:
        return _expired(attempt, error)
    if attempt.stop is Stop.CANCEL:
        return Cancelled(Cause.REQUESTED, attempt.reason)
    if isinstance(error, Retry | Cancel | Snooze):
        return decide(error, attempt.record, attempt.task.limits)
    return Released(attempt.reason or "shutdown")


def _expired(attempt: Attempt, error: BaseException | None) -> Cancelled:
    deadline = attempt.record.deadline
    assert deadline is not None
    when = "before its handler could start" if attempt.started_at is None else "while its handler ran"
    of_its_own = error is not None and not isinstance(error, _OF_A_STOP)
    return Cancelled(
        Cause.EXPIRED,
        f"its deadline {deadline.isoformat()} passed {when}",
        describe(error) if error is not None and of_its_own else None,
    )


def _late(attempt: Attempt, error: BaseException | None) -> TimeoutError:
    late = TimeoutError(f"the attempt ran longer than its {attempt.timeout:g} s")
    late.__cause__ = None if isinstance(error, asyncio.CancelledError) else error
    return late
