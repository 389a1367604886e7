"""What a pool is told before it runs: mistakes are found where they are made."""

from __future__ import annotations

import threading
from typing import Any

import mongomock
import pytest

import axeq
from axeq.rules import lifecycle
from axeq.wire.wire import JOBS, Call, Sleep
from tests.support.probe import Probe, probe

URI = "mongodb://localhost:27017/shop"


@pytest.fixture
def pool() -> axeq.Pool:
    return axeq.Pool(axeq.Store(URI))


def test_a_second_task_of_a_name_is_refused(pool: axeq.Pool) -> None:
    first = pool.add(axeq.Task(Probe, probe))

    with pytest.raises(axeq.TaskExists, match="'probe'"):
        pool.add(axeq.Task(Probe, probe))

    assert pool.tasks == [first]


def test_a_decorator_without_its_model_or_moment_is_refused_where_it_stands(pool: axeq.Pool) -> None:
    wrong: Any = pool

    with pytest.raises(axeq.ConfigurationError, match=r"task takes the model of probe, as in @pool\.task\("):
        wrong.task(probe)
    with pytest.raises(axeq.ConfigurationError, match=r"on\(\) takes one of"):
        wrong.on(probe)


def test_a_handler_in_place_of_its_task_is_told_how_to_make_one(pool: axeq.Pool) -> None:
    with pytest.raises(axeq.ConfigurationError, match=r"add\(axeq\.Task\(Model, handler\)\)"):
        pool.add(probe)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("verb", "instead"),
    [("run", "async with pool"), ("drain", "await pool.adrain()"), ("work_one", "await pool.awork_one()")],
)
async def test_what_would_block_a_running_loop_names_what_would_not(pool: axeq.Pool, verb: str, instead: str) -> None:
    with pytest.raises(axeq.ConfigurationError) as caught:
        getattr(pool, verb)()

    assert instead in str(caught.value)


def test_what_ends_a_drain_is_shown_without_the_pools_own_errors(pool: axeq.Pool) -> None:
    with pytest.raises(axeq.ConfigurationError, match="no tasks") as caught:
        pool.drain()

    assert caught.value.__context__ is None


@pytest.mark.parametrize(
    ("moment", "function", "says"),
    [
        ("finished", print, "tells of no 'finished'"),
        ("done", "not a function", "takes a function of (job)"),
        ("done", lambda: None, "with (job)"),
        ("error", lambda job: None, "with (error, job)"),
        ("unknown", lambda name: None, "with (name, count)"),
    ],
)
def test_a_hook_that_cannot_be_told_is_refused_by_its_moment(
    pool: axeq.Pool, moment: Any, function: Any, says: str
) -> None:
    with pytest.raises(axeq.ConfigurationError) as caught:
        pool.on(moment)(function)

    assert says in str(caught.value)


def test_a_decorated_hook_stays_the_function_it_was(pool: axeq.Pool) -> None:
    def count(job: axeq.Record) -> None: ...

    assert pool.on("done")(count) is count


@pytest.mark.parametrize("notify", ["not a function", lambda: None])
def test_a_notify_that_cannot_be_called_with_a_job_is_refused(notify: Any) -> None:
    with pytest.raises(axeq.ConfigurationError, match="notify"):
        axeq.Task(Probe, probe, notify=notify)


def test_a_lifespan_that_is_no_function_is_refused() -> None:
    with pytest.raises(axeq.ConfigurationError, match="lifespan"):
        axeq.Pool(axeq.Store(URI), lifespan="resources")  # type: ignore[typeddict-item]


def test_a_lifespan_that_returns_no_context_manager_says_how_to_make_one() -> None:
    import mongomock

    pool = axeq.Pool(axeq.Store(mongomock.MongoClient()), lifespan=lambda pool: object())  # type: ignore[typeddict-item,arg-type,return-value]
    pool.add(axeq.Task(Probe, probe))

    with pytest.raises(axeq.ConfigurationError, match="asynccontextmanager"):
        pool.run()


def mock_pool(**options: Any) -> axeq.Pool:
    pool = axeq.Pool(axeq.Store(mongomock.MongoClient()["pool"]), **{"lease": 0.5, "drain": 1, **options})
    pool.add(axeq.Task(Probe, probe))
    return pool


def test_a_pool_ends_where_nothing_can_keep_its_leases(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(self: axeq.Store, *, timeout: float) -> Any:
        raise OSError("no name server")

    monkeypatch.setattr(axeq.Store, "spare_wire", unreachable)

    with pytest.raises(RuntimeError, match="lease thread has failed") as caught:
        mock_pool().run()

    assert isinstance(caught.value.__cause__, OSError)


def found_back(candidate: Any, clock: Any, **options: Any) -> Any:
    """A claim whose answer was lost, found back when its own lease was over, and extended by that."""
    (record,) = yield from lifecycle.claim_one(candidate, clock, **options)
    yield Sleep(1.2 * options["lease"])
    document = {"$set": {"available_at": lifecycle.lease_end(clock, options["lease"])}}
    yield Call(JOBS, "update_many", ({"_id": record.id}, document))
    return lifecycle.Claim([record], since=clock.monotonic())


@pytest.mark.parametrize("work", ["run", "drain"])
def test_a_claim_that_was_found_back_is_not_dropped_for_the_age_of_its_first_lease(
    monkeypatch: pytest.MonkeyPatch, work: str
) -> None:
    monkeypatch.setattr("axeq.running.claims.claim_one", found_back)
    pool = mock_pool()
    job = axeq.Queue(pool.store).enqueue(Probe())
    pool.on("done")(lambda job: pool.stop())
    pool.on("lost")(lambda job: pool.stop())

    getattr(pool, work)()

    assert job.refresh().state == "completed"
    assert pool.counts["lost"] == 0


def test_a_pool_leaves_no_thread_though_its_end_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(self: Any, **_: Any) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr("axeq.running.crew.Crew.close", broken)
    before = lease_threads()
    pool = mock_pool()
    pool.stop()

    with pytest.raises(RuntimeError, match="broken"):
        pool.run()

    assert lease_threads() <= before


def lease_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "axeq-leases"}


def test_a_stop_during_a_start_that_fails_does_not_end_the_next_run(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = mock_pool()
    with monkeypatch.context() as patched:

        async def failing(self: Any) -> None:
            pool.stop()
            raise axeq.StoreUnavailable("db", "no answer")

        patched.setattr("axeq.running.shift.Shift._announce", failing)
        with pytest.raises(axeq.StoreUnavailable):
            pool.run()

    axeq.Queue(pool.store).enqueue(Probe())
    pool.on("done")(lambda job: pool.stop())
    pool.run()

    assert pool.counts["complete"] == 1
