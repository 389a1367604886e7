"""What a pool's handlers share: opened before the first claim, closed after the last handler."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, suppress
from typing import Any

from axeq.words.errors import ConfigurationError

__all__ = ["Lifespan"]


class Lifespan:
    """Holds an async context manager open, in a task of its own.

    So it is entered and left by one task, as libraries with task groups ask for, whoever starts and ends the pool.
    """

    def __init__(self, open_resources: Callable[[], AbstractAsyncContextManager[Any]]) -> None:
        self._open = open_resources
        self._leaving = asyncio.Event()
        self.task: asyncio.Task[None] | None = None
        """Done once it is left, or has failed while the pool ran."""

    async def enter(self) -> Any:
        """Enters it and returns what it gives; raises what it raises."""
        entered: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.task = asyncio.get_running_loop().create_task(self._hold(entered), name="axeq-lifespan")
        try:
            await asyncio.wait({self.task, entered}, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            self.task.cancel()
            with suppress(asyncio.CancelledError):
                await self.task
            raise
        if not entered.done():
            await self.task
            raise RuntimeError("the pool's lifespan ended before it had begun")
        return entered.result()

    async def leave(self) -> None:
        """Leaves it and waits until it is left; raises what it raises."""
        self._leaving.set()
        if self.task is not None:
            await self.task

    async def _hold(self, entered: asyncio.Future[Any]) -> None:
        resources = self._open()
        if not isinstance(resources, AbstractAsyncContextManager):
            raise ConfigurationError(
                f"lifespan must return an async context manager, not {type(resources).__name__}: "
                "decorate it with contextlib.asynccontextmanager"
            )
        async with resources as opened:
            entered.set_result(opened)
            await self._leaving.wait()
