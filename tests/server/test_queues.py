"""A pool of several queues, the order of jobs, and how many run at once."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

import axeq
from axeq import State
from tests.support.pools import quick_pool, running
from tests.support.probe import Probe, probe
from tests.support.waiting import DEADLINE, due, eventually

pytestmark = [pytest.mark.kinds("uri", "mongomock"), pytest.mark.usefixtures("nothing_given_back")]
"""Nothing of it depends on how a store was opened; and what is claimed is to start in its turn."""


class Other(axeq.Model[Any], name="other"):
    value: Any = None


class Third(axeq.Model[Any], name="third"):
    value: Any = None


def enqueued(store: axeq.Store, count: int, *queues: str, payload: axeq.Model[Any] | None = None) -> None:
    for queue in queues:
        made = axeq.Queue(store, queue).enqueue_many([payload or Probe()] * count)
        due(store, made[-1])


def noting_queues(pool: axeq.Pool, *, workers: int = 1, seconds: float = 0.0) -> list[str]:
    """Has a pool run probes of so many seconds each; returns the list that their queues are written to."""
    ran: list[str] = []

    @pool.task(Probe, workers=workers)
    async def note(ctx: axeq.Context[Probe, Any]) -> None:
        ran.append(ctx.job.queue)
        await asyncio.sleep(seconds)

    return ran


def all_run(ran: list[str], count: int) -> None:
    eventually(lambda: len(ran) >= count)


def test_queues_share_a_pool_by_their_weights_while_all_have_jobs(store: axeq.Store) -> None:
    for queue, count in (("critical", 150), ("default", 85), ("low", 40)):
        enqueued(store, count, queue)
    pool = quick_pool(store, queues={"low": 1, "critical": 6, "default": 3}, drain=0)
    ran = noting_queues(pool, seconds=0.004)

    with running(pool):
        all_run(ran, 200)

    shares = Counter(ran[:200])
    assert shares["critical"] == pytest.approx(120, abs=24)
    assert shares["default"] == pytest.approx(60, abs=20)
    assert shares["low"] == pytest.approx(20, abs=12)


def test_in_strict_order_a_lower_queue_runs_only_what_higher_ones_leave(store: axeq.Store) -> None:
    enqueued(store, 20, "low", "default", "critical")
    pool = quick_pool(store, queues={"low": 1, "critical": 6, "default": 3}, strict=True)
    ran = noting_queues(pool)

    with running(pool):
        all_run(ran, 60)

    assert ran == ["critical"] * 20 + ["default"] * 20 + ["low"] * 20


def test_in_strict_order_what_comes_to_a_higher_queue_goes_first(store: axeq.Store) -> None:
    enqueued(store, 60, "low")
    pool = quick_pool(store, queues=["high", "low"], strict=True, drain=0)
    ran = noting_queues(pool, seconds=0.05)

    with running(pool):
        all_run(ran, 3)
        enqueued(store, 10, "high")
        before = ran.count("low")
        eventually(lambda: ran.count("high") == 10)

    low_meanwhile = ran[: ran.index("high")].count("low") - before
    assert low_meanwhile < 40  # those claimed before, and no more
    assert "high" not in ran[ran.index("high") + 10 :]


@pytest.mark.usefixtures("nobody_looks")
def test_every_task_serves_every_queue(store: axeq.Store) -> None:
    pool = quick_pool(store, queues=["first", "second"])
    pool.add(axeq.Task(Probe, probe))

    @pool.task(Other)
    async def other(ctx: axeq.Context[Other, Any]) -> Any:
        return ctx.model.value, ctx.job.queue

    with running(pool):
        jobs = [axeq.Queue(store, queue).enqueue(Other(value=1)) for queue in ("first", "second")]
        probes = [axeq.Queue(store, queue).enqueue(Probe(value=2)) for queue in ("first", "second")]

        assert [job.wait(DEADLINE) for job in jobs] == [[1, "first"], [1, "second"]]
        assert [job.wait(DEADLINE) for job in probes] == [2, 2]


def test_a_paused_queue_waits_and_the_others_run(store: axeq.Store) -> None:
    enqueued(store, 5, "first", "second")
    axeq.Queue(store, "first").pause()
    pool = quick_pool(store, queues={"first": 9, "second": 1})
    ran = noting_queues(pool)

    with running(pool):
        all_run(ran, 5)

    assert ran == ["second"] * 5
    assert axeq.Queue(store, "first").stats()[State.ENQUEUED] == 5


def test_a_queue_that_is_alone_with_jobs_has_the_whole_pool(store: axeq.Store) -> None:
    enqueued(store, 100, "low")
    pool = quick_pool(store, queues={"critical": 1000, "low": 1})
    ran = noting_queues(pool, workers=10)

    with running(pool):
        all_run(ran, 100)

    assert pool.counts["complete"] == 100
    assert pool.counts["release"] == 0


@pytest.mark.usefixtures("nobody_looks")
def test_jobs_due_in_any_queue_are_not_overslept(store: axeq.Store) -> None:
    pool = quick_pool(store, queues=["first", "second"])
    pool.add(axeq.Task(Probe, probe))

    with running(pool):
        jobs = [axeq.Queue(store, queue).enqueue(Probe(value=queue), delay=0.5) for queue in ("second", "first")]

        assert [job.wait(DEADLINE) for job in jobs] == ["second", "first"]


def test_pools_of_different_queues_count_only_those_that_serve_the_same_as_rivals(store: axeq.Store) -> None:
    pools = {name: quick_pool(store, queues=queues) for name, queues in (("one", ["a", "b"]), ("two", ["b", "c"]))}
    for pool in pools.values():
        pool.add(axeq.Task(Probe, probe))
    pools["two"].add(axeq.Task(Other, _nothing))

    with running(pools["two"]), running(pools["one"]):
        shift = pools["one"]._shift
        assert shift is not None
        rivals = {queue: set(source.lag._others) for queue, source in shift._sources.items()}  # type: ignore[attr-defined]

    assert rivals == {"a": set(), "b": {"probe", "other"}}


async def _nothing(ctx: axeq.Context[Other, Any]) -> None:
    return None


# Order


def spread(store: axeq.Store, jobs: Any) -> list[Any]:
    """Enqueues jobs whose priorities and due times disagree; returns their ids in order of due time."""
    now = datetime.now(UTC)
    made = []
    for minutes in (1, 5, 3, 2, 4):
        job = axeq.Queue(store).enqueue(Probe(value=minutes), priority=minutes)
        jobs.update_one({"_id": job.id}, {"$set": {"available_at": now - timedelta(minutes=minutes)}})
        made.append((minutes, job.id))
    return [identity for _, identity in sorted(made, reverse=True)]


@pytest.mark.parametrize("order", ["due", "priority"])
def test_jobs_run_in_the_order_of_the_pool(store: axeq.Store, jobs: Any, order: Any) -> None:
    by_due = spread(store, jobs)
    ran: list[Any] = []
    pool = quick_pool(store, order=order)

    @pool.task(Probe, workers=1)
    async def note(ctx: axeq.Context[Probe, Any]) -> None:
        ran.append(ctx.job.id)

    with running(pool):
        eventually(lambda: len(ran) == 5)

    assert ran == (by_due if order == "due" else by_due[::-1])


@pytest.mark.kinds("uri")
def test_a_backlog_of_many_priorities_runs_in_order_of_due_time(store: axeq.Store, jobs: Any) -> None:
    queue = axeq.Queue(store)
    for priority in range(3, 0, -1):
        queue.enqueue_many([Probe() for _ in range(400)], priority=priority)
    due = datetime.now(UTC) - timedelta(minutes=1)
    order = [job["_id"] for job in jobs.find({}, {"_id": 1}).sort("_id", 1)]
    for number, identity in enumerate(order[::200]):
        jobs.update_one({"_id": identity}, {"$set": {"available_at": due + timedelta(seconds=number)}})
    ran: list[Any] = []
    pool = quick_pool(store, order="due", drain=0)

    @pool.task(Probe, workers=1)
    async def note(ctx: axeq.Context[Probe, Any]) -> None:
        ran.append(ctx.job.id)

    with running(pool):
        eventually(lambda: len(ran) >= 6)

    assert ran[:6] == order[::200]


# How many run at once


class Crowd:
    """Counts who is inside at once, from any thread, and notes in which `order` they came."""

    def __init__(self) -> None:
        self.most = 0
        self.order: list[str] = []
        self._inside = 0
        self._lock = threading.Lock()

    def enter(self, name: str) -> None:
        with self._lock:
            self._inside += 1
            self.most = max(self.most, self._inside)
            self.order.append(name)

    def leave(self) -> None:
        with self._lock:
            self._inside -= 1

    def came(self, first: int | None = None) -> Counter[str]:
        """Returns how many of each have come, or were among the `first` so many."""
        return Counter(self.order[:first])


def crowded(pool: axeq.Pool) -> Crowd:
    """Three tasks of four workers each, two on the loop and one in threads."""
    crowd = Crowd()

    async def visit(ctx: axeq.Context[Any, Any]) -> None:
        crowd.enter(ctx.job.name)
        await asyncio.sleep(0.01)
        crowd.leave()

    def visit_in_thread(ctx: axeq.Context[Any, Any]) -> None:
        crowd.enter(ctx.job.name)
        time.sleep(0.01)
        crowd.leave()

    pool.add(axeq.Task(Probe, visit, workers=4))
    pool.add(axeq.Task(Other, visit_in_thread, workers=4))
    pool.add(axeq.Task(Third, visit, workers=4))
    return crowd


def test_no_more_attempts_run_at_once_than_the_pool_may_run(store: axeq.Store) -> None:
    for payload in (Probe(), Other(), Third()):
        enqueued(store, 30, "default", payload=payload)
    pool = quick_pool(store, concurrency=3)
    crowd = crowded(pool)

    with running(pool):
        eventually(lambda: pool.counts["complete"] == 90)

    assert crowd.most == 3
    assert crowd.came() == {"probe": 30, "other": 30, "third": 30}


def test_tasks_have_equal_turns_where_the_pool_is_full(store: axeq.Store) -> None:
    for payload in (Probe(), Other(), Third()):
        enqueued(store, 80, "default", payload=payload)
    pool = quick_pool(store, concurrency=3, drain=0)
    crowd = crowded(pool)

    with running(pool):
        all_run(crowd.order, 150)

    came = crowd.came(150)
    assert len(came) == 3
    assert all(30 <= count <= 75 for count in came.values()), came


def test_weights_hold_between_tasks_where_the_pool_is_full(store: axeq.Store) -> None:
    enqueued(store, 160, "critical", payload=Probe())
    enqueued(store, 70, "low", payload=Other())
    pool = quick_pool(store, queues={"critical": 4, "low": 1}, concurrency=2, drain=0)
    crowd = crowded(pool)

    with running(pool):
        all_run(crowd.order, 150)

    assert crowd.came(150)["probe"] == pytest.approx(120, abs=30)


def test_a_task_is_not_kept_out_by_one_with_a_backlog(store: axeq.Store) -> None:
    enqueued(store, 800, "default", payload=Probe())
    pool = quick_pool(store, concurrency=2, drain=0)
    crowd = crowded(pool)

    with running(pool):
        all_run(crowd.order, 50)
        other = axeq.Queue(store).enqueue(Other())
        before = len(crowd.order)
        other.wait(DEADLINE)

    assert crowd.order.index("other") - before < 550


def test_a_job_that_has_lost_a_lease_gets_a_place_of_a_full_pool(store: axeq.Store, jobs: Any) -> None:
    enqueued(store, 800, "default", payload=Probe())
    orphan = axeq.Queue(store).enqueue(Other(), priority=-1)
    claim = {"state": "dequeued", "claim": {"token": 1, "worker": "dead"}, "lost": 1, "attempts": 1}
    jobs.update_one({"_id": orphan.id}, {"$set": claim})
    pool = quick_pool(store, concurrency=2, drain=0)
    crowd = crowded(pool)

    with running(pool):
        orphan.wait(DEADLINE)

    assert crowd.order.index("other") < 600


@pytest.mark.parametrize("concurrency", [None, 3])
def test_attempts_that_run_at_once_have_worker_numbers_of_their_own(store: axeq.Store, concurrency: int | None) -> None:
    enqueued(store, 40, "default")
    taken: set[int] = set()
    clashes: list[int] = []
    seen: set[int] = set()
    pool = quick_pool(store, concurrency=concurrency)

    @pool.task(Probe, workers=4)
    async def take_number(ctx: axeq.Context[Probe, Any]) -> None:
        if ctx.worker_index in taken:
            clashes.append(ctx.worker_index)
        taken.add(ctx.worker_index)
        seen.add(ctx.worker_index)
        await asyncio.sleep(0.01)
        taken.discard(ctx.worker_index)

    with running(pool):
        eventually(lambda: pool.counts["complete"] == 40)

    assert clashes == []
    assert seen <= {0, 1, 2, 3}
    assert len(seen) == (concurrency or 4)


def number_of(ctx: axeq.Context[Probe, Any]) -> int:
    return ctx.worker_index


@pytest.mark.parametrize("kind", ["uri"], indirect=True)
@pytest.mark.parametrize("executor", ["thread", "process"])
def test_a_handler_in_a_thread_or_process_knows_its_worker_number(store: axeq.Store, executor: Any) -> None:
    pool = quick_pool(store)
    pool.add(axeq.Task(Probe, number_of, workers=1, executor=executor))

    with running(pool):
        assert axeq.Queue(store).enqueue(Probe()).wait(DEADLINE) == 0


def test_periodic_jobs_of_a_pool_of_several_queues_go_to_the_first(store: axeq.Store, jobs: Any) -> None:
    pool = quick_pool(store, queues=["first", "second"])

    @pool.task(Probe, every=3600)
    async def hourly(ctx: axeq.Context[Probe, Any]) -> None:
        return None

    with running(pool):
        eventually(lambda: pool.counts["complete"] >= 1)

    assert {job["queue"] for job in jobs.find()} == {"first"}
