"""Processes that are killed, frozen or asked to end: no job is lost, and none runs more often than it must."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

import axeq
from axeq.documents.failure import failure
from axeq.rules.due import Candidate
from axeq.rules.lifecycle import Held, claim_one, extend
from axeq.rules.outcome import Cancelled, Completed, Failed, Limits, Outcome, Released, Snoozed
from axeq.rules.settlement import settle, settlement
from axeq.words.states import Cause
from tests.faults.arena import Arena
from tests.faults.checker import reruns
from tests.faults.ledger import by_job
from tests.faults.processes import ROOT, Worker
from tests.faults.proxy import Proxy
from tests.faults.scale import FULL, size
from tests.faults.seeds import rng
from tests.faults.tasks import Crash, Work
from tests.faults.toxics import Exchange, Hold
from tests.support.waiting import until

pytestmark = pytest.mark.usefixtures("nothing_left")

MakeArena = Callable[..., Arena]


@pytest.mark.fault("F01")
def test_no_job_is_lost_while_workers_are_killed_every_300_ms(arena: MakeArena) -> None:
    total = size(1000, full=10_000, slow=500)
    kills = size(20, full=100, slow=15)
    scene, random = arena(lease=3.0), rng("kill -9")
    with scene.queue() as queue, scene.history() as history:
        jobs = queue.enqueue_many([Work(number=number, seconds=random.uniform(0.005, 0.05)) for number in range(total)])
        scene.promised(jobs)
        scene.workers.ready(scene.workers.start(size(8, full=8, slow=4)))

        for _ in range(kills):
            _rest(random.uniform(0.2, 0.4))
            until(lambda: scene.workers.kill_any(random) is not None, seconds=60, what="a worker that can be killed")
            scene.workers.start()
        scene.drained(total, seconds=240 if FULL else 70)
        evidence = scene.evidence(history)

        found = scene.breaches(history)
    assert found == []
    assert {job["state"] for job in evidence.documents.values()} == {"completed"}
    cut = [execution for execution in evidence.executions if execution.outcome is None]
    assert len(cut) <= 4 * kills  # of a process's four workers; what had ended and was not stored yet, I2 judges


@pytest.mark.fault("F02")
@pytest.mark.parametrize("moment", ["claimed", "ended"])
def test_a_job_runs_again_once_where_its_process_dies(arena: MakeArena, moment: str) -> None:
    """Between claim and handler, and between handler and settle."""
    scene = arena(lease=3.0)
    with scene.queue() as queue, scene.history() as history:
        victim, *_ = scene.workers.start(freeze_at=moment)
        scene.workers.ready([victim])
        scene.promised([queue.enqueue(Work())])
        until(lambda: victim.held, seconds=60, what=f"the worker stops where the job is {moment}")

        killed = time.monotonic()
        scene.workers.kill(victim)
        scene.workers.ready(scene.workers.start())
        no_worker = max(time.monotonic() - (killed + scene.lease), 0.0)
        scene.drained(1, seconds=60)

        evidence = scene.evidence(history)
        assert scene.breaches(history, restart_within=10.0 + no_worker) == []
    runs = [(run.pid == victim.pid, run.outcome) for run in evidence.executions]
    assert runs == [(True, "done"), (False, "done")] if moment == "ended" else [(False, "done")]
    (document,) = evidence.documents.values()
    assert (document["state"], document["attempts"]) == ("completed", 1)  # a death is not charged as an attempt


@pytest.mark.fault("F02")
@pytest.mark.parametrize(("executed", "expected"), [(False, 2), (True, 1)])
def test_a_process_that_dies_while_it_settles_has_settled_or_has_not(
    arena: MakeArena, proxy: Proxy, database: str, executed: bool, expected: int
) -> None:
    scene = arena(through=proxy.uri(database), lease=3.0)
    with scene.queue() as queue, scene.history() as history:
        (victim,) = scene.workers.ready(scene.workers.start())
        with proxy.toxic(_SettleHeld("update", executed=executed)) as hold:
            scene.promised([queue.enqueue(Work())])
            assert hold.held.wait(60)
            scene.workers.kill(victim)
        scene.workers.ready(scene.workers.start())
        scene.drained(1, seconds=60)
        if executed:
            assert scene.count("completed") == 1

        assert scene.breaches(history) == []
    assert len(scene.workers.executions()) == expected


@pytest.mark.fault("F02")
def test_a_job_of_a_killed_worker_does_not_wait_for_the_end_of_a_backlog(arena: MakeArena) -> None:
    backlog = size(600, full=5000, slow=300)
    scene = arena(lease=3.0)
    with scene.queue() as queue:
        victim, *_ = scene.workers.start(freeze_at="claimed")
        scene.workers.ready([victim])
        orphan = queue.enqueue(Work(), priority=-1)
        until(lambda: victim.held, seconds=60, what="the worker has claimed the job")
        scene.workers.kill(victim)
        scene.promised([orphan], prompt=False)

        def started() -> bool:
            if scene.count("enqueued") < backlog:
                others = queue.enqueue_many([Work(number=number, seconds=0.03) for number in range(backlog)])
                scene.promised(others, prompt=False)
            return str(orphan.id) in by_job(scene.workers.executions())

        started()
        scene.workers.start()
        until(started, seconds=60, what="the job starts, whatever others wait")
        scene.drained(len(scene.enqueued), seconds=300 if FULL else 120)

        assert scene.breaches() == []
    order = [run.job for run in scene.workers.executions()]
    assert len(order) - order.index(str(orphan.id)) > backlog / 4


@pytest.mark.fault("F03")
def test_jobs_that_end_their_process_end_exhausted_and_their_neighbours_complete(arena: MakeArena) -> None:
    hows = ("kill", "exit", "segfault")
    scene = arena(lease=3.0)
    with scene.queue() as queue:
        poison = [queue.enqueue(Crash(how=how), priority=-1) for how in hows]  # type: ignore[arg-type]
        others = queue.enqueue_many([Work(seconds=0.02) for _ in range(size(40, full=200))])
        scene.promised([*poison, *others])

        def over() -> bool:
            if not any(worker.alive for worker in scene.workers.all[-1:]):
                _mourn(scene)
                scene.workers.start()
            return scene.ended() == len(poison) + len(others)

        until(over, seconds=300, what=lambda: f"all jobs ended: {scene.states()}")
        _mourn(scene)

        assert scene.breaches() == []
        assert {job.refresh().cause for job in poison} == {"exhausted"}
        assert {str(job.refresh().state) for job in others} == {"completed"}
    runs = by_job(scene.workers.executions())
    assert [len(runs[str(job.id)]) for job in poison] == [3, 3, 3]  # max_lost is 2


@pytest.mark.fault("F04")
def test_workers_asked_to_end_lose_and_repeat_nothing(arena: MakeArena) -> None:
    total, rounds = size(300, full=3000, slow=120), size(3, full=50)
    scene = arena(lease=10.0, drain=10.0)
    with scene.queue() as queue, scene.history() as history:
        scene.promised(queue.enqueue_many([Work(number=number, seconds=0.05) for number in range(total)]))

        codes: list[int] = []
        for _ in range(rounds):
            team = scene.workers.ready(scene.workers.start(2))
            done = scene.ended()
            until(lambda done=done: scene.ended() > done or scene.ended() == total, seconds=30, what="work goes on")
            codes += scene.workers.terminate(team)
        scene.workers.start(2)
        scene.drained(total, seconds=60)

        assert scene.breaches(history) == []
    assert set(codes) == {0}
    assert reruns(scene.workers.executions()) == 0


@pytest.mark.fault("F04")
def test_a_worker_asked_twice_to_end_gives_its_jobs_back_at_once(arena: MakeArena) -> None:
    scene = arena(lease=30.0, drain=60.0)
    with scene.queue() as queue, scene.history() as history:
        (worker,) = scene.workers.ready(scene.workers.start())
        scene.promised([queue.enqueue(Work(seconds=600)) for _ in range(3)])
        until(lambda: len(scene.workers.executions()) == 3, seconds=20, what="the jobs run")

        worker.asked_to_end = True
        worker.process.terminate()
        until(lambda: not scene.client[scene.database]["jobs.workers"].find_one(), seconds=20, what="it stops claiming")
        codes = scene.workers.terminate([worker])

        assert codes == [0]
        assert scene.breaches(history, drained=False) == []
        assert scene.states() == {"enqueued": 3}
        assert {(job["attempts"], job["lost"]) for job in scene.documents().values()} == {(0, 0)}


@pytest.mark.fault("F05")
def test_workers_frozen_beyond_their_leases_change_nothing_when_they_go_on(arena: MakeArena) -> None:
    rounds, jobs_each = size(1, full=25), 4
    scene = arena(lease=3.0, workers=jobs_each)
    with scene.queue() as queue, scene.history() as history:
        for _ in range(rounds):
            frozen = scene.workers.ready(scene.workers.start(2))
            jobs = queue.enqueue_many([Work(seconds=4.0) for _ in range(2 * jobs_each)])
            scene.promised(jobs)
            until(lambda jobs=jobs: _running(scene, jobs) == 2 * jobs_each, seconds=30, what="all jobs run")

            for worker in frozen:
                scene.workers.freeze(worker)
            rescuers = scene.workers.start(2)
            scene.drained(len(scene.enqueued), seconds=120)
            settled = scene.documents()
            for worker in frozen:
                scene.workers.thaw(worker)
            until(lambda frozen=frozen: all(_has_lost(each) for each in frozen), seconds=30, what="LeaseLost is logged")
            scene.workers.terminate([*frozen, *rescuers])

            assert scene.documents() == settled
        assert scene.breaches(history) == []


@pytest.mark.fault("F05")
def test_a_worker_frozen_with_jobs_that_are_ready_starts_none_of_them_under_their_old_leases(arena: MakeArena) -> None:
    scene = arena(lease=1.0)
    with scene.queue() as queue, scene.history() as history:
        frozen, *_ = scene.workers.start(freeze_at="claimed")
        scene.workers.ready([frozen])
        jobs = queue.enqueue_many([Work(number=number) for number in range(4)])
        scene.promised(jobs)
        until(lambda: frozen.held, seconds=20, what="the worker has claimed jobs, and stops before it starts them")

        rescuers = scene.workers.start()
        scene.drained(len(jobs), seconds=60)
        scene.workers.thaw(frozen)
        until(lambda: _has_lost(frozen), seconds=30, what="LeaseLost is logged")
        scene.workers.terminate([frozen, *rescuers])

        assert scene.breaches(history) == []
    assert [run.pid for run in scene.workers.executions()] == [rescuers[0].pid] * len(jobs)


@pytest.mark.fault("F05")
def test_a_stale_claim_writes_nothing_in_two_hundred_repeats(arena: MakeArena) -> None:
    scene, random = arena(lease=1.0), rng("stale claims")
    limits = Limits(max_attempts=0)
    with axeq.Store(scene.uri) as store:
        queue = axeq.Queue(store)
        queue.ensure_indexes()
        with scene.history() as history:
            for number in range(size(200, full=2000, slow=100)):
                job = queue.enqueue(Work(number=number))
                stale = _claimed(scene, store, job)
                _lapse(scene, job)
                fresh = _claimed(scene, store, job)
                before = scene.jobs.find_one({"_id": job.id})

                late = settlement(stale, random.choice(_OUTCOMES), limits, store.clock)
                holding = store.run(extend([Held(stale.id, stale.token)], store.clock, lease=30))
                settled = store.run(settle([late], store.clock))

                assert holding.lost == {Held(stale.id, stale.token)}
                assert settled.lost == {stale.id}
                assert scene.jobs.find_one({"_id": job.id}) == before
                store.run(settle([settlement(fresh, Completed(), limits, store.clock)], store.clock))
            assert scene.breaches(history) == []
    assert scene.states() == {"completed": len(scene.documents())}


@pytest.mark.fault("F07")
def test_a_killed_producer_leaves_each_acknowledged_job_once(arena: MakeArena, tmp_path: Path) -> None:
    scene, random = arena(), rng("producers")
    acknowledged = tmp_path / "acknowledged"
    with scene.queue():
        for _ in range(size(2, full=20)):
            producer = subprocess.Popen([sys.executable, "-c", PRODUCER, scene.uri, str(acknowledged)], cwd=ROOT)
            before = _size(acknowledged)
            until(lambda before=before: _size(acknowledged) > before, seconds=40, what="a batch is acknowledged")
            _rest(random.uniform(0, 0.2))
            producer.kill()
            producer.wait()

    stored = [str(document["_id"]) for document in scene.jobs.find({}, {"_id": 1})]
    assert set(acknowledged.read_text().split()) <= set(stored)
    assert len(stored) == len(set(stored))


PRODUCER = """
import sys, axeq
from tests.faults.tasks import Work
with axeq.Store(sys.argv[1]) as store, open(sys.argv[2], "a") as acknowledged:
    queue = axeq.Queue(store)
    while True:
        jobs = queue.enqueue_many([Work(number=number) for number in range(1000)])
        acknowledged.write("".join(f"{job.id}\\n" for job in jobs))
        acknowledged.flush()
"""

_OUTCOMES: list[Outcome] = [
    Completed(result=1),
    Failed(failure("ValueError", "late")),
    Cancelled(Cause.HANDLER, "late"),
    Snoozed(delay=0, data={"number": -1}, version=1),
    Released("late"),
]


class _SettleHeld(Hold):
    """Holds the first settle."""

    async def _hold(self, exchange: Exchange) -> None:
        if b"finished_at" in exchange.request.data:
            await super()._hold(exchange)


def _claimed(scene: Arena, store: axeq.Store, job: axeq.Job[Work, int]) -> axeq.Record:
    candidate = _candidate(scene, job)
    (record,) = store.run(claim_one(candidate, store.clock, worker="tests", lease=30, patience=30))
    return record


def _candidate(scene: Arena, job: axeq.Job[Work, int]) -> Candidate:
    document = scene.jobs.find_one({"_id": job.id})
    assert document is not None
    return Candidate.of(document)


def _lapse(scene: Arena, job: axeq.Job[Work, int]) -> None:
    """Ends the lease of a claimed job as time would."""
    scene.jobs.update_one({"_id": job.id}, {"$set": {"available_at": datetime(2020, 1, 1, tzinfo=UTC)}})


def _running(scene: Arena, jobs: list[axeq.Job[Work, int]]) -> int:
    wanted = {str(job.id) for job in jobs}
    return sum(run.job in wanted and run.ended is None for run in scene.workers.executions())


def _has_lost(worker: Worker) -> bool:
    return "LeaseLost" in worker.log


def _mourn(scene: Arena) -> None:
    """Notes that workers which ended by themselves did so by a poison job."""
    for worker in scene.workers.all:
        if not worker.alive and not worker.asked_to_end:
            scene.workers.kill(worker)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _rest(seconds: float) -> None:
    """Lets the run go on until the next fault."""
    threading.Event().wait(seconds)
