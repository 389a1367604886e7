"""Transactions of the caller's own, on either face."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, closing
from typing import Any

import motor.motor_asyncio
import pymongo

import axeq

__all__ = ["Sessions", "transact"]


class Sessions:
    """Clients of the caller's own, one for each face: sessions are the caller's, never axeq's."""

    def __init__(self, uri: str, clients: AsyncExitStack) -> None:
        self.uri = uri
        self.clients = clients

    def sync(self) -> pymongo.MongoClient[Any]:
        return self.clients.enter_context(pymongo.MongoClient(self.uri))

    async def asynchronous(self) -> pymongo.AsyncMongoClient[Any]:
        return await self.clients.enter_async_context(pymongo.AsyncMongoClient(self.uri))

    def motor(self) -> Any:
        return self.clients.enter_context(closing(motor.motor_asyncio.AsyncIOMotorClient(self.uri)))


async def transact(
    queue: Any, sessions: Sessions, work: Callable[[Any, Any], Awaitable[Any]], *, commit: bool = True
) -> Any:
    """Runs `work(queue, session)` in a transaction of the face's own kind, and commits or aborts it."""
    if isinstance(queue, axeq.Queue):
        with sessions.sync().start_session() as session, session.start_transaction():
            made = await work(queue, session)
            if not commit:
                session.abort_transaction()
        return made
    client = await sessions.asynchronous()
    async with client.start_session() as session, await session.start_transaction():
        made = await work(queue, session)
        if not commit:
            await session.abort_transaction()
    return made
