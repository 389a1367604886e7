"""The life of a pool: how it starts, is woken, shares work and ends."""

from __future__ import annotations

import asyncio
import json
import signal
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

import axeq
from axeq import State
from axeq.rules.lifecycle import Claim
from axeq.running.claims import Claims
from axeq.words.clock import milliseconds
from axeq.words.errors import StoreUnavailable
from tests.support.pools import python, quick_pool, running
from tests.support.probe import Probe, probe, stored_probe
from tests.support.waiting import DEADLINE, aeventually, eventually

pytestmark = pytest.mark.kinds("uri", "motor", "mongomock")
"""Those that are woken in different ways; nothing else of it depends on how a store was opened."""


def pool_for(store: axeq.Store, **options: Any) -> axeq.Pool:
    pool = quick_pool(store, **options)
    pool.add(axeq.Task(Probe, probe, workers=4))
    return pool


def gated(store: axeq.Store, gate: threading.Event, *, workers: int = 2, **options: Any) -> axeq.Pool:
    """A pool whose handlers wait at `gate`, unless they are told to stop."""
    pool = quick_pool(store, **options)

    @pool.task(Probe, workers=workers)
    async def wait_at_gate(ctx: axeq.Context[Probe, Any]) -> Any:
        while not gate.is_set():
            await asyncio.sleep(0.01)
        return ctx.model.value

    return pool


async def probe_nothing(ctx: Any) -> None:
    """Stands for a task that comes too late."""


def verbs(counts: Mapping[str, int]) -> dict[str, int]:
    """Returns what happened to jobs, without how hard the pool had to try."""
    return {verb: count for verb, count in counts.items() if verb not in ("attempted", "raced")}


def in_state(queue: axeq.Queue, state: State, count: int) -> None:
    eventually(lambda: queue.stats()[state] == count)


def test_a_pool_that_is_stopped_lets_handlers_finish(store: axeq.Store) -> None:
    gate, queue = threading.Event(), axeq.Queue(store)
    with running(gated(store, gate, drain=DEADLINE)) as pool:
        job = queue.enqueue(Probe(value=1))
        in_state(queue, State.DEQUEUED, 1)

        pool.stop()
        gate.set()

    assert job.wait(0) == 1
    assert verbs(pool.counts) == {"dequeue": 1, "complete": 1}


def test_a_pool_that_is_stopped_gives_back_what_does_not_finish(store: axeq.Store) -> None:
    queue = axeq.Queue(store)
    with running(gated(store, threading.Event(), drain=0.1)) as pool:
        job = queue.enqueue(Probe())
        in_state(queue, State.DEQUEUED, 1)

    job.refresh()
    assert (job.state, job.attempts, job.lost) == (State.ENQUEUED, 0, 0)
    assert job.available_at <= milliseconds(datetime.now(UTC)) + timedelta(seconds=1)
    assert job.events[-1]["verb"] == "release"
    assert verbs(pool.counts) == {"dequeue": 1, "release": 1}


@pytest.mark.kinds("uri", "mongomock")
@pytest.mark.usefixtures("nothing_given_back")
def test_a_stopped_pool_gives_back_what_it_has_not_started(store: axeq.Store) -> None:
    # Quick jobs first, so that the pool claims ahead; then it is stopped while some of those wait.
    gate, queue = threading.Event(), axeq.Queue(store)
    pool = quick_pool(store, drain=0.1)

    @pool.task(Probe, workers=1)
    async def quick_then_stuck(ctx: axeq.Context[Probe, Any]) -> None:
        if ctx.model.outcome == "hang":
            gate.set()
            await asyncio.sleep(3600)

    queue.enqueue_many([Probe() for _ in range(300)])
    stuck = queue.enqueue_many([Probe(outcome="hang") for _ in range(20)], priority=1)
    with running(pool):
        gate.wait(DEADLINE)

    assert {job.refresh().state for job in stuck} == {State.ENQUEUED}
    assert {(job.attempts, job.lost) for job in stuck} == {(0, 0)}
    assert pool.counts["release"] == pool.counts["dequeue"] - 300


def test_a_second_stop_does_not_cut_the_drain_short(store: axeq.Store) -> None:
    gate, queue = threading.Event(), axeq.Queue(store)
    with running(gated(store, gate, drain=DEADLINE)) as pool:
        job = queue.enqueue(Probe(value=1))
        in_state(queue, State.DEQUEUED, 1)

        pool.stop()
        pool.stop()
        gate.set()

    assert job.wait(0) == 1


@pytest.mark.needs("processes")
def test_a_term_signal_drains_the_pool_and_gives_back_the_rest(store: axeq.Store, uri: str) -> None:
    queue = axeq.Queue(store)
    short, endless = queue.enqueue(Probe(delay=1)), queue.enqueue(Probe(outcome="hang", delay=3600))

    with python("-m", "tests.support.stopping", uri, "4") as process:
        assert process.stdout is not None
        lines = {process.stdout.readline() for _ in range(3)}
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate(timeout=DEADLINE)

    assert lines == {"ready\n", "started ok\n", "started hang\n"}
    assert process.returncode == 0, errors
    assert verbs(json.loads(output.rpartition("ended ")[2])) == {"dequeue": 2, "complete": 1, "release": 1}
    assert short.refresh().state is State.COMPLETED
    assert (endless.refresh().state, endless.attempts) == (State.ENQUEUED, 0)


@pytest.mark.needs("processes")
@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_the_pool_at_once(store: axeq.Store, uri: str, first: signal.Signals) -> None:
    queue = axeq.Queue(store)
    endless = queue.enqueue(Probe(delay=3600))
    # Equal signals that come at once are one.
    second = signal.SIGINT if first is signal.SIGTERM else signal.SIGTERM

    with python("-m", "tests.support.stopping", uri, "600") as process:
        in_state(queue, State.DEQUEUED, 1)
        assert process.stdout is not None
        lines = {process.stdout.readline(), process.stdout.readline()}
        process.send_signal(first)
        process.send_signal(second)
        output, errors = process.communicate(timeout=DEADLINE)

    assert lines == {"ready\n", "started ok\n"}
    assert process.returncode == 0, errors
    assert verbs(json.loads(output.removeprefix("ended "))) == {"dequeue": 1, "release": 1}
    assert endless.refresh().state is State.ENQUEUED


def test_a_pool_runs_once_at_a_time(store: axeq.Store) -> None:
    with running(pool_for(store)) as pool:
        with pytest.raises(axeq.AlreadyRunning, match="running already"):
            pool.run()
        with pytest.raises(axeq.AlreadyRunning, match="add 'other' before it starts"):
            pool.add(axeq.Task(axeq.Model, probe_nothing, name="other"))

        assert axeq.Queue(store).enqueue(Probe(value=1)).wait(DEADLINE) == 1


def test_a_pool_that_has_ended_can_run_again(store: axeq.Store) -> None:
    pool, queue = pool_for(store), axeq.Queue(store)

    for value in (1, 2):
        with running(pool):
            assert queue.enqueue(Probe(value=value)).wait(DEADLINE) == value


def test_a_pool_without_tasks_does_not_start(store: axeq.Store) -> None:
    with pytest.raises(axeq.ConfigurationError, match="the pool has no tasks"):
        axeq.Pool(store).run()


async def test_a_pool_runs_inside_an_application(store: axeq.Store) -> None:
    queue = axeq.AsyncQueue(store)

    async with pool_for(store) as pool:
        made = await queue.enqueue_many([Probe(value=number) for number in range(5)])
        results = [await job.wait(DEADLINE) for job in made]

    assert results == list(range(5))
    assert not pool.ready.is_set()
    assert verbs(pool.counts) == {"dequeue": 5, "complete": 5}


async def test_an_application_that_fails_still_gives_its_jobs_back(store: axeq.Store) -> None:
    queue = axeq.AsyncQueue(store)
    job = await queue.enqueue(Probe())

    async def application() -> None:
        async with gated(store, threading.Event(), drain=0):
            await aeventually(lambda: _dequeued(job))
            raise ValueError("the application's own")

    with pytest.raises(ValueError, match="the application's own"):
        await application()

    assert (await job.refresh()).state is State.ENQUEUED


async def _dequeued(job: axeq.AsyncJob[Any, Any]) -> bool:
    return (await job.refresh()).state is State.DEQUEUED


def test_two_pools_share_the_work_and_no_job_runs_twice(store: axeq.Store) -> None:
    gate, queue, ran = threading.Event(), axeq.Queue(store), []
    pools = []
    for _ in range(2):
        pool = quick_pool(store)

        @pool.task(Probe, workers=2)
        def take_part(ctx: axeq.Context[Probe, Any]) -> None:
            ran.append((ctx.worker, ctx.model.value))
            gate.wait(DEADLINE)

        pools.append(pool)

    with running(pools[0]), running(pools[1]):
        queue.enqueue_many([Probe(value=number) for number in range(30)])
        eventually(lambda: len({worker for worker, _ in ran}) == 2)
        gate.set()
        in_state(queue, State.COMPLETED, 30)

    assert sorted(value for _, value in ran) == list(range(30))


@pytest.mark.usefixtures("nobody_looks")
def test_a_job_enqueued_while_the_pool_idles_starts_promptly(store: axeq.Store) -> None:
    queue = axeq.Queue(store)

    with running(pool_for(store)):
        for value in range(10):
            assert queue.enqueue(Probe(value=value)).wait(DEADLINE) == value


@pytest.mark.needs("streams")
@pytest.mark.usefixtures("nobody_looks")
def test_a_job_announced_while_the_pool_reads_is_not_forgotten(
    store: axeq.Store, jobs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job whose insert was under way when the read began, and announced before the read's reply was there."""
    queue, run, announced = axeq.Queue(store), store.arun, threading.Event()
    job = queue.enqueue(Probe(value=1))
    document = jobs.find_one_and_delete({"_id": job.id})
    pool, inserted = pool_for(store), threading.Event()

    async def slow_reads(op: Any, **options: Any) -> Any:
        found = await run(op, **options)
        listening = pool._shift is not None and pool._shift._sources["default"].feed.streaming
        if op.__name__ == "due_page" and listening and not inserted.is_set():
            inserted.set()
            await asyncio.to_thread(jobs.insert_one, document)
            await aeventually(announced.is_set)
        return found

    monkeypatch.setattr(store, "arun", slow_reads)
    monkeypatch.setattr("axeq.supply.board.Board.offer", _noting(announced))
    with running(pool):
        eventually(lambda: jobs.find_one({"_id": job.id}) is not None)

        assert job.wait(DEADLINE) == 1


def _noting(announced: threading.Event) -> Callable[..., None]:
    from axeq.supply.board import Board

    offer = Board.offer

    def noted(board: Board, *args: Any, **options: Any) -> None:
        offer(board, *args, **options)
        announced.set()

    return noted


@pytest.mark.kinds("uri")
@pytest.mark.needs("streams")
@pytest.mark.usefixtures("nobody_looks")
@pytest.mark.parametrize("lost", [0, 1])
@pytest.mark.parametrize(
    "answer", [Claim(), StoreUnavailable("db:27017", "connection closed")], ids=["nothing", "error"]
)
def test_a_job_that_a_claim_did_not_bring_is_looked_for_at_once(
    store: axeq.Store, jobs: Any, monkeypatch: pytest.MonkeyPatch, answer: Any, lost: int
) -> None:
    claims = _answered_once(monkeypatch, answer)
    pool, job = pool_for(store), stored_probe(lost=lost, attempts=lost)

    with running(pool):
        shift: Any = pool._shift
        eventually(lambda: shift._sources["default"].feed.streaming)
        jobs.insert_one(job)
        eventually(lambda: jobs.find_one({"_id": job["_id"]})["state"] == "completed")

    assert len(claims) >= 2


def _answered_once(monkeypatch: pytest.MonkeyPatch, answer: Any) -> list[Any]:
    """Has the first claim of a pool fail with `answer`, or bring that; returns the list that claims are added to."""
    claims: list[Any] = []
    claim = Claims.claim

    async def noted(self: Claims, candidates: Any) -> Any:
        claims.append(candidates)
        if len(claims) > 1:
            return await claim(self, candidates)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(Claims, "claim", noted)
    return claims


@pytest.mark.usefixtures("nobody_looks")
def test_a_job_given_back_by_one_pool_starts_promptly_in_another(store: axeq.Store) -> None:
    queue = axeq.Queue(store)
    job = queue.enqueue(Probe(value=1))
    with running(gated(store, threading.Event(), drain=0)) as first:
        in_state(queue, State.DEQUEUED, 1)
        with running(pool_for(store)):
            first.stop()

            assert job.wait(DEADLINE) == 1


def test_a_job_whose_worker_has_died_is_run_by_another(store: axeq.Store, jobs: Any) -> None:
    queue = axeq.Queue(store)
    job = queue.enqueue(Probe(value=1))
    lease_end = milliseconds(datetime.now(UTC)) + timedelta(seconds=1)
    claim = {"state": "dequeued", "claim": {"token": 1, "worker": "dead"}, "available_at": lease_end, "lost": 1}
    jobs.update_one({"_id": job.id}, {"$set": {**claim, "attempts": 1}})

    with running(pool_for(store)):
        assert job.wait(DEADLINE) == 1

    assert job.started_at >= lease_end
    assert (job.attempts, job.lost) == (1, 0)


def test_a_job_that_loses_too_many_leases_is_given_up(store: axeq.Store, jobs: Any) -> None:
    job = axeq.Queue(store).enqueue(Probe())
    jobs.update_one({"_id": job.id}, {"$set": {"state": "dequeued", "claim": {"token": 1}, "lost": 6, "attempts": 1}})

    with running(pool_for(store)), pytest.raises(axeq.JobCancelled, match="exhausted"):
        job.wait(DEADLINE)

    assert job.refresh().events[-1]["reason"] == "6 leases lost in a row, the limit is 5"


def test_a_worker_that_lost_its_lease_cannot_change_the_job(
    store: axeq.Store, jobs: Any, caplog: pytest.LogCaptureFixture
) -> None:
    gate, queue = threading.Event(), axeq.Queue(store)
    with running(gated(store, gate, lease=30)) as pool:
        job = queue.enqueue(Probe(value=1))
        in_state(queue, State.DEQUEUED, 1)
        jobs.update_one({"_id": job.id}, {"$set": {"claim": {"token": "another", "worker": "another"}}})
        before = jobs.find_one({"_id": job.id})
        gate.set()
        eventually(lambda: pool.counts["lost"] == 1)

    assert jobs.find_one({"_id": job.id}) == before
    assert f"LeaseLost: job {job.id}" in caplog.text


def test_a_pool_counts_what_became_of_its_jobs(store: axeq.Store) -> None:
    queue = axeq.Queue(store)
    outcomes: list[Any] = ["ok", "ok", "raise", "cancel", "snooze"]

    with running(_far_apart(store)) as pool:
        queue.enqueue_many([Probe(outcome=outcome, delay=600) for outcome in outcomes])
        eventually(lambda: sum(verbs(pool.counts).values()) == 10)

    assert verbs(pool.counts) == {"dequeue": 5, "complete": 2, "fail": 1, "cancel": 1, "snooze": 1}


def _far_apart(store: axeq.Store) -> axeq.Pool:
    pool = quick_pool(store)
    pool.add(axeq.Task(Probe, probe, min_delay=600))
    return pool


def test_a_pool_runs_the_jobs_of_its_own_queue_only(store: axeq.Store) -> None:
    elsewhere = axeq.Queue(store, "elsewhere").enqueue(Probe())

    with running(pool_for(store)):
        axeq.Queue(store).enqueue(Probe()).wait(DEADLINE)

    assert elsewhere.refresh().state is State.ENQUEUED


def test_a_pool_comes_back_in_time_to_what_it_has_put_back_though_nobody_tells_it(
    store: axeq.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("axeq.supply.hints.Hints._heard", lambda self, change: None)
    pool = quick_pool(store)
    pool.add(axeq.Task(Probe, probe, min_delay=0.02, max_delay=0.02, max_attempts=12))

    with running(pool):
        job = axeq.Queue(store).enqueue(Probe(outcome="raise"))
        eventually(lambda: job.refresh().final, timeout=90)

    assert job.attempts == 12
