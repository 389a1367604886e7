"""What a feed expects from what it hears."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import Any

import mongomock
import pytest

import axeq
from axeq.supply.board import Board
from axeq.supply.feed import Feed
from axeq.supply.hints import Hints
from axeq.supply.lag import RandomLag
from axeq.wire.wire import drive
from axeq.words.errors import StoreUnavailable
from tests.support.waiting import DEADLINE

from .playing import NOW, UNANSWERED, ScriptedClock, given_job, matches


def feed(clock: ScriptedClock) -> Feed:
    store: Any = SimpleNamespace(clock=clock)
    board = Board(RandomLag(0.0), monotonic=lambda: 0.0)
    feed = Feed(store, "default", {"thumbnail": 1}, board, interval=0.1, max_interval=1.0, wake=lambda: None)
    feed._looked(found=False)
    return feed


def hints(feeds: dict[str, Feed], store: Any = None) -> Hints:
    return Hints(store, feeds, names=["thumbnail"], cancelled=lambda identity, reason: None)


def claimed_by_another(lease_end: datetime) -> dict[str, Any]:
    return {
        "operationType": "update",
        "documentKey": {"_id": 1},
        "updateDescription": {"updatedFields": {"state": "dequeued", "available_at": lease_end}},
    }


async def test_the_end_of_a_lease_that_another_pool_took_is_waited_for_in_every_queue() -> None:
    clock = ScriptedClock()
    feeds = {"default": feed(clock), "other": feed(clock)}
    for idle in feeds.values():
        idle.streaming = True
        idle._looked(found=False)
    before = [idle.pause() for idle in feeds.values()]

    lease_end = clock.latest() + timedelta(seconds=2)
    hints(feeds)._heard(claimed_by_another(lease_end))

    assert min(before) > 5
    assert all(0 < idle.pause() <= (lease_end - NOW).total_seconds() + 0.1 for idle in feeds.values())


async def test_a_job_replaced_by_one_that_is_due_sooner_is_heard_of_and_an_extended_lease_is_not() -> None:
    clock = ScriptedClock()
    idle = feed(clock)
    idle.streaming = True
    idle._looked(found=False)
    listening = hints({"default": idle})
    due = clock.latest() + timedelta(seconds=2)
    extended = {"operationType": "update", "updateDescription": {"updatedFields": {"available_at": due}}}
    replaced = {
        "operationType": "update",
        "documentKey": {"_id": 1},
        "updateDescription": {"updatedFields": {"created_at": NOW, "available_at": due}},
    }
    before = idle.pause()

    listening._heard(replaced)

    wanted = listening._pipeline()[0]["$match"]
    assert (matches(wanted, replaced), matches(wanted, extended)) == (True, False)
    assert before > 5
    assert idle.pause() <= (due - NOW).total_seconds() + 0.1


async def test_one_stream_serves_all_queues_and_hears_of_nothing_else() -> None:
    clock = ScriptedClock()
    heard = hints({"default": feed(clock), "other": feed(clock)})

    inserted = {
        "operationType": "insert",
        "fullDocument.queue": {"$in": ["default", "other"]},
        "fullDocument.name": {"$in": ["thumbnail"]},
    }
    assert heard._pipeline()[0]["$match"]["$or"][0] == inserted


async def test_without_a_stream_an_idle_pool_looks_less_and_less_often_up_to_its_longest_pause() -> None:
    store: Any = SimpleNamespace(clock=ScriptedClock())
    board = Board(RandomLag(0.0), monotonic=lambda: 0.0)
    idle = Feed(store, "default", {"thumbnail": 1}, board, interval=0.1, max_interval=20.0, wake=lambda: None)

    pauses = []
    for _ in range(30):
        idle._looked(found=False)
        pauses.append(idle.pause())

    assert pauses[0] < 0.2
    assert max(pauses) <= 25.0
    assert min(pauses[-5:]) >= 14.0


class Note(axeq.Model, name="note"):
    text: str


async def test_a_job_stored_by_this_process_is_known_without_the_server() -> None:
    store = axeq.Store(mongomock.MongoClient().db)
    boards = {queue: Board(RandomLag(0.0), monotonic=lambda: 0.0) for queue in ("default", "other")}
    woken = {queue: asyncio.Event() for queue in boards}
    feeds = {
        queue: Feed(store, queue, {"note": 1}, board, interval=3600.0, max_interval=3600.0, wake=woken[queue].set)
        for queue, board in boards.items()
    }
    listening = Hints(store, feeds, names=["note"], cancelled=lambda identity, reason: None)
    running = asyncio.create_task(listening.run())
    await asyncio.sleep(0)
    listening.idle()

    await asyncio.to_thread(axeq.Queue(store).enqueue, Note(text="hello"))
    await asyncio.to_thread(axeq.Queue(store, "elsewhere").enqueue, Note(text="not ours"))
    await asyncio.to_thread(axeq.Queue(store, "other").enqueue_many, [Note(text="one"), Note(text="two")])
    await asyncio.wait_for(woken["default"].wait(), DEADLINE)
    await asyncio.wait_for(woken["other"].wait(), DEADLINE)

    assert {queue: board.count("note") for queue, board in boards.items()} == {"default": 1, "other": 2}
    running.cancel()


async def test_a_pool_that_had_no_answer_to_when_jobs_fall_due_asks_again() -> None:
    clock = ScriptedClock()
    idle = feed(clock)
    idle.streaming = True
    idle._looked(found=False)
    due = clock.latest() + timedelta(seconds=2)
    answers: list[Any] = [UNANSWERED, due]

    async def answer(op: Any) -> Any:
        op.close()
        reply = answers.pop(0)
        if isinstance(reply, Exception):
            raise reply
        return reply

    idle._store = SimpleNamespace(clock=clock, arun=answer)  # type: ignore[assignment]
    with pytest.raises(StoreUnavailable):
        await idle.expect()
    before = idle.pause()

    await idle.expect()

    assert before > 5
    assert idle.pause() <= (due - NOW).total_seconds() + 0.1


class SlowJobs:
    """A store whose reads take `seconds` each; it answers by the filters of a feed with a backlog."""

    def __init__(self, clock: ScriptedClock, jobs: list[dict[str, Any]], *, seconds: float) -> None:
        self.clock = clock
        self.jobs = jobs
        self._seconds = seconds

    async def arun(self, op: Any) -> Any:
        return drive(op, self._found)

    def _found(self, find: Any) -> list[dict[str, Any]]:
        self.clock.elapsed += self._seconds
        found = [job for job in self.jobs if matches(find.filter, job)]
        return sorted(found, key=lambda job: (job["priority"], job["available_at"]))[: find.limit]


@pytest.mark.parametrize(("seconds", "within"), [(0.0, 1.0), (0.5, 8.0)])
async def test_in_a_backlog_the_first_job_of_its_priority_is_found_soon_however_slow_reads_are(
    seconds: float, within: float
) -> None:
    """Among five seconds and the reads themselves: a worker's death may leave such a job."""
    clock = ScriptedClock()
    store: Any = SlowJobs(clock, [given_job(_id=number) for number in range(1000)], seconds=seconds)
    board = Board(RandomLag(0.0), monotonic=clock.monotonic)
    reading = Feed(store, "default", {"thumbnail": 1}, board, interval=0.1, max_interval=1.0, wake=lambda: None)
    await reading.look(wanted=4)
    store.jobs.append(given_job(_id="first", priority=-1, lost=1))
    began = clock.elapsed

    while not board.lost_first("thumbnail", clock.earliest(), most_lost=1):
        clock.elapsed += 0.1
        assert clock.elapsed - began <= within + 0.2
        reading.begin_refill("thumbnail", wanted=4, anew=True)
        await reading.refilled("thumbnail")
