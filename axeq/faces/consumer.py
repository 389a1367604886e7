"""Pulling jobs without a pool, one after the other for as long as a loop goes on."""

from __future__ import annotations

import asyncio
import logging
import random
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from types import TracebackType
from typing import Generic, Self

from axeq.documents.model import M, R
from axeq.documents.record import Document
from axeq.faces.lease import AsyncLease, Lease
from axeq.faces.taker import MOST, Claimed, Taker, aclaim, agive_back, give_back, log_kept
from axeq.words.duration import Duration, limit
from axeq.words.errors import StoreError, StoreUnavailable
from axeq.words.number import whole

__all__ = ["AsyncConsumer", "Consumer"]

_LOGGER = logging.getLogger("axeq.consumer")
_SHORTEST_PAUSE, _LONGEST_PAUSE, _JITTER = 0.1, 1.0, 0.025


class _Pace:
    """How long to wait while there is nothing: 100 ms, growing to 1 s; in all no longer than `patience` seconds, None
    for ever.
    """

    def __init__(self, patience: float | None, monotonic: Callable[[], float]) -> None:
        self._patience = patience
        self._monotonic = monotonic
        self.worked()

    def worked(self) -> None:
        """Notes that there was something."""
        self.heard()
        self._since = self._monotonic()

    def heard(self) -> None:
        """Notes that there may be something."""
        self._pause = _SHORTEST_PAUSE

    def next(self) -> float | None:
        """Returns the seconds until the next look, None where there is to be none."""
        pause = self._pause + random.uniform(-_JITTER, _JITTER)  # noqa: S311 - keeps consumers apart
        self._pause = min(self._pause * 2, _LONGEST_PAUSE)
        if self._patience is None:
            return pause
        left = self._since + self._patience - self._monotonic()
        return min(pause, left) if left > 0 else None


class _Consumption(Generic[M, R]):
    """What both faces of a loop share: what it holds, and who wakes it."""

    def __init__(self, taker: Taker[M, R], *, batch: int, wait: Duration | None) -> None:
        self._taker = taker
        self._store = taker.store
        self._batch = whole("batch", batch, 1, MOST)
        self._patience = limit(wait, "wait")
        self._unhandled: set[Claimed[M]] = set()
        self._wakers: list[Callable[[], None]] = []
        self._closed = self._began = self._entered = False

    @property
    def worker(self) -> str:
        """The id that its claims carry."""
        return self._taker.puller.worker

    @contextmanager
    def _woken_by(self, wake: Callable[[], None]) -> Iterator[_Pace]:
        """Has `wake` called, from any thread, when there may be jobs or the loop is to end."""

        def heard(documents: Sequence[Document]) -> None:
            if self._taker.concerns(documents):
                wake()

        self._wakers.append(wake)
        try:
            with self._store.listening(heard):
                yield _Pace(self._patience, self._store.clock.monotonic)
        finally:
            self._wakers.remove(wake)

    def stop(self) -> None:
        """Has its loops end before their next lease; what is in hand can still be handled. From any thread, or a signal
        handler; returns at once.
        """
        self._closed = True
        for wake in tuple(self._wakers):
            wake()

    def _bear(self, error: StoreUnavailable) -> None:
        """Goes on without an answer; but a loop that has never had one does not begin."""
        if not self._began:
            raise error
        _LOGGER.warning("no jobs pulled: %s", error)

    def _reclaimed(self, claimed: Iterable[Claimed[M]]) -> list[Claimed[M]]:
        """Takes back those that nobody has handled, each once."""
        mine = [each for each in claimed if each in self._unhandled]
        self._unhandled.difference_update(mine)
        return [each for each in mine if not each.over()]


class Consumer(_Consumption[M, R]):
    """Leases one after the other, for sync code: iterate over it, best within `with`.

    A lease is the loop's until the next one is asked for. When the loop is left, what was claimed and not handled is
    given back.
    """

    def __iter__(self) -> Iterator[Lease[M, R]]:
        woken = threading.Event()
        held: deque[Claimed[M]] = deque()
        in_hand: list[Claimed[M]] = []
        with self._woken_by(woken.set) as pace:
            try:
                while not self._closed:
                    if not held:
                        woken.clear()
                        held.extend(self._claim())
                    elif self._taker.is_stale(held[0]):
                        held = deque(self._renewed(held))
                    if held:
                        pace.worked()
                        in_hand = [held.popleft()]
                        yield self._taker.lease(in_hand[0])
                        self._unhandled.difference_update(in_hand)
                    elif (pause := pace.next()) is None:
                        return
                    elif woken.wait(pause):
                        pace.heard()
            finally:
                self._give_back([*in_hand, *held])

    def close(self) -> None:
        """Ends its loops and gives back what was claimed and not handled, in hand or not; from any thread."""
        self.stop()
        self._give_back(list(self._unhandled))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _claim(self) -> list[Claimed[M]]:
        try:
            claimed = self._store.run(self._taker.claim(self._batch))
        except StoreUnavailable as error:
            self._bear(error)
            return []
        self._began = True
        self._unhandled.update(claimed)
        return claimed

    def _renewed(self, held: Sequence[Claimed[M]]) -> list[Claimed[M]]:
        try:
            kept = self._store.run(self._taker.renew(held))
        except StoreError as error:
            log_kept(held, error)
            kept = []
        self._unhandled.difference_update(set(held) - set(kept))
        return kept

    def _give_back(self, claimed: Sequence[Claimed[M]]) -> None:
        mine = self._reclaimed(claimed)
        if mine:
            give_back(self._taker, mine)


class AsyncConsumer(_Consumption[M, R]):
    """Leases one after the other, for async code: iterate over it, best within `async with`; else as `Consumer`."""

    def __aiter__(self) -> AsyncIterator[AsyncLease[M, R]]:
        return _AsyncLeases(self)

    async def aclose(self) -> None:
        """Ends its loops and gives back what was claimed and not handled, in hand or not."""
        self.stop()
        await self._give_back(list(self._unhandled))

    async def __aenter__(self) -> Self:
        self._entered = True
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _claim(self) -> list[Claimed[M]]:
        try:
            claimed = await aclaim(self._taker, self._batch)
        except StoreUnavailable as error:
            self._bear(error)
            return []
        self._began = True
        self._unhandled.update(claimed)
        return claimed

    async def _renewed(self, held: Sequence[Claimed[M]]) -> list[Claimed[M]]:
        try:
            kept = await self._store.arun(self._taker.renew(held))
        except StoreError as error:
            log_kept(held, error)
            kept = []
        self._unhandled.difference_update(set(held) - set(kept))
        return kept

    async def _give_back(self, claimed: Sequence[Claimed[M]]) -> None:
        mine = self._reclaimed(claimed)
        if mine:
            await agive_back(self._taker, mine)


class _AsyncLeases(AsyncIterator[AsyncLease[M, R]]):
    """One loop over a consumer.

    No generator: the clean-up of one that a loop has dropped is a task of the event loop, which may end before it.
    """

    def __init__(self, consumer: AsyncConsumer[M, R]) -> None:
        self._consumer = consumer
        self._held: deque[Claimed[M]] = deque()
        self._in_hand: list[Claimed[M]] = []
        self._listening = ExitStack()
        self._woken = asyncio.Event()
        self._pace = self._listening.enter_context(consumer._woken_by(_waker(self._woken)))

    async def __anext__(self) -> AsyncLease[M, R]:
        self._consumer._unhandled.difference_update(self._in_hand)
        self._in_hand = []
        try:
            while not self._consumer._closed:
                await self._fill()
                if self._held:
                    self._pace.worked()
                    self._in_hand = [self._held.popleft()]
                    return self._consumer._taker.alease(self._in_hand[0])
                if (pause := self._pace.next()) is None:
                    break
                if await _set_within(self._woken, pause):
                    self._pace.heard()
        except BaseException:
            await self._leave()
            raise
        await self._leave()
        raise StopAsyncIteration

    async def _fill(self) -> None:
        if not self._held:
            self._woken.clear()
            self._held.extend(await self._consumer._claim())
        elif self._consumer._taker.is_stale(self._held[0]):
            self._held = deque(await self._consumer._renewed(self._held))

    async def _leave(self) -> None:
        self._listening.close()
        await self._consumer._give_back([*self._in_hand, *self._held])

    def __del__(self) -> None:
        self._listening.close()
        if self._consumer._entered:
            return  # what it holds is given back when the consumer is left
        claimed = self._consumer._reclaimed([*self._in_hand, *self._held])
        if claimed:
            # The event loop may be about to end, and must not be blocked.
            threading.Thread(target=give_back, args=(self._consumer._taker, claimed), name="axeq-give-back").start()


def _waker(event: asyncio.Event) -> Callable[[], None]:
    loop = asyncio.get_running_loop()

    def wake() -> None:
        with suppress(RuntimeError):  # the loop is closed, maybe just now: there is nobody left to wake
            loop.call_soon_threadsafe(event.set)

    return wake


async def _set_within(event: asyncio.Event, timeout: float) -> bool:
    try:
        await asyncio.wait_for(event.wait(), timeout)
    except TimeoutError:
        return False
    return True
