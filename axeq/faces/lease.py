"""A job that was pulled: its payload, and what its holder can do with it, each under the fence of its claim."""

from __future__ import annotations

import logging
from dataclasses import replace
from datetime import datetime
from typing import Any, Generic, TypeVar

from axeq.documents.checkpoint import restored, stored
from axeq.documents.failure import failure, stated
from axeq.documents.model import LARGEST_PAYLOAD, Binding, M, R
from axeq.documents.record import Document, Record
from axeq.rules.interim import beat
from axeq.rules.lifecycle import Held
from axeq.rules.outcome import (
    Cancelled,
    Completed,
    Failed,
    Flawed,
    Outcome,
    Released,
    Reported,
    Snoozed,
    decide,
    sealed,
)
from axeq.rules.pull import Puller, end
from axeq.rules.settlement import Settlement, settlement
from axeq.wire.store import Store
from axeq.wire.wire import Op
from axeq.words.duration import Duration, aware, seconds
from axeq.words.errors import ConfigurationError, LeaseLost
from axeq.words.states import Cause, State

__all__ = ["AsyncLease", "Lease"]

S = TypeVar("S")

_LOGGER = logging.getLogger("axeq.consumer")


class _Leased(Generic[M, R]):
    """What both faces of a lease share: the rules of its verbs."""

    def __init__(self, record: Record, model: M, store: Store, binding: Binding[M, R], puller: Puller) -> None:
        self.job = record
        """The record as claimed."""
        self.model = model
        """The payload."""
        self.cancelled = False
        """Whether somebody has asked for the job to be cancelled, as the last heartbeat learned."""
        self._store = store
        self._binding = binding
        self._puller = puller
        self._started_at = store.clock.earliest()
        self._ended = ""

    @property
    def expires_at(self) -> datetime:
        """When the lease ends unless a heartbeat moves that, by the server's clock."""
        expires_at = self.job.available_at
        assert expires_at is not None
        return expires_at

    @property
    def attempt(self) -> int:
        """The number of this attempt, counted from 1."""
        return self.job.attempts

    @property
    def settled(self) -> bool:
        """Whether one of its verbs has ended this lease."""
        return bool(self._ended)

    def restore(self, kind: type[S]) -> S | None:
        """Returns the last checkpoint of this job as a `kind`, the type that a heartbeat stored; None without one.

        Raises `pydantic.ValidationError` where it is no `kind`, `PayloadSealed` where the store's codec cannot open it.
        """
        return restored(self.job, kind, self._store.codec)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.job.id} {self.job.name!r}{' ' + self._ended if self._ended else ''}>"

    def _completion(self, result: Any) -> Op[State]:
        return self._end(Completed(self._binding.encode_result(result, self._puller.max_result, self._store.codec)))

    def _failing(self, error: BaseException | str, delay: Duration | None) -> Op[State]:
        pause = None if delay is None else seconds(delay, "delay")
        if not isinstance(error, BaseException | str):
            raise ConfigurationError(f"fail takes an exception or text, not {type(error).__name__}")
        raised = Reported(failure("Failure", error)) if isinstance(error, str) else error
        outcome = decide(raised, self.job, self._puller.limits)
        if isinstance(outcome, Failed) and pause is not None:
            outcome = replace(outcome, delay=pause, at=None)
        if isinstance(outcome, Failed | Cancelled | Snoozed) and outcome.mistake:
            _LOGGER.error("job %s (%s): %s", self.job.id, self.job.name, outcome.mistake)
        return self._end(outcome)

    def _snoozing(self, delay: Duration | None, at: datetime | None, data: Any, reason: str) -> Op[State]:
        if (delay is None) == (at is None):
            raise ConfigurationError("snooze takes exactly one of delay= and at=")
        pause = 0.0 if delay is None else seconds(delay, "delay")
        moment = None if at is None else aware(at, "at")
        return self._end(Snoozed(pause, moment, reason=stated(reason), data=data))

    def _cancelling(self, reason: str) -> Op[State]:
        return self._end(Cancelled(Cause.HANDLER, stated(reason)))

    def _releasing(self, reason: str) -> Op[State]:
        return self._end(Released(stated(reason)))

    def _end(self, outcome: Outcome) -> Op[State]:
        """Returns the rule that writes an outcome; what cannot be stored is refused before anything is sent."""
        if isinstance(outcome, Snoozed) and outcome.data is not None:
            data = self._binding.encode(outcome.data, LARGEST_PAYLOAD, self._store.codec)
            outcome = replace(outcome, data=data, version=self._binding.version)
        if self._store.codec is not None:
            outcome = sealed(outcome, self._store.codec)
        return self._ending(self._entry(outcome))

    def _entry(self, outcome: Outcome) -> Settlement:
        ran = not isinstance(outcome, Released | Flawed)
        return settlement(
            self.job,
            outcome,
            self._puller.limits,
            self._store.clock,
            started_at=self._started_at if ran else None,
            ended_at=self._store.clock.earliest() if ran else None,
        )

    def _ending(self, entry: Settlement) -> Op[State]:
        self._check_open()
        state = yield from end(entry, self._store.clock)
        self._ended = state.value
        return state

    def _beating(self, state: Any) -> Op[None]:
        checkpoint = None if state is None else stored(state, self.job.name, self._store.codec)
        return self._beaten(checkpoint)

    def _beaten(self, checkpoint: Any) -> Op[None]:
        self._check_open()
        held = Held(self.job.id, self.job.token)
        seen: Document = yield from beat(held, self._store.clock, lease=self._puller.lease, checkpoint=checkpoint)
        self.job.document["available_at"] = seen["available_at"]
        if checkpoint is not None:
            self.job.document["checkpoint"] = checkpoint
        self.cancelled = "cancel" in seen

    def _check_open(self) -> None:
        if self._ended:
            raise LeaseLost(self.job.id, f"this lease of it has ended: {self._ended}")


class Lease(_Leased[M, R]):
    """A job in the hands of sync code, until it is ended, given back or its lease lapses.

    `model` is the payload, `job` the record as claimed. Each verb returns the state that the job is in then, and raises
    `LeaseLost` where another worker has the job, or it is gone: nothing is changed then. A verb that raises
    `StoreUnavailable` may be called again. Where somebody asked for a cancel, all but `complete` end the job cancelled.
    """

    def complete(self, result: R | None = None) -> State:
        """Ends the job with its result. Raises `ResultInvalid` for one that cannot be stored; the job stays held."""
        return self._store.run(self._completion(result))

    def fail(self, error: BaseException | str, *, delay: Duration | None = None) -> State:
        """Counts a failure: the job is tried again after `delay` (`timedelta` or seconds, default its backoff), or
        ends cancelled where no attempt is left.
        """
        return self._store.run(self._failing(error, delay))

    def cancel(self, reason: str = "") -> State:
        """Ends the job as cancelled, without another attempt."""
        return self._store.run(self._cancelling(reason))

    def snooze(
        self, *, delay: Duration | None = None, at: datetime | None = None, data: M | None = None, reason: str = ""
    ) -> State:
        """Puts the job back, uncounted, for `delay` (`timedelta` or seconds) or until `at` (aware datetime).

        `data` replaces its payload, which drops its checkpoint.
        """
        return self._store.run(self._snoozing(delay, at, data, reason))

    def release(self, reason: str = "") -> State:
        """Puts the job back as it was before its claim, due now."""
        return self._store.run(self._releasing(reason))

    def heartbeat(self, state: Any = None) -> None:
        """Extends the lease to its full length from now, and stores `state` as the job's checkpoint, None for none.

        Afterwards `cancelled` says whether somebody asked for a cancel. From any thread. Raises `LeaseLost`.
        """
        self._store.run(self._beating(state))


class AsyncLease(_Leased[M, R]):
    """A job in the hands of async code; otherwise as `Lease`."""

    async def complete(self, result: R | None = None) -> State:
        """Ends the job with its result. Raises `ResultInvalid` for one that cannot be stored; the job stays held."""
        return await self._store.arun(self._completion(result))

    async def fail(self, error: BaseException | str, *, delay: Duration | None = None) -> State:
        """Counts a failure; otherwise as `Lease.fail`."""
        return await self._store.arun(self._failing(error, delay))

    async def cancel(self, reason: str = "") -> State:
        """Ends the job as cancelled, without another attempt."""
        return await self._store.arun(self._cancelling(reason))

    async def snooze(
        self, *, delay: Duration | None = None, at: datetime | None = None, data: M | None = None, reason: str = ""
    ) -> State:
        """Puts the job back, uncounted, for a while; otherwise as `Lease.snooze`."""
        return await self._store.arun(self._snoozing(delay, at, data, reason))

    async def release(self, reason: str = "") -> State:
        """Puts the job back as it was before its claim, due now."""
        return await self._store.arun(self._releasing(reason))

    async def heartbeat(self, state: Any = None) -> None:
        """Extends the lease and stores a checkpoint; otherwise as `Lease.heartbeat`."""
        await self._store.arun(self._beating(state))
