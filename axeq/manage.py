"""What people do with jobs from outside a worker: look, wait, cancel, retry, remove, pause, count."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Any

from axeq.clock import Clock
from axeq.codec import Codec
from axeq.errors import (
    DuplicateKey,
    JobCancelled,
    JobGone,
    JobNotFound,
    LabelTaken,
    WaitTimeout,
)
from axeq.outcome import Limits
from axeq.record import Document, Record, opened_failure, shortened
from axeq.settlement import expiry, logged
from axeq.states import FINAL, Cause, State, sources
from axeq.wire import CONTROL, JOBS, Call, Find, Op, Sleep

__all__ = [
    "Cancellation",
    "cancel",
    "count_unknown",
    "find",
    "get",
    "pause",
    "paused",
    "remove",
    "resume",
    "retry",
    "stats",
    "wait",
]

_OF_EARLIER_ATTEMPTS = (
    *("finished_at", "expire_at", "cause", "cancel", "error", "result"),
    *("checkpoint", "progress", "status"),
)
"""What a retry by hand starts without."""


class Cancellation(StrEnum):
    """What a cancel achieved."""

    CANCELLED = "cancelled"
    """The job has ended."""
    REQUESTED = "requested"
    """It is running: its handler is told, and a completion in the meantime wins."""
    TOO_LATE = "too late"
    """It had ended already."""


def get(identity: Any) -> Op[Record]:
    """Returns a job; raises `JobNotFound`."""
    found = yield Find(JOBS, {"_id": identity}, limit=1)
    if not found:
        raise JobNotFound(identity)
    return Record(found[0])


def find(
    queue: str,
    *,
    state: State | None = None,
    name: str | None = None,
    label: str | None = None,
    limit: int = 100,
    skip: int = 0,
) -> Op[list[Record]]:
    """Returns jobs of a queue, at most `limit` of them after the first `skip`.

    Those of a final state come in the order of their end, the last first; others the newest first.
    """
    wanted = {"name": name, "label": label}
    query = {"queue": queue, **{key: value for key, value in wanted.items() if value is not None}}
    order = "_id"
    if state is not None:
        query.update(_in_state(State(state)))
        order = "finished_at" if state in FINAL else "_id"
    documents = yield Find(JOBS, query, sort=[(order, -1)], limit=limit, skip=skip)
    return [Record(document) for document in documents]


def stats(queue: str, *, cap: int) -> Op[dict[State, int]]:
    """Returns how many jobs of a queue are in each state, counting no further than `cap`."""
    counts: dict[State, int] = {}
    for state in State:
        counts[state] = yield Call(JOBS, "count_documents", ({"queue": queue, **_in_state(state)},), {"limit": cap})
    return counts


def _in_state(state: State) -> Document:
    """Returns a filter that also says what the index of ended, or of live, jobs is for."""
    present = "finished_at" if state in FINAL else "available_at"
    return {"state": state.value, present: {"$exists": True}}


def wait(identity: Any, clock: Clock, *, timeout: float | None, codec: Codec | None = None) -> Op[Record]:
    """Returns a job once it has completed; `timeout` in seconds, None waits for ever. `codec` opens a failure.

    Raises `WaitTimeout`, `JobCancelled`, `JobNotFound`, or `JobGone` where it was removed meanwhile.
    """
    started = clock.monotonic()
    pause, seen = 0.005, False
    while True:
        found = yield Find(JOBS, {"_id": identity}, limit=1)
        if not found:
            raise JobGone(identity) if seen else JobNotFound(identity)
        record, seen = Record(found[0]), True
        if record.state is State.CANCELLED:
            raise JobCancelled(identity, record.cause, opened_failure(record.error, codec))
        if record.state in FINAL:
            return record
        waited = clock.monotonic() - started
        if timeout is not None and waited >= timeout:
            raise WaitTimeout(identity, timeout, record.state)
        yield Sleep(pause if timeout is None else min(pause, timeout - waited))
        pause = min(pause * 1.5, 0.5)


def cancel(identity: Any, clock: Clock, *, reason: str = "") -> Op[Cancellation]:
    """Cancels a job: at once where it waits or its lease has lapsed, else by asking its worker.

    Raises `JobNotFound`.
    """
    reason = shortened(reason)
    while True:
        record = yield from get(identity)
        if record.final:
            return Cancellation.TOO_LATE
        now = clock.earliest()
        ended: Document = {
            "$set": {
                "state": State.CANCELLED.value,
                "cause": Cause.REQUESTED.value,
                "finished_at": now,
                "expire_at": expiry(record, now, Limits().cancelled_retention),
                "lost": 0,
            },
            "$unset": {"available_at": "", "cancel": ""},
            **logged(record, "cancel", clock, reason or Cause.REQUESTED.value),
        }
        waiting = [state for state in sources("cancel") if state != State.DEQUEUED.value]
        free = {
            "_id": identity,
            "$or": [
                {"state": {"$in": waiting}},
                {"state": State.DEQUEUED.value, "available_at": {"$lte": now}},
            ],
        }
        if (yield Call(JOBS, "update_one", (free, ended))).matched_count:
            return Cancellation.CANCELLED
        running = {"_id": identity, "state": State.DEQUEUED.value}
        asked = {"$set": {"cancel": {"at": now, "reason": reason}}}
        if (yield Call(JOBS, "update_one", (running, asked))).matched_count:
            return Cancellation.REQUESTED
        # It moved between the two writes: look again.


def retry(identity: Any, clock: Clock) -> Op[Record]:
    """Enqueues a job that has failed or ended once more, due now, its attempts counted from nothing.

    Raises `JobNotFound`, also where it waits or runs already, and `LabelTaken`.
    """
    record = yield from get(identity)
    update = {
        "$set": {
            "state": State.ENQUEUED.value,
            "available_at": clock.earliest(),
            "attempts": 0,
            "lost": 0,
        },
        "$unset": dict.fromkeys(_OF_EARLIER_ATTEMPTS, ""),
        **logged(record, "retry", clock),
    }
    query = {"_id": identity, "state": {"$in": sources("retry")}}
    try:
        document = yield Call(JOBS, "find_one_and_update", (query, update), {"return_document": True})
    except DuplicateKey:
        raise LabelTaken(record.name, record.label or "") from None
    if document is None:
        state = (yield from get(identity)).state
        raise JobNotFound(identity, f"job {identity} is {state}: only a job that has failed or ended can be retried")
    return Record(document)


def remove(identity: Any) -> Op[bool]:
    """Deletes a job, in flight or not, and returns whether it was there; its worker then has lost its lease."""
    result = yield Call(JOBS, "delete_one", ({"_id": identity},))
    return bool(result.deleted_count)


def pause(queue: str, name: str | None) -> Op[None]:
    """Has pools claim no more jobs of a queue, or of one of its tasks. Jobs themselves are not touched."""
    document = {"$set": {"kind": "pause", "queue": queue, "name": name}}
    yield Call(CONTROL, "update_one", ({"_id": _pause_id(queue, name)}, document), {"upsert": True})


def resume(queue: str, name: str | None) -> Op[None]:
    """Takes a pause back."""
    yield Call(CONTROL, "delete_one", ({"_id": _pause_id(queue, name)},))


def paused(queues: Sequence[str]) -> Op[dict[str, frozenset[str | None]]]:
    """Returns the paused tasks of each of `queues`; None among them stands for the whole queue."""
    documents = yield Find(CONTROL, {"kind": "pause", "queue": {"$in": list(queues)}})
    names: dict[str, set[str | None]] = {queue: set() for queue in queues}
    for document in documents:
        queue, name = document["queue"], document.get("name")
        if isinstance(queue, str) and (name is None or isinstance(name, str)):
            names[queue].add(name)
    return {queue: frozenset(found) for queue, found in names.items()}


def ping() -> Op[None]:
    """Returns once the primary has answered a read; raises `StoreError` where it does not."""
    yield Find(CONTROL, {"_id": "ping"}, {"_id": 1}, limit=1)


def count_unknown(queue: str, versions: Mapping[str, int], clock: Clock, *, cap: int) -> Op[dict[str, int]]:
    """Returns how many due jobs no task here understands, by name, reading at most `cap` of them.

    A job of a known task counts where its version is newer than the model's.
    """
    newer: Iterable[Document] = ({"name": name, "version": {"$gt": version}} for name, version in versions.items())
    query = {
        "queue": queue,
        "available_at": {"$lte": clock.earliest()},
        "$or": [{"name": {"$nin": list(versions)}}, *newer],
    }
    counts: dict[str, int] = {}
    for document in (yield Find(JOBS, query, {"_id": 0, "name": 1}, limit=cap)):
        name = str(document.get("name"))
        counts[name] = counts.get(name, 0) + 1
    return counts


def _pause_id(queue: str, name: str | None) -> str:
    return f"pause {queue} {name or ''}".rstrip()
