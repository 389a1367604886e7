"""The block in which a handler's own writes and its job's completion become one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Sequence
from random import uniform
from types import TracebackType
from typing import TYPE_CHECKING, Any

from axeq.rules.lifecycle import Held, Holding
from axeq.rules.outcome import Completed, Limits
from axeq.rules.settlement import Settlement, settlement
from axeq.rules.transaction import LIMIT, Ending, abandoned, concluded, opened
from axeq.wire.capabilities import Capabilities
from axeq.wire.sessions import AsyncSession, AsyncShared, Session, Shared
from axeq.wire.translation import passing
from axeq.words.errors import ConfigurationError, LeaseLost, ServerUnsuitable, StoreError

if TYPE_CHECKING:
    from axeq.documents.record import Record
    from axeq.faces.hands import Hands

__all__ = ["AsyncAtomic", "Atomic", "pause"]


def pause() -> float:
    """Returns how many seconds to wait before what collided with others is tried again."""
    return uniform(0.02, 0.2)  # noqa: S311 - it keeps rivals apart, no secret


class _Block:
    """What both faces share: everything but the waiting. `context` is the handler's."""

    _shared: Shared | AsyncShared

    def __init__(self, context: Any) -> None:
        self._context = context
        self._attempt = context._attempt
        self._hands: Hands = context._hands
        self._records: Sequence[Record] = context._records
        self._clock = context.store.clock
        self._began = time.monotonic()

    @property
    def _held(self) -> list[Held]:
        return [Held(record.id, record.token) for record in self._records]

    def _enter(self) -> None:
        context = self._context
        if context._completed:
            raise ConfigurationError(
                "the job has completed in its transaction: a handler can have one, put all into it"
            )
        if context._in_transaction:
            raise ConfigurationError("the handler is in a transaction already: use the session of that one")
        if context.cancelled:
            raise asyncio.CancelledError("the attempt was told to stop: it begins no transaction")
        context._in_transaction = True

    def _leave(self) -> None:
        self._context._in_transaction = False
        self._hands.resume(self._attempt)

    def _begun(self, holding: Holding) -> None:
        """Goes on, or stops, by what the extension before the snapshot found."""
        self._hands.extended(self._attempt, LIMIT - (time.monotonic() - self._began))
        if len(holding.lost) + len(holding.cancelled) < len(self._records):
            lost = {held.id for held in holding.lost}
            self._records = [record for record in self._records if record.id not in lost]
            self._hands.began(self._attempt, self._shared.session.session_id)
            return
        for held in holding.lost:
            raise self._lost(held.id, "another worker has it, or it is gone")
        for reason in holding.cancelled.values():
            self._hands.cancel(self._attempt, reason)
            raise asyncio.CancelledError("the job was cancelled: its transaction is not begun")

    def _lost(self, identity: Any, reason: str) -> LeaseLost:
        self._hands.lose(self._attempt, reason)
        return LeaseLost(identity, reason)

    def _entries(self) -> list[Settlement]:
        """Returns the completions that are to be the last write."""
        context = self._context
        if self._hands.ends_badly(self._attempt):
            raise asyncio.CancelledError("the attempt was told to stop: its transaction is undone")
        terms = context._terms
        result = context._binding.encode_result(context.result, terms.max_result, context.store.codec)
        ended_at = self._clock.earliest()
        return [
            settlement(
                record,
                Completed(result),
                Limits(retention=terms.retention),
                self._clock,
                started_at=terms.started_at,
                ended_at=ended_at,
                said=context._said,
            )
            for record in self._records
        ]

    def _ended(self, ending: Ending, entries: Sequence[Settlement]) -> None:
        """Takes note of how the end went; raises where the transaction did not happen."""
        if ending is Ending.COMMITTED:
            self._context._completed = True
            self._hands.complete(self._attempt, entries)
        elif ending is Ending.LOST:
            raise self._lost(entries[0].id, "another worker has it, or it is gone: its transaction is undone")
        elif ending is Ending.UNKNOWN:
            raise self._lost(entries[0].id, "no answer whether its transaction is committed")
        else:
            error = StoreError("the commit failed, and nothing of the transaction has happened")
            self._collided(error)
            raise error

    def _failed(self, error: BaseException) -> None:
        """Takes note of what undid the transaction."""
        if passing(error):
            self._collided(error)

    def _collided(self, error: BaseException) -> None:
        # A transaction that outlives the limit would outlive it again: that is charged.
        if time.monotonic() - self._began < LIMIT:
            self._context._collision = error


class Atomic(_Block):
    """The block in a plain function."""

    _shared: Shared

    def __enter__(self) -> Session:
        _check_plain()
        self._enter()
        try:
            _check(self._context.store.capabilities())
            waiting = self._hands.suspend(self._attempt, LIMIT)
            if waiting is not None:
                waiting.result()
            self._shared = Shared.of(self._context.store)
            self._begun(self._shared.share(opened(self._held, self._clock, lease=self._context._terms.lease)))
        except BaseException:
            self._leave()
            raise
        return self._shared.session

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is not None:
                self._failed(error)
                self._shared.share(abandoned())
                return
            entries = self._entries()
            self._ended(self._shared.share(concluded(entries, self._clock, lease=self._context._terms.lease)), entries)
        except BaseException as failure:
            self._failed(failure)
            raise
        finally:
            self._shared.end()
            self._leave()


class AsyncAtomic(_Block):
    """The block in an async function. Its end is not interrupted by a cancellation, which is heard after it."""

    _shared: AsyncShared

    async def __aenter__(self) -> AsyncSession:
        self._enter()
        try:
            _check(await self._context.store.acapabilities())
            waiting = self._hands.suspend(self._attempt, LIMIT)
            if waiting is not None:
                await asyncio.wrap_future(waiting)
            self._shared = await AsyncShared.of(self._context.store)
            self._begun(await self._shared.share(opened(self._held, self._clock, lease=self._context._terms.lease)))
        except BaseException:
            self._leave()
            raise
        return self._shared.session

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await _uninterrupted(self._end(error))

    async def _end(self, error: BaseException | None) -> None:
        try:
            if error is not None:
                self._failed(error)
                await self._shared.share(abandoned())
                return
            entries = self._entries()
            ending = await self._shared.share(concluded(entries, self._clock, lease=self._context._terms.lease))
            self._ended(ending, entries)
        except BaseException as failure:
            self._failed(failure)
            raise
        finally:
            await self._shared.end()
            self._leave()


def _check(able: Capabilities) -> None:
    if not able.transactions:
        raise ServerUnsuitable(
            f"no transactions here ({able.version}): run MongoDB as a replica set, of one member if need be"
        )


def _check_plain() -> None:
    """Raises `ConfigurationError` on a running loop, which would wait for itself."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise ConfigurationError("sync_transaction would block the loop of an async function: use `transaction` there")


async def _uninterrupted(work: Coroutine[Any, Any, None]) -> None:
    """Lets `work` end, whatever happens to who waits for it, and only then passes a cancellation on."""
    task = asyncio.get_running_loop().create_task(work)
    interrupted: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            interrupted = error
    if interrupted is not None:
        if not task.cancelled():
            task.exception()  # retrieved: the cancellation goes before it
        raise interrupted
    task.result()
