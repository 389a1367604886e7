"""What a handler gets."""

from __future__ import annotations

import asyncio
import inspect
import logging
import threading
import time
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from functools import cached_property
from typing import Any, ClassVar, Generic, TypeVar

from axeq.documents import checkpoint
from axeq.documents.failure import shortened
from axeq.documents.model import Binding, M, R, bind
from axeq.documents.record import Document, Record
from axeq.faces.asyncqueue import AsyncQueue
from axeq.faces.atomic import AsyncAtomic, Atomic, pause
from axeq.faces.hands import Hands, Terms
from axeq.faces.limits import named
from axeq.faces.queue import Queue
from axeq.rules.interim import keep
from axeq.rules.lifecycle import Held
from axeq.rules.transaction import LIMIT
from axeq.wire.sessions import AsyncSession, Session
from axeq.wire.store import Store
from axeq.words.duration import Duration, seconds
from axeq.words.errors import ConfigurationError, LeaseLost

__all__ = ["Context"]

S = TypeVar("S")

_LOGGER = logging.getLogger("axeq.job")
_NOTHING: Document = {}


class Context(Generic[M, R]):
    """One attempt of a job, as its handler sees it.

    `model` is the payload, `job` the record as claimed, `result_type` what the handler is to return, `store`
    where the job lives, `resources` what the pool's `lifespan` gave (None without one, and in a handler's own
    process). `worker_index` is the number of the worker that runs it, 0 to the task's `workers` - 1: no two attempts
    of a task that run in one pool at once have the same, but for one that was abandoned. It is -1 outside of a pool.
    """

    resources: Any = None
    _hands: Hands = Hands()
    _attempt: Any = None
    _said: Document = _NOTHING
    _result: Any = None
    _in_transaction = False
    _completed = False
    _collision: BaseException | None = None
    _shared: tuple[list[Any], list[Record]] | None = None
    _travels: ClassVar = ("model", "job", "result_type", "store", "worker_index", "_shared")

    def __init__(self, *, model: M, job: Record, result_type: Any, store: Store, worker_index: int = -1) -> None:
        self.model = model
        self.job = job
        self.result_type = result_type
        self.store = store
        self.worker_index = worker_index
        self._stopping = False

    @property
    def models(self) -> list[M]:
        """The payloads of all jobs of this call, in order: of a group's members, or of the one job."""
        return [self.model] if self._shared is None else self._shared[0]

    @property
    def jobs(self) -> list[Record]:
        """The records of all jobs of this call, in the order of `models`."""
        return [self.job] if self._shared is None else self._shared[1]

    @property
    def attempt(self) -> int:
        """The number of this attempt, counted from 1."""
        return self.job.attempts

    @property
    def worker(self) -> str:
        """The id of the pool that runs it."""
        return self.job.worker or ""

    @property
    def cancelled(self) -> bool:
        """Whether the attempt should stop: cancelled, timed out, lease lost, or the pool is shutting down.

        Async handlers are cancelled anyway; plain functions look at this, or call `check`, between steps.
        """
        return self._stopping

    def check(self) -> None:
        """Raises `asyncio.CancelledError` where the attempt should stop."""
        if self._stopping:
            raise asyncio.CancelledError

    def wait_cancelled(self, timeout: float) -> bool:
        """Blocks a plain function for at most `timeout` seconds, and returns at once and true when it should
        stop.
        """
        event = self._stop_event()
        return self._stopping or event.wait(timeout)

    def _stop_event(self) -> threading.Event:
        # Made for those who wait on it: most never do, and it would be a tenth of an attempt's cost. In one step,
        # for a plain function waits in a thread of its own.
        event: threading.Event = self.__dict__.setdefault("_event", threading.Event())
        return event

    def progress(self, fraction: float | None = None, status: str | None = None, *, partial: R | None = None) -> None:
        """Reports how far the job is: a `fraction` from 0 to 1, a `status` in words, the result so far.

        It costs next to nothing and returns at once: the latest word is stored about twice a second, and with the
        outcome. `partial` is of the result type and seen as the job's result until that is there. Raises
        `ConfigurationError` for a fraction that is none, `ResultInvalid`.
        """
        said: Document = {}
        if fraction is not None:
            said["progress"] = _fraction(fraction)
        if status is not None:
            said["status"] = shortened(status)
        if partial is not None:
            said["result"] = self._binding.encode_result(partial, self._terms.max_result, self.store.codec)
        if said:
            self._say(said)
            self._hands.report(self._attempt, said)

    async def checkpoint(self, state: Any) -> None:
        """Stores `state` for a later attempt of this job, which `restore` gives back; once this has returned, it
        survives the worker.

        `state` is a pydantic model, a dataclass or plain data, at most 256 KiB as BSON; each replaces the one before.
        Raises `LeaseLost` where another worker has the job, `PayloadInvalid`, `StoreError`.
        """
        stored = self._encoded(state)
        try:
            await self.store.arun(keep(self._held, stored, self.store.clock))
        except LeaseLost as error:
            self._hands.lose(self._attempt, str(error))
            raise
        self._kept(stored)

    def sync_checkpoint(self, state: Any) -> None:
        """As `checkpoint`, in a plain function."""
        stored = self._encoded(state)
        try:
            self.store.run(keep(self._held, stored, self.store.clock))
        except LeaseLost as error:
            self._hands.lose(self._attempt, str(error))
            raise
        self._kept(stored)

    def restore(self, kind: type[S]) -> S | None:
        """Returns the last checkpoint of this job as a `kind`, the type that was stored; None where there is none.

        A checkpoint outlives failures, snoozes and releases; completing drops it. Raises `pydantic.ValidationError`
        where it is no `kind`, `PayloadSealed` where the store's codec cannot open it.
        """
        return checkpoint.restored(self.job, kind, self.store.codec)

    def extend(self, timeout: Duration) -> None:
        """Moves the end of this attempt to `timeout` (`timedelta` or seconds) from now, in place of the task's, but
        never beyond the job's deadline.
        """
        self._hands.extend(self._attempt, seconds(timeout, "timeout", zero=False))

    @property
    def result(self) -> R | None:
        """The job's result where the handler returns None, as it must set it before a transaction ends."""
        return self._result  # type: ignore[no-any-return]

    @result.setter
    def result(self, value: R | None) -> None:
        self._result = value

    def transaction(self) -> AbstractAsyncContextManager[AsyncSession]:
        """Returns a block whose writes and the job's completion commit as one, or not at all.

        It gives a session for the handler's own writes, through `session.client`, and for follow-ups, as in
        `ctx.queue.enqueue(..., session=session)`. The job completes at the end of the block, with `ctx.result`; what
        the handler does or returns afterwards changes nothing. It ends within 60 s. A handler has one.

        Raises `LeaseLost`, and nothing has happened then; `ServerUnsuitable` without a replica set;
        `ConfigurationError` inside another. Where it collides with another writer, the driver's error ends the
        attempt, and the job is tried again at once and uncharged; `transact` tries again by itself.
        """
        return AsyncAtomic(self)

    def sync_transaction(self) -> AbstractContextManager[Session]:
        """As `transaction`, in a plain function."""
        return Atomic(self)

    async def transact(self, callback: Callable[[AsyncSession], Awaitable[R]]) -> R:
        """Calls `callback` in a `transaction` and returns what it returns, which becomes the job's result.

        Where the transaction collides with another writer, `callback` is called again, with a new session, for up to
        60 s: it must change nothing but through its session. Raises what it raises, and as `transaction`.
        """
        until = time.monotonic() + LIMIT
        while True:
            try:
                async with self.transaction() as session:
                    awaited = callback(session)
                    if not inspect.isawaitable(awaited):
                        raise ConfigurationError(f"transact takes an async function, and {named(callback)} is none")
                    value = await awaited
                    self._result = self._result if value is None else value
                return value
            except Exception as error:  # noqa: BLE001 - raised again unless it is the collision
                self._check_again(error, until)
            await asyncio.sleep(pause())

    def sync_transact(self, callback: Callable[[Session], R]) -> R:
        """As `transact`, in a plain function."""
        until = time.monotonic() + LIMIT
        while True:
            try:
                with self.sync_transaction() as session:
                    value = callback(session)
                    if inspect.iscoroutine(value):
                        value.close()
                        raise ConfigurationError(f"sync_transact takes a plain function: {named(callback)} is async")
                    self._result = self._result if value is None else value
                return value
            except Exception as error:  # noqa: BLE001 - raised again unless it is the collision
                self._check_again(error, until)
            self.wait_cancelled(pause())

    def _check_again(self, error: Exception, until: float) -> None:
        """Raises `error` unless the transaction that it undid should be tried again."""
        if error is not self._collision or time.monotonic() >= until or self._stopping:
            raise error
        self._collision = None

    def _say(self, fields: Document) -> None:
        """Takes note of what the handler reports, for the outcome."""
        self._said = {**self._said, **fields}
        for record in self._records:
            record.document.update(fields)

    def _encoded(self, state: Any) -> Any:
        """Returns a checkpoint as it is stored."""
        if self._shared is not None:
            raise ConfigurationError(
                "a checkpoint is one job's own: a task with group= has none, store its state elsewhere"
            )
        if self._in_transaction:
            raise ConfigurationError("a checkpoint inside the transaction would undo it: store it before")
        return checkpoint.stored(state, self.job.name, self.store.codec)

    def _kept(self, stored: Any) -> None:
        """Takes note of a checkpoint that is stored."""
        for record in self._records:
            record.document["checkpoint"] = stored
        self._hands.keep(self._attempt, stored)

    @property
    def _records(self) -> Sequence[Record]:
        return self.jobs

    @property
    def _held(self) -> list[Held]:
        return [Held(record.id, record.token) for record in self._records]

    @cached_property
    def _terms(self) -> Terms:
        return self._hands.terms(self._attempt)

    @cached_property
    def _binding(self) -> Binding[M, R]:
        declared = getattr(self.model, "__axeq__", None)
        return bind(type(self.model), name=None if declared else self.job.name)

    @cached_property
    def queue(self) -> AsyncQueue:
        """The job's queue, for async handlers to enqueue follow-ups."""
        return AsyncQueue(self.store, self.job.queue)

    @cached_property
    def sync_queue(self) -> Queue:
        """The job's queue, for plain functions to enqueue follow-ups."""
        return Queue(self.store, self.job.queue)

    @cached_property
    def log(self) -> logging.LoggerAdapter[logging.Logger]:
        """A logger that names the task, the job and the attempt in front of each message."""
        return _JobLog(_LOGGER, {"job_id": str(self.job.id), "task": self.job.name, "attempt": self.job.attempts})

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in (*self._travels, "_terms")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._stopping = False

    def _share(self, models: list[M], jobs: list[Record]) -> None:
        """Has the call be one for several jobs."""
        self._shared = models, jobs

    def _request_stop(self) -> None:
        self._stopping = True
        self._stop_event().set()


def _fraction(value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ConfigurationError(f"fraction must be a number from 0 to 1, not {value!r:.100}")
    return float(value)


class _JobLog(logging.LoggerAdapter[logging.Logger]):
    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        extra = dict(self.extra or {})
        kwargs["extra"] = {**extra, **(kwargs.get("extra") or {})}
        return f"{extra['task']} {extra['job_id']} attempt {extra['attempt']}: {msg}", kwargs
