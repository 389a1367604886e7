"""What a handler gets."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import MutableMapping
from functools import cached_property
from typing import Any, Generic

from axeq.asyncqueue import AsyncQueue
from axeq.model import M, R
from axeq.queue import Queue
from axeq.record import Record
from axeq.store import Store

__all__ = ["Context"]

_LOGGER = logging.getLogger("axeq.job")


class Context(Generic[M, R]):
    """One attempt of a job, as its handler sees it.

    `model` is the payload, `job` the record as claimed, `result_type` what the handler is to return, `store`
    where the job lives, `resources` what the pool's `lifespan` gave (None without one, and in a handler's own
    process). `worker_index` is the number of the worker that runs it, 0 to the task's `workers` - 1: no two attempts
    of a task that run in one pool at once have the same, but for one that was abandoned. It is -1 outside of a pool.
    """

    resources: Any = None

    def __init__(self, *, model: M, job: Record, result_type: Any, store: Store, worker_index: int = -1) -> None:
        self.model = model
        self.job = job
        self.result_type = result_type
        self.store = store
        self.worker_index = worker_index
        self._stopping = False

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
        return {name: getattr(self, name) for name in ("model", "job", "result_type", "store", "worker_index")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._stopping = False

    def _request_stop(self) -> None:
        self._stopping = True
        self._stop_event().set()


class _JobLog(logging.LoggerAdapter[logging.Logger]):
    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        extra = dict(self.extra or {})
        kwargs["extra"] = {**extra, **(kwargs.get("extra") or {})}
        return f"{extra['task']} {extra['job_id']} attempt {extra['attempt']}: {msg}", kwargs
