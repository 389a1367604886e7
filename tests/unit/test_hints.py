"""What those who listen for jobs of their own process make of the end of their event loop."""

from __future__ import annotations

import asyncio
from typing import Any

import mongomock
import pytest

import axeq
from axeq.faces.consumer import _waker
from axeq.supply.hints import Hints


@pytest.fixture
async def closing(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The test's loop closes between somebody's look at it and his word to it."""

    def closed(*_: Any) -> None:
        raise RuntimeError("Event loop is closed")

    monkeypatch.setattr(asyncio.get_running_loop(), "call_soon_threadsafe", closed)
    return monkeypatch


async def test_a_job_stored_while_the_loop_of_a_pool_closes_is_stored_without_an_error(
    closing: pytest.MonkeyPatch,
) -> None:
    store = axeq.Store(mongomock.MongoClient())
    hints = Hints(store, {}, names=None, cancelled=lambda identity, reason: None)
    following = asyncio.create_task(hints.run())
    await asyncio.sleep(0)

    store.announce([{"_id": 1, "queue": "default", "name": "thumbnail"}])

    closing.undo()
    following.cancel()


async def test_a_job_stored_while_the_loop_of_a_consumer_closes_is_stored_without_an_error(
    closing: pytest.MonkeyPatch,
) -> None:
    wake = _waker(asyncio.Event())

    wake()

    closing.undo()
