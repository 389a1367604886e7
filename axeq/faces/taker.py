"""Whoever takes jobs of one task without a pool: on what terms, which jobs are fit, and how they are given back."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic

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
from axeq.words.errors import ConfigurationError, PayloadSealed, StoreError
from axeq.words.number import whole

__all__ = ["MOST", "Claimed", "PullOptions", "Taker", "aclaim", "agive_back", "atake", "give_back", "log_kept", "take"]

MOST = 1000
"""How many jobs are claimed at once at the most."""

_LOGGER = logging.getLogger("axeq.consumer")
_SHORTEST_LEASE = 0.5
_SEALED_PAUSE = 60.0
_TRIES = 3


class PullOptions(LimitOptions, total=False):
    """What `take` and `consume` take; the meanings are those of `Queue.consume`."""

    lease: Duration
    worker: str


@dataclass(eq=False, slots=True)
class Claimed(Generic[M]):
    """A claimed job with its payload; `over` tells whether its lease, once handed out, has ended."""

    record: Record
    model: M
    over: Callable[[], bool] = lambda: False


class Taker(Generic[M, R]):
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

    def claim(self, count: int) -> Op[list[Claimed[M]]]:
        """Claims up to `count` jobs that are due and fit; where that took longer than their leases, it renews these."""
        models: dict[Any, M] = {}
        records = yield from pull.take(
            self.puller, count, self.store.clock, unfit=lambda record: self._unfit(record, models)
        )
        claimed = [Claimed(record, models[record.id]) for record in records]
        return (yield from self.renew(claimed)) if any(map(self._has_lapsed, claimed)) else claimed

    def renew(self, claimed: Iterable[Claimed[M]]) -> Op[list[Claimed[M]]]:
        """Extends the leases of claimed jobs and returns those that are still held: none under a lease that has lapsed
        meanwhile, as in a process that was stopped.
        """
        kept = list(claimed)
        for _ in range(_TRIES):
            by_id = {each.record.id: each for each in kept}
            records = yield from pull.renew(self.puller, [each.record for each in kept], self.store.clock)
            kept = [by_id[record.id] for record in records]
            if not any(map(self._has_lapsed, kept)):
                return kept
        return []

    def give_back(self, claimed: Iterable[Claimed[M]]) -> Op[None]:
        """Puts claimed jobs back as they were."""
        return pull.give_back(self.puller, [each.record for each in claimed], self.store.clock)

    def lease(self, claimed: Claimed[M]) -> Lease[M, R]:
        """Hands a claimed job out to sync code."""
        lease = Lease(claimed.record, claimed.model, self.store, self._binding, self.puller)
        claimed.over = lambda: lease.settled
        return lease

    def alease(self, claimed: Claimed[M]) -> AsyncLease[M, R]:
        """Hands a claimed job out to async code."""
        lease = AsyncLease(claimed.record, claimed.model, self.store, self._binding, self.puller)
        claimed.over = lambda: lease.settled
        return lease

    def is_stale(self, claimed: Claimed[M]) -> bool:
        """Whether half of the lease of a job that waits to be handed out is over."""
        end = claimed.record.available_at
        return end is None or (end - self.store.clock.latest()).total_seconds() < self.puller.lease / 2

    def _has_lapsed(self, claimed: Claimed[M]) -> bool:
        end = claimed.record.available_at
        return end is None or end <= self.store.clock.latest()

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


def take(taker: Taker[M, R], count: int) -> list[Lease[M, R]]:
    """Returns leases of up to `count` jobs that are due now."""
    claimed = taker.store.run(taker.claim(whole("count", count, 1, MOST)))
    return [taker.lease(each) for each in claimed]


async def atake(taker: Taker[M, R], count: int) -> list[AsyncLease[M, R]]:
    """Returns leases of up to `count` jobs that are due now."""
    claimed = await aclaim(taker, whole("count", count, 1, MOST))
    return [taker.alease(each) for each in claimed]


def give_back(taker: Taker[Any, Any], claimed: Sequence[Claimed[Any]]) -> None:
    """Gives jobs back; what cannot be is noted, and its lease lapses."""
    try:
        taker.store.run(taker.give_back(claimed))
    except StoreError as error:
        log_kept(claimed, error)


async def aclaim(taker: Taker[M, R], count: int) -> list[Claimed[M]]:
    """Claims jobs; cancelled in between, it gives back what the claim has taken."""
    claim = asyncio.ensure_future(taker.store.arun(taker.claim(count)))
    try:
        return await asyncio.shield(claim)
    except asyncio.CancelledError:
        await asyncio.wait([claim])
        if not claim.cancelled() and claim.exception() is None:
            await agive_back(taker, claim.result())
        raise


async def agive_back(taker: Taker[M, R], claimed: Sequence[Claimed[M]]) -> None:
    """Gives jobs back, however often it is cancelled meanwhile: a loop that ends cancels all of its tasks."""
    cancelled = False
    for _ in range(_TRIES):
        try:
            await taker.store.arun(taker.give_back(claimed))
            break
        except asyncio.CancelledError:
            cancelled = True
        except StoreError as error:
            log_kept(claimed, error)
            break
    if cancelled:
        raise asyncio.CancelledError


def log_kept(claimed: Sequence[Claimed[Any]], error: StoreError) -> None:
    """Notes that jobs could not be given back."""
    _LOGGER.warning("%d jobs not given back, their leases lapse: %s", len(claimed), error)
