"""Workers that die, freeze or hang: their jobs run again, and nothing that they still do changes a job."""

from __future__ import annotations

import math
import os
import signal
import time

import axeq
from axeq.words.states import State
from tests.support.waiting import until

from .conftest import Workers
from .worker import Block, Poison, Slow, Stubborn

LEASE = 2.0


def test_a_job_of_a_killed_worker_runs_again_within_a_lease_and_two_seconds(
    queue: axeq.Queue, workers: Workers
) -> None:
    for seconds in (4.0, 8.0, 16.0):  # in one of them the machine lets a process start, and then run, in time
        late = restarted_after(queue, workers, seconds)
        if late <= LEASE + 2:
            break

    assert late <= LEASE + 2


def restarted_after(queue: axeq.Queue, workers: Workers, seconds: float) -> float:
    """Kills a worker, and returns how long it took until another had started all of its jobs again.

    The other one comes when the jobs run: the streams of stand-ins miss what happens on a busy machine, its first look
    does not. For ever, where the jobs have ended by then.
    """
    victim = workers.ready(workers.start(lease=LEASE))
    jobs = [queue.enqueue(Slow(seconds=seconds)) for _ in range(2)]
    ids = {str(job.id) for job in jobs}
    until(lambda: ids <= workers.by_job("start").keys(), seconds=60, what="both jobs started")
    survivor = workers.ready(workers.start(lease=LEASE))

    killed_at = time.monotonic()
    victim.kill()
    victim.wait()
    if ids & workers.by_job("end").keys():
        survivor.kill()
        return math.inf
    until(lambda: all(len(workers.by_job("start")[job]) == 2 for job in ids), seconds=60, what="both started again")

    restarts = [workers.by_job("start")[job][1] for job in ids]
    assert {event.process for event in restarts} == {survivor.pid}
    for job in jobs:
        job.wait(60)
        assert job.attempts == 1  # a death is not charged as an attempt
        assert job.lost == 0
    survivor.kill()
    return max(event.moment for event in restarts) - killed_at


def test_a_frozen_worker_that_comes_back_changes_nothing_and_logs_lease_lost(
    queue: axeq.Queue, workers: Workers
) -> None:
    frozen = workers.ready(workers.start(lease=LEASE))
    job = queue.enqueue(Slow(seconds=3.0))
    until(lambda: len(workers.events("start")) == 1, seconds=60, what="the job started")

    os.kill(frozen.pid, signal.SIGSTOP)
    other = workers.ready(workers.start(lease=LEASE))
    result = job.wait(90)
    settled = job.refresh().document
    until(lambda: time.monotonic() - workers.events("start")[0].moment > 2 * LEASE, seconds=30, what="two leases")
    os.kill(frozen.pid, signal.SIGCONT)
    until(lambda: "LeaseLost" in workers.log(frozen), seconds=60, what="LeaseLost in the log")

    assert result == other.pid
    assert job.refresh().document == settled


def test_a_poison_job_ends_exhausted_alone_and_the_others_complete(queue: axeq.Queue, workers: Workers) -> None:
    poison = queue.enqueue(Poison(kills=True), priority=-1)
    others = queue.enqueue_many([Poison() for _ in range(199)])

    def over() -> bool:
        running = workers.processes[-1:]
        if not running or running[0].poll() is not None:
            workers.start(lease=3.0, workers=4)
        stats = queue.stats()
        return stats[State.COMPLETED] + stats[State.CANCELLED] == 200

    until(over, seconds=240, what="all 200 jobs ended")

    assert poison.refresh().state is State.CANCELLED
    assert poison.cause == "exhausted"
    assert len(workers.events("poison")) == 4  # max_lost is 3: it took four processes, and no more
    assert {job.refresh().state for job in others} == {State.COMPLETED}


def test_a_handler_that_blocks_the_loop_for_two_leases_keeps_its_job(queue: axeq.Queue, workers: Workers) -> None:
    for _ in range(2):
        workers.ready(workers.start(lease=2 * LEASE))

    job = queue.enqueue(Block(seconds=4 * LEASE))
    job.wait(90)

    assert len(workers.events("start")) == 1
    assert job.attempts == 1


def test_a_thread_beyond_its_timeout_is_never_joined_by_a_second_attempt(queue: axeq.Queue, workers: Workers) -> None:
    workers.ready(workers.start(lease=10))
    job = queue.enqueue(Stubborn(seconds=1.2))  # four times its timeout, short of a lease beyond it

    until(lambda: job.refresh().final, seconds=40, what="the job ended")

    events = [event.what for event in workers.events() if event.job == str(job.id)]
    assert events == ["start", "end", "start", "end"]
    assert (job.state, job.cause, job.attempts) == (State.CANCELLED, "exhausted", 2)
    assert job.error is not None
    assert job.error["type"] == "TimeoutError"


def test_a_terminated_worker_gives_its_jobs_back_uncharged(queue: axeq.Queue, workers: Workers) -> None:
    worker = workers.ready(workers.start(lease=30))
    job = queue.enqueue(Slow(seconds=60))
    until(lambda: len(workers.events("start")) == 1, seconds=20, what="the job started")

    worker.terminate()
    assert worker.wait(30) == 0

    job.refresh()
    assert (job.state, job.attempts, job.lost) == (State.ENQUEUED, 0, 0)
