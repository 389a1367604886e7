"""Periodic tasks: one job per slot of time, whoever inserts it first. No leader, and nothing but the job's id to agree
on.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from axeq.documents.record import Document
from axeq.rules.enqueue import Draft
from axeq.rules.outcome import Limits
from axeq.wire.wire import JOBS, Call, Find, Op
from axeq.words.clock import Clock
from axeq.words.errors import DuplicateKey

__all__ = ["LONGEST_PERIOD", "SHORTEST_PERIOD", "fill", "kept", "slot_id", "slot_start"]

SHORTEST_PERIOD = 0.1
LONGEST_PERIOD = 366 * 86_400.0
"""Seconds of the shortest slot, and of the longest: a job can be kept for ten years."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_KEPT_AT_LEAST = 600.0
_KEPT_SLOTS = 2


def slot_start(now: datetime, every: float) -> datetime:
    """Returns when the slot of `every` seconds that holds `now` begins: slots are counted from 1970, so that all
    pools share them.
    """
    period = timedelta(milliseconds=round(every * 1000))
    return _EPOCH + (now - _EPOCH) // period * period


def slot_id(queue: str, name: str, start: datetime) -> str:
    """Returns the id of the slot's job, such as `default/report@2026-01-01T00:00:00Z`."""
    precision = "milliseconds" if start.microsecond else "seconds"
    return f"{queue}/{name}@{start.replace(tzinfo=None).isoformat(timespec=precision)}Z"


def kept(every: float, limits: Limits) -> float | None:
    """Returns the retention of its own that a slot's job needs, in seconds; None where the task's is enough.

    While the slot lasts, and a pool may come late to it, the job's id must stay taken.
    """
    least = max(_KEPT_SLOTS * every, _KEPT_AT_LEAST)
    if min(limits.retention, limits.cancelled_retention, Limits().cancelled_retention) >= least:
        return None  # the last of them counts for what people cancel
    return max(least, limits.retention)


def fill(draft: Draft, clock: Clock, *, look: bool) -> Op[Document | None]:
    """Stores the job of a slot and returns it, None where the slot has one already.

    With `look` it asks first, as do pools that expect another to have been faster. Raises `StoreUnavailable` where
    the server does not answer: it can be called again with the same slot, the id tells.
    """
    if look and (yield Find(JOBS, {"_id": draft.id}, {"_id": 1}, limit=1)):
        return None
    document = draft.document(clock, clock.earliest())
    try:
        yield Call(JOBS, "insert_one", (document,))
    except DuplicateKey:
        return None
    return document
