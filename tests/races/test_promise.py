"""What an enqueue promises: kept through the death of the server, and not started before its time."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest

import axeq
from axeq.wire.embedded import Home
from tests.support.waiting import until

from .conftest import Workers
from .worker import Count


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "server"


def test_a_job_whose_enqueue_returned_survives_kill_9_of_the_server(home: Path) -> None:
    acknowledged: list[object] = []
    enough, ending = threading.Event(), threading.Event()
    with axeq.Store(f"embedded:{home}", timeout=2) as store:
        queue = axeq.Queue(store)

        def enqueue() -> None:
            while not ending.is_set():
                acknowledged.append(queue.enqueue(Count(number=len(acknowledged))).id)
                if len(acknowledged) == 100:
                    enough.set()

        producer = threading.Thread(target=enqueue)
        producer.start()
        assert enough.wait(180)
        serving = Home(home).serving()
        assert serving is not None

        os.kill(serving.pid, signal.SIGKILL)
        before = len(acknowledged)
        until(lambda: len(acknowledged) > before + 10, seconds=180, what="enqueues go on after the restart")
        ending.set()
        producer.join(180)

        stored = {job.id for job in queue.find(limit=100_000)}
    assert len(acknowledged) == len(set(acknowledged))
    assert stored == set(acknowledged)


def test_a_delayed_job_starts_in_no_process_before_its_time(queue: axeq.Queue, workers: Workers) -> None:
    for _ in range(2):
        workers.ready(workers.start())
    asked_at = time.monotonic()

    jobs = [queue.enqueue(Count(number=number), delay=0.5 + number / 20) for number in range(20)]
    for job in jobs:
        job.wait(90)

    started = {event.job: event.moment for event in workers.events("run")}
    early = [job for number, job in enumerate(jobs) if started[str(job.id)] < asked_at + 0.5 + number / 20]
    assert early == []
    assert all(job.started_at is not None and job.started_at > job.created_at for job in jobs)
