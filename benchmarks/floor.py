"""The floor: axeq's work done by hand on the raw driver, as well as its author could. It imports nothing of axeq."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable, Generator
from datetime import UTC, datetime, timedelta
from typing import Any

from bson.codec_options import CodecOptions
from bson.objectid import ObjectId
from pymongo import AsyncMongoClient, MongoClient, UpdateOne
from pymongo.read_concern import ReadConcern
from pymongo.write_concern import WriteConcern

__all__ = ["NAME", "QUEUE", "TEXT", "document", "jobs_of"]

QUEUE, NAME, TEXT = "default", "noop", "s" * 100
WORKER = "floor.example.internal:12345:0f1e2d"

_LEASE, _RETENTION = timedelta(seconds=30), timedelta(days=7)
_BOARD = {"_id": 1, "name": 1, "priority": 1, "available_at": 1, "version": 1, "lost": 1}
_PAGE = 4000
_SHORTEST = timedelta(milliseconds=1)

Step = Callable[[Any], Any]
Steps = Generator[Step, Any, Any]
"""A loop that yields what to do with the collection, so that the sync and the async driver run the same one."""


def jobs_of(client: Any, database: str) -> Any:
    """Returns the jobs collection with the options that axeq uses."""
    return client.get_database(
        database,
        codec_options=CodecOptions(tz_aware=True, tzinfo=UTC),
        write_concern=WriteConcern("majority"),
        read_concern=ReadConcern("majority"),
    ).get_collection("jobs")


def document(x: int, *, available_at: datetime | None = None) -> dict[str, Any]:
    """Returns a job as axeq stores it."""
    now = _now()
    return {
        "_id": ObjectId(),
        "name": NAME,
        "queue": QUEUE,
        "version": 1,
        "data": {"x": x, "s": TEXT},
        "state": "enqueued",
        "priority": 0,
        "created_at": now,
        "available_at": available_at or now,
        "attempts": 0,
        "lost": 0,
    }


def _process(total: int, batch: int, *, results: bool) -> Steps:
    """Claims and completes `total` jobs in batches."""
    window, ids = _Window(), []
    done = 0
    while done < total:
        if not ids:
            ids = yield from window.page()
        claimed, ids = ids[:batch], ids[batch:]
        done += yield from _handle(claimed, results=results)


def _handle(ids: list[ObjectId], *, results: bool) -> Steps:
    token, now = ObjectId(), _now()
    yield lambda jobs: jobs.update_many(
        {"_id": {"$in": ids}, "available_at": {"$lte": now}, "lost": 0}, _claim(token, now)
    )
    mine = {"claim.token": token, "state": "dequeued"}
    held = yield lambda jobs: jobs.find({"_id": {"$in": ids}, **mine}, batch_size=len(ids) + 1).to_list()
    if results:
        writes = [UpdateOne({"_id": job["_id"], **mine}, _completion({"total": job["data"]["x"]})) for job in held]
        yield lambda jobs: jobs.bulk_write(writes, ordered=False)
    else:
        yield lambda jobs: jobs.update_many({"_id": {"$in": [job["_id"] for job in held]}, **mine}, _completion())
    return len(held)


class _Window:
    """Reads the ids that are due by the page, each page bounded by a due time that moves on by about one."""

    def __init__(self) -> None:
        self._end: datetime | None = None
        self._width = _SHORTEST

    def page(self) -> Steps:
        now = _now()
        while True:
            end = now if self._end is None else min(self._end + self._width, now)
            found = yield self._read(end)
            if found or end == now:
                break
            self._end, self._width = end, 2 * self._width
        if not found:
            raise RuntimeError("no job is due, and not all are done")
        full = len(found) == _PAGE
        self._end = found[-1]["available_at"] if full else end
        self._width = max((found[-1]["available_at"] - found[0]["available_at"]) * 1.25, _SHORTEST)
        return [each["_id"] for each in found]

    def _read(self, end: datetime) -> Step:
        query = {"queue": QUEUE, "name": NAME, "priority": 0, "available_at": {"$lte": end}, "version": {"$lte": 1}}
        options: dict[str, Any] = {"sort": [("available_at", 1)], "limit": _PAGE, "batch_size": _PAGE + 1}
        return lambda jobs: jobs.find(query, _BOARD, **options).to_list()


def _claim(token: ObjectId, now: datetime) -> dict[str, Any]:
    claim = {"token": token, "worker": WORKER}
    return {
        "$set": {"state": "dequeued", "claim": claim, "available_at": now + _LEASE},
        "$inc": {"attempts": 1, "lost": 1},
    }


def _completion(result: Any = None) -> dict[str, Any]:
    now = _now()
    fields = {"state": "completed", "lost": 0, "started_at": now, "ended_at": now, "finished_at": now}
    fields["expire_at"] = now + _RETENTION
    if result is not None:
        fields["result"] = result
    return {"$set": fields, "$unset": {"available_at": "", "cancel": "", "error": ""}}


def _now() -> datetime:
    return datetime.now(UTC)


def _run(steps: Steps, jobs: Any) -> None:
    reply: Any = None
    while True:
        try:
            step = steps.send(reply)
        except StopIteration:
            return
        reply = step(jobs)


async def _arun(steps: Steps, jobs: Any) -> None:
    reply: Any = None
    while True:
        try:
            step = steps.send(reply)
        except StopIteration:
            return
        reply = await step(jobs)


# What the child does when asked


def _timed(uri: str, database: str, *, driver: str, total: int, batch: int, results: bool) -> dict[str, Any]:
    """Processes `total` jobs and returns the seconds that it took."""
    steps = _process(total, batch, results=results)
    if driver == "async":
        return {"seconds": asyncio.run(_timed_async(uri, database, steps))}
    with MongoClient[Any](uri) as client:
        client.admin.command("ping")
        began = time.monotonic()
        _run(steps, jobs_of(client, database))
        return {"seconds": time.monotonic() - began}


async def _timed_async(uri: str, database: str, steps: Steps) -> float:
    async with AsyncMongoClient[Any](uri) as client:
        await client.admin.command("ping")
        began = time.monotonic()
        await _arun(steps, jobs_of(client, database))
        return time.monotonic() - began


def _follow(uri: str, database: str, total: int) -> None:
    """Claims `total` jobs one by one as a change stream announces them; answers when it listens, and at the end."""
    starts: dict[str, float] = {}
    inserted = {"operationType": "insert", "fullDocument.queue": QUEUE, "fullDocument.name": NAME}
    with MongoClient[Any](uri) as client:
        jobs = jobs_of(client, database)
        pipeline = [{"$match": inserted}, {"$project": {"documentKey": 1, "operationType": 1}}]
        with jobs.watch(pipeline, max_await_time_ms=10_000) as stream:
            _answer({"listening": True})
            while len(starts) < total:
                change = stream.next()
                _start_one(jobs, change["documentKey"]["_id"], starts)
    _answer(starts)


def _start_one(jobs: Any, identity: ObjectId, starts: dict[str, float]) -> None:
    token, now = ObjectId(), _now()
    due = {"_id": identity, "available_at": {"$lte": now}, "lost": 0}
    job = jobs.find_one_and_update(due, _claim(token, now), return_document=True)
    if job is not None:
        starts[str(job["data"]["x"])] = time.monotonic()
        jobs.update_one({"_id": identity, "claim.token": token, "state": "dequeued"}, _completion())


def _answer(value: Any) -> None:
    print(json.dumps(value), flush=True)


def main() -> None:
    for line in sys.stdin:
        request = json.loads(line)
        if request.pop("do") == "follow":
            _follow(**request)
        else:
            _answer(_timed(**request))


if __name__ == "__main__":
    main()
