"""Jobs for those who run no pool: claimed on demand, judged as in a pool, ended one by one."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from axeq.documents.record import Record
from axeq.rules.due import Candidate, cancel_flawed, due_page, understood
from axeq.rules.lifecycle import Held, claim_many, claim_one, extend, lease_end
from axeq.rules.manage import paused
from axeq.rules.outcome import Cancelled, Limits, Outcome, Released
from axeq.rules.settlement import Settlement, settle, settlement
from axeq.wire.wire import Op
from axeq.words.clock import Clock
from axeq.words.errors import AccessDenied, LeaseLost, StoreError, StoreUnavailable
from axeq.words.states import TRANSITIONS, Cause, State

__all__ = ["Puller", "Unfit", "end", "give_back", "renew", "take"]

_LOGGER = logging.getLogger("axeq.consumer")
_PATIENCE = 2.0
"""Seconds: an unanswered claim holds its consumer up until then."""
_SMALLEST_PAGE, _LARGEST_PAGE = 50, 4000
_ROUNDS = 3
"""How many pages are read in which others are faster, before there seems to be nothing."""

Unfit = Callable[[Record], Outcome | None]
"""What becomes of a claimed job that is not to be handed out; None where it is."""


@dataclass(frozen=True, slots=True)
class Puller:
    """Who pulls jobs of one task, and on what terms: `lease` is in seconds, `max_result` in bytes."""

    queue: str
    name: str
    version: int
    worker: str
    lease: float
    limits: Limits
    max_result: int = 256 * 1024


def take(puller: Puller, count: int, clock: Clock, *, unfit: Unfit) -> Op[list[Record]]:
    """Claims up to `count` due jobs and returns them in order of priority, then of due time.

    A job that has lost a lease is claimed alone, so that it takes no others with it. Those that are `unfit` end, and
    others come in their place. Nothing is claimed while the queue or the task is paused.
    """
    if {None, puller.name} & (yield from paused([puller.queue]))[puller.queue]:
        return []
    page = min(max(2 * count, _SMALLEST_PAGE), _LARGEST_PAGE)
    versions = {puller.name: puller.version}
    taken: list[Record] = []
    for _ in range(_ROUNDS):
        found = yield from due_page(puller.queue, versions, clock.earliest(), limit=page)
        taken = yield from _taken(puller, deque(understood(found, versions)), count, clock, unfit)
        if taken or len(found) < page:
            break
    return taken


def _taken(puller: Puller, candidates: deque[Candidate], count: int, clock: Clock, unfit: Unfit) -> Op[list[Record]]:
    taken: list[Record] = []
    while batch := _next_batch(candidates, count - len(taken), alone=not taken):
        try:
            claimed = yield from _claimed(puller, batch, clock)
            taken += yield from _fit(puller, claimed, clock, unfit)
        except StoreUnavailable:
            if not taken:
                raise
            return taken  # what came before must be handed out, or its lease would be lost
        if batch[0].lost and taken:
            return taken
    return taken


def _next_batch(candidates: deque[Candidate], count: int, *, alone: bool) -> list[Candidate]:
    """Takes what is to be claimed together from the head: a job that has lost a lease `alone`, or else not at all."""
    batch: list[Candidate] = []
    while candidates and len(batch) < count:
        candidate = candidates.popleft()
        if not candidate.lost:
            batch.append(candidate)
        elif alone and not batch:
            return [candidate]
    return batch


def _claimed(puller: Puller, batch: Sequence[Candidate], clock: Clock) -> Op[list[Record]]:
    """Claims a batch together; where the server refuses that, one by one, for the sake of the others."""
    terms: Any = {"worker": puller.worker, "lease": puller.lease, "patience": _PATIENCE}
    try:
        if len(batch) == 1:
            return (yield from claim_one(batch[0], clock, **terms))
        return (yield from claim_many([candidate.id for candidate in batch], clock, **terms))
    except (AccessDenied, StoreUnavailable):
        raise
    except StoreError as error:
        if len(batch) == 1:
            if not (yield from cancel_flawed([batch[0].id], clock.earliest())):
                _LOGGER.error("job %s is left alone, its claim is refused: %s", batch[0].id, error)
            return []
    records: list[Record] = []
    for candidate in batch:
        records += yield from _claimed(puller, [candidate], clock)
    return records


def _fit(puller: Puller, records: Sequence[Record], clock: Clock, unfit: Unfit) -> Op[list[Record]]:
    """Returns those of the claimed jobs that are to be handed out, and ends the others."""
    fit: list[Record] = []
    ended: list[Settlement] = []
    for record in records:
        outcome = unfit(record)
        if outcome is None:
            fit.append(record)
        else:
            ended.append(settlement(record, outcome, puller.limits, clock))
    if ended:
        try:
            yield from settle(ended, clock)
        except StoreError as error:
            _LOGGER.warning("%d jobs that are not fit to run keep their leases: %s", len(ended), error)
    return fit


def renew(puller: Puller, records: Sequence[Record], clock: Clock) -> Op[list[Record]]:
    """Extends the leases of jobs that nobody has begun with, and returns those that are still to be handed out."""
    held = {Held(record.id, record.token): record for record in records}
    until = lease_end(clock, puller.lease)
    holding = yield from extend(list(held), clock, lease=puller.lease)
    asked = [
        settlement(held[each], Cancelled(Cause.REQUESTED, reason), puller.limits, clock)
        for each, reason in holding.cancelled.items()
    ]
    if asked:
        yield from settle(asked, clock)
    for record in records:
        record.document["available_at"] = until
    return [record for each, record in held.items() if each not in holding.lost and each not in holding.cancelled]


def give_back(puller: Puller, records: Sequence[Record], clock: Clock) -> Op[None]:
    """Puts jobs back as they were before their claim."""
    if records:
        released = Released("given back by its consumer")
        yield from settle([settlement(record, released, puller.limits, clock) for record in records], clock)


def end(entry: Settlement, clock: Clock) -> Op[State]:
    """Writes one outcome and returns the state that the job is in then. Raises `LeaseLost`, `StoreError`."""
    settled = yield from settle([entry], clock)
    if entry.id in settled.refused:
        raise StoreError(f"cannot {entry.verb} job {entry.id}: {settled.refused[entry.id]}")
    if entry.id in settled.lost:
        raise LeaseLost(entry.id, f"too late to {entry.verb} it: another worker has it, or it is gone")
    return State.CANCELLED if entry.id in settled.cancelled else TRANSITIONS[entry.verb].target
