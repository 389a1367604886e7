"""One model whose field picks what its handler does, and handlers of every kind for it."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from bson import ObjectId

import axeq
from axeq.words.clock import milliseconds

__all__ = ["Probe", "probe", "probe_in_process", "probe_in_thread", "release_blocked", "stored_probe"]

_unblocked = threading.Event()


class Probe(axeq.Model[Any], name="probe"):
    """A job that ends as its `outcome` says.

    "hang" stops when it is asked to; "block" does not, until `release_blocked` (in a process: never). "die"
    kills the process that runs it.
    """

    outcome: Literal["ok", "raise", "retry", "cancel", "snooze", "hang", "block", "die"] = "ok"
    value: Any = None
    delay: float = 0.0


async def probe(ctx: axeq.Context[Probe, Any]) -> Any:
    if ctx.model.outcome == "hang":
        await asyncio.sleep(3600)
    return _outcome(ctx)


def probe_in_thread(ctx: axeq.Context[Probe, Any]) -> Any:
    if ctx.model.outcome == "hang":
        ctx.wait_cancelled(3600)
        ctx.check()
    return _outcome(ctx)


def probe_in_process(ctx: axeq.Context[Probe, Any]) -> Any:
    if ctx.model.outcome == "hang":
        threading.Event().wait(3600)
    return _outcome(ctx)


def release_blocked() -> None:
    """Lets every blocked handler of this process end, now and for ever."""
    _unblocked.set()


def _outcome(ctx: axeq.Context[Probe, Any]) -> Any:
    match ctx.model.outcome:
        case "raise":
            raise ValueError(ctx.model.value)
        case "retry":
            raise axeq.Retry(str(ctx.model.value), delay=ctx.model.delay)
        case "cancel":
            raise axeq.Cancel(str(ctx.model.value))
        case "snooze":
            raise axeq.Snooze(delay=ctx.model.delay)
        case "block":
            _unblocked.wait(3600)
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
    return ctx.model.value


def stored_probe(**fields: Any) -> dict[str, Any]:
    """Returns a job's document as it is stored, due a second ago; `fields` replace its own, `...` takes one away."""
    now = milliseconds(datetime.now(UTC))
    document = {
        "_id": ObjectId(),
        "name": "probe",
        "queue": "default",
        "version": 1,
        "data": {},
        "state": "enqueued",
        "priority": 0,
        "created_at": now,
        "available_at": now - timedelta(seconds=1),
        "attempts": 0,
        "lost": 0,
        **fields,
    }
    return {key: value for key, value in document.items() if value is not ...}
