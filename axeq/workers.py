"""Which pools are live: each says so now and then, and reads who else does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta

from axeq.clock import Clock
from axeq.wire import WORKERS, Call, Find, Op

__all__ = ["HEARTBEAT", "announce", "leave"]

HEARTBEAT = 5.0
"""Seconds between two words of a pool."""

_LIVE_SECONDS = 2.5 * HEARTBEAT
_FORGOTTEN_SECONDS = 3600.0


def announce(worker: str, queue: str, names: Sequence[str], clock: Clock) -> Op[Mapping[str, list[str]]]:
    """Says that a pool is live and serves the tasks `names`, and returns who else does: ids and the tasks of each."""
    now = clock.earliest()
    word = {"$set": {"queue": queue, "names": list(names), "seen_at": now}}
    yield Call(WORKERS, "update_one", ({"_id": worker}, word), {"upsert": True})
    live = {"queue": queue, "seen_at": {"$gte": now - timedelta(seconds=_LIVE_SECONDS)}}
    documents = yield Find(WORKERS, live, {"names": 1})
    return {document["_id"]: document["names"] for document in documents if document["_id"] != worker}


def leave(worker: str, clock: Clock) -> Op[None]:
    """Says that a pool claims no more, and forgets those that went without a word."""
    forgotten = clock.earliest() - timedelta(seconds=_FORGOTTEN_SECONDS)
    query = {"$or": [{"_id": worker}, {"seen_at": {"$lt": forgotten}}]}
    yield Call(WORKERS, "delete_many", (query,))
