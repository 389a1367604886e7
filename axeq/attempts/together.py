"""Jobs that one call of a handler takes together: the members of a group. Each has an attempt, and an outcome, of its
own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from axeq.attempts.executor import Attempt, Executor, Stop
from axeq.documents.record import Record
from axeq.faces.task import Task
from axeq.rules.outcome import Cancelled, Failed, Outcome, Reported
from axeq.words.clock import Clock
from axeq.words.states import Cause

__all__ = ["Member", "Together", "execute_together"]

_READ_AT_ONCE = 100
"""Payloads that are read before the loop has a turn."""


class Member(Attempt):
    """One job of a call that takes several; `arrived_at` is when it came to its group."""

    __slots__ = ("arrived_at", "together")

    def __init__(self, record: Record, task: Task[Any, Any], arrived_at: datetime) -> None:
        super().__init__(record, task)
        self.arrived_at = arrived_at
        self.together: Together | None = None

    @property
    def whole(self) -> Attempt:
        return self if self.together is None else self.together

    def request_stop(self, stop: Stop, reason: str = "", *, interrupting: bool = True) -> None:
        """Takes the job out; the handler is told to stop once every job of its call is out."""
        super().request_stop(stop, reason, interrupting=False)
        if self.together is not None:
            self.together.member_is_out(stop, reason)


class Together(Attempt):
    """A call of a handler for several jobs that were claimed under one token."""

    __slots__ = ("members",)

    def __init__(self, members: Sequence[Member]) -> None:
        super().__init__(members[0].record, members[0].task)
        self.members = list(members)
        own = [record.timeout for record in self.records if record.timeout is not None]
        self.timeout = min(own, default=self.task.timeout)
        for member in members:
            member.together = self

    @property
    def records(self) -> list[Record]:
        """The jobs, as claimed."""
        return [member.record for member in self.members]

    @property
    def ids(self) -> list[Any]:
        return [member.record.id for member in self.members]

    @property
    def parts(self) -> Sequence[Member]:
        return self.members

    @property
    def called(self) -> Sequence[Member]:
        if self.context is None:
            return self.members
        ids = {record.id for record in self.context.jobs}
        return [member for member in self.members if member.record.id in ids]

    def first_end(self, clock: Clock) -> tuple[float, Stop]:
        """Returns in how many seconds the call is to end, and why: deadlines end it where no job is left by then."""
        limit = self.timeout
        deadlines = [record.deadline for record in self.records]
        if None in deadlines:
            return limit, Stop.TIMEOUT
        left = max((max(filter(None, deadlines)) - clock.earliest()).total_seconds(), 0.0)
        return (left, Stop.DEADLINE) if left < limit else (limit, Stop.TIMEOUT)

    def request_stop(self, stop: Stop, reason: str = "", *, interrupting: bool = True) -> None:
        """Tells the handler to stop, for all of its jobs that are not out yet; it can have lost those alone that it was
        called for.
        """
        for member in self.called if stop is Stop.LOST else self.members:
            Attempt.request_stop(member, stop, reason, interrupting=False)
        super().request_stop(stop, reason, interrupting=interrupting)

    def member_is_out(self, stop: Stop, reason: str) -> None:
        """Tells the handler to stop where no job is left to it."""
        if self.stop is None and all(member.stop is not None for member in self.called):
            super().request_stop(stop, reason)

    def drop(self, attempt: Attempt) -> bool:
        self.members = [member for member in self.members if member is not attempt]
        if self.members:  # else its last record stays to name it by
            self.record = self.members[0].record
        return bool(self.members)

    def abandon(self) -> None:
        super().abandon()
        for member in self.members:
            member.abandoned = True


async def execute_together(executor: Executor, together: Together) -> dict[Any, Outcome]:
    """Runs a call to its end and returns what becomes of its jobs, by id; those whose lease is lost are not in it.

    A job whose payload cannot be read ends, or is put back, by itself; the handler gets the others.
    """
    outcomes: dict[Any, Outcome] = {}
    models: dict[Any, Any] = {}
    for number, member in enumerate(together.members, 1):
        model, unread = executor.read(member)
        if unread is None:
            models[member.record.id] = model
        else:
            outcomes[member.record.id] = unread
        if number % _READ_AT_ONCE == 0:
            await asyncio.sleep(0)
    executor.begins(together)
    handled = [member for member in together.members if member.record.id in models]
    called = [member for member in handled if member.stop is None]
    value, error = await _called(executor, together, called, models) if called else (None, None)
    for member in together.members:
        member.ended_at, member.timeout = together.ended_at, together.timeout
    if together.completed is not None:
        executor.ended(together, value, error)
        handled = [member for member in handled if member.started_at is None]
    return outcomes | _outcomes(executor, handled, value, error)


async def _called(
    executor: Executor, together: Together, called: Sequence[Member], models: Mapping[Any, Any]
) -> tuple[Any, BaseException | None]:
    first = called[0].record
    context = executor.context(together, models[first.id], first)
    context._share([models[member.record.id] for member in called], [member.record for member in called])
    value, error = await executor.call(together, context)
    for member in called:
        member.context, member.started_at = context, together.started_at
    return value, error


def _outcomes(
    executor: Executor, members: Sequence[Member], value: Any, error: BaseException | None
) -> dict[Any, Outcome]:
    """Returns what one end of the handler makes of each job.

    Jobs with equally many attempts and the same deadline share an outcome, and with it a delay: they come back
    together.
    """
    shared: dict[Any, Outcome | None] = {}
    outcomes: dict[Any, Outcome] = {}
    first: tuple[int, int | None] | None = None
    for member in members:
        called, counted = member.started_at is not None, (member.record.attempts, member.record.max_attempts)
        if called and first is None:
            first = counted
        terms = (counted, member.record.deadline, member.stop, member.reason, called)
        if terms not in shared:
            own = error if counted == first else _undecided(error)
            shared[terms] = executor.ended(member, value, own) if called else executor.stopped(member, None)
        outcome = shared[terms]
        if outcome is not None:
            outcomes[member.record.id] = outcome
    return outcomes


def _undecided(error: BaseException | None) -> BaseException | None:
    """Returns a failure without what the handler's process decided, which did so for the first job alone."""
    if not isinstance(error, Reported):
        return error
    decided = error.outcome
    counted = isinstance(decided, Failed) or (isinstance(decided, Cancelled) and decided.cause is Cause.EXHAUSTED)
    return Reported(error.document) if counted else error
