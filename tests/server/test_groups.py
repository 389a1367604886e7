"""Groups: one call of the handler for the jobs that came together, each settled by itself."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

import axeq
from axeq import State
from axeq.words.clock import milliseconds
from tests.support.masking import Mask
from tests.support.pools import quick_pool, running
from tests.support.probe import Probe, stored_probe
from tests.support.waiting import DEADLINE, eventually

pytestmark = pytest.mark.kinds("uri", "mongomock")
"""Nothing of it depends on how a store was opened."""

QUICK = axeq.Group(grace=0.3)


class Calls:
    """A handler of groups that notes what it was called with, and then ends as `end` says."""

    def __init__(self, end: Callable[[axeq.Context[Any, Any]], Any] = lambda ctx: None) -> None:
        self.end = end
        self.values: list[list[Any]] = []
        self.jobs: list[list[Any]] = []

    async def __call__(self, ctx: axeq.Context[Probe, Any]) -> Any:
        self.note(ctx)
        ended = self.end(ctx)
        return await ended if asyncio.iscoroutine(ended) else ended

    def note(self, ctx: axeq.Context[Probe, Any]) -> None:
        self.jobs.append([job.id for job in ctx.jobs])
        self.values.append([model.value for model in ctx.models])

    def sorted(self) -> list[list[Any]]:
        return sorted(sorted(call) for call in self.values)


def gathering(store: axeq.Store, calls: Any, group: axeq.Group = QUICK, **options: Any) -> axeq.Pool:
    terms = {key: options.pop(key) for key in ("lease", "drain") if key in options}
    pool = quick_pool(store, **terms)
    pool.add(axeq.Task(Probe, calls, group=group, **options))
    return pool


def enqueued(store: axeq.Store, values: Any, **options: Any) -> list[Any]:
    return axeq.Queue(store).enqueue_many([Probe(value=value) for value in values], **options)


def ended(jobs: list[Any]) -> list[State]:
    """Returns the states of jobs once all of them have ended."""
    eventually(lambda: all(job.refresh().final for job in jobs))
    return [job.state for job in jobs]


def test_jobs_of_a_group_are_handled_by_one_call_and_end_together(store: axeq.Store) -> None:
    calls = Calls(lambda ctx: sum(model.value for model in ctx.models))
    jobs = enqueued(store, range(5), group="g")

    with running(gathering(store, calls)):
        states = ended(jobs)

    assert calls.values == [[0, 1, 2, 3, 4]]
    assert states == [State.COMPLETED] * 5
    assert [job.wait(0) for job in jobs] == [10] * 5
    assert {(job.attempts, job.lost) for job in jobs} == {(1, 0)}


def test_each_group_has_calls_of_its_own_and_jobs_without_one_share_another(store: axeq.Store) -> None:
    calls = Calls()
    jobs = enqueued(store, [1, 2], group="a") + enqueued(store, [3], group="b") + enqueued(store, [4, 5])

    with running(gathering(store, calls)):
        ended(jobs)

    assert calls.sorted() == [[1, 2], [3], [4, 5]]


def test_a_group_waits_until_no_job_has_come_for_its_grace(store: axeq.Store) -> None:
    calls = Calls()

    with running(gathering(store, calls, axeq.Group(grace=5))):
        jobs = [*enqueued(store, [1], group="g")]
        eventually(lambda: datetime.now(UTC) - jobs[0].created_at > timedelta(seconds=0.6))
        jobs += enqueued(store, [2], group="g")
        ended(jobs)

    assert calls.values == [[1, 2]]
    assert jobs[0].started_at - jobs[1].created_at >= timedelta(seconds=5)


def test_a_group_waits_no_longer_than_its_max_delay_though_jobs_keep_coming(store: axeq.Store) -> None:
    calls = Calls()

    with running(gathering(store, calls, axeq.Group(grace=3600, max_delay=0.5))):
        (job,) = enqueued(store, [1], group="g")
        assert ended([job]) == [State.COMPLETED]

    assert job.started_at - job.created_at >= timedelta(seconds=0.5)


def test_a_group_that_is_full_waits_for_nothing_and_what_is_more_waits_on(store: axeq.Store) -> None:
    calls = Calls()

    with running(gathering(store, calls, axeq.Group(grace=3600, max_size=3))):
        jobs = enqueued(store, range(7), group="g")
        eventually(lambda: sum(job.refresh().final for job in jobs) == 6)

    assert [len(call) for call in calls.values] == [3, 3]
    assert sorted(job.state for job in jobs).count(State.ENQUEUED) == 1


def test_a_job_joins_its_group_once_it_falls_due(store: axeq.Store) -> None:
    calls = Calls()

    with running(gathering(store, calls)):
        (late,) = enqueued(store, [1], group="g", delay=1)
        assert ended([late]) == [State.COMPLETED]

    assert late.started_at - late.created_at >= timedelta(seconds=1.3)


@pytest.mark.parametrize("group", [axeq.Group(grace=0), axeq.Group(grace=0.2, max_size=1)])
def test_a_group_may_be_of_one(store: axeq.Store, group: axeq.Group) -> None:
    calls = Calls()
    jobs = enqueued(store, [1], group="g")

    with running(gathering(store, calls, group)):
        ended(jobs)

    assert calls.values == [[1]]


def test_jobs_that_failed_together_are_tried_again_together(store: axeq.Store) -> None:
    def once(ctx: axeq.Context[Any, Any]) -> None:
        if ctx.attempt == 1:
            raise ValueError("not yet")

    calls = Calls(once)
    jobs = enqueued(store, range(4), group="g")

    with running(gathering(store, calls, min_delay=0.1)):
        states = ended(jobs)

    assert calls.values == [[0, 1, 2, 3]] * 2
    assert states == [State.COMPLETED] * 4
    assert all([event["verb"] for event in job.events] == ["fail"] for job in jobs)


def test_each_job_has_attempts_of_its_own(store: axeq.Store, jobs: Any) -> None:
    def fail(ctx: axeq.Context[Any, Any]) -> None:
        raise ValueError("never")

    worn = stored_probe(group="g", data={"value": 1, "outcome": "ok", "delay": 0.0}, attempts=2)
    new = stored_probe(group="g", data={"value": 2, "outcome": "ok", "delay": 0.0}, max_attempts=1)
    young = stored_probe(group="g", data={"value": 3, "outcome": "ok", "delay": 0.0})
    jobs.insert_many([worn, new, young])
    queue = axeq.Queue(store)

    with running(gathering(store, Calls(fail), max_attempts=3, min_delay=3600, max_delay=3600)):
        eventually(lambda: queue.stats()[State.FAILED] == 1 and queue.stats()[State.CANCELLED] == 2)

    assert [queue.get(document["_id"]).cause for document in (worn, new)] == ["exhausted"] * 2
    record = queue.get(young["_id"])
    assert (record.state, record.attempts) == (State.FAILED, 1)
    assert record.error is not None
    assert record.error["message"] == "never"


@pytest.mark.parametrize(
    ("outcome", "state"),
    [
        (axeq.Cancel("enough"), State.CANCELLED),
        (axeq.Snooze(delay=3600), State.ENQUEUED),
        (axeq.Retry("later", delay=3600), State.FAILED),
    ],
)
def test_an_outcome_is_that_of_every_job(store: axeq.Store, outcome: Exception, state: State) -> None:
    def end(ctx: axeq.Context[Any, Any]) -> None:
        raise outcome

    calls = Calls(end)
    jobs = enqueued(store, range(12), group="g")

    with running(gathering(store, calls)):
        eventually(lambda: all(job.refresh().events for job in jobs))

    assert {job.state for job in jobs} == {state}
    assert len(calls.values) == 1


def test_a_payload_that_does_not_validate_ends_its_job_alone(store: axeq.Store, jobs: Any) -> None:
    calls = Calls()
    wrong = stored_probe(group="g", data={"outcome": "no such thing"})
    jobs.insert_one(wrong)
    right = enqueued(store, [1, 2], group="g")

    with running(gathering(store, calls)):
        assert ended(right) == [State.COMPLETED] * 2
        eventually(lambda: axeq.Queue(store).get(wrong["_id"]).final)

    assert calls.sorted() == [[1, 2]]
    assert axeq.Queue(store).get(wrong["_id"]).cause == "invalid"


def test_a_document_that_a_hand_has_spoilt_ends_alone(store: axeq.Store, jobs: Any) -> None:
    calls = Calls()
    jobs.insert_one(stored_probe(_id="spoilt", group="g", attempts="three"))
    jobs.insert_one(stored_probe(_id="odd", group="g", lost="one"))
    right = enqueued(store, [1, 2], group="g")

    with running(gathering(store, calls)):
        assert ended(right) == [State.COMPLETED] * 2
        eventually(lambda: jobs.count_documents({"_id": {"$in": ["spoilt", "odd"]}, "state": "cancelled"}) == 2)

    assert calls.sorted() == [[1, 2]]


def test_a_job_whose_deadline_has_passed_ends_alone(store: axeq.Store) -> None:
    calls = Calls()
    queue = axeq.Queue(store)
    late = queue.enqueue(Probe(value=0), group="g", deadline=datetime.now(UTC) - timedelta(seconds=1))
    others = enqueued(store, [1, 2], group="g")

    with running(gathering(store, calls)):
        assert ended([late, *others]) == [State.CANCELLED, State.COMPLETED, State.COMPLETED]

    assert late.cause == "expired"
    assert calls.values == [[1, 2]]


def test_a_job_of_a_newer_version_is_left_alone(store: axeq.Store, jobs: Any) -> None:
    calls = Calls()
    newer = stored_probe(group="g", version=2)
    jobs.insert_one(newer)
    mine = enqueued(store, [1], group="g")

    with running(gathering(store, calls)):
        ended(mine)

    assert calls.values == [[1]]
    assert axeq.Queue(store).get(newer["_id"]).state is State.ENQUEUED


def test_a_paused_task_gathers_nothing_and_then_all(uri: str) -> None:
    calls = Calls()
    with axeq.Store(uri) as store:
        queue = axeq.Queue(store)
        queue.pause("probe")
        with running(gathering(store, calls)):
            jobs = enqueued(store, [1, 2], group="g")
            eventually(lambda: datetime.now(UTC) - jobs[0].created_at > timedelta(seconds=1))
            assert calls.values == []
            queue.resume("probe")
            ended(jobs)

    assert calls.values == [[1, 2]]


def gate() -> tuple[threading.Event, Callable[[Any], Any]]:
    opened = threading.Event()

    async def wait(ctx: axeq.Context[Any, Any]) -> None:
        while not opened.is_set():
            await asyncio.sleep(0.01)

    return opened, wait


def test_a_job_that_is_cancelled_while_its_group_runs_completes_with_it(store: axeq.Store) -> None:
    opened, wait = gate()
    calls = Calls(wait)
    jobs = enqueued(store, range(3), group="g")

    with running(gathering(store, calls)):
        eventually(lambda: bool(calls.values))
        assert jobs[1].cancel("not this one") is axeq.Cancellation.REQUESTED
        opened.set()
        assert ended(jobs) == [State.COMPLETED] * 3


def test_a_job_that_is_cancelled_ends_so_where_its_group_fails(store: axeq.Store) -> None:
    opened, wait = gate()

    async def fail(ctx: axeq.Context[Any, Any]) -> None:
        await wait(ctx)
        raise ValueError("no")

    calls = Calls(fail)
    jobs = enqueued(store, range(3), group="g")

    with running(gathering(store, calls, min_delay=3600, max_delay=3600)):
        eventually(lambda: bool(calls.values))
        jobs[1].cancel("not this one")
        opened.set()
        eventually(lambda: all(job.refresh().state is not State.DEQUEUED for job in jobs))

    assert [job.state for job in jobs] == [State.FAILED, State.CANCELLED, State.FAILED]
    assert jobs[1].cause == "requested"


def test_the_handler_is_stopped_once_each_of_its_jobs_is_cancelled(store: axeq.Store) -> None:
    _, wait = gate()
    calls = Calls(wait)
    jobs = enqueued(store, range(3), group="g")

    with running(gathering(store, calls)):
        eventually(lambda: bool(calls.values))
        for number, job in enumerate(jobs):
            job.cancel(f"reason {number}")
        assert ended(jobs) == [State.CANCELLED] * 3

    assert [job.events[-1]["reason"] for job in jobs] == ["reason 0", "reason 1", "reason 2"]


def test_a_job_that_is_removed_drops_out_and_the_others_complete(store: axeq.Store) -> None:
    opened, wait = gate()
    calls = Calls(wait)
    jobs = enqueued(store, range(3), group="g")

    with running(gathering(store, calls)) as pool:
        eventually(lambda: bool(calls.values))
        jobs[0].remove()
        eventually(lambda: pool.counts["lost"] == 1)
        opened.set()
        assert ended(jobs[1:]) == [State.COMPLETED] * 2

    assert len(calls.values) == 1


def test_each_job_of_a_call_that_finds_its_leases_lost_is_lost_once(store: axeq.Store, jobs: Any) -> None:
    told: list[Any] = []
    opened, wait = gate()

    async def commit(ctx: axeq.Context[Any, Any]) -> None:
        await wait(ctx)
        for job in ctx.jobs:
            jobs.delete_one({"_id": job.id})
        ctx._hands.lose(ctx._attempt, "found by the handler")

    calls = Calls(commit)
    ids = {job.id for job in enqueued(store, range(3), group="g")}
    pool = gathering(store, calls)
    pool.on("lost")(lambda job: told.append(job.id))

    with running(pool):
        eventually(lambda: bool(calls.values))
        jobs.delete_one({"_id": calls.jobs[0][0]})
        eventually(lambda: pool.counts["lost"] == 1)
        opened.set()
        eventually(lambda: set(told) == ids)

    assert len(told) == pool.counts["lost"] == 3


def test_a_job_that_was_left_out_of_a_call_is_not_lost_with_the_others(store: axeq.Store, jobs: Any) -> None:
    told: list[Any] = []

    async def commit(ctx: axeq.Context[Any, Any]) -> None:
        for job in ctx.jobs:
            jobs.delete_one({"_id": job.id})
        ctx._hands.lose(ctx._attempt, "found by the handler")

    jobs.insert_one(stored_probe(_id="unreadable", group="g", data={"outcome": "none such"}))
    ids = {job.id for job in enqueued(store, range(2), group="g")}
    pool = gathering(store, Calls(commit))
    pool.on("lost")(lambda job: told.append(job.id))

    with running(pool):
        eventually(lambda: (pool.counts["lost"], pool.counts["cancel"]) == (2, 1))

    assert set(told) == ids
    assert axeq.Queue(store).get("unreadable").cause == "invalid"


def test_a_call_stops_once_its_jobs_are_out_though_one_had_been_left_out_before(store: axeq.Store, jobs: Any) -> None:
    _, wait = gate()
    calls = Calls(wait)
    jobs.insert_one(stored_probe(_id="unreadable", group="g", data={"outcome": "none such"}))
    called = enqueued(store, range(2), group="g")

    with running(gathering(store, calls)):
        eventually(lambda: bool(calls.values))
        for job in called:
            job.cancel("enough")

        assert ended(called) == [State.CANCELLED] * 2

    assert axeq.Queue(store).get("unreadable").cause == "invalid"


def test_a_call_that_takes_too_long_fails_every_job(store: axeq.Store) -> None:
    _, wait = gate()
    calls = Calls(wait)
    jobs = enqueued(store, range(3), group="g")

    with running(gathering(store, calls, timeout=0.3, max_attempts=1)):
        assert ended(jobs) == [State.CANCELLED] * 3

    assert {(job.cause, job.error["type"]) for job in jobs} == {("exhausted", "TimeoutError")}


def test_a_pool_that_ends_gives_every_job_back_in_its_place(store: axeq.Store) -> None:
    _, wait = gate()
    calls = Calls(wait)
    jobs = enqueued(store, range(3), group="g")
    came = [job.available_at for job in jobs]

    with running(gathering(store, calls, drain=0.1)):
        eventually(lambda: bool(calls.values))

    for job in jobs:
        job.refresh()
    assert {(job.state, job.attempts, job.lost) for job in jobs} == {(State.ENQUEUED, 0, 0)}
    assert [job.available_at for job in jobs] == came


def test_a_handler_that_does_not_stop_is_abandoned_with_all_its_jobs(store: axeq.Store) -> None:
    opened = threading.Event()

    def stubborn(ctx: axeq.Context[Any, Any]) -> None:
        opened.wait(DEADLINE)

    jobs = enqueued(store, range(3), group="g")

    with running(gathering(store, stubborn, timeout=0.2, lease=3, drain=0)) as pool:
        eventually(lambda: pool.counts["abandon"] == 1)
        assert pool.counts["dequeue"] == 3
        opened.set()

    assert {job.refresh().attempts for job in jobs} == {1}


def test_jobs_whose_worker_died_are_gathered_again_with_each_other(store: axeq.Store, jobs: Any) -> None:
    calls = Calls()
    lapsed = milliseconds(datetime.now(UTC) - timedelta(seconds=1))
    for number in range(3):
        data = {"value": number, "outcome": "ok", "delay": 0.0}
        jobs.insert_one(orphan(lapsed, data=data, group="g", lost=1))
    fresh = enqueued(store, [9], group="g")
    queue = axeq.Queue(store)

    with running(gathering(store, calls)):
        ended(fresh)
        eventually(lambda: queue.stats()[State.COMPLETED] == 4)

    assert calls.sorted() == [[0, 1, 2], [9]]
    assert {(job.attempts, job.lost) for job in queue.find()} == {(1, 0)}


@pytest.mark.parametrize(("lost", "max_lost"), [(2, 5), (3, None), (1, 1)])
def test_jobs_that_may_be_poison_are_called_alone(
    store: axeq.Store, jobs: Any, lost: int, max_lost: int | None
) -> None:
    calls = Calls()
    lapsed = milliseconds(datetime.now(UTC) - timedelta(seconds=1))
    for number in range(3):
        data = {"value": number, "outcome": "ok", "delay": 0.0}
        jobs.insert_one(orphan(lapsed, data=data, group="g", lost=lost))
    queue = axeq.Queue(store)

    with running(gathering(store, calls, max_lost=max_lost)):
        eventually(lambda: queue.stats()[State.COMPLETED] == 3)

    assert calls.sorted() == [[0], [1], [2]]


def orphan(lapsed: datetime, **fields: Any) -> dict[str, Any]:
    claim = {"token": "gone", "worker": "dead"}
    return stored_probe(state="dequeued", available_at=lapsed, claim=claim, attempts=1, **fields)


@pytest.mark.parametrize("kind", ["uri"], indirect=True)
def test_a_large_group_of_small_results_goes_out_in_few_statements(store: axeq.Store) -> None:
    calls = Calls(lambda ctx: len(ctx.models))
    jobs = enqueued(store, range(600), group="g")

    with running(gathering(store, calls, lease=30)):
        eventually(lambda: axeq.Queue(store).stats()[State.COMPLETED] == 600)

    assert [len(call) for call in calls.values] == [600]
    assert {job.refresh().result for job in jobs[::60]} == {600}


def test_a_plain_handler_takes_groups_in_a_thread(store: axeq.Store) -> None:
    seen: list[list[Any]] = []

    def handler(ctx: axeq.Context[Probe, Any]) -> int:
        seen.append([model.value for model in ctx.models])
        return len(ctx.jobs)

    jobs = enqueued(store, [1, 2, 3], group="g")

    with running(gathering(store, handler)):
        assert ended(jobs) == [State.COMPLETED] * 3

    assert seen == [[1, 2, 3]]
    assert jobs[0].wait(0) == 3


def in_process(ctx: axeq.Context[Probe, Any]) -> Any:
    if ctx.attempt < 3:
        raise ValueError("not yet")
    return [model.value for model in ctx.models]


@pytest.mark.needs("processes")
def test_a_handler_in_a_process_of_its_own_takes_groups(store: axeq.Store, jobs: Any) -> None:
    worn = stored_probe(group="g", data={"value": 2, "outcome": "ok", "delay": 0.0}, attempts=1)
    jobs.insert_one(worn)
    fresh = enqueued(store, [1], group="g")

    with running(gathering(store, in_process, executor="process", min_delay=0.1, max_attempts=3)):
        assert ended(fresh) == [State.COMPLETED]

    assert axeq.Queue(store).get(worn["_id"]).cause == "exhausted"
    assert fresh[0].wait(0) == [1]


def test_sealed_payloads_are_opened_and_those_of_another_key_are_put_back(uri: str) -> None:
    calls = Calls()
    with axeq.Store(uri, codec=Mask(7)) as other, axeq.Store(uri, codec=Mask(9)) as store:
        foreign = enqueued(other, [0], group="g")
        mine = enqueued(store, [1, 2], group="g")
        with running(gathering(store, calls)):
            assert ended(mine) == [State.COMPLETED] * 2
            eventually(lambda: foreign[0].refresh().state is State.ENQUEUED and bool(foreign[0].events))

    assert calls.values == [[1, 2]]
    assert foreign[0].attempts == 0


def test_a_handler_of_a_group_cannot_keep_a_checkpoint(store: axeq.Store) -> None:
    async def keep(ctx: axeq.Context[Any, Any]) -> None:
        await ctx.checkpoint({"at": 1})

    jobs = enqueued(store, [1, 2], group="g")

    with running(gathering(store, Calls(keep), max_attempts=1)):
        assert ended(jobs) == [State.CANCELLED] * 2

    assert "group=" in jobs[0].error["message"]


@pytest.mark.needs("transactions")
def test_a_transaction_completes_all_jobs_of_a_group(store: axeq.Store) -> None:
    async def commit(ctx: axeq.Context[Any, Any]) -> None:
        async with ctx.transaction() as session:
            await ctx.queue.enqueue(Probe(value="follows"), group="other", delay=3600, session=session)
            ctx.result = len(ctx.models)

    calls = Calls(commit)
    jobs = enqueued(store, range(3), group="g")

    with running(gathering(store, calls)) as pool:
        assert ended(jobs) == [State.COMPLETED] * 3
        eventually(lambda: pool.counts["complete"] == 3)

    assert [job.wait(0) for job in jobs] == [3, 3, 3]
    assert axeq.Queue(store).stats()[State.ENQUEUED] == 1


@pytest.mark.needs("transactions")
def test_a_transaction_of_a_group_goes_on_though_one_of_its_jobs_is_cancelled(store: axeq.Store) -> None:
    opened, wait = gate()

    async def commit(ctx: axeq.Context[Any, Any]) -> None:
        await wait(ctx)
        async with ctx.transaction():
            pass

    calls = Calls(commit)
    jobs = enqueued(store, range(3), group="g")

    with running(gathering(store, calls)):
        eventually(lambda: bool(calls.values))
        jobs[0].cancel()
        opened.set()
        assert ended(jobs) == [State.COMPLETED] * 3


def test_progress_of_a_group_is_that_of_every_job(store: axeq.Store) -> None:
    opened, wait = gate()

    async def report(ctx: axeq.Context[Any, Any]) -> None:
        ctx.progress(0.5, "half")
        await wait(ctx)

    jobs = enqueued(store, range(3), group="g")

    with running(gathering(store, Calls(report))):
        eventually(lambda: [job.refresh().progress for job in jobs] == [0.5] * 3)
        opened.set()
        assert ended(jobs) == [State.COMPLETED] * 3

    assert [job.progress for job in jobs] == [1.0] * 3


def test_an_ordinary_task_has_lists_of_one(store: axeq.Store) -> None:
    calls = Calls()
    pool = quick_pool(store)
    pool.add(axeq.Task(Probe, calls))
    jobs = enqueued(store, [1, 2], group="g")

    with running(pool):
        ended(jobs)

    assert calls.sorted() == [[1], [2]]


def test_pools_beside_each_other_do_not_split_a_group(store: axeq.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("axeq.rules.workers.HEARTBEAT", 0.2)
    monkeypatch.setattr("axeq.supply.lag._SHORTEST_STEP", 0.5)  # the first of them is given time, whatever holds it up
    calls = Calls()

    def pool() -> axeq.Pool:
        made = quick_pool(store, max_lag=1)
        made.add(axeq.Task(Probe, calls, group=QUICK))
        return made

    with running(pool()) as first, running(pool()) as second, running(pool()) as third:
        eventually(lambda: all(others_known_to(each) == 2 for each in (first, second, third)))
        jobs = [job for number in range(6) for job in enqueued(store, [number] * 4, group=f"g{number}")]
        ended(jobs)

    assert calls.sorted() == [[number] * 4 for number in range(6)]


def others_known_to(pool: axeq.Pool) -> int:
    lag: Any = pool._shift._sources["default"].lag  # type: ignore[union-attr]
    return len(lag._others.get("probe", ()))
