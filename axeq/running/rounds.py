"""Work that is done in rounds, each followed by a rest that a wake-up ends."""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod

from axeq.words.errors import StoreError

__all__ = ["LONGEST_REST", "Rounds", "rest"]

_LOGGER = logging.getLogger("axeq.pool")
LONGEST_REST = 5.0
_SHORTEST_PAUSE = 0.1


class Rounds(ABC):
    """Goes round until told to end. A rest is 5 s at the most; while the store does not answer it grows up to that."""

    def __init__(self) -> None:
        self._woken = asyncio.Event()
        self._ending = False

    @abstractmethod
    async def _round(self) -> float:
        """Does what there is to do, and returns the seconds to rest, 0 for none."""

    def _failed(self) -> None:  # noqa: B027 - not every round keeps something to take back
        """Takes note that the round under way had no answer."""

    def wake(self) -> None:
        """Has the next round begin at once."""
        self._woken.set()

    def end(self) -> None:
        """Has `run` return after the round under way."""
        self._ending = True
        self.wake()

    async def run(self) -> None:
        """Goes round until `end`."""
        pause = _SHORTEST_PAUSE
        while not self._ending:
            self._woken.clear()
            try:
                seconds = await self._round()
                pause = _SHORTEST_PAUSE
            except StoreError as error:
                _LOGGER.warning("nothing claimed, trying again: %s", error)
                self._failed()
                seconds, pause = pause, min(pause * 2, LONGEST_REST)
            if seconds > 0 and not self._ending:
                await rest(self._woken, min(seconds, LONGEST_REST))


async def rest(woken: asyncio.Event, seconds: float) -> None:
    """Waits until `woken` is set, which it is after so many seconds at the latest."""
    timer = asyncio.get_running_loop().call_later(seconds, woken.set)
    try:
        await woken.wait()
    finally:
        timer.cancel()
