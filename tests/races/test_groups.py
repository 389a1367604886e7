"""Groups and periodic jobs over many processes, some of which are killed."""

from __future__ import annotations

from collections import Counter
from datetime import datetime

import axeq
from axeq.rules.periodic import slot_start
from axeq.words.states import State
from tests.support.waiting import until

from .conftest import Workers
from .group_worker import Piece

LEASE = 1.5


def calls(workers: Workers, what: str = "call") -> dict[str, list[str]]:
    """Returns the jobs of each call of the handler, by the call's own name."""
    by_call: dict[str, list[str]] = {}
    for event in workers.events():
        kind, _, call = event.what.partition("-")
        if kind == what:
            by_call.setdefault(call, []).append(event.job)
    return by_call


def completed(queue: axeq.Queue, jobs: list[axeq.Job[Piece, int]]) -> bool:
    """Whether all of these have completed, and shows it in each; periodic ones are in the queue as well."""
    if queue.stats_by_task()["piece"].get(State.COMPLETED, 0) < len(jobs):
        return False
    return all(job.refresh().state is State.COMPLETED for job in jobs)


def test_each_job_is_in_one_call_of_one_process_while_producers_keep_adding(
    queue: axeq.Queue, workers: Workers
) -> None:
    for _ in range(4):
        workers.start(program="group_worker", workers=2)
    jobs: list[axeq.Job[Piece, int]] = []
    for number in range(60):
        pieces = [Piece(number=number * 10 + place) for place in range(10)]
        jobs += queue.enqueue_many(pieces, group=f"group-{number % 7}")
    until(lambda: completed(queue, jobs), seconds=180, what=f"all jobs completed: {queue.stats()}")

    handled = Counter(job for call in calls(workers).values() for job in call)
    assert handled.keys() == {str(job.id) for job in jobs}
    assert set(handled.values()) == {1}
    groups = {str(job.id): job.document["group"] for job in jobs}
    assert all(len({groups[job] for job in call}) == 1 for call in calls(workers).values())
    assert {(job.attempts, job.lost) for job in jobs} == {(1, 0)}


def test_the_jobs_of_a_killed_call_are_handled_again_together_and_complete_once(
    queue: axeq.Queue, workers: Workers
) -> None:
    victim = workers.ready(workers.start(program="group_worker", lease=6))
    jobs = queue.enqueue_many([Piece(number=number, seconds=3) for number in range(20)], group="g")
    until(lambda: len(calls(workers)) == 1, seconds=60, what="the call began")

    victim.kill()
    workers.start(program="group_worker", lease=6)
    until(lambda: completed(queue, jobs), seconds=120, what=f"all jobs completed: {queue.stats()}")

    everyone = {str(job.id) for job in jobs}
    assert [set(call) for call in calls(workers).values()] == [everyone, everyone]
    assert [set(call) for call in calls(workers, "end").values()] == [everyone]
    assert {(job.attempts, job.lost) for job in jobs} == {(1, 0)}  # a death is not charged as an attempt
    assert {job.result for job in jobs} == {20}


def test_a_poison_job_of_a_group_ends_exhausted_alone_and_its_neighbours_complete(
    queue: axeq.Queue, workers: Workers
) -> None:
    jobs = queue.enqueue_many([Piece(number=number, kills=number == 7) for number in range(12)], group="g")

    def over() -> bool:
        running = workers.processes[-1:]
        if not running or running[0].poll() is not None:
            workers.start(program="group_worker", lease=2)
        return all(job.refresh().final for job in jobs)

    until(over, seconds=240, what=f"all jobs ended: {queue.stats()}")

    poison = jobs.pop(7)
    assert (poison.state, poison.cause) == (State.CANCELLED, "exhausted")
    assert {job.state for job in jobs} == {State.COMPLETED}
    sizes = [len(call) for call in calls(workers).values() if str(poison.id) in call]
    assert sizes == [12, 12, 1, 1, 1, 1]  # twice with all others, then alone up to the task's max_lost of 5


def test_each_slot_has_one_job_though_its_pools_are_killed_and_started_again(
    queue: axeq.Queue, workers: Workers
) -> None:
    for _ in range(3):
        workers.ready(workers.start(program="group_worker", lease=LEASE))
    for _ in range(4):
        count = len(workers.events("beat"))
        until(lambda count=count: len(workers.events("beat")) > count, seconds=20, what="a beat")  # type: ignore[misc]
        workers.processes[-3].kill()  # at any moment of its tick
        workers.ready(workers.start(program="group_worker", lease=LEASE))
    workers.processes[-1].terminate()
    until(lambda: queue.stats()[State.COMPLETED] >= 12, seconds=30, what="twelve slots")
    for process in workers.processes:
        process.kill()
        process.wait()

    jobs = queue.find(name="beat", limit=1000)
    starts = [datetime.fromisoformat(job.id.rpartition("@")[2]) for job in jobs]
    assert len(set(starts)) == len(starts)
    assert all(start == slot_start(start, 0.25) for start in starts)
    beats = Counter(event.job for event in workers.events("beat"))
    assert {job.id for job in jobs if job.state is State.COMPLETED} <= beats.keys()
    # Twice only what a killed pool had begun.
    assert sum(count - 1 for count in beats.values()) <= len(workers.processes)
