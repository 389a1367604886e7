"""Retention, as the server carries it out."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import axeq
from tests.support.pools import quick_pool, running
from tests.support.probe import Probe, probe
from tests.support.waiting import DEADLINE, eventually

if TYPE_CHECKING:
    from tests.server.conftest import Aging

# Servers look for documents to remove once a minute, and take a while for it.
REMOVED_WITHIN = 130.0


def test_the_server_removes_an_ended_job_after_its_retention_and_never_a_live_one(aging_jobs: Aging) -> None:
    eventually(lambda: aging_jobs.jobs.find_one({"_id": aging_jobs.ended}) is None, timeout=REMOVED_WITHIN)

    revived = aging_jobs.jobs.find_one({"_id": aging_jobs.revived})
    assert revived["state"] == "enqueued"
    assert "expire_at" not in revived


def test_a_job_is_kept_as_long_as_its_task_says_unless_it_says_so_itself(store: axeq.Store) -> None:
    queue = axeq.Queue(store)
    pool = quick_pool(store)
    pool.add(axeq.Task(Probe, probe, retention=3600, cancelled_retention=7200))
    completed, cancelled = queue.enqueue(Probe()), queue.enqueue(Probe(outcome="cancel"))
    own = queue.enqueue(Probe(), retention=60)

    with running(pool):
        eventually(lambda: all(job.refresh().final for job in (completed, cancelled, own)), DEADLINE)

    assert completed.expire_at - completed.finished_at == timedelta(hours=1)
    assert cancelled.expire_at - cancelled.finished_at == timedelta(hours=2)
    assert own.expire_at - own.finished_at == timedelta(seconds=60)


def test_a_live_job_has_no_end(store: axeq.Store) -> None:
    job = axeq.Queue(store).enqueue(Probe(), retention=0)

    assert job.refresh().expire_at is None
