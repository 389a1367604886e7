"""Periodic tasks: one job per slot, whatever number of pools."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

import axeq
from axeq.rules.periodic import slot_start
from axeq.words.errors import PayloadTooLarge
from tests.support.pools import quick_pool, running
from tests.support.probe import Probe, probe
from tests.support.waiting import DEADLINE, eventually

pytestmark = pytest.mark.kinds("uri", "mongomock")
"""Nothing of it depends on how a store was opened."""

DAY = 86_400


def ticking(store: axeq.Store, every: float, **options: Any) -> axeq.Pool:
    pool = quick_pool(store, max_lag=0.05)
    pool.add(axeq.Task(Probe, probe, every=every, **options))
    return pool


def starts(jobs: Any) -> list[datetime]:
    """Returns the starts of the slots that have a job, in order, as the ids say."""
    return sorted(datetime.fromisoformat(str(document["_id"]).rpartition("@")[2]) for document in jobs.find())


def test_each_slot_has_one_job_over_all_pools(store: axeq.Store, jobs: Any) -> None:
    with ExitStack() as pools:
        for _ in range(3):
            pools.enter_context(running(ticking(store, 0.5, payload=Probe(value="tick"))))
        eventually(lambda: jobs.count_documents({"state": "completed"}) >= 4)

    begun = starts(jobs)
    assert len(set(begun)) == len(begun)
    assert all(start == slot_start(start, 0.5) for start in begun)
    assert {document["attempts"] for document in jobs.find({"state": "completed"})} == {1}


def test_a_slots_job_never_starts_before_its_slot(store: axeq.Store, jobs: Any) -> None:
    with running(ticking(store, 0.3)):
        eventually(lambda: jobs.count_documents({"state": "completed"}) >= 3)

    for job in axeq.Queue(store).find(state=axeq.State.COMPLETED):
        assert job.started_at is not None
        assert job.started_at >= datetime.fromisoformat(job.id.rpartition("@")[2])


def test_a_pool_that_starts_again_fills_its_slot_once(store: axeq.Store, jobs: Any) -> None:
    for _ in range(3):
        with running(ticking(store, 366 * DAY)) as pool:
            eventually(lambda: jobs.count_documents({"state": "completed"}) == 1)
            eventually(lambda pool=pool: pool.ready.is_set())

    assert jobs.count_documents({}) == 1


def test_a_job_of_a_slot_is_kept_for_two_slots_though_its_task_forgets_at_once(store: axeq.Store, jobs: Any) -> None:
    with running(ticking(store, 300 * DAY, retention=0, cancelled_retention=0)):
        eventually(lambda: jobs.count_documents({"state": "completed"}) == 1)

    (document,) = jobs.find()
    assert document["expire_at"] - document["finished_at"] == timedelta(days=600)


def test_a_paused_task_leaves_its_slots_empty_and_fills_the_one_in_which_it_is_resumed(
    uri: str,
) -> None:
    with axeq.Store(uri) as store:
        queue = axeq.Queue(store)
        queue.pause("probe")

        with running(ticking(store, 366 * DAY)):
            assert queue.find() == []
            queue.resume("probe")
            eventually(lambda: queue.stats()[axeq.State.COMPLETED] == 1)


def test_a_payload_too_large_to_store_ends_the_pool_as_it_starts(store: axeq.Store) -> None:
    pool = ticking(store, 60, payload=Probe(value="x" * 300_000))

    with pytest.raises(PayloadTooLarge):
        pool.run()


def test_a_payload_that_cannot_be_made_leaves_its_slot_empty_and_the_pool_running(
    store: axeq.Store, jobs: Any, caplog: pytest.LogCaptureFixture
) -> None:
    made = threading.Event()

    def value() -> str:
        if made.is_set():
            raise RuntimeError("the exchange is closed")
        return "made"

    pool = quick_pool(store)
    task = axeq.Task(Probe, probe, every=0.3)
    task.payload = lambda: Probe(value=value())  # type: ignore[method-assign]
    pool.add(task)
    with running(pool):
        eventually(lambda: jobs.count_documents({"state": "completed"}) >= 1)
        made.set()
        eventually(lambda: "stays empty" in caplog.text)
        assert axeq.Queue(store).enqueue(Probe(value=1)).wait(DEADLINE) == 1


def test_a_tick_is_a_job_like_any_other(store: axeq.Store, jobs: Any) -> None:
    before = datetime.now(UTC) - timedelta(minutes=1)
    with running(ticking(store, 366 * DAY, payload=Probe(value=7))):
        eventually(lambda: jobs.count_documents({"state": "completed"}) == 1)

    (job,) = axeq.Queue(store).find(name="probe")
    assert (job.result, job.queue) == (7, "default")
    assert job.created_at >= before
