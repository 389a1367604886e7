"""What a pool does for handlers while they run: their progress is stored, their leases leave the lease thread's set for
a transaction, their time is extended.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

from axeq.attempts.executor import FINAL_STOPS, Attempt, Stop
from axeq.attempts.leases import LAPSED, Leases
from axeq.documents.record import Document
from axeq.faces.hands import Hands, Terms
from axeq.rules.interim import report
from axeq.rules.lifecycle import Held
from axeq.rules.settlement import Settlement
from axeq.wire.sessions import forsake
from axeq.wire.store import Store
from axeq.words.errors import AxeqError

__all__ = ["Desk"]

_LOGGER = logging.getLogger("axeq.pool")
_EVERY = 0.5
"""Seconds between two writes of what handlers report."""


class Desk(Hands):
    """The hands of one pool. `lease` is in seconds.

    `lost` is called on the pool's loop with an attempt that found its lease lost, and why; `moved` with an attempt
    and the seconds from now at which it is to end.
    """

    def __init__(
        self,
        store: Store,
        leases: Leases,
        *,
        lease: float,
        lost: Callable[[Attempt, str], None],
        moved: Callable[[Attempt, float], None],
    ) -> None:
        self._store = store
        self._leases = leases
        self._lease = lease
        self._lost = lost
        self._moved = moved
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._reported: set[Attempt] = set()
        self._suspended: set[Attempt] = set()
        self._far_sessions: dict[Attempt, Any] = {}
        self._under_way: Future[None] | None = None
        self._writing: asyncio.Task[None] | None = None

    def terms(self, attempt: Attempt) -> Terms:
        task = attempt.task
        return Terms(self._lease, task.limits.retention, task.max_result, attempt.started_at)

    def begins(self, attempt: Attempt) -> None:
        now = time.monotonic()
        for part in attempt.called:
            identity = part.record.id
            if part.stop is None and self._leases.confirmed_until(identity) <= now:
                part.request_stop(Stop.LOST, LAPSED)
                self._leases.drop([identity])
                self._call(self._lost, part, LAPSED)

    def sure_until(self, attempt: Attempt) -> float:
        return min((self._leases.confirmed_until(identity) for identity in _called_ids(attempt)), default=float("-inf"))

    def report(self, attempt: Attempt, fields: Document) -> None:
        with self._lock:
            waiting = bool(self._reported)
            self._reported.add(attempt)
        if not waiting:
            self._call(self._begin_writing)

    def extend(self, attempt: Attempt, seconds: float) -> None:
        self._call(self._moved, attempt, seconds)

    def suspend(self, attempt: Attempt, seconds: float) -> Future[None] | None:
        self._leases.suspend(_called_ids(attempt), seconds)
        with self._lock:
            self._suspended.add(attempt)
            return self._under_way

    def extended(self, attempt: Attempt, seconds: float) -> None:
        self._leases.confirm(_called_ids(attempt), time.monotonic() + seconds)

    def resume(self, attempt: Attempt) -> None:
        self._leases.resume(_called_ids(attempt))
        with self._lock:
            self._suspended.discard(attempt)

    async def bury(self, attempt: Attempt) -> None:
        session = self._far_sessions.pop(attempt, None)
        if session is not None:
            await forsake(self._store, session)
        self.resume(attempt)

    def ends_badly(self, attempt: Attempt) -> bool:
        return attempt.stop in FINAL_STOPS

    def cancel(self, attempt: Attempt, reason: str) -> None:
        attempt.request_stop(Stop.CANCEL, reason, interrupting=False)

    def lose(self, attempt: Attempt, reason: str) -> None:
        # The handler hears it as an exception: to cancel it besides would end its own care for that.
        attempt.request_stop(Stop.LOST, reason, interrupting=False)
        self._leases.drop(_called_ids(attempt))
        self._call(self._lost, attempt, reason)

    def complete(self, attempt: Attempt, entries: Sequence[Settlement]) -> None:
        attempt.completed = entries

    def heard(self, attempt: Attempt, what: str, arguments: Sequence[Any]) -> None:
        """Does what the handler in a process of its own asks for."""
        context = attempt.context
        assert context is not None
        if what == "report":
            context._say(*arguments)
        elif what == "keep":
            context._kept(*arguments)
        elif what == "began":
            (self._far_sessions[attempt],) = arguments
        elif what == "resume":
            self._far_sessions.pop(attempt, None)
        waiting = getattr(self, what)(attempt, *arguments)
        if waiting is not None:
            waiting.result()

    async def close(self) -> None:
        """Stops writing: what handlers have reported last went with their outcomes."""
        if self._writing is not None:
            self._writing.cancel()
            await asyncio.wait([self._writing])

    def _call(self, function: Callable[..., None], *arguments: Any) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(function, *arguments)

    def _begin_writing(self) -> None:
        if self._writing is None or self._writing.done():
            self._writing = self._loop.create_task(self._write(), name="axeq-progress")

    async def _write(self) -> None:
        while self._reported:
            await asyncio.sleep(_EVERY)
            attempts, done = self._taken()
            try:
                if attempts:
                    words = [word for attempt in attempts for word in _words(attempt)]
                    await self._store.arun(report(words))
            except AxeqError as error:
                _LOGGER.warning("progress of %d jobs not stored, yet: %s", len(attempts), error)
                with self._lock:
                    self._reported.update(attempts)
            except Exception:  # the writer must not die of it: nobody would begin another while a word waits
                _LOGGER.exception("progress of %d jobs not stored", len(attempts))
            finally:
                with self._lock:
                    self._under_way = None
                done.set_result(None)

    def _taken(self) -> tuple[list[Attempt], Future[None]]:
        """Returns the attempts whose word is to be stored now: of what has ended it goes with the outcome."""
        done: Future[None] = Future()
        done.set_running_or_notify_cancel()  # who waits for it may be cancelled: that must not cancel it
        with self._lock:
            live = {attempt for attempt in self._reported if _is_live(attempt)}
            self._reported = live & self._suspended
            self._under_way = done
        return [attempt for attempt in live if attempt not in self._reported], done


def _is_live(attempt: Attempt) -> bool:
    return attempt.ended_at is None and not attempt.abandoned and attempt.stop is not Stop.LOST


def _called_ids(attempt: Attempt) -> list[Any]:
    return [part.record.id for part in attempt.called]  # members of a group may have been left out


def _words(attempt: Attempt) -> list[tuple[Held, Document]]:
    assert attempt.context is not None
    said = dict(attempt.context._said)
    return [(Held(part.record.id, part.record.token), said) for part in attempt.called]
