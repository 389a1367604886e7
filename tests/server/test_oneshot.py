"""A pool's work without the pool: `work_one` and `drain`."""

from __future__ import annotations

import logging
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest

import axeq
from tests.support.pools import probe_pool, quick_pool, running
from tests.support.probe import Probe, probe, probe_in_process, stored_probe
from tests.support.waiting import DEADLINE, due, eventually

pytestmark = pytest.mark.kinds("uri", "mongomock")


class Chain(axeq.Model[int], name="chain"):
    left: int


class Newer(axeq.Model[int], name="newer", version=2):
    pass


def states(*jobs: Any) -> list[str]:
    return [str(job.refresh().state) for job in jobs]


def test_drain_runs_all_that_is_due_and_returns_the_number_of_attempts(store: axeq.Store, handler: Any) -> None:
    queue = axeq.Queue(store)
    due = queue.enqueue_many([Probe(value=number) for number in range(30)])
    later = queue.enqueue(Probe(), delay=600)

    assert probe_pool(store, handler).drain() == 30

    assert [job.refresh().result for job in due] == list(range(30))
    assert states(later) == ["enqueued"]
    assert probe_pool(store, handler).drain() == 0


def test_drain_runs_what_handlers_enqueue_for_now_meanwhile(store: axeq.Store) -> None:
    pool = quick_pool(store)

    @pool.task(Chain)
    async def chain(ctx: axeq.Context[Chain, int]) -> int:
        if ctx.model.left:
            await ctx.queue.enqueue(Chain(left=ctx.model.left - 1))
        return ctx.model.left

    axeq.Queue(store).enqueue(Chain(left=4))

    assert pool.drain() == 5


@pytest.mark.parametrize("group", [None, axeq.Group(grace=0.1)], ids=["alone", "group"])
def test_drain_does_not_wait_for_what_another_pool_runs_though_its_lease_is_short(
    store: axeq.Store, group: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A lease is short where it ends within what is due now: that is moved, and a stall costs no lease.
    monkeypatch.setattr("axeq.running.oneshot._NOW", timedelta(seconds=60))
    queue, opened = axeq.Queue(store), threading.Event()
    busy = quick_pool(store, lease=10)

    @busy.task(Probe, workers=1)
    def hold(ctx: axeq.Context[Probe, Any]) -> None:
        opened.wait(DEADLINE)

    with running(busy):
        theirs = queue.enqueue(Probe())
        eventually(lambda: states(theirs) == ["dequeued"])

        drained = probe_pool(store, group=group).drain()
        found = states(theirs)
        opened.set()

    assert (drained, found) == (0, ["dequeued"])


def test_drain_leaves_what_fails_or_is_put_off_until_later(store: axeq.Store) -> None:
    queue = axeq.Queue(store)
    failing = queue.enqueue(Probe(outcome="raise"))
    retrying = queue.enqueue(Probe(outcome="retry", delay=0.001))
    snoozing = queue.enqueue(Probe(outcome="snooze", delay=0.001))
    cancelling = queue.enqueue(Probe(outcome="cancel"))

    assert probe_pool(store, min_delay=0.001, max_delay=0.001).drain() == 4

    assert states(failing, retrying, snoozing, cancelling) == ["failed", "failed", "enqueued", "cancelled"]


def test_drain_tries_again_what_is_to_be_tried_at_once_until_it_is_exhausted(store: axeq.Store) -> None:
    job = axeq.Queue(store).enqueue(Probe(outcome="retry", delay=0))

    assert probe_pool(store, max_attempts=3).drain() == 3

    assert (job.refresh().state, job.cause) == ("cancelled", "exhausted")


def test_work_one_runs_the_first_job_in_order_and_says_whether_there_was_one(store: axeq.Store) -> None:
    queue = axeq.Queue(store)
    second, first = queue.enqueue(Probe(value=2)), queue.enqueue(Probe(value=1), priority=-5)
    due(store, first)
    pool = probe_pool(store)

    assert pool.work_one()
    assert states(first, second) == ["completed", "enqueued"]
    assert pool.work_one()
    assert not pool.work_one()
    assert states(first, second) == ["completed", "completed"]


async def test_both_have_an_async_form_for_a_running_loop(store: axeq.Store) -> None:
    queue = axeq.AsyncQueue(store)
    await queue.enqueue_many([Probe() for _ in range(3)])
    pool = probe_pool(store)

    assert await pool.awork_one()
    assert await pool.adrain() == 2
    with pytest.raises(axeq.ConfigurationError, match=r"await pool\.adrain"):
        pool.drain()


def test_a_pause_holds_for_both(store: axeq.Store) -> None:
    queue = axeq.Queue(store)
    job = queue.enqueue(Probe())
    pool = probe_pool(store)

    for name in (None, "probe"):
        queue.pause(name)
        assert pool.drain() == 0
        assert not pool.work_one()
        queue.resume(name)

    assert states(job) == ["enqueued"]
    assert pool.drain() == 1


def test_jobs_of_other_tasks_queues_and_newer_versions_are_left_alone(store: axeq.Store, jobs: Any) -> None:
    pool = probe_pool(store)
    pool.add(axeq.Task(Newer, lambda ctx: 0))
    others = [
        stored_probe(name="unheard-of"),
        stored_probe(queue="other"),
        stored_probe(version=2),
        stored_probe(name="newer", version=3),
    ]
    jobs.insert_many(others)

    assert pool.drain() == 0

    assert jobs.count_documents({"state": "enqueued"}) == len(others)


def test_a_job_that_has_lost_leases_is_judged_as_in_a_pool(store: axeq.Store, jobs: Any) -> None:
    once, often = stored_probe(lost=1, attempts=1), stored_probe(lost=6, attempts=1)
    spoilt = stored_probe(data={"outcome": "unheard of"})
    jobs.insert_many([once, often, spoilt])
    pool = probe_pool(store)

    assert pool.drain() == 1

    after = {document["_id"]: document for document in jobs.find()}
    assert (after[once["_id"]]["state"], after[once["_id"]]["attempts"]) == ("completed", 1)
    assert (after[often["_id"]]["state"], after[often["_id"]]["cause"]) == ("cancelled", "exhausted")
    assert (after[spoilt["_id"]]["state"], after[spoilt["_id"]]["cause"]) == ("cancelled", "invalid")


def test_a_job_whose_worker_died_is_run_by_drain_once_its_lease_has_lapsed(store: axeq.Store, jobs: Any) -> None:
    held = stored_probe(state="dequeued", claim={"token": "theirs", "worker": "dead"}, lost=1, attempts=1)
    alive = stored_probe(state="dequeued", claim={"token": "theirs", "worker": "alive"}, lost=1, attempts=1)
    alive["available_at"] += timedelta(hours=1)
    jobs.insert_many([held, alive])

    assert probe_pool(store).drain() == 1

    assert jobs.find_one({"_id": held["_id"]})["state"] == "completed"
    assert jobs.find_one({"_id": alive["_id"]})["state"] == "dequeued"


def test_drain_runs_what_was_parked_until_a_pool_comes_that_understands_it(store: axeq.Store, jobs: Any) -> None:
    stranger = quick_pool(store, unknown="park")
    stranger.add(axeq.Task(Chain, lambda ctx: 0))
    job = axeq.Queue(store).enqueue(Probe())
    with running(stranger):
        eventually(lambda: jobs.count_documents({"_id": job.id, "parked": {"$exists": True}}) == 1)

    assert probe_pool(store).drain() == 1

    assert states(job) == ["completed"]


def test_groups_are_ready_at_once_and_each_is_one_call(store: axeq.Store) -> None:
    calls: list[list[int]] = []
    queue = axeq.Queue(store)
    queue.enqueue_many([Chain(left=number) for number in range(5)], group="a")
    queue.enqueue_many([Chain(left=number) for number in range(5, 8)], group="b")
    pool = quick_pool(store)

    @pool.task(Chain, group=axeq.Group(grace=600))
    async def sum_up(ctx: axeq.Context[Chain, int]) -> int:
        calls.append(sorted(model.left for model in ctx.models))
        return 0

    assert pool.work_one()
    assert sorted(map(len, calls)) in ([5], [3])
    assert pool.drain() in (5, 3)
    assert sorted(calls) == [[0, 1, 2, 3, 4], [5, 6, 7]]
    assert not pool.work_one()


def test_hooks_lifespan_and_notify_are_as_in_a_running_pool(store: axeq.Store) -> None:
    history: list[Any] = []

    @asynccontextmanager
    async def lifespan(pool: axeq.Pool) -> AsyncIterator[str]:
        history.append("entered")
        yield "shared"
        history.append("left")

    pool = quick_pool(store, lifespan=lifespan)
    pool.on("claimed")(lambda job: history.append("claimed"))
    pool.on("done")(lambda job: history.append(job.state))

    @pool.task(Probe, notify=lambda job: history.append("notified"))
    async def use(ctx: axeq.Context[Probe, Any]) -> Any:
        return history.append(ctx.resources)

    axeq.Queue(store).enqueue(Probe())

    assert pool.drain() == 1
    assert history == ["entered", "claimed", "shared", "completed", "notified", "left"]


def test_leases_are_extended_while_drain_runs(store: axeq.Store) -> None:
    pool = quick_pool(store, lease=3)
    held_on = threading.Event()

    @pool.task(Probe)
    def outlast(ctx: axeq.Context[Probe, Any]) -> Any:
        queue, first_end = ctx.sync_queue, ctx.job.available_at

        def extended_twice() -> bool:
            return queue.get(ctx.job.id).available_at >= first_end + timedelta(seconds=1.5)

        eventually(extended_twice)
        held_on.set()

    job = axeq.Queue(store).enqueue(Probe())

    assert pool.drain() == 1
    assert held_on.is_set()
    assert (job.refresh().state, job.attempts) == ("completed", 1)


def test_stop_ends_a_drain_and_what_runs_is_given_back(store: axeq.Store) -> None:
    pool = quick_pool(store, drain=0)
    pool.add(axeq.Task(Probe, probe, workers=1))
    hanging = axeq.Queue(store).enqueue(Probe(outcome="hang"))
    waiting = axeq.Queue(store).enqueue(Probe())
    pool.on("started")(lambda job: pool.stop())

    assert pool.drain() == 1

    assert [(job.refresh().state, job.attempts) for job in (hanging, waiting)] == [("enqueued", 0)] * 2


def test_neither_is_allowed_while_the_pool_runs(store: axeq.Store) -> None:
    pool = probe_pool(store)

    with running(pool):
        with pytest.raises(axeq.AlreadyRunning):
            pool.drain()
        with pytest.raises(axeq.AlreadyRunning):
            pool.work_one()


@pytest.mark.needs("processes")
def test_drain_runs_handlers_in_processes_too(store: axeq.Store) -> None:
    job = axeq.Queue(store).enqueue(Probe(value=7))

    assert probe_pool(store, probe_in_process, executor="process").drain() == 1

    assert job.refresh().result == 7


@pytest.mark.needs("exclusive")
def test_drains_that_race_run_each_job_once(store: axeq.Store, caplog: pytest.LogCaptureFixture) -> None:
    axeq.Queue(store).enqueue_many([Probe() for _ in range(60)])
    counts: list[int] = []
    pools = [probe_pool(store, workers=5) for _ in range(3)]
    threads = [threading.Thread(target=lambda pool=pool: counts.append(pool.drain())) for pool in pools]

    with caplog.at_level(logging.WARNING):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(DEADLINE)

    assert sum(counts) == 60
    assert [record.getMessage() for record in caplog.records if "LeaseLost" in record.getMessage()] == []
