"""Jobs that no task of a pool understands: left, parked, or run by a handler of whatever comes."""

from __future__ import annotations

import threading
from typing import Any

import pytest

import axeq
from axeq import State
from tests.support.pools import quick_pool, running
from tests.support.probe import Probe, probe
from tests.support.waiting import DEADLINE, eventually

pytestmark = pytest.mark.kinds("uri", "mongomock")
"""Nothing of it depends on how a store was opened."""


class Strange(axeq.Model[Any], name="strange", version=7):
    value: Any = None


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_UNKNOWN_EVERY", "_ADOPTED_EVERY"):
        monkeypatch.setattr(f"axeq.running.shift.{name}", 0.2)
    monkeypatch.setattr("axeq.rules.workers.HEARTBEAT", 0.2)


def pool_for(store: axeq.Store, **options: Any) -> axeq.Pool:
    pool = quick_pool(store, **options)
    pool.add(axeq.Task(Probe, probe))
    return pool


def strange_pool(store: axeq.Store, **options: Any) -> axeq.Pool:
    pool = quick_pool(store, **options)

    @pool.task(Strange)
    async def run(ctx: axeq.Context[Strange, Any]) -> Any:
        return "its own"

    return pool


def in_minutes(job: Any) -> float:
    """How long a job still waits, as its document says."""
    job.refresh()
    return float((job.available_at - job.created_at).total_seconds() / 60)


def test_a_job_that_no_live_pool_understands_is_parked_and_run_once_one_comes(store: axeq.Store) -> None:
    queue = axeq.Queue(store)
    strange = queue.enqueue(Strange())

    with running(pool_for(store, unknown="park")) as pool:
        eventually(lambda: in_minutes(strange) > 4)
        assert queue.enqueue(Probe(value=1)).wait(DEADLINE) == 1
        with running(strange_pool(store)):
            assert strange.wait(DEADLINE) == "its own"

    assert (strange.refresh().attempts, pool.counts["dequeue"]) == (1, 1)


def test_a_parked_job_runs_once_a_pool_starts_that_takes_whatever_comes(store: axeq.Store) -> None:
    strange = axeq.Queue(store).enqueue(Strange())

    def whatever(ctx: axeq.Context[Any, Any]) -> str:
        return "whatever"

    with running(pool_for(store, unknown="park")):
        eventually(lambda: in_minutes(strange) > 4)
        with running(pool_for(store, unknown=whatever)):
            assert strange.wait(DEADLINE) == "whatever"

    assert strange.refresh().attempts == 1


def test_a_job_that_another_live_pool_understands_is_not_parked(store: axeq.Store) -> None:
    queue, gate = axeq.Queue(store), threading.Event()
    busy = quick_pool(store)

    @busy.task(Strange, workers=1)
    def hold(ctx: axeq.Context[Strange, Any]) -> None:
        gate.wait(DEADLINE)

    with running(busy), running(pool_for(store, unknown="park")) as pool:
        jobs = [queue.enqueue(Strange()) for _ in range(3)]
        eventually(lambda: pool.unknown == {"strange": 2})
        pool.unknown["looked again"] = 1
        eventually(lambda: "looked again" not in pool.unknown)
        waiting = [in_minutes(job) for job in jobs if job.refresh().state is State.ENQUEUED]
        gate.set()
        for job in jobs:
            job.wait(DEADLINE)

    assert len(waiting) == 2
    assert max(waiting) < 1


def test_a_handler_for_whatever_comes_runs_what_nobody_else_understands(
    store: axeq.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = axeq.Queue(store)
    told: list[Any] = []

    async def whatever(ctx: axeq.Context[Any, Any]) -> Any:
        return [ctx.job.name, ctx.job.version, ctx.model.value]

    pool = pool_for(store, unknown=whatever)
    pool.on("unknown")(lambda name, count: told.append((name, count)))
    with running(pool):
        first = queue.enqueue(Strange(value={"a": [1]}))
        assert first.wait(DEADLINE) == ["strange", 7, {"a": [1]}]
        assert queue.enqueue(Probe(value=1)).wait(DEADLINE) == 1
        # The name is known by now, and need not be looked for again.
        monkeypatch.setattr("axeq.running.unknown.Unknown.look", _nothing)
        assert queue.enqueue(Strange(value=2)).wait(DEADLINE) == ["strange", 7, 2]

    assert pool.unknown == {}
    assert first.refresh().attempts == 1


async def _nothing(self: Any, patience: float) -> None:
    """Stands for a look that is not taken."""


def test_a_handler_for_whatever_comes_leaves_names_to_pools_that_have_a_task_for_them(store: axeq.Store) -> None:
    queue = axeq.Queue(store)

    def whatever(ctx: axeq.Context[Any, Any]) -> str:
        return "whatever"

    with running(pool_for(store, unknown=whatever)) as pool:
        assert queue.enqueue(Strange()).wait(DEADLINE) == "whatever"
        with running(strange_pool(store)):
            shift = pool._shift
            assert shift is not None
            eventually(lambda: shift._unknown.adopted == [])

            assert [queue.enqueue(Strange()).wait(DEADLINE) for _ in range(5)] == ["its own"] * 5
            assert queue.enqueue(Probe(value=1)).wait(DEADLINE) == 1
        assert queue.enqueue(Strange()).wait(DEADLINE) == "whatever"


def test_a_name_is_run_for_the_queues_where_nobody_else_understands_it(store: axeq.Store) -> None:
    def whatever(ctx: axeq.Context[Any, Any]) -> str:
        return "whatever"

    with (
        running(strange_pool(store, queue="theirs")),
        running(pool_for(store, queues=["theirs", "ours"], unknown=whatever)),
    ):
        ours = [axeq.Queue(store, "ours").enqueue(Strange()) for _ in range(5)]
        theirs = [axeq.Queue(store, "theirs").enqueue(Strange()) for _ in range(5)]

        assert {job.wait(DEADLINE) for job in ours} == {"whatever"}
        assert {job.wait(DEADLINE) for job in theirs} == {"its own"}


def test_a_handler_for_whatever_comes_shares_the_places_of_the_pool(store: axeq.Store) -> None:
    queue = axeq.Queue(store)
    inside, most = 0, 0

    async def count(ctx: axeq.Context[Any, Any]) -> None:
        nonlocal inside, most
        inside, most = inside + 1, max(most, inside + 1)
        await ctx.queue.find(limit=1)
        inside -= 1

    pool = quick_pool(store, unknown=count, concurrency=1)
    pool.add(axeq.Task(Probe, count))
    with running(pool):
        jobs = [queue.enqueue(payload) for payload in (Probe(), Strange()) * 10]
        for job in jobs:
            job.wait(DEADLINE)

    assert most == 1
