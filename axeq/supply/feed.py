"""Brings the due jobs of one queue to its board, by reads ahead of need and by what it is told."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from axeq.rules.backlog import Backlog
from axeq.rules.due import Candidate, due_page, next_due, understood
from axeq.supply.board import Board
from axeq.wire.store import Store
from axeq.words.errors import StoreError

__all__ = ["Feed"]

_LOGGER = logging.getLogger("axeq.feed")
_PAGES_AHEAD = 4
_SMALLEST_PAGE, _LARGEST_PAGE = 500, 4000
_DISCOVER_EVERY, _DISCOVER_SHARE, _DISCOVER_WITHIN = 1.0, 50, 5.0
"""Seconds between two looks for new priorities; more where a look is slow, so that it takes a fiftieth of the time; no
more than five, for a job whose worker died may be the only one of its priority.
"""
_POLL_WITH_STREAM = 10.0
_LOOK_AGAIN = 0.01
"""Where a job could be claimed already, but was not: another pool's, or one that must run alone."""


class Feed:
    """Fills a board for the tasks in `versions` (name to the newest version understood) of one queue.

    `interval` in seconds is the shortest pause between two looks without a change stream; it grows to
    `max_interval` while there is nothing. `flat` leaves priorities out of account. `wake` is called when there may
    be work.
    """

    def __init__(
        self,
        store: Store,
        queue: str,
        versions: Mapping[str, int],
        board: Board,
        *,
        interval: float,
        max_interval: float,
        wake: Callable[[], None],
        flat: bool = False,
    ) -> None:
        self._store = store
        self._queue = queue
        self._versions = dict(versions)
        self._board = board
        self._interval = interval
        self._max_interval = max(max_interval, interval)
        self._wake = wake
        self._flat = flat
        self.streaming = False
        """Whether a change stream is open, so that there is little need to look."""
        self._poll = interval
        self._look_at = 0.0
        self._hints = 0
        self._next_due: datetime | None = None
        self._seen_until: datetime | None = None
        self._expecting = False
        self._backlogs: dict[str, Backlog] = {}
        self._discover_at: dict[str, float] = {}
        self._refills: dict[str, asyncio.Task[None]] = {}

    def adopt(self, name: str, version: int) -> None:
        """Has the jobs of another task read as well."""
        self._versions[name] = version
        self.hint()

    def give_up(self, name: str) -> None:
        """Has the jobs of a task no longer read."""
        self._versions.pop(name, None)
        self._backlogs.pop(name, None)

    async def look(self, *, wanted: int) -> None:
        """Reads what is due of every task that is not known to have a backlog."""
        self._forget_expected()
        self._seen_until = self._store.clock.earliest()
        hints = self._hints
        names = [name for name in self._versions if name not in self._backlogs]
        if names:
            await self._read(names, wanted)
        if hints == self._hints:  # a hint that came meanwhile speaks of what the read may not have seen
            self._looked(found=any(self._board.count(name) for name in self._versions))

    def begin_refill(self, name: str, *, wanted: int, anew: bool) -> None:
        """Begins to read due jobs of one task, several times as many as are `wanted`, unless that is under way.

        `anew` reads those that are known once more; else a task with a backlog is read further.
        """
        if name not in self._refills:
            self._refills[name] = asyncio.get_running_loop().create_task(self._refill(name, wanted, anew))

    @property
    def reads(self) -> list[asyncio.Task[None]]:
        """The readings that are under way."""
        return list(self._refills.values())

    async def refilled(self, name: str) -> None:
        """Waits for the reading that is under way."""
        if name in self._refills:
            await self._refills[name]

    async def _refill(self, name: str, wanted: int, anew: bool) -> None:
        try:
            backlog = self._backlogs.get(name)
            if name not in self._versions:
                return
            if backlog is None:
                await self._read([name], wanted)
            else:
                if anew:
                    await self._read_head(backlog, wanted)
                if not (anew and self._board.more(name)):
                    await self._read_further(backlog, wanted)
        except StoreError as error:
            _LOGGER.warning("due jobs of %r not read: %s", name, error)
        finally:
            del self._refills[name]
            self._wake()

    async def _read(self, names: Sequence[str], wanted: int) -> None:
        page, horizon, began = _page_size(wanted), self._store.clock.earliest(), self._store.clock.monotonic()
        versions = {name: self._versions[name] for name in names}
        found = await self._store.arun(due_page(self._queue, versions, horizon, limit=page, flat=self._flat))
        candidates = understood(found, versions)
        full = len(found) == page
        self._board.fill(names, candidates, horizon=horizon, since=began, full=full)
        for name in names:
            self._board.expect_more(name, full)
        if full and len(names) == 1 and names[0] in self._versions:
            backlog = Backlog(self._queue, names[0], versions[names[0]], flat=self._flat)
            backlog.met(candidates)
            self._backlogs[names[0]] = backlog
            self._discovered(backlog, took=0.0)  # nothing goes before what is first in order

    async def _read_head(self, backlog: Backlog, wanted: int) -> None:
        """Reads anew what the next claims will take."""
        name, horizon, began = backlog.name, self._store.clock.earliest(), self._store.clock.monotonic()
        await self._discover(backlog, horizon)
        share = self._board.count(name) / max(self._board.count_own(name), 1)
        limit = min(int(wanted * share) + _SMALLEST_PAGE, _LARGEST_PAGE)
        candidates = await self._store.arun(backlog.head(horizon, limit=limit))
        self._board.fill([name], candidates, horizon=horizon, since=began, full=len(candidates) >= limit)

    async def _read_further(self, backlog: Backlog, wanted: int) -> None:
        name, page, horizon = backlog.name, _page_size(wanted), self._store.clock.earliest()
        began = self._store.clock.monotonic()
        candidates = await self._store.arun(backlog.further(horizon, limit=page))
        more = len(candidates) >= page
        self._board.extend(name, candidates, horizon=horizon, since=began)
        self._board.expect_more(name, more)
        if not backlog.readable or (not more and self._board.count(name) < _LARGEST_PAGE // 2):
            self._backlogs.pop(name, None)  # one plain read brings all of it

    async def _discover(self, backlog: Backlog, horizon: datetime) -> None:
        now = self._store.clock.monotonic()
        if now >= self._discover_at[backlog.name]:
            await self._store.arun(backlog.discover(horizon))
            self._discovered(backlog, took=self._store.clock.monotonic() - now)

    def _discovered(self, backlog: Backlog, *, took: float) -> None:
        pause = min(max(_DISCOVER_EVERY, took * _DISCOVER_SHARE), _DISCOVER_WITHIN)
        self._discover_at[backlog.name] = self._store.clock.monotonic() + pause

    @property
    def look_now(self) -> bool:
        """Whether it is time to look for jobs that no hint has announced."""
        return asyncio.get_running_loop().time() >= self._look_at

    def hint(self) -> None:
        """Has a round begin at once and read anew."""
        self.doubt()
        self._wake()

    def doubt(self) -> None:
        """Has the next round read anew, whenever it begins."""
        self._hints += 1
        self._look_at = 0.0

    async def expect(self) -> None:
        """Asks when the next job falls due, where that is not known, so that `pause` ends by then."""
        if not self._expecting:
            self._expecting = True  # before the reply: what a stream announces meanwhile is weighed against it
            since = self._seen_until or self._store.clock.earliest()
            try:
                moment = await self._store.arun(next_due(self._queue, list(self._versions), since))
            except BaseException:
                self._expecting = False
                raise
            if moment is not None:
                self.due_at(moment)

    def pause(self) -> float:
        """Returns how many seconds an idle pool may wait for a wake-up before it looks by itself."""
        now = self._store.clock.earliest()
        loop_now = asyncio.get_running_loop().time()
        visible = self._board.next_visible(self._versions)
        waits = [self._look_at - loop_now]
        if visible is not None:
            waits.append(max((visible - now).total_seconds(), _LOOK_AGAIN))
        if self._next_due is not None:
            until = (self._next_due - now).total_seconds()
            waits.append(until)
            if until <= 0:
                self._forget_expected()
                self._look_at = 0.0
        return max(min(waits), 0.001)

    def _forget_expected(self) -> None:
        self._expecting = False
        self._next_due = None

    def announced(self, candidate: Candidate) -> bool:
        """Takes note of a job that somebody reports, and returns whether it may be claimed now."""
        if candidate.version > self._versions.get(candidate.name, 0):
            return False
        if candidate.available_at > self._store.clock.latest():
            self.due_at(candidate.available_at)
            return False
        self._board.offer(candidate.flat() if self._flat else candidate, self._store.clock.earliest())
        self._wake()
        return True

    def due_at(self, moment: datetime) -> None:
        """Takes note of when a job falls due."""
        if moment <= self._store.clock.earliest():
            self.hint()
        elif self._next_due is None or moment < self._next_due:
            self._next_due = moment
            self._wake()

    def dropped(self, identity: Any) -> None:
        """Takes note of a job that a pool has claimed."""
        self._board.drop(identity)

    def _looked(self, *, found: bool) -> None:
        self._poll = self._interval if found else min(self._poll * 1.5, self._max_interval)
        wait = _POLL_WITH_STREAM if self.streaming else self._poll
        jitter = 0.75 + random.random() / 2  # noqa: S311 - keeps pools apart
        self._look_at = asyncio.get_running_loop().time() + wait * jitter


def _page_size(wanted: int) -> int:
    return min(max(wanted * _PAGES_AHEAD, _SMALLEST_PAGE), _LARGEST_PAGE)
