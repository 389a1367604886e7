"""Many processes, one queue: every job is run once, every label is held once."""

from __future__ import annotations

import subprocess
import sys

import axeq
from axeq.words.states import State
from tests.support.waiting import until

from .conftest import Workers
from .worker import Count

JOBS = 2000
PROCESSES = 8

CLAIM_LABEL = """
import sys, axeq
from tests.races.worker import Count
store = axeq.Store(sys.argv[1])
queue = axeq.Queue(store)
queue.get  # imported and ready
sys.stdin.readline()
taken = 0
for number in range(10):
    try:
        queue.enqueue(Count(number=number), label=f"label-{number}")
    except axeq.LabelTaken:
        continue
    taken += 1
store.close()
print(taken)
"""


def test_eight_processes_of_four_workers_run_each_of_two_thousand_jobs_once(
    queue: axeq.Queue, workers: Workers
) -> None:
    jobs = queue.enqueue_many([Count(number=number) for number in range(JOBS)])

    for _ in range(PROCESSES):
        workers.start(workers=4)
    until(
        lambda: queue.stats()[State.COMPLETED] == JOBS,
        seconds=480,
        what=f"all jobs completed: {queue.stats()}, {len(workers.events('run'))} runs",
    )

    runs = workers.by_job("run")
    assert runs.keys() == {str(job.id) for job in jobs}
    assert {len(events) for events in runs.values()} == {1}
    assert {job.attempts for job in queue.find(limit=JOBS)} == {1}


def test_a_label_is_held_by_one_live_job_while_processes_race_for_it(queue: axeq.Queue, store: axeq.Store) -> None:
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", CLAIM_LABEL, store.uri],  # type: ignore[attr-defined]
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]

    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    taken = [int(racer.communicate(timeout=180)[0]) for racer in racers]

    assert sum(taken) == 10
    assert sorted(job.label or "" for job in queue.find(limit=100)) == [f"label-{number}" for number in range(10)]
