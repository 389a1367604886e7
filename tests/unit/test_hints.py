"""How a pool listens for jobs: by a stream that may break, and to its own process, whose event loop may end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import mongomock
import pytest

import axeq
from axeq.faces.consumer import _waker
from axeq.supply.hints import Hints
from axeq.words.errors import StoreUnavailable


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


BROKEN = StoreUnavailable("db", "the stream broke")


class Streams:
    """A store whose streams each give so many words and break; those of `None` do not open."""

    def __init__(self, *words: int | None) -> None:
        self.words = list(words)

    async def acapabilities(self) -> Any:
        return SimpleNamespace(streams=True)

    @asynccontextmanager
    async def watch(self, pipeline: Any, *, max_await: float) -> AsyncIterator[Any]:
        if not self.words:
            raise asyncio.CancelledError
        left = self.words.pop(0)
        if left is None:
            raise BROKEN

        async def try_next() -> None:
            nonlocal left
            if not left:
                raise BROKEN
            left -= 1

        yield SimpleNamespace(alive=True, try_next=try_next)


async def pauses_of(*words: int | None, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Returns how long a pool waited before it opened each next stream."""
    paused: list[float] = []

    async def sleep(seconds: float) -> None:
        paused.append(seconds)

    monkeypatch.setattr("axeq.supply.hints.asyncio.sleep", sleep)
    monkeypatch.setattr("axeq.supply.hints.random.random", lambda: 0.0)
    store: Any = Streams(*words)
    hints = Hints(store, {}, names=None, cancelled=lambda identity, reason: None)
    hints.idle()
    with pytest.raises(asyncio.CancelledError):
        await hints._follow()
    monkeypatch.undo()
    return paused


async def test_a_stream_that_worked_and_breaks_is_opened_again_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    assert await pauses_of(5, 5, 5, 5, monkeypatch=monkeypatch) == [0.1] * 4


async def test_a_stream_that_does_not_open_or_breaks_before_its_first_word_is_tried_ever_less_often(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert await pauses_of(None, 0, None, 5, None, monkeypatch=monkeypatch) == [0.1, 0.2, 0.4, 0.1, 0.2]
