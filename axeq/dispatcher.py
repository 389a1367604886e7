"""The pool's rounds: see what is due, claim as much as the workers want, hand it to the crew."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from axeq.board import Board
from axeq.claims import Claims
from axeq.crew import Crew
from axeq.errors import StoreError
from axeq.feed import Feed
from axeq.lag import Lag
from axeq.lane import Lane
from axeq.leases import Leases
from axeq.store import Store

__all__ = ["Dispatcher"]

_LOGGER = logging.getLogger("axeq.pool")
_LONGEST_REST = 5.0
_REREAD_AFTER, _FRESH_FOR = 0.8, 1.0
"""Order is exact to `_FRESH_FOR`: a board older than that is not claimed from."""
_CONFIRM_AFTER = 0.05
_UNHEALTHY_REST = 1.0


class Dispatcher:
    """Claims jobs for the lanes, a batch at a time, until told to end.

    `worker` is the pool's id, `lease` in seconds. `paused` names the tasks that are to be left alone, None
    among them all of them.
    """

    def __init__(
        self,
        store: Store,
        lanes: Mapping[str, Lane],
        *,
        board: Board,
        feed: Feed,
        crew: Crew,
        leases: Leases,
        lag: Lag,
        counts: Counter[str],
        worker: str,
        lease: float,
    ) -> None:
        self._store = store
        self._lanes = lanes
        self._board = board
        self._feed = feed
        self._crew = crew
        self._leases = leases
        self._lag = lag
        self._counts = counts
        self._claims = Claims(store, worker=worker, lease=lease)
        self._woken = asyncio.Event()
        self._ending = False
        self.paused: frozenset[str | None] = frozenset()

    def wake(self) -> None:
        """Has the next round begin at once."""
        self._woken.set()

    def end(self) -> None:
        """Has `run` return after the round under way."""
        self._ending = True
        self.wake()

    async def run(self) -> None:
        """Goes round until `end`."""
        pause = 0.1
        while not self._ending:
            self._woken.clear()
            try:
                rest = await self._round()
                pause = 0.1
            except StoreError as error:
                _LOGGER.warning("nothing claimed, trying again: %s", error)
                rest, pause = pause, min(pause * 2, _LONGEST_REST)
            if rest and not self._ending:
                await self._rest(rest)

    async def _round(self) -> float:
        """Claims once for every lane that wants jobs, and returns the seconds to rest, 0 for none."""
        if not self._leases.healthy:
            return _UNHEALTHY_REST
        hungry = [lane for lane in self._lanes.values() if lane.wanted and not self._is_paused(lane)]
        if not hungry:
            self._feed.busy()
            return _LONGEST_REST
        await self._look(hungry)
        claimed = 0
        for lane in hungry:
            claimed += await self._claim(lane)
        waiting = [lane for lane in hungry if lane.wanted and not self._holds_back(lane)]
        if claimed or any(self._unread(lane.task.name) for lane in waiting):
            return 0
        if not waiting:  # a worker that gets free, or an outcome that is stored, begins the next round
            return _LONGEST_REST
        await self._feed.expect()
        return min(self._feed.pause(), _LONGEST_REST)

    def _unread(self, name: str) -> bool:
        """Whether the store has jobs of a task for this pool that the board has not."""
        return self._board.more(name) and not self._board.count_own(name)

    def _is_paused(self, lane: Lane) -> bool:
        return None in self.paused or lane.task.name in self.paused

    async def _look(self, hungry: Sequence[Lane]) -> None:
        """Reads what is due where the board is out of date or runs short."""
        short = [lane for lane in hungry if self._board.count_own(lane.task.name) < lane.wanted]
        if short and self._feed.look_now:
            await self._feed.look(wanted=sum(lane.wanted for lane in hungry))
            return
        for lane in hungry:
            await self._keep_filled(lane.task.name, lane.wanted)

    async def _keep_filled(self, name: str, wanted: int) -> None:
        """Has the board of a task read in good time, and waits for it only where there is nothing to claim now."""
        own = self._board.count_own(name)
        more = self._board.more(name)
        unconfirmed = not own and not more and self._unconfirmed(name)
        stale = self._board.count(name) > 0 and not self._board.fresh(name, within=_REREAD_AFTER)
        if stale or unconfirmed or (more and own < 1.5 * wanted):
            self._feed.begin_refill(name, wanted=wanted, anew=stale or unconfirmed)
        if unconfirmed or (not own and more) or not self._board.fresh(name, within=_FRESH_FOR):
            await self._feed.refilled(name)

    def _unconfirmed(self, name: str) -> bool:
        """Whether it is time to see which jobs other pools have left."""
        if self._board.fresh(name, within=_CONFIRM_AFTER):
            return False
        return self._board.unconfirmed(name, self._store.clock.earliest())

    async def _claim(self, lane: Lane) -> int:
        claimed = await self._claim_lost(lane)
        name = lane.task.name
        if self._holds_back(lane):
            return claimed
        now = self._store.clock.earliest()
        candidates = self._board.take(name, lane.wanted, now, idle=lane.free, apart=self._apart)
        if not candidates:
            return claimed
        sent = time.monotonic()
        records = await self._claims.claim(candidates)
        self._crew.take_on(records, since=sent)
        self._board.expect_more(name, True)
        self._raced(len(candidates), len(candidates) - len(records), time.monotonic() - sent)
        return claimed + len(records)

    def _holds_back(self, lane: Lane) -> bool:
        """Whether the next in order is a job that has lost a lease, and no worker is free for it.

        Jobs claimed ahead would keep every worker from it, for as long as there are any.
        """
        now = self._store.clock.earliest()
        return not lane.free and self._board.lost_first(
            lane.task.name, now, most_lost=self._most_lost, apart=self._apart
        )

    async def _claim_lost(self, lane: Lane) -> int:
        """Claims jobs that have lost a lease: each alone, and only for a worker that is free now."""
        claimed = 0
        for _ in range(lane.free):
            candidate = self._board.take_lost(
                lane.task.name,
                self._store.clock.earliest(),
                most_lost=self._most_lost,
                apart=self._apart,
            )
            if candidate is None:
                break
            sent = time.monotonic()
            records = await self._claims.claim([candidate])
            self._crew.take_on(records, since=sent)
            claimed += len(records)
        return claimed

    def _raced(self, attempted: int, lost: int, took: float) -> None:
        self._lag.raced(attempted, lost, took)
        self._counts["attempted"] += attempted
        self._counts["raced"] += lost

    @property
    def _most_lost(self) -> int | None:
        """How many leases a job may have lost to be claimed now; None for any number."""
        return 1 if self._crew.watches_suspect else None

    @property
    def _apart(self) -> Collection[Any]:
        """The jobs that must not be claimed here."""
        left_alone = self._claims.left_alone
        return left_alone.union(self._crew.ids) if left_alone else self._crew.ids

    async def _rest(self, seconds: float) -> None:
        timer = asyncio.get_running_loop().call_later(seconds, self._woken.set)
        try:
            await self._woken.wait()
        finally:
            timer.cancel()
