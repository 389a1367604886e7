"""Fills the slots of a pool's periodic tasks as they begin."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any

from axeq.faces.task import Task
from axeq.rules.due import Candidate
from axeq.rules.enqueue import Draft
from axeq.rules.periodic import fill, kept, slot_id, slot_start
from axeq.supply.lag import Lag
from axeq.wire.store import Store
from axeq.words.errors import StoreError

__all__ = ["Ticker"]

_LOGGER = logging.getLogger("axeq.ticker")
_LARGEST_PAYLOAD = 256 * 1024
_LONGEST_WAIT = 60.0
"""Seconds after which the server's time is looked at anew: its clock may have been set."""
_LOOK_AGAIN = 1.0
"""Seconds after which a paused task is looked at again: once resumed, it fills the slot that has begun."""
_LONGEST_PAUSE = 5.0


class Ticker:
    """Inserts the job of each slot into `queue`, for those of `tasks` that are periodic.

    `lag` says which pool goes first; `resting` whether a task, by name, is to be left alone. Raises
    `PayloadInvalid`, `PayloadTooLarge` or `PayloadSealed` for a task whose payload cannot be stored.
    """

    def __init__(
        self,
        store: Store,
        queue: str,
        tasks: Iterable[Task[Any, Any]],
        *,
        lag: Lag,
        resting: Callable[[str], bool],
    ) -> None:
        self._store = store
        self._queue = queue
        self._tasks = [task for task in tasks if task.every is not None]
        self._lag = lag
        self._resting = resting
        self._over = False
        for task in self._tasks:
            self._encoded(task)

    async def run(self) -> None:
        """Fills slots until cancelled."""
        async with asyncio.TaskGroup() as ticking:
            for task in self._tasks:
                ticking.create_task(self._tick(task))
            try:
                await asyncio.Event().wait()
            finally:
                self._over = True  # a driver in the middle of a command may swallow the one cancellation of a group

    async def _tick(self, task: Task[Any, Any]) -> None:
        """Fills one slot after the other; those that passed while nobody was there stay empty."""
        assert task.every is not None
        filled: datetime | None = None
        pause = 0.1
        while not self._over:
            start = slot_start(self._store.clock.earliest(), task.every)
            if start == filled:
                await asyncio.sleep(self._until_next(start, task.every))
                continue
            if self._resting(task.name):
                await asyncio.sleep(min(self._until_next(start, task.every), _LOOK_AGAIN))
                continue
            try:
                await self._fill(task, start)
            except StoreError as error:
                _LOGGER.warning("slot of %r not filled, trying again: %s", task.name, error)
                await asyncio.sleep(pause)
                pause = min(pause * 2, _LONGEST_PAUSE)
                continue
            except Exception as error:  # noqa: BLE001 - a payload made anew for each slot may raise anything
                _LOGGER.error("the slot of %r that began at %s stays empty: %r", task.name, start, error)
            filled, pause = start, 0.1

    def _until_next(self, start: datetime, every: float) -> float:
        passed = (self._store.clock.earliest() - start).total_seconds()
        return min(max(every - passed, 0.001), _LONGEST_WAIT)

    async def _fill(self, task: Task[Any, Any], start: datetime) -> None:
        assert task.every is not None
        identity = slot_id(self._queue, task.name, start)
        own, wait = self._lag.delay(Candidate(identity, task.name, 0, start, task.binding.version, 0))
        if wait:  # a lag as long as the slot would leave slots empty
            await asyncio.sleep(min(wait, self._until_next(start, task.every) / 2))
        if slot_start(self._store.clock.earliest(), task.every) != start:
            return  # the process was stopped: its job may have come, run and gone
        draft = Draft(
            name=task.name,
            version=task.binding.version,
            queue=self._queue,
            data=self._encoded(task),
            id=identity,
            retention=kept(task.every, task.limits),
        )
        document = await self._store.arun(fill(draft, self._store.clock, look=not own))
        if document is not None:
            self._store.announce([document])

    def _encoded(self, task: Task[Any, Any]) -> Any:
        return task.binding.encode(task.payload(), _LARGEST_PAYLOAD, self._store.codec)
