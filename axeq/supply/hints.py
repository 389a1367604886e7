"""What a pool hears of jobs without asking: what its own process stores, and a change stream while the pool is idle.

A hint, no more: reading is the truth.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any, Protocol

from axeq.documents.record import Document
from axeq.rules.due import Candidate
from axeq.rules.lifecycle import cancel_reason
from axeq.supply.feed import Feed
from axeq.wire.store import Store
from axeq.words.errors import StoreError
from axeq.words.states import State

__all__ = ["Hints"]

_LOGGER = logging.getLogger("axeq.feed")
_STREAM_AWAIT = 10.0
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.1, 30.0
_LONGEST_CLAIM = 0.05
_MOST_AT_ONCE = 500
"""How many of the jobs that this process stores at once are told: a read brings the others."""


class Groups(Protocol):
    """Who is told of jobs that are handled in groups: of the tasks in `names`."""

    @property
    def names(self) -> Collection[str]: ...

    def arrived(self, document: Document) -> None:
        """Takes note of a job of these tasks that somebody has stored."""
        ...

    def changed(self, due_at: datetime) -> None:
        """Takes note of some job, maybe one of these tasks, that will fall due again, or is."""
        ...

    def doubt(self) -> None:
        """Takes note that something may have been missed."""
        ...


class Hints:
    """Tells the feeds of a pool (by queue) what is heard, of all their queues by one stream, and `groups` of jobs that
    are handled in groups.

    `names` are the tasks of interest, None for any. `cancelled` is called with the id and reason of a running job
    that somebody asked to cancel.
    """

    def __init__(
        self,
        store: Store,
        feeds: Mapping[str, Feed],
        *,
        names: Collection[str] | None,
        groups: Groups | None = None,
        cancelled: Callable[[Any, str], None],
    ) -> None:
        self._store = store
        self._feeds = feeds
        self._names = names
        self._groups = groups
        self._cancelled = cancelled
        self._idle = asyncio.Event()
        self._acted = asyncio.Event()
        self._pause = _SHORTEST_PAUSE

    def idle(self) -> None:
        """Notes that the pool waits for work: the stream is to be open."""
        self._idle.set()
        self._acted.set()

    def busy(self) -> None:
        """Notes that every worker has work: the stream may close."""
        self._idle.clear()
        self._acted.set()

    async def resting(self) -> None:
        """Waits until there is nothing to claim."""
        await self._idle.wait()

    async def run(self) -> None:
        """Hears of new jobs until cancelled: of this process's own at once, of others' by a change stream, where the
        server has them, while the pool is idle.
        """
        loop = asyncio.get_running_loop()

        def heard(documents: Sequence[Document]) -> None:
            with suppress(RuntimeError):  # the loop is closed, maybe just now: there is nobody left to tell
                loop.call_soon_threadsafe(self._stored_here, documents)

        with self._store.listening(heard):
            await self._follow()

    def _stored_here(self, documents: Sequence[Document]) -> None:
        for document in documents[:_MOST_AT_ONCE] if self._idle.is_set() or self._groups is not None else ():
            self._stored(document)

    def _stored(self, document: Document) -> None:
        queue = document["queue"]
        feed = self._feeds.get(queue) if isinstance(queue, str) else None
        if self._groups is not None and feed is not None and document["name"] in list(self._groups.names):
            self._groups.arrived(document)
            return
        if feed is not None and feed.announced(Candidate.of(document)):
            self._acted.clear()

    async def _follow(self) -> None:
        if not (await self._store.acapabilities()).streams:
            _LOGGER.info("no change streams here: looking for jobs now and then")
            await asyncio.Event().wait()
        while True:
            await self._idle.wait()
            try:
                await self._listen()
            except StoreError as error:
                _LOGGER.warning("change stream lost, looking by polling: %s", error)
                await asyncio.sleep(self._pause * (1 + random.random()))  # noqa: S311 - spreads reopening
                self._pause = min(self._pause * 2, _LONGEST_PAUSE)
            finally:
                self._stream_is(open=False)

    async def _listen(self) -> None:
        async with self._store.watch(self._pipeline(), max_await=_STREAM_AWAIT) as stream:
            self._stream_is(open=True)
            while self._idle.is_set() and stream.alive:
                change = await stream.try_next()
                self._pause = _SHORTEST_PAUSE  # it works: one that opens, and breaks before its first word, does not
                if change is not None:
                    self._heard(change)
                    await self._let_claim()

    def _stream_is(self, *, open: bool) -> None:
        for feed in self._feeds.values():
            feed.streaming = open
            feed.hint()  # jobs may have come while nobody listened
        if self._groups is not None:
            self._groups.doubt()

    async def _let_claim(self) -> None:
        """Lets the claim of what was just announced go out before the stream is asked for more."""
        if not self._acted.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(self._acted.wait(), _LONGEST_CLAIM)

    def _heard(self, change: Mapping[str, Any]) -> None:
        document = change.get("fullDocument")
        if document is not None and "available_at" in document:
            self._stored(document)
            return
        identity = change["documentKey"]["_id"]
        updated = (change.get("updateDescription") or {}).get("updatedFields") or {}
        if updated.get("state") == State.DEQUEUED.value:
            for feed in self._feeds.values():
                feed.dropped(identity)
        if "cancel" in updated:
            self._cancelled(identity, cancel_reason(updated))
        elif isinstance(updated.get("available_at"), datetime):
            for feed in self._feeds.values():  # an update does not say of which queue it is
                feed.due_at(updated["available_at"])
            if self._groups is not None and updated.get("state") != State.DEQUEUED.value:
                self._groups.changed(updated["available_at"])

    def put_back(self, queue: str, moment: datetime) -> None:
        """Takes note of when a job falls due that the pool itself has put back: it need not hear it from the server."""
        self._feeds[queue].due_at(moment)
        if self._groups is not None:
            self._groups.changed(moment)

    def _pipeline(self) -> list[Mapping[str, Any]]:
        inserted: dict[str, Any] = {"operationType": "insert", "fullDocument.queue": {"$in": list(self._feeds)}}
        if self._names is not None:
            inserted["fullDocument.name"] = {"$in": list(self._names)}
        return [
            {"$match": {"$or": [inserted, *_changes()]}},
            {
                "$project": {
                    "operationType": 1,
                    "documentKey": 1,
                    **{
                        f"fullDocument.{field}": 1
                        for field in ("_id", "queue", "name", "available_at", "priority", "version", "lost", "group")
                    },
                    "updateDescription.updatedFields.state": 1,
                    "updateDescription.updatedFields.available_at": 1,
                    "updateDescription.updatedFields.cancel": 1,
                }
            },
        ]


def _changes() -> list[Mapping[str, Any]]:
    """Returns what is heard of jobs that change: that they come back, and are claimed, for then a job is off the board
    before this pool's turn at it comes; that they are to be cancelled; that they are replaced, maybe to be due sooner.
    """
    updated = "updateDescription.updatedFields"
    told: Mapping[str, Any] = {
        f"{updated}.state": {"$in": [State.ENQUEUED.value, State.FAILED.value, State.DEQUEUED.value]},
        f"{updated}.cancel": {"$exists": True},
        f"{updated}.created_at": {"$exists": True},
    }
    return [{"operationType": "update", field: value} for field, value in told.items()]
