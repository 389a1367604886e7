"""Waiting for something to become true, with a deadline and never a fixed pause."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import pytest

import axeq

__all__ = ["DEADLINE", "aeventually", "cancelled", "due", "eventually", "in_state", "settled", "until"]

T = TypeVar("T")

DEADLINE = 30.0
_POLL = 0.01


def eventually(assertion: Callable[[], T], timeout: float = DEADLINE) -> T:
    """Calls `assertion` until it neither raises `AssertionError` nor returns False, and returns what it returned."""
    until = time.monotonic() + timeout
    while True:
        try:
            value = assertion()
            assert value is not False, f"not within {timeout:g} s"
        except AssertionError:
            if time.monotonic() >= until:
                raise
        else:
            return value
        time.sleep(_POLL)


async def aeventually(assertion: Callable[[], T | Awaitable[T]], timeout: float = DEADLINE) -> T:
    """As `eventually`, leaving the loop to others meanwhile; `assertion` may be async."""
    until = time.monotonic() + timeout
    while True:
        try:
            value: T = await settled(assertion())
            assert value is not False, f"not within {timeout:g} s"
        except AssertionError:
            if time.monotonic() >= until:
                raise
        else:
            return value
        await asyncio.sleep(_POLL)


def until(condition: Callable[[], bool], *, seconds: float, what: str | Callable[[], str]) -> None:
    """Polls until `condition` holds; fails with `what` after `seconds`.

    It rests for as long as a look took, at least 20 ms: what is looked at may be what is waited for.
    """
    deadline = time.monotonic() + seconds
    while True:
        began = time.monotonic()
        if condition():
            return
        took = time.monotonic() - began
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what if isinstance(what, str) else what()}"
        time.sleep(max(0.02, took))


def due(store: axeq.Store, job: Any) -> None:
    """Returns once a job that was enqueued for now is certainly due, however roughly its store knows the time.

    Of jobs enqueued one after the other, a pool could else find the first due and the next not yet.
    """
    eventually(lambda: store.clock.earliest() >= job.available_at)


def in_state(job: axeq.Job[Any, Any], state: axeq.State) -> axeq.Job[Any, Any]:
    """Returns the job once it is in `state`."""
    eventually(lambda: job.refresh().state == state)
    return job


def cancelled(job: axeq.Job[Any, Any]) -> axeq.JobCancelled:
    """Returns what those who wait for the job are told once it has ended cancelled."""
    with pytest.raises(axeq.JobCancelled) as caught:
        job.wait(DEADLINE)
    return caught.value


async def settled(value: Any) -> Any:
    """Returns `value`, awaited where it is awaitable: one test so serves the sync and the async face."""
    return await value if inspect.isawaitable(value) else value
