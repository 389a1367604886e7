"""Long jobs: what they report, what they keep for a later attempt, and how long they may take."""

from __future__ import annotations

import asyncio
import threading
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pymongo
import pytest
from pymongo import monitoring

import axeq
from tests.support.long import FACES, Step, steps
from tests.support.masking import Mask
from tests.support.pools import quick_pool, running
from tests.support.probe import Probe
from tests.support.waiting import DEADLINE, eventually

anywhere = pytest.mark.parametrize("kind", ["uri", "mongomock"], indirect=True)
"""Of what the origin of a store's clients makes no difference to."""
every_face = pytest.mark.parametrize("face", FACES)


def stepping(store: axeq.Store, face: str, **options: Any) -> axeq.Pool:
    pool = quick_pool(store)
    executor: Any = face
    pool.add(axeq.Task(Step, steps(face), executor=executor, **{"min_delay": 0.01, **options}))
    return pool


def enqueued(store: axeq.Store, first: Any) -> axeq.Job[Step, Any]:
    return axeq.Queue(store).enqueue(Step(first=first))


def ended(job: axeq.Job[Any, Any]) -> axeq.Job[Any, Any]:
    eventually(lambda: job.refresh().final)
    return job


@anywhere
@every_face
def test_what_a_handler_reports_is_seen_while_it_runs(store: axeq.Store, face: str) -> None:
    with running(stepping(store, face, timeout=60)) as pool:
        job = enqueued(store, "hang")
        eventually(lambda: job.refresh().progress is not None)

        assert (job.state, job.progress, job.status, job.result) == ("dequeued", 0.5, "half way", [1])
        job.cancel()
        eventually(lambda: pool.counts["cancel"] == 1)
    assert (job.refresh().progress, job.status, job.result) == (0.5, "half way", [1])


@anywhere
@every_face
def test_the_last_word_goes_out_with_the_outcome_and_completing_is_all_of_it(store: axeq.Store, face: str) -> None:
    with running(stepping(store, face)):
        job = enqueued(store, "ok")

        assert job.wait(DEADLINE) == [2]
    assert (job.progress, job.status, job.document["progress"]) == (1.0, "half way", 1.0)


@anywhere
@every_face
def test_a_result_of_none_takes_the_place_of_what_was_reported_so_far(store: axeq.Store, face: str) -> None:
    with running(stepping(store, face)):
        job = enqueued(store, "report")

        assert job.wait(DEADLINE) is None
    assert (job.result, job.status) == (None, "half way")


@every_face
def test_a_later_attempt_gets_the_last_checkpoint_back_as_its_type_and_completing_drops_it(
    store: axeq.Store, face: str
) -> None:
    left: list[Any] = []
    pool = stepping(store, face)

    @pool.on("done")
    def look(job: Any) -> None:
        stored = axeq.Queue(store).get(job.id)
        left.append((stored.state, stored.checkpoint, stored.progress, stored.status, stored.result))

    with running(pool):
        job = enqueued(store, "fail")

        assert job.wait(DEADLINE) == [7, 5]
    assert left[0] == ("failed", {"page": 7, "seen": ["seven"]}, 0.5, "half way", [1])
    assert (job.checkpoint, job.attempts, job.progress) == (None, 2, 1.0)


@anywhere
def test_a_retry_by_hand_begins_without_what_the_job_has_reported_and_kept(store: axeq.Store) -> None:
    with running(stepping(store, "thread", max_attempts=1)):
        job = ended(enqueued(store, "fail"))
    kept = job.checkpoint

    job.retry()

    assert kept == {"page": 7, "seen": ["seven"]}
    assert (job.checkpoint, job.progress, job.status, job.result) == (None, None, None, None)


def test_a_codec_seals_checkpoints_and_what_is_reported_of_the_result(uri: str, server: Any) -> None:
    with axeq.Store(uri, codec=Mask()) as store:
        with running(stepping(store, "thread", max_attempts=1)):
            job = ended(enqueued(store, "fail"))
        stored = server[store.place.database]["jobs"].find_one({"_id": job.id})

    assert (job.result, job.checkpoint) == ([1], {"page": 7, "seen": ["seven"]})
    assert [type(stored[field]).__name__ for field in ("result", "checkpoint", "status")] == ["Binary", "Binary", "str"]


def test_thousands_of_reports_cost_a_command_each_half_second(uri: str, server: Any) -> None:
    reports = _Reports()
    with pymongo.MongoClient(uri, event_listeners=[reports]) as client:
        store = axeq.Store(client)
        pool = quick_pool(store, lease=30)
        before: list[int] = []
        seconds = 0.0

        @pool.task(Probe)
        async def busy(ctx: axeq.Context[Probe, Any]) -> int:
            nonlocal seconds
            before.append(reports.count)
            began = time.monotonic()
            calls = 0
            while time.monotonic() < began + 1.2 or calls <= 5000 or reports.count == before[0]:
                for _ in range(500):
                    ctx.progress(0.25, f"{calls}")
                    calls += 1
                await asyncio.sleep(0.01)
            ctx.progress(0.75)
            before.append(reports.count)
            seconds = time.monotonic() - began
            return calls

        with running(pool):
            job = axeq.Queue(store).enqueue(Probe())
            calls = job.wait(DEADLINE)
        store.close()

    assert calls > 5000
    assert 1 <= before[1] - before[0] <= seconds / 0.5 + 2
    assert (job.status, job.progress) == (str(calls - 1), 1.0)


def test_all_jobs_of_a_pool_report_in_one_command(uri: str, server: Any) -> None:
    reports = _Reports()
    with pymongo.MongoClient(uri, event_listeners=[reports]) as client:
        store = axeq.Store(client)
        pool = quick_pool(store, lease=30)
        ready, done = threading.Barrier(21), threading.Event()

        @pool.task(Probe, workers=20)
        def report(ctx: axeq.Context[Probe, Any]) -> None:
            ready.wait(DEADLINE)
            ctx.progress(0.5)
            done.wait(DEADLINE)

        with running(pool):
            jobs = axeq.Queue(store).enqueue_many([Probe() for _ in range(20)])
            ready.wait(DEADLINE)
            eventually(lambda: all(job.refresh().progress == 0.5 for job in jobs))
            needed = reports.count
            done.set()
        store.close()

    assert 1 <= needed <= 4


@anywhere
def test_a_report_never_changes_a_job_that_another_worker_has(store: axeq.Store, jobs: Any) -> None:
    pool = quick_pool(store)
    stopped = threading.Event()

    @pool.task(Probe)
    def report(ctx: axeq.Context[Probe, Any]) -> None:
        theirs = {"$set": {"claim.token": "another's", "progress": 0.9}}
        jobs.update_one({"_id": ctx.job.id}, theirs)
        while not ctx.wait_cancelled(0.01):
            ctx.progress(0.1, "mine")
        ctx.progress(0.2)
        stopped.set()

    with running(pool):
        job = axeq.Queue(store).enqueue(Probe())
        eventually(stopped.is_set)
        eventually(lambda: pool.counts["lost"] >= 1)

    assert (job.refresh().progress, job.status) == (0.9, None)


@anywhere
@pytest.mark.parametrize("face", ["loop", "thread"])
def test_a_checkpoint_of_a_lost_lease_is_refused_and_not_stored(store: axeq.Store, jobs: Any, face: str) -> None:
    heard: list[BaseException] = []

    def robbed(ctx: axeq.Context[Probe, Any]) -> None:
        jobs.update_one({"_id": ctx.job.id}, {"$set": {"claim.token": "another's"}})

    async def keep(ctx: axeq.Context[Probe, Any]) -> None:
        robbed(ctx)
        try:
            await ctx.checkpoint({"page": 1})
        except axeq.LeaseLost as error:
            heard.append(error)
            raise

    def sync_keep(ctx: axeq.Context[Probe, Any]) -> None:
        robbed(ctx)
        try:
            ctx.sync_checkpoint({"page": 1})
        except axeq.LeaseLost as error:
            heard.append(error)
            raise

    pool = quick_pool(store)
    pool.add(axeq.Task(Probe, keep if face == "loop" else sync_keep))
    with running(pool):
        job = axeq.Queue(store).enqueue(Probe())
        eventually(lambda: pool.counts["lost"] == 1)

    assert len(heard) == 1
    assert (job.refresh().state, job.checkpoint) == ("dequeued", None)


@anywhere
@pytest.mark.parametrize(
    ("said", "names"),
    [({"fraction": 1.5}, "fraction"), ({"fraction": "half"}, "fraction"), ({"partial": object()}, "")],
)
def test_a_report_that_cannot_be_stored_fails_where_it_is_made(store: axeq.Store, said: Any, names: str) -> None:
    pool = quick_pool(store)
    refused: list[Exception] = []

    @pool.task(Probe)
    def report(ctx: axeq.Context[Probe, Any]) -> None:
        try:
            ctx.progress(**said)
        except ValueError as error:
            refused.append(error)

    with running(pool):
        axeq.Queue(store).enqueue(Probe()).wait(DEADLINE)

    assert names in str(refused[0])


@anywhere
@pytest.mark.parametrize("face", ["loop", "thread"])
def test_an_extended_attempt_outlives_its_tasks_timeout(store: axeq.Store, face: str) -> None:
    async def slow(ctx: axeq.Context[Probe, Any]) -> str:
        ctx.extend(timedelta(seconds=60))
        await asyncio.sleep(3.3)
        return "done"

    def sync_slow(ctx: axeq.Context[Probe, Any]) -> str:
        ctx.extend(timedelta(seconds=60))
        return "stopped" if ctx.wait_cancelled(3.3) else "done"

    pool = quick_pool(store)
    pool.add(axeq.Task(Probe, slow if face == "loop" else sync_slow, timeout=3, max_attempts=1))
    with running(pool):
        assert axeq.Queue(store).enqueue(Probe()).wait(DEADLINE) == "done"


@anywhere
@pytest.mark.parametrize(("deadline", "cause"), [(None, "exhausted"), (1.0, "expired")])
def test_an_attempt_ends_when_it_said_it_would_and_never_after_the_deadline(
    store: axeq.Store, deadline: float | None, cause: str
) -> None:
    pool = quick_pool(store)

    @pool.task(Probe, max_attempts=1)
    async def slow(ctx: axeq.Context[Probe, Any]) -> None:
        ctx.extend(0.2 if deadline is None else 600)
        await asyncio.sleep(3600)

    with running(pool):
        until = None if deadline is None else datetime.now(UTC) + timedelta(seconds=deadline)
        job = ended(axeq.Queue(store).enqueue(Probe(), deadline=until))

    assert job.cause == cause


@anywhere
def test_a_context_sets_the_result_of_a_handler_that_returns_none(store: axeq.Store) -> None:
    pool = quick_pool(store)

    @pool.task(Probe)
    def sets(ctx: axeq.Context[Probe, Any]) -> None:
        ctx.result = {"made": 3}

    with running(pool):
        assert axeq.Queue(store).enqueue(Probe()).wait(DEADLINE) == {"made": 3}


@anywhere
def test_a_checkpoint_has_a_limit_that_its_error_names(store: axeq.Store) -> None:
    pool = quick_pool(store)

    @pool.task(Probe, max_attempts=1)
    async def keep(ctx: axeq.Context[Probe, Any]) -> None:
        await ctx.checkpoint({"text": "x" * 300_000})

    with running(pool):
        job = ended(axeq.Queue(store).enqueue(Probe()))

    assert "262,144" in job.error["message"]


class _Reports(monitoring.CommandListener):
    """Counts the commands that store progress."""

    count = 0

    def started(self, event: monitoring.CommandStartedEvent) -> None:
        self.count += event.command_name == "update" and "progress" in str(event.command["updates"])

    def succeeded(self, event: monitoring.CommandSucceededEvent) -> None:
        """Is of no interest."""

    def failed(self, event: monitoring.CommandFailedEvent) -> None:
        """Is of no interest."""
