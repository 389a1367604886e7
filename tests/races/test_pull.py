"""Many processes pull from one queue: nothing comes twice, nothing is lost, and the dead ones' jobs go to others."""

from __future__ import annotations

import axeq
from axeq.words.states import State
from tests.support.waiting import until

from .conftest import Workers
from .worker import Poison

BATCH = 5
JOBS = 300
PROCESSES = 4


def ended(queue: axeq.Queue, count: int) -> bool:
    stats = queue.stats()
    return stats[State.COMPLETED] + stats[State.CANCELLED] == count


def test_four_processes_pull_each_of_three_hundred_jobs_once(queue: axeq.Queue, workers: Workers) -> None:
    jobs = queue.enqueue_many([Poison() for _ in range(JOBS)])

    for _ in range(PROCESSES):
        workers.start(lease=30, workers=BATCH, program="puller")
    until(lambda: ended(queue, JOBS), seconds=120, what="all jobs ended")

    runs = workers.by_job("run")
    assert runs.keys() == {str(job.id) for job in jobs}
    assert {len(events) for events in runs.values()} == {1}
    assert {(job.state, job.attempts) for job in queue.find(limit=JOBS)} == {(State.COMPLETED, 1)}


def test_the_jobs_of_pullers_that_were_killed_go_to_others_and_the_poison_ends_alone(
    queue: axeq.Queue, workers: Workers
) -> None:
    jobs = queue.enqueue_many([Poison() for _ in range(40)])
    killed = [workers.ready(workers.start(lease=3, workers=BATCH, program="puller")) for _ in range(2)]
    until(lambda: len(workers.events("run")) > 4, seconds=60, what="both at work")
    killed[0].kill()
    jobs += queue.enqueue_many([Poison(kills=number == 10) for number in range(30)])  # no job of the one that is gone

    def all_ended() -> bool:
        if all(process.poll() is not None for process in workers.processes):
            workers.ready(workers.start(lease=3, workers=BATCH, program="puller"))
        return ended(queue, len(jobs))

    until(all_ended, seconds=180, what="all jobs ended")

    found = {job.id: job for job in queue.find(limit=100)}
    poison = found.pop(jobs[50].id)
    assert (poison.state, poison.cause) == (State.CANCELLED, "exhausted")
    assert {job.state for job in found.values()} == {State.COMPLETED}
    assert len(workers.by_job("poison")[str(poison.id)]) == 4
    assert workers.by_job("run").keys() == {str(identity) for identity in found}
