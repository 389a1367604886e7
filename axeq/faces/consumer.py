"""Pulling jobs without a pool: a few at once, or one after the other for as long as a loop goes on."""

from __future__ import annotations

import asyncio
import logging
import random
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Generic, Self

from axeq.documents.model import Binding, M, R
from axeq.documents.record import Document, Record
from axeq.faces.lease import AsyncLease, Lease
from axeq.faces.limits import LARGEST_RESULT, LimitOptions, limits_of
from axeq.rules import pull
from axeq.rules.outcome import Outcome, Released, Snoozed, invalid, judge, sealed
from axeq.rules.workers import worker_id
from axeq.wire.store import Store
from axeq.wire.wire import Op
from axeq.words.duration import Duration, seconds
from axeq.words.errors import ConfigurationError, PayloadSealed, StoreError, StoreUnavailable
from axeq.words.number import whole

__all__ = ["AsyncConsumer", "Consumer", "Hand", "PullOptions", "atake", "take"]

_LOGGER = logging.getLogger("axeq.consumer")
_SHORTEST_LEASE = 0.5
_SHORTEST_PAUSE, _LONGEST_PAUSE, _JITTER = 0.1, 1.0, 0.025
_SEALED_PAUSE = 60.0
_MOST = 1000
_TRIES = 3


class PullOptions(LimitOptions, total=False):
    """What `take` and `consume` take; the meanings are those of `Queue.consume`."""

    lease: Duration
    worker: str


@dataclass(eq=False, slots=True)
class _Claimed(Generic[M]):
    """A claimed job with its payload; `over` tells whether its lease, once handed out, has ended."""

    record: Record
    model: M
    over: Callable[[], bool] = lambda: False


class Hand(Generic[M, R]):
    """Whoever pulls jobs of one task: which, on what terms, and what becomes of those that are not fit."""

    def __init__(self, store: Store, queue: str, binding: Binding[M, R], options: PullOptions) -> None:
        unknown = options.keys() - PullOptions.__annotations__.keys()
        if unknown:
            raise ConfigurationError(f"no option {', '.join(sorted(unknown))}: see help(axeq.Queue.consume)")
        lease = seconds(options.get("lease", 60), "lease")
        if lease < _SHORTEST_LEASE:
            raise ConfigurationError(f"lease must be at least {_SHORTEST_LEASE} s, not {lease:g} s")
        self.store = store
        worker = options.get("worker") or worker_id()
        max_result = whole("max_result", options.get("max_result", 256 * 1024), 1, LARGEST_RESULT)
        limits = limits_of(options)
        self.puller = pull.Puller(queue, binding.name, binding.version, worker, lease, limits, max_result)
        self._binding = binding

    def claim(self, count: int) -> Op[list[_Claimed[M]]]:
        """Claims up to `count` jobs that are due and fit."""
        models: dict[Any, M] = {}
        records = yield from pull.take(
            self.puller, count, self.store.clock, unfit=lambda record: self._unfit(record, models)
        )
        return [_Claimed(record, models[record.id]) for record in records]

    def renew(self, claimed: Iterable[_Claimed[M]]) -> Op[list[_Claimed[M]]]:
        """Extends the leases of claimed jobs and returns those that are still held."""
        by_id = {each.record.id: each for each in claimed}
        records = yield from pull.renew(self.puller, [each.record for each in by_id.values()], self.store.clock)
        return [by_id[record.id] for record in records]

    def give_back(self, claimed: Iterable[_Claimed[M]]) -> Op[None]:
        """Puts claimed jobs back as they were."""
        return pull.give_back(self.puller, [each.record for each in claimed], self.store.clock)

    def lease(self, claimed: _Claimed[M]) -> Lease[M, R]:
        """Hands a claimed job out to sync code."""
        lease = Lease(claimed.record, claimed.model, self.store, self._binding, self.puller)
        claimed.over = lambda: lease.settled
        return lease

    def alease(self, claimed: _Claimed[M]) -> AsyncLease[M, R]:
        """Hands a claimed job out to async code."""
        lease = AsyncLease(claimed.record, claimed.model, self.store, self._binding, self.puller)
        claimed.over = lambda: lease.settled
        return lease

    def is_stale(self, claimed: _Claimed[M]) -> bool:
        """Whether half of the lease of a job that waits to be handed out is over."""
        end = claimed.record.available_at
        return end is None or (end - self.store.clock.latest()).total_seconds() < self.puller.lease / 2

    def concerns(self, documents: Sequence[Document]) -> bool:
        """Whether jobs that were just stored here are among those it pulls."""
        wanted = (self.puller.queue, self.puller.name)
        return any((document["queue"], document["name"]) == wanted for document in documents)

    def _unfit(self, record: Record, models: dict[Any, M]) -> Outcome | None:
        """Judges a claimed job, and reads its payload into `models`."""
        codec = self.store.codec
        if record.version > self._binding.version:  # replaced since it was read
            return Released("its payload is newer than its consumer's model")
        verdict = judge(record, self.puller.limits, self.store.clock.earliest())
        if verdict is not None:
            return verdict
        try:
            models[record.id] = self._binding.decode(record.data, record.version, codec)
        except PayloadSealed as error:  # another may have the codec
            _LOGGER.error("job %s (%s) is put back for %g s: %s", record.id, record.name, _SEALED_PAUSE, error)
            return Snoozed(_SEALED_PAUSE, reason=str(error))
        except Exception as error:  # noqa: BLE001 - an upgrade hook may raise anything; the raw data is kept
            return invalid(error) if codec is None else sealed(invalid(error), codec)
        return None


def take(hand: Hand[M, R], count: int) -> list[Lease[M, R]]:
    """Returns leases of up to `count` jobs that are due now."""
    claimed = hand.store.run(hand.claim(whole("count", count, 1, _MOST)))
    return [hand.lease(each) for each in claimed]


async def atake(hand: Hand[M, R], count: int) -> list[AsyncLease[M, R]]:
    """Returns leases of up to `count` jobs that are due now."""
    claimed = await _claimed(hand, whole("count", count, 1, _MOST))
    return [hand.alease(each) for each in claimed]


async def _claimed(hand: Hand[M, R], count: int) -> list[_Claimed[M]]:
    """Claims jobs; cancelled in between, it gives back what the claim has taken."""
    claim = asyncio.ensure_future(hand.store.arun(hand.claim(count)))
    try:
        return await asyncio.shield(claim)
    except asyncio.CancelledError:
        await asyncio.wait([claim])
        if not claim.cancelled() and claim.exception() is None:
            await _given_back(hand, claim.result())
        raise


async def _given_back(hand: Hand[M, R], claimed: Sequence[_Claimed[M]]) -> None:
    """Gives jobs back, however often it is cancelled meanwhile: a loop that ends cancels all of its tasks."""
    cancelled = False
    for _ in range(_TRIES):
        try:
            await hand.store.arun(hand.give_back(claimed))
            break
        except asyncio.CancelledError:
            cancelled = True
        except StoreError as error:
            _log_kept(claimed, error)
            break
    if cancelled:
        raise asyncio.CancelledError


def _log_kept(claimed: Sequence[_Claimed[Any]], error: StoreError) -> None:
    _LOGGER.warning("%d jobs not given back, their leases lapse: %s", len(claimed), error)


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

    def __init__(self, hand: Hand[M, R], *, batch: int, wait: Duration | None) -> None:
        self._hand = hand
        self._store = hand.store
        self._batch = whole("batch", batch, 1, _MOST)
        self._patience = None if wait is None else seconds(wait, "wait")
        self._unhandled: set[_Claimed[M]] = set()
        self._wakers: list[Callable[[], None]] = []
        self._closed = self._began = self._entered = False

    @property
    def worker(self) -> str:
        """The id that its claims carry."""
        return self._hand.puller.worker

    @contextmanager
    def _woken_by(self, wake: Callable[[], None]) -> Iterator[_Pace]:
        """Has `wake` called, from any thread, when there may be jobs or the loop is to end."""

        def heard(documents: Sequence[Document]) -> None:
            if self._hand.concerns(documents):
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

    def _reclaimed(self, claimed: Iterable[_Claimed[M]]) -> list[_Claimed[M]]:
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
        held: deque[_Claimed[M]] = deque()
        in_hand: list[_Claimed[M]] = []
        with self._woken_by(woken.set) as pace:
            try:
                while not self._closed:
                    if not held:
                        woken.clear()
                        held.extend(self._claim())
                    elif self._hand.is_stale(held[0]):
                        held = deque(self._renewed(held))
                    if held:
                        pace.worked()
                        in_hand = [held.popleft()]
                        yield self._hand.lease(in_hand[0])
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

    def _claim(self) -> list[_Claimed[M]]:
        try:
            claimed = self._store.run(self._hand.claim(self._batch))
        except StoreUnavailable as error:
            self._bear(error)
            return []
        self._began = True
        self._unhandled.update(claimed)
        return claimed

    def _renewed(self, held: Sequence[_Claimed[M]]) -> list[_Claimed[M]]:
        try:
            kept = self._store.run(self._hand.renew(held))
        except StoreError as error:
            _log_kept(held, error)
            kept = []
        self._unhandled.difference_update(set(held) - set(kept))
        return kept

    def _give_back(self, claimed: Sequence[_Claimed[M]]) -> None:
        mine = self._reclaimed(claimed)
        if mine:
            _give_back(self._hand, mine)


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

    async def _claim(self) -> list[_Claimed[M]]:
        try:
            claimed = await _claimed(self._hand, self._batch)
        except StoreUnavailable as error:
            self._bear(error)
            return []
        self._began = True
        self._unhandled.update(claimed)
        return claimed

    async def _renewed(self, held: Sequence[_Claimed[M]]) -> list[_Claimed[M]]:
        try:
            kept = await self._store.arun(self._hand.renew(held))
        except StoreError as error:
            _log_kept(held, error)
            kept = []
        self._unhandled.difference_update(set(held) - set(kept))
        return kept

    async def _give_back(self, claimed: Sequence[_Claimed[M]]) -> None:
        mine = self._reclaimed(claimed)
        if mine:
            await _given_back(self._hand, mine)


class _AsyncLeases(AsyncIterator[AsyncLease[M, R]]):
    """One loop over a consumer.

    No generator: the clean-up of one that a loop has dropped is a task of the event loop, which may end before it.
    """

    def __init__(self, consumer: AsyncConsumer[M, R]) -> None:
        self._consumer = consumer
        self._held: deque[_Claimed[M]] = deque()
        self._in_hand: list[_Claimed[M]] = []
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
                    return self._consumer._hand.alease(self._in_hand[0])
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
        elif self._consumer._hand.is_stale(self._held[0]):
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
            threading.Thread(target=_give_back, args=(self._consumer._hand, claimed), name="axeq-give-back").start()


def _waker(event: asyncio.Event) -> Callable[[], None]:
    loop = asyncio.get_running_loop()

    def wake() -> None:
        with suppress(RuntimeError):  # the loop is closed, maybe just now: there is nobody left to wake
            loop.call_soon_threadsafe(event.set)

    return wake


def _give_back(hand: Hand[Any, Any], claimed: Sequence[_Claimed[Any]]) -> None:
    try:
        hand.store.run(hand.give_back(claimed))
    except StoreError as error:
        _log_kept(claimed, error)


async def _set_within(event: asyncio.Event, timeout: float) -> bool:
    try:
        await asyncio.wait_for(event.wait(), timeout)
    except TimeoutError:
        return False
    return True
