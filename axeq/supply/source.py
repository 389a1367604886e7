"""One queue of a pool: what is known to be due in it, who else serves it, and what is paused."""

from __future__ import annotations

from collections.abc import Mapping

from axeq.supply.board import Board
from axeq.supply.feed import Feed
from axeq.supply.lag import Lag
from axeq.words.clock import Clock

__all__ = ["Source"]

_REREAD_AFTER, _FRESH_FOR = 0.8, 1.0
"""Order is exact to `_FRESH_FOR`: a board older than that is not claimed from."""
_CONFIRM_AFTER = 0.05


class Source:
    """A queue as its pool sees it: `feed` fills `board`, `lag` says what of it is the pool's own.

    `paused` names the tasks that are to be left alone, None among them all of them; `foreign` those that the pool
    runs for other queues only.
    """

    def __init__(self, queue: str, *, board: Board, feed: Feed, lag: Lag, clock: Clock) -> None:
        self.queue = queue
        self.board = board
        self.feed = feed
        self.lag = lag
        self.paused: frozenset[str | None] = frozenset()
        self.foreign: frozenset[str] = frozenset()
        self._clock = clock

    def is_open(self, name: str) -> bool:
        """Whether jobs of a task may be claimed."""
        if name in self.foreign:
            return False
        return not self.paused or not (None in self.paused or name in self.paused)

    def unread(self, name: str) -> bool:
        """Whether the store has jobs of a task for this pool that the board has not."""
        return self.board.more(name) and not self.board.count_own(name)

    async def look(self, wanted: Mapping[str, int]) -> None:
        """Reads what is due of the tasks in `wanted` (name to how many jobs), where the board is out of date or
        runs short.
        """
        if self.feed.look_now and any(self.board.count_own(name) < count for name, count in wanted.items()):
            await self.feed.look(wanted=sum(wanted.values()))
            return
        for name, count in wanted.items():
            await self._keep_filled(name, count)

    async def _keep_filled(self, name: str, wanted: int) -> None:
        """Has the board of a task read in good time, and waits for it only where there is nothing to claim now."""
        own = self.board.count_own(name)
        more = self.board.more(name)
        unconfirmed = not own and not more and self._unconfirmed(name)
        stale = self.board.count(name) > 0 and not self.board.fresh(name, within=_REREAD_AFTER)
        if stale or unconfirmed or (more and own < 1.5 * wanted):
            self.feed.begin_refill(name, wanted=wanted, anew=stale or unconfirmed)
        if unconfirmed or (not own and more) or not self.board.fresh(name, within=_FRESH_FOR):
            await self.feed.refilled(name)

    def _unconfirmed(self, name: str) -> bool:
        """Whether it is time to see which jobs other pools have left."""
        if self.board.fresh(name, within=_CONFIRM_AFTER):
            return False
        return self.board.unconfirmed(name, self._clock.earliest())
