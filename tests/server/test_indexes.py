"""The indexes as the server has them, and the plans of the reads that need them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pymongo
import pytest

import axeq
from axeq.rules import indexes
from axeq.rules.backlog import Backlog
from axeq.rules.due import due_page, next_due
from axeq.rules.indexes import INDEXES
from axeq.rules.manage import dead, find, stats_by_task
from axeq.running import shift
from axeq.wire.wire import ISOLATIONS, JOBS
from axeq.words.states import State
from tests.support.pools import quick_pool, running
from tests.support.probe import Probe, probe
from tests.support.waiting import eventually, settled


def described(jobs: Any) -> dict[str, Any]:
    """Returns the indexes that exist, without the one on `_id` that every collection has."""
    ignored = ("v", "ns", "name", "background")
    return {
        name: {key: _plain(value) for key, value in details.items() if key not in ignored}
        for name, details in jobs.index_information().items()
        if name != "_id_"
    }


def _plain(value: Any) -> Any:
    return [(key, int(direction)) for key, direction in value] if isinstance(value, list) else value


async def test_the_indexes_created_are_exactly_the_declared_ones(queue: Any, jobs: Any) -> None:
    names = await settled(queue.ensure_indexes())

    for collection, stored in ((JOBS, jobs), (ISOLATIONS, jobs.database["jobs.isolations"])):
        declared = {index.name: index for index in INDEXES if index.collection == collection}
        assert described(stored) == {
            name: {"key": list(index.keys), **index.options} for name, index in declared.items()
        }
    assert set(names) >= {index.name for index in INDEXES}


async def test_creating_the_indexes_twice_changes_nothing(queue: Any, jobs: Any) -> None:
    await settled(queue.ensure_indexes())
    before = described(jobs)

    await settled(queue.ensure_indexes())

    assert described(jobs) == before


async def test_the_first_label_creates_the_index_that_makes_it_unique(queue: Any, jobs: Any) -> None:
    await settled(queue.enqueue(Probe(), label="one"))

    assert "label" in described(jobs)


async def test_labels_are_unique_again_within_a_minute_of_the_collections_end(
    queue: Any, store: axeq.Store, jobs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    await settled(queue.enqueue(Probe(), label="one"))
    jobs.drop()
    later = time.monotonic() + 60

    monkeypatch.setattr(type(store.clock), "monotonic", lambda _: later)
    first = await settled(queue.enqueue(Probe(), label="one"))

    with pytest.raises(axeq.LabelTaken) as caught:
        await settled(queue.enqueue(Probe(), label="one"))
    assert caught.value.existing_id == first.id
    assert jobs.count_documents({}) == 1


async def test_an_index_that_was_there_is_not_asked_for_with_each_label(
    queue: Any, jobs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    secure = indexes.secure

    def counted(name: str, *place: Any, **how: Any) -> Any:
        asked.append(name)
        return secure(name, *place, **how)

    monkeypatch.setattr(indexes, "secure", counted)

    for label in "abc":
        await settled(queue.enqueue(Probe(), label=label))

    assert asked == ["label"]


def test_a_pool_creates_again_the_indexes_of_a_collection_that_was_dropped(
    store: axeq.Store, jobs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shift, "_INDEXES_EVERY", 0.05)
    pool = quick_pool(store)
    pool.add(axeq.Task(Probe, probe))
    with running(pool):
        jobs.drop()

        eventually(lambda: {"claim", "label"} <= described(jobs).keys())


@pytest.fixture(scope="session")
def plans_partial_indexes(server: pymongo.MongoClient[dict[str, Any]]) -> None:
    """Skips where the server's planner does not choose a partial index even for its own filter."""
    scratch = server["axeq_probe"]["plans"]
    scratch.insert_many([{"a": number} for number in range(50)])
    scratch.create_index([("a", 1)], name="partial", partialFilterExpression={"a": {"$exists": True}})
    stages = list(_stages(_winner(scratch.find({"a": {"$lt": 3}}).explain())))
    server.drop_database("axeq_probe")
    if not any(stage.get("indexName") == "partial" for stage in stages):
        pytest.skip("the server's planner does not use partial indexes, tried")


@pytest.fixture
def filled(store: axeq.Store) -> axeq.Store:
    queue = axeq.Queue(store)
    queue.ensure_indexes()
    for priority in (0, 5):
        queue.enqueue_many([Probe() for _ in range(50)], priority=priority)
        queue.enqueue_many([Probe() for _ in range(50)], priority=priority, delay=600)
    return store


def _winner(explained: dict[str, Any]) -> dict[str, Any]:
    plan: dict[str, Any] = explained["queryPlanner"]["winningPlan"]
    return plan.get("queryPlan", plan)


def _stages(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for inner in (plan.get("inputStage"), *plan.get("inputStages", ())):
        if inner:
            yield from _stages(inner)


def explained(jobs: Any, rule: Any) -> list[dict[str, Any]]:
    """Returns the stages by which the server would run a rule's first read."""
    command = next(rule)
    cursor = jobs.find(command.filter, command.projection, sort=command.sort, limit=command.limit)
    return list(_stages(_winner(cursor.explain())))


@pytest.mark.kinds("uri")
@pytest.mark.needs("plans")
@pytest.mark.usefixtures("plans_partial_indexes")
def test_the_board_is_read_from_the_claim_index_alone_in_order(filled: axeq.Store, jobs: Any) -> None:
    now = datetime.now(UTC) + timedelta(seconds=10)

    stages = explained(jobs, due_page("default", {"probe": 1}, now, limit=100))

    assert [stage["indexName"] for stage in stages if stage["stage"] == "IXSCAN"] == ["claim"]
    assert {stage["stage"] for stage in stages} <= {"LIMIT", "PROJECTION_COVERED", "PROJECTION_SIMPLE", "IXSCAN"}


@pytest.mark.kinds("uri")
@pytest.mark.needs("plans")
@pytest.mark.usefixtures("plans_partial_indexes")
def test_the_next_due_time_is_read_from_the_due_index_in_order(filled: axeq.Store, jobs: Any) -> None:
    filled.run(next_due("default", ["probe"], filled.clock.earliest()))

    stages = explained(jobs, next_due("default", ["probe"], filled.clock.earliest()))

    assert [stage["indexName"] for stage in stages if stage["stage"] == "IXSCAN"] == ["due"]
    assert not {"SORT", "COLLSCAN"} & {stage["stage"] for stage in stages}


@pytest.fixture
def ended(filled: axeq.Store) -> axeq.Store:
    queue = axeq.Queue(filled)
    for job in queue.find(limit=60):
        queue.cancel(job.id)
    return filled


@pytest.mark.kinds("uri")
@pytest.mark.needs("plans")
@pytest.mark.usefixtures("plans_partial_indexes", "ended")
@pytest.mark.parametrize(
    "rule",
    [
        partial(dead, "default"),
        partial(dead, "default", name="probe"),
        partial(find, "default", state=State.CANCELLED),
        partial(find, "default", state=State.CANCELLED, name="probe"),
    ],
    ids=["dead", "dead of a task", "state", "state and task"],
)
def test_ended_jobs_are_found_by_their_index_in_order(jobs: Any, rule: Any) -> None:
    stages = explained(jobs, rule())

    assert [stage["indexName"] for stage in stages if stage["stage"] == "IXSCAN"] == ["inspection"]
    assert not {"SORT", "COLLSCAN"} & {stage["stage"] for stage in stages}


@pytest.mark.kinds("uri")
@pytest.mark.needs("plans")
@pytest.mark.usefixtures("plans_partial_indexes", "ended")
@pytest.mark.parametrize("state", State)
def test_counting_and_finding_by_task_and_state_scans_no_collection(jobs: Any, state: State) -> None:
    found = explained(jobs, find("default", state=state, name="probe"))
    counted = list(_stages(_winner(jobs.find(_matched(state), {"name": 1}).explain())))

    for stages in (found, counted):
        assert "COLLSCAN" not in {stage["stage"] for stage in stages}
        assert "IXSCAN" in {stage["stage"] for stage in stages}


def _matched(state: State) -> Any:
    """Returns what the count of a state by task matches."""
    rule = stats_by_task("default", cap=100)
    commands = {State(command.args[0][0]["$match"]["state"]): command for command in _yielded(rule)}
    return commands[state].args[0][0]["$match"]


def _yielded(rule: Any) -> Iterator[Any]:
    command = next(rule)
    while True:
        yield command
        try:
            command = rule.send([])
        except StopIteration:
            return


@pytest.mark.kinds("uri")
@pytest.mark.needs("plans")
@pytest.mark.usefixtures("plans_partial_indexes")
def test_jobs_in_order_of_due_time_alone_are_read_in_the_order_of_the_due_index(filled: axeq.Store, jobs: Any) -> None:
    now = datetime.now(UTC) + timedelta(seconds=10)

    stages = explained(jobs, due_page("default", {"probe": 1, "other": 1}, now, limit=100, flat=True))

    assert [stage["indexName"] for stage in stages if stage["stage"] == "IXSCAN"] == ["due"]
    assert not {"SORT", "COLLSCAN"} & {stage["stage"] for stage in stages}


@pytest.mark.kinds("uri")
@pytest.mark.needs("plans")
@pytest.mark.usefixtures("plans_partial_indexes")
def test_a_backlog_in_order_of_due_time_alone_is_read_in_the_order_of_the_due_index(
    filled: axeq.Store, jobs: Any
) -> None:
    now = datetime.now(UTC) + timedelta(seconds=10)
    backlog = Backlog("default", "probe", 1, flat=True)
    backlog.met(filled.run(due_page("default", {"probe": 1}, now, limit=20, flat=True)))

    for read in (backlog.head(now, limit=100), backlog.further(now, limit=100)):
        stages = explained(jobs, read)

        assert [stage["indexName"] for stage in stages if stage["stage"] == "IXSCAN"] == ["due"]
        assert not {"SORT", "COLLSCAN"} & {stage["stage"] for stage in stages}
