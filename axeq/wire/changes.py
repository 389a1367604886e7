"""Change streams for those who wait for jobs to end: a bounded number of them, each for as long as one wait."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pymongo
from pymongo.errors import PyMongoError

__all__ = ["Changes"]

_LOGGER = logging.getLogger("axeq.wait")
_MOST = 16
_LONGEST_AWAIT = 1.0
_REST = 30.0
_LONGEST_SILENCE = 5.0
_WATCHED_SERVERS = frozenset(("RSPrimary", "Mongos"))


class Changes:
    """The change streams of a store's waits: at most 16 at once, none for 30 s after one could not be had.

    `opened` counts them. A wait that gets none is told so at once, and polls.
    """

    def __init__(self, most: int = _MOST) -> None:
        self.opened = 0
        self._free = threading.BoundedSemaphore(most)
        self._resting_until = 0.0

    def follow(self, collection: Any, ids: Sequence[Any], look: Callable[[], Any], seconds: float) -> Any:
        """Calls `look` once a stream is open and again after each change that may be the end of one of `ids`.

        Returns the first of its replies that is not None; None after `seconds`, or where there is no stream.
        """
        with self._place(collection) as free:
            if not free:
                return None
            wait = _Wait(seconds)
            with wait.answered():
                stream = collection.watch(_pipeline(ids), max_await_time_ms=wait.step_ms)
            try:
                self.opened += 1
                found = look()
                while found is None and stream.alive and wait.goes_on:
                    with wait.answered():
                        changed = stream.try_next() is not None
                    if changed:
                        found = look()
                return found
            finally:
                with wait.answered():
                    stream.close()
        return None

    async def afollow(
        self, collection: Any, ids: Sequence[Any], look: Callable[[], Awaitable[Any]], seconds: float
    ) -> Any:
        """As `follow`; `look` is awaited."""
        with self._place(collection) as free:
            if not free:
                return None
            wait = _Wait(seconds)
            with wait.answered():
                stream = await collection.watch(_pipeline(ids), max_await_time_ms=wait.step_ms)
            try:
                self.opened += 1
                found = await look()
                while found is None and stream.alive and wait.goes_on:
                    with wait.answered():
                        changed = await stream.try_next() is not None
                    if changed:
                        found = await look()
                return found
            finally:
                with wait.answered():
                    await stream.close()
        return None

    @contextmanager
    def _place(self, collection: Any) -> Iterator[bool]:
        """Takes one of the places, where there is one and the server is known to have streams."""
        free = (
            time.monotonic() >= self._resting_until
            and _has_streams(collection.database.client)
            and self._free.acquire(blocking=False)
        )
        try:
            yield free
        except PyMongoError as error:  # the server's word was a hint only: the wait goes on without
            self._resting_until = time.monotonic() + _REST
            _LOGGER.info("no change stream to wait by, polling for %g s: %s", _REST, type(error).__name__)
        finally:
            if free:
                self._free.release()


class _Wait:
    """How long a wait goes on; the server is asked in steps, so that it ends no later."""

    def __init__(self, seconds: float) -> None:
        self._until = time.monotonic() + seconds
        self._step = min(_LONGEST_AWAIT, max(seconds / 4, 0.01))
        self.step_ms = int(self._step * 1000)

    def answered(self) -> AbstractContextManager[Any]:
        """Bounds one request to the server: a step that is due an answer, and what an answer may take on its way."""
        return pymongo.timeout(self._step + _LONGEST_SILENCE)

    @property
    def goes_on(self) -> bool:
        """Whether there is time for one more step."""
        return time.monotonic() + self._step <= self._until


def _has_streams(client: Any) -> bool:
    servers = client.topology_description.server_descriptions().values()
    return any(server.server_type_name in _WATCHED_SERVERS for server in servers)


def _pipeline(ids: Sequence[Any]) -> list[Mapping[str, Any]]:
    ended = [
        {"operationType": "update", "updateDescription.updatedFields.finished_at": {"$exists": True}},
        {"operationType": {"$in": ["replace", "delete", "drop", "invalidate"]}},
    ]
    # Streams give whole documents for replacements; nobody reads them here.
    return [
        {"$match": {"$and": [{"$or": ended}, {"$or": [{"documentKey._id": {"$in": list(ids)}}, _OF_ALL]}]}},
        {"$project": {"operationType": 1}},
    ]


_OF_ALL = {"operationType": {"$in": ["drop", "invalidate"]}}
