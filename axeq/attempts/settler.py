"""Gathers outcomes and writes them together."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from axeq.rules.settlement import Settled, Settlement, settle
from axeq.wire.store import Store
from axeq.words.errors import StoreError

__all__ = ["Settler"]

_LOGGER = logging.getLogger("axeq.settler")
_LARGEST_BATCH = 500


class Settler:
    """Writes outcomes in batches: the first at once, and while a write is under way the next batch gathers.

    So an idle pool settles without delay, and a busy one in few commands. `done` is called with each batch and
    what became of it, None where the server did not answer for so long that the leases lapse.
    """

    def __init__(self, store: Store, *, done: Callable[[Sequence[Settlement], Settled | None], None]) -> None:
        self._store = store
        self._done = done
        self._waiting: list[Settlement] = []
        self._flush: asyncio.Task[None] | None = None

    def add(self, settlement: Settlement) -> None:
        """Takes an outcome on; it is written as soon as the write under way, if any, has ended."""
        self._waiting.append(settlement)
        if self._flush is None or self._flush.done():
            self._flush = asyncio.get_running_loop().create_task(self._write(), name="axeq-settle")

    async def drain(self) -> None:
        """Waits until everything taken on is written or given up."""
        while self._flush is not None and not self._flush.done():
            await asyncio.shield(self._flush)

    async def _write(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting[:_LARGEST_BATCH], self._waiting[_LARGEST_BATCH:]
            settled: Settled | None = None
            try:
                settled = await self._store.arun(settle(batch, self._store.clock))
            except StoreError as error:
                _LOGGER.error("outcome of %d jobs not stored, their leases lapse: %s", len(batch), error)
            except Exception:
                # Nobody else would let go of them: their leases would be extended for as long as the pool lives.
                _LOGGER.exception("outcome of %d jobs not stored, their leases lapse", len(batch))
            self._done(batch, settled)
