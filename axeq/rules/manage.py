"""What people do with jobs from outside a worker: look, cancel, retry, remove, pause, count."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from axeq.documents.failure import stated
from axeq.documents.record import Document, Record
from axeq.rules.outcome import Cancelled, Limits
from axeq.rules.settlement import cancelling, logged
from axeq.wire.wire import CONTROL, JOBS, Call, Find, Op, Update
from axeq.words.clock import Clock
from axeq.words.errors import AxeqError, DuplicateKey, JobNotFound, LabelTaken
from axeq.words.states import FINAL, TRANSITIONS, Cancellation, Cause, State, sources

__all__ = [
    "cancel",
    "clear_dead",
    "count_unknown",
    "dead",
    "exists",
    "find",
    "get",
    "pause",
    "paused",
    "remove",
    "remove_many",
    "resume",
    "retry",
    "retry_many",
    "stats",
    "stats_by_task",
]

_OF_EARLIER_ATTEMPTS = (
    *("finished_at", "expire_at", "cause", "cancel", "error", "result"),
    *("checkpoint", "progress", "status"),
)
"""What a retry by hand starts without."""
_PAGE = 1000
"""How many jobs one command of the verbs for many names."""


def get(identity: Any) -> Op[Record]:
    """Returns a job; raises `JobNotFound`."""
    found = yield Find(JOBS, {"_id": identity}, limit=1)
    if not found:
        raise JobNotFound(identity)
    return Record(found[0])


def exists(identity: Any) -> Op[bool]:
    """Returns whether there is a job of that id."""
    return bool((yield Find(JOBS, {"_id": identity}, {"_id": 1}, limit=1)))


def find(
    queue: str,
    *,
    state: State | None = None,
    name: str | None = None,
    label: str | None = None,
    data: Mapping[str, Any] | None = None,
    limit: int = 100,
    skip: int = 0,
) -> Op[list[Record]]:
    """Returns jobs of a queue, at most `limit` of them after the first `skip`.

    Those of a final state come in the order of their end, the last first; others the newest first. `data` holds
    the plain values that fields of the payload are equal to, by dotted path.
    """
    wanted = {"name": name, "label": label}
    query: Document = {"queue": queue, **{key: value for key, value in wanted.items() if value is not None}}
    query.update((f"data.{path}", {"$eq": value}) for path, value in (data or {}).items())
    order = "_id"
    if state is not None:
        query.update(_in_state(State(state)))
        order = "finished_at" if state in FINAL else "_id"
    documents = yield Find(JOBS, query, sort=[(order, -1)], limit=limit, skip=skip)
    return [Record(document) for document in documents]


def dead(queue: str, *, name: str | None = None, limit: int = 20, skip: int = 0) -> Op[list[Record]]:
    """Returns jobs that ended cancelled though nobody had asked for it, the last first."""
    order = [("finished_at", -1)]
    documents = yield Find(JOBS, _dead(queue, name), sort=order, limit=limit, skip=skip)
    return [Record(document) for document in documents]


def clear_dead(queue: str, clock: Clock, *, name: str | None = None) -> Op[int]:
    """Deletes what `dead` lists, as of now, and returns how many there were."""
    query = _dead(queue, name)
    query["finished_at"] = {"$lte": clock.latest()}  # or it might never catch up with what is dying
    cleared = 0
    while True:
        found = yield Find(JOBS, query, {"_id": 1}, sort=[("finished_at", -1)], limit=_PAGE)
        if not found:
            return cleared
        # One that was retried in between is not dead any more.
        those = {**query, "_id": {"$in": [document["_id"] for document in found]}}
        cleared += (yield Call(JOBS, "delete_many", (those,))).deleted_count


def _dead(queue: str, name: str | None) -> Document:
    query = {"queue": queue, **_in_state(State.CANCELLED), "cause": {"$ne": Cause.REQUESTED.value}}
    return query if name is None else {**query, "name": name}


def stats(queue: str, *, cap: int) -> Op[dict[State, int]]:
    """Returns how many jobs of a queue are in each state, counting no further than `cap`."""
    counts: dict[State, int] = {}
    for state in State:
        counts[state] = yield Call(JOBS, "count_documents", ({"queue": queue, **_in_state(state)},), {"limit": cap})
    return counts


def stats_by_task(queue: str, *, cap: int) -> Op[dict[str, dict[State, int]]]:
    """Returns how many jobs of each task are in each state, looking at no more than `cap` of a state."""
    counts: dict[str, dict[State, int]] = {}
    for state in State:
        pipeline: list[Document] = [
            {"$match": {"queue": queue, **_in_state(state)}},
            {"$limit": cap},
            {"$group": {"_id": "$name", "count": {"$sum": 1}}},
        ]
        for group in (yield Call(JOBS, "aggregate", (pipeline,))):
            counts.setdefault(str(group["_id"]), dict.fromkeys(State, 0))[state] = group["count"]
    return dict(sorted(counts.items()))


def _in_state(state: State) -> Document:
    """Returns a filter that also says what the index of ended, or of live, jobs is for."""
    present = "finished_at" if state in FINAL else "available_at"
    return {"state": state.value, present: {"$exists": True}}


def cancel(identity: Any, clock: Clock, *, reason: str = "") -> Op[Cancellation]:
    """Cancels a job: at once where it waits or its lease has lapsed, else by asking its worker.

    Raises `JobNotFound`, and `ConfigurationError` for a reason that is no text.
    """
    reason = stated(reason)
    while True:
        record = yield from get(identity)
        if record.final:
            return Cancellation.TOO_LATE
        now = clock.earliest()
        ended = cancelling(record, Cancelled(Cause.REQUESTED, reason), Limits(), clock)
        if (yield Call(JOBS, "update_one", (_free(identity, now), ended))).matched_count:
            return Cancellation.CANCELLED
        running = {"_id": identity, "state": State.DEQUEUED.value}
        asked = {"$set": {"cancel": {"at": now, "reason": reason}}}
        if (yield Call(JOBS, "update_one", (running, asked))).matched_count:
            return Cancellation.REQUESTED
        # It moved between the two writes: look again.


def _free(identity: Any, now: datetime) -> Document:
    """Returns a filter that takes a job which waits, or whose lease has lapsed."""
    waiting = [state for state in sources("cancel") if state != State.DEQUEUED.value]
    lapsed = {"state": State.DEQUEUED.value, "available_at": {"$lte": now}}
    return {"_id": identity, "$or": [{"state": {"$in": waiting}}, lapsed]}


def retry(identity: Any, clock: Clock) -> Op[Record]:
    """Enqueues a job that has failed or ended once more, due now, its attempts counted from nothing.

    Raises `JobNotFound`, also where it waits or runs already, and `LabelTaken`.
    """
    record = yield from get(identity)
    write = _again(record, clock)
    try:
        document = yield Call(JOBS, "find_one_and_update", (write.filter, write.update), {"return_document": True})
    except DuplicateKey:
        raise LabelTaken(record.name, record.label or "") from None
    if document is None:
        raise _not_retried(identity, (yield from get(identity)).state)
    return Record(document)


def retry_many(ids: Iterable[Any], clock: Clock) -> Op[dict[Any, AxeqError]]:
    """Retries jobs as `retry` does, and returns why others could not be, by id."""
    refused: dict[Any, AxeqError] = {}
    for page in _pages(ids):
        found = yield from _briefly(page)
        refused.update((identity, JobNotFound(identity)) for identity in page if identity not in found)
        settled = {identity: record.state for identity, record in found.items() if not _can_be_retried(record)}
        refused.update((identity, _not_retried(identity, state)) for identity, state in settled.items())
        ready = [record for identity, record in found.items() if identity not in settled]
        refused.update((yield from _retried(ready, clock)))
    return refused


def _retried(records: Sequence[Record], clock: Clock) -> Op[dict[Any, AxeqError]]:
    """Retries jobs, in one command but for those that have a label, and returns why others could not be."""
    slow = [record.id for record in records if record.label is not None]
    plain = [record for record in records if record.label is None]
    if plain:
        writes = [_again(record, clock) for record in plain]
        result = yield Call(JOBS, "bulk_write", (writes,), {"ordered": False})
        if result.matched_count < len(plain):  # some were removed, or retried by somebody else in between
            ids = [record.id for record in plain]
            found = yield from _briefly(ids)
            slow += [each for each in ids if each not in found or _can_be_retried(found[each])]
    refused: dict[Any, AxeqError] = {}
    for identity in slow:
        try:
            yield from retry(identity, clock)
        except (JobNotFound, LabelTaken) as error:
            refused[identity] = error
    return refused


def _briefly(ids: Sequence[Any]) -> Op[dict[Any, Record]]:
    """Returns what a retry needs to know of jobs, by id."""
    fields = {"_id": 1, "name": 1, "label": 1, "state": 1, "attempts": 1}
    documents = yield Find(JOBS, {"_id": {"$in": list(ids)}}, fields)
    return {document["_id"]: Record(document) for document in documents}


def _again(record: Record, clock: Clock) -> Update:
    """Returns the write that starts a job over."""
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
    return Update({"_id": record.id, "state": {"$in": sources("retry")}}, update)


def _can_be_retried(record: Record) -> bool:
    return record.state in TRANSITIONS["retry"].sources


def _not_retried(identity: Any, state: State) -> JobNotFound:
    return JobNotFound(identity, f"job {identity} is {state}: only a job that has failed or ended can be retried")


def remove(identity: Any) -> Op[bool]:
    """Deletes a job, in flight or not, and returns whether it was there; its worker then has lost its lease."""
    result = yield Call(JOBS, "delete_one", ({"_id": identity},))
    return bool(result.deleted_count)


def remove_many(ids: Iterable[Any]) -> Op[int]:
    """Deletes jobs, in flight or not, and returns how many were there."""
    removed = 0
    for page in _pages(ids):
        removed += (yield Call(JOBS, "delete_many", ({"_id": {"$in": list(page)}},))).deleted_count
    return removed


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


def _pages(ids: Iterable[Any]) -> Iterator[list[Any]]:
    each = list(dict.fromkeys(ids))
    yield from (each[start : start + _PAGE] for start in range(0, len(each), _PAGE))
