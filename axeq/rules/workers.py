"""Which pools are live: each says so now and then, and reads who else does."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from axeq.documents.record import Document
from axeq.wire.wire import WORKERS, Call, Find, Op
from axeq.words.clock import Clock

__all__ = ["HEARTBEAT", "Serving", "announce", "leave", "live", "worker_id"]

HEARTBEAT = 5.0
"""Seconds between two words of a pool."""

_LIVE_SECONDS = 2.5 * HEARTBEAT
_FORGOTTEN_SECONDS = 3600.0


@dataclass(frozen=True, slots=True)
class Serving:
    """What a live pool serves: each of its tasks on each of its queues, and `others` while no pool has a task for
    them. `anything` says that it takes in whatever nobody has a task for.
    """

    queues: Sequence[str]
    names: Sequence[str]
    others: Sequence[str] = ()
    anything: bool = False


def announce(worker: str, serving: Serving, clock: Clock) -> Op[dict[str, Serving]]:
    """Says that a pool is live and what it serves, and returns who else does on any of its queues, by id."""
    now = clock.earliest()
    said: Document = {"queues": list(serving.queues), "names": list(serving.names), "seen_at": now}
    if serving.others or serving.anything:
        said |= {"others": list(serving.others), "anything": serving.anything}
    yield Call(WORKERS, "update_one", ({"_id": worker}, {"$set": said}), {"upsert": True})
    others = yield from live(serving.queues, clock)
    others.pop(worker, None)
    return others


def live(queues: Sequence[str], clock: Clock) -> Op[dict[str, Serving]]:
    """Returns the live pools that serve any of `queues`, by id."""
    query = {"queues": {"$in": list(queues)}, "seen_at": {"$gte": clock.earliest() - timedelta(seconds=_LIVE_SECONDS)}}
    documents = yield Find(WORKERS, query, {"queues": 1, "names": 1, "others": 1, "anything": 1})
    return {
        document["_id"]: Serving(
            document["queues"], document["names"], document.get("others", ()), document.get("anything", False)
        )
        for document in documents
    }


def leave(worker: str, clock: Clock) -> Op[None]:
    """Says that a pool claims no more, and forgets those that went without a word."""
    forgotten = clock.earliest() - timedelta(seconds=_FORGOTTEN_SECONDS)
    query = {"$or": [{"_id": worker}, {"seen_at": {"$lt": forgotten}}]}
    yield Call(WORKERS, "delete_many", (query,))


def worker_id() -> str:
    """Returns an id for a worker that nobody has named: host, process and a random part."""
    return f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(3)}"
