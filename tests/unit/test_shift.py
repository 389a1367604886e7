"""How a pool starts and ends: what other pools know of it, and what signals do to it at any moment."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import mongomock
import pytest

import axeq
from axeq.rules import workers
from axeq.wire.wire import Op
from tests.support.pools import python
from tests.support.probe import Probe
from tests.support.waiting import DEADLINE, aeventually

SIGNALLED = """
import contextlib, os, signal, threading
import axeq, mongomock

def raise_signal():
    os.kill(os.getpid(), signal.SIGTERM)

class Ready(threading.Event):
    def set(self):
        super().set()
        raise_signal()

@contextlib.asynccontextmanager
async def lifespan(pool):
    raise_signal()
    try:
        await pool.never.wait()
        yield
    finally:
        print("left")

async def nothing(ctx):
    pass
"""
READY = """
pool = axeq.Pool(axeq.Store(mongomock.MongoClient()["axeq"]))
pool.ready = Ready()
"""
STARTING = """
import asyncio
pool = axeq.Pool(axeq.Store(mongomock.MongoClient()["axeq"]), lifespan=lifespan)
pool.never = asyncio.Event()
"""
RUN = """
pool.add(axeq.Task(axeq.Model, nothing, name="nothing"))
pool.run()
print("ended")
"""


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What pools tell each other, as (verb, pool), at a heartbeat that is fast."""
    told: list[tuple[str, str]] = []

    def noted(verb: str) -> Callable[..., Op[Any]]:
        rule = getattr(workers, verb)

        def note(worker: str, *rest: Any) -> Op[Any]:
            told.append((verb, worker))
            return (yield from rule(worker, *rest))

        return note

    for verb in ("announce", "leave"):
        monkeypatch.setattr(workers, verb, noted(verb))
    monkeypatch.setattr(workers, "HEARTBEAT", 0.02)
    return told


async def test_a_pool_that_claims_no_more_says_so_at_once_and_is_silent_while_it_drains(
    said: list[tuple[str, str]],
) -> None:
    client = mongomock.MongoClient()
    store = axeq.Store(client["axeq"])
    begun, gate = asyncio.Event(), asyncio.Event()

    async def work(ctx: axeq.Context[Probe, Any]) -> None:
        begun.set()
        await gate.wait()

    async def let_it_end_after_others_heartbeats() -> None:
        await aeventually(lambda: ("leave", "ending") in said)
        before = said.count(("announce", "other"))
        await aeventually(lambda: said.count(("announce", "other")) > before + 3)
        gate.set()

    other = axeq.Pool(store, worker="other")
    other.add(axeq.Task(axeq.Model, probe_nothing, name="another"))
    pool = axeq.Pool(store, worker="ending", drain=DEADLINE)
    pool.add(axeq.Task(Probe, work))
    async with other:
        async with pool:
            await axeq.AsyncQueue(store).enqueue(Probe())
            await asyncio.wait_for(begun.wait(), DEADLINE)
            ending = asyncio.create_task(let_it_end_after_others_heartbeats())
        await ending
        known = [document["_id"] for document in client["axeq"]["jobs.workers"].find()]

    assert known == ["other"]
    assert [verb for verb, worker in said if worker == "ending"][-2:] == ["announce", "leave"]


async def probe_nothing(ctx: axeq.Context[Any, Any]) -> None:
    """Runs jobs that never come."""


@pytest.mark.parametrize(
    ("moment", "printed"), [(READY, "ended\n"), (STARTING, "left\nended\n")], ids=["ready", "starting"]
)
def test_a_signal_as_soon_as_the_pool_runs_ends_it_and_kills_nothing(moment: str, printed: str) -> None:
    with python("-c", SIGNALLED + moment + RUN) as process:
        output, errors = process.communicate(timeout=DEADLINE)

    assert (process.returncode, output) == (0, printed), errors
