"""Transactions that a rule shares with a handler's own writes, in a session of the store's client."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, TypeVar

import pymongo
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.client_session import ClientSession
from pymongo.errors import PyMongoError

from axeq.wire.commands import Abort, Begin, Commit, Joined, SharedOp
from axeq.wire.store import Store
from axeq.wire.wire import TERMS, AsyncWire, SyncWire, adrive, drive, translated

__all__ = ["AsyncSession", "AsyncShared", "Session", "Shared", "forsake"]

T = TypeVar("T")

Session = ClientSession
"""A session in sync code."""
AsyncSession = AsyncClientSession
"""A session in async code."""


async def forsake(store: Store, session: Any) -> None:
    """Has the server end a session whose user has died, and so undo its transaction, which would hold up others for a
    minute.
    """
    with suppress(PyMongoError), pymongo.timeout(store.place.timeout):
        await (await store.async_wire()).client.admin.command({"killSessions": [session]})


class Shared(SyncWire):
    """Runs rules that share a transaction, each in a session of its own, of this process's sync client."""

    session: Session
    _joined: SyncWire

    @classmethod
    def of(cls, store: Store) -> Shared:
        """Returns one for a transaction in `store`."""
        wire = store.sync_wire()
        return cls(wire.client, store.place, store.clock)

    def share(self, op: SharedOp[T]) -> T:
        """Runs a rule to its end."""
        if self.clock.stale:
            self.measure()
        return drive(op, self._step)

    def end(self) -> None:
        """Ends the session, and undoes what is not committed."""
        with suppress(PyMongoError), pymongo.timeout(self._place.timeout):
            self.session.end_session()

    def _step(self, command: Any) -> Any:
        if isinstance(command, Begin):
            with translated(self._place, self.clock):
                self.session = self.client.start_session()
                self.session.start_transaction(**TERMS)
            self._joined = SyncWire(self.client, self._place, self.clock, session=self.session)
        elif isinstance(command, Joined):
            with translated(self._place, self.clock):
                return self._joined._execute(command.command)
        elif isinstance(command, Commit):
            with translated(self._place, self.clock), pymongo.timeout(self._place.timeout):
                self.session.commit_transaction()
        elif isinstance(command, Abort):
            with suppress(PyMongoError), pymongo.timeout(self._place.timeout):
                if self.session.in_transaction:
                    self.session.abort_transaction()
        else:
            return self._execute(command)
        return None


class AsyncShared(AsyncWire):
    """Runs rules that share a transaction, each in a session of its own, of the running loop's client."""

    session: AsyncSession
    _joined: AsyncWire

    @classmethod
    async def of(cls, store: Store) -> AsyncShared:
        """Returns one for a transaction in `store`."""
        wire = await store.async_wire()
        return cls(wire.client, store.place, store.clock)

    async def share(self, op: SharedOp[T]) -> T:
        """Runs a rule to its end."""
        if self.clock.stale:
            await self.measure()
        return await adrive(op, self._step)

    async def end(self) -> None:
        """Ends the session, and undoes what is not committed."""
        with suppress(PyMongoError), pymongo.timeout(self._place.timeout):
            await self.session.end_session()

    async def _step(self, command: Any) -> Any:
        if isinstance(command, Begin):
            with translated(self._place, self.clock):
                self.session = self.client.start_session()
                await self.session.start_transaction(**TERMS)
            self._joined = AsyncWire(self.client, self._place, self.clock, session=self.session)
        elif isinstance(command, Joined):
            with translated(self._place, self.clock):
                return await self._joined._execute(command.command)
        elif isinstance(command, Commit):
            with translated(self._place, self.clock), pymongo.timeout(self._place.timeout):
                await self.session.commit_transaction()
        elif isinstance(command, Abort):
            with suppress(PyMongoError), pymongo.timeout(self._place.timeout):
                if self.session.in_transaction:
                    await self.session.abort_transaction()
        else:
            return await self._execute(command)
        return None
