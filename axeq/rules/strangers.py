"""Jobs that no live pool understands: put aside for a while, and brought back once a pool comes that does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from axeq.documents.record import Document
from axeq.rules.workers import live
from axeq.wire.wire import CONTROL, JOBS, Call, Find, Op
from axeq.words.clock import Clock
from axeq.words.states import State, sources

__all__ = ["park", "served", "welcome"]

_PARKED = timedelta(minutes=5)
_PAGE = 1000
_MOST_PAGES = 20
_WAITING = [state for state in sources("cancel") if state != State.DEQUEUED.value]


def served(queue: str, clock: Clock) -> Op[set[str]]:
    """Returns the names that live pools have a task for on a queue."""
    pools = yield from live([queue], clock)
    return {name for serving in pools.values() for name in serving.names}


@dataclass(frozen=True, slots=True)
class _Run:
    """What live pools run: the names that they have tasks for or have adopted, or `anything`."""

    names: frozenset[str]
    anything: bool

    def __contains__(self, name: str) -> bool:
        return self.anything or name in self.names


def _run(queue: str, clock: Clock) -> Op[_Run]:
    pools = (yield from live([queue], clock)).values()
    names = frozenset(name for serving in pools for name in (*serving.names, *serving.others))
    return _Run(names, anything=any(serving.anything for serving in pools))


def park(queue: str, own: Iterable[str], clock: Clock) -> Op[Counter[str]]:
    """Has due jobs whose names no live pool runs wait for five minutes, and returns how many, by name. `own` are
    names that the caller serves.

    A pool that starts meanwhile is seen after the jobs were put aside, if it was not before; one that starts later
    sees that there are such jobs: see `welcome`.
    """
    parked: Counter[str] = Counter()
    yield Call(CONTROL, "delete_many", ({"kind": "parked", "until": {"$lt": clock.earliest()}},))
    for _ in range(_MOST_PAGES):
        run = yield from _run(queue, clock)
        if run.anything:
            break
        known = sorted(run.names.union(own))
        due = {"queue": queue, "name": {"$nin": known}, "available_at": {"$lte": clock.earliest()}}
        found = yield Find(JOBS, {**due, "state": {"$in": _WAITING}}, {"name": 1}, limit=_PAGE)
        ids = {job["_id"]: job["name"] for job in found if isinstance(job["name"], str)}
        if not ids:
            break
        parked += yield from _put_aside(queue, ids, due, clock)
        run = yield from _run(queue, clock)
        for name in {name for name in ids.values() if name in run}:
            parked[name] -= yield from _bring_back(queue, name, clock)
        if len(found) < _PAGE:
            break
    return +parked


def _put_aside(queue: str, jobs: dict[Any, str], due: dict[str, Any], clock: Clock) -> Op[Counter[str]]:
    until = clock.latest() + _PARKED
    names = Counter(jobs.values())
    for name in names:  # before any job: who sees none here need not look for jobs
        word = {"$set": {"kind": "parked", "queue": queue, "name": name, "until": until}}
        yield Call(CONTROL, "update_one", ({"_id": _parked_id(queue, name)}, word), {"upsert": True})
    waiting = {**due, "_id": {"$in": list(jobs)}, "state": {"$in": _WAITING}}
    aside = {"$set": {"available_at": until, "parked": until}}
    yield Call(JOBS, "update_many", (waiting, aside))
    return names


def _bring_back(queue: str, name: str, clock: Clock) -> Op[int]:
    """Makes parked jobs due, but for those that were claimed since and wait for another reason."""
    parked = {
        "queue": queue,
        "name": name,
        "state": {"$in": _WAITING},
        "available_at": {"$gt": clock.earliest()},
        "parked": {"$exists": True},
        "$expr": {"$eq": ["$available_at", "$parked"]},
    }
    due = {"$set": {"available_at": clock.earliest()}, "$unset": {"parked": ""}}
    return int((yield Call(JOBS, "update_many", (parked, due))).matched_count)


def welcome(queues: Sequence[str], names: Sequence[str] | None, clock: Clock) -> Op[int]:
    """Makes jobs due that were parked before a pool came that serves `names`, None for anything, on `queues`, and
    returns how many.

    To be called once the pool has announced itself.
    """
    brought = 0
    query: Document = {"kind": "parked", "queue": {"$in": list(queues)}}
    if names is not None:
        query["name"] = {"$in": list(names)}
    for document in (yield Find(CONTROL, query)):
        brought += yield from _bring_back(document["queue"], document["name"], clock)
        yield Call(CONTROL, "delete_one", ({"_id": document["_id"], "until": document["until"]},))
    return brought


def _parked_id(queue: str, name: str) -> str:
    return f"parked {queue} {name}"
