"""What a feed expects from what it hears."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import mongomock

import axeq
from axeq.board import Board
from axeq.feed import Feed
from axeq.lag import RandomLag

from .playing import NOW, ScriptedClock


def feed(clock: ScriptedClock) -> Feed:
    store: Any = SimpleNamespace(clock=clock)
    board = Board(RandomLag(0.0), monotonic=lambda: 0.0)
    versions = {"thumbnail": 1}
    feed = Feed(
        store, "default", versions, board, interval=0.1, wake=lambda: None, cancelled=lambda identity, reason: None
    )
    feed._looked(found=False)
    return feed


async def test_the_end_of_a_lease_that_another_pool_took_is_waited_for() -> None:
    clock = ScriptedClock()
    idle = feed(clock)
    idle._streaming = True
    idle._looked(found=False)
    before = idle.pause()

    lease_end = clock.latest() + timedelta(seconds=2)
    idle._heard(
        {
            "operationType": "update",
            "documentKey": {"_id": 1},
            "updateDescription": {"updatedFields": {"state": "dequeued", "available_at": lease_end}},
        }
    )

    assert before > 5
    assert 0 < idle.pause() <= (lease_end - NOW).total_seconds() + 0.1


class Note(axeq.Model, name="note"):
    text: str


async def test_a_job_stored_by_this_process_is_known_without_the_server() -> None:
    store = axeq.Store(mongomock.MongoClient().db)
    board = Board(RandomLag(0.0), monotonic=lambda: 0.0)
    woken = asyncio.Event()
    idle = Feed(
        store,
        "default",
        {"note": 1},
        board,
        interval=3600.0,
        wake=woken.set,
        cancelled=lambda identity, reason: None,
    )
    running = asyncio.create_task(idle.run())
    await asyncio.sleep(0)
    idle.pause()

    await asyncio.to_thread(axeq.Queue(store).enqueue, Note(text="hello"))
    await asyncio.to_thread(axeq.Queue(store, "other").enqueue, Note(text="not ours"))
    await asyncio.wait_for(woken.wait(), 5)

    assert board.count("note") == 1
    running.cancel()
