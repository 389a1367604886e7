"""Enqueues that keep others away for a while, on both faces, with transactions and without."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

import axeq
from axeq.rules import isolation
from tests.support.probe import Probe
from tests.support.sessions import Sessions, transact
from tests.support.waiting import aeventually, settled

HOUR = 3600


WAYS = [("transaction", "uri"), ("transaction", "motor"), ("two steps", "uri"), ("two steps", "mongomock")]
"""Nothing of it depends on how a store was opened."""

pytestmark = pytest.mark.parametrize(("way", "kind"), WAYS, indirect=["kind"])


@pytest.fixture(autouse=True)
async def able(way: str, store: axeq.Store) -> None:
    """Has the store enqueue with its transactions, or as one that has none."""
    if way == "two steps":
        store._capabilities = replace(await store.acapabilities(), transactions=False)


@pytest.fixture
def markers(jobs: Any) -> Any:
    return jobs.database["jobs.isolations"]


async def test_a_second_enqueue_is_kept_away_and_told_until_when(queue: Any, jobs: Any) -> None:
    first = await settled(queue.enqueue(Probe(), label="one", isolation=HOUR))
    await settled(queue.cancel(first.id))

    with pytest.raises(axeq.Isolated) as caught:
        await settled(queue.enqueue(Probe(), label="one", isolation=HOUR))

    assert (caught.value.name, caught.value.label, caught.value.existing_id) == ("probe", "one", first.id)
    assert timedelta(0) <= caught.value.until - first.created_at - timedelta(seconds=HOUR) < timedelta(minutes=1)
    assert isinstance(caught.value, axeq.LabelTaken)
    assert jobs.count_documents({}) == 1


async def test_isolation_outlives_the_job_and_its_document(queue: Any, jobs: Any) -> None:
    first = await settled(queue.enqueue(Probe(), isolation=HOUR))
    await settled(queue.remove(first.id))

    with pytest.raises(axeq.Isolated, match="'probe' is isolated"):
        await settled(queue.enqueue(Probe(), isolation=HOUR))

    assert jobs.count_documents({}) == 0


async def test_once_the_time_has_passed_the_next_is_stored(queue: Any, jobs: Any, markers: Any) -> None:
    first = await settled(queue.enqueue(Probe(), label="one", isolation=0.3))
    await settled(queue.cancel(first.id))

    second = await aeventually(lambda: settled(_tried(queue)))

    assert second.created_at - first.created_at >= timedelta(seconds=0.3)
    assert markers.find_one()["job"]["_id"] == second.id
    assert markers.count_documents({}) == 1


async def _tried(queue: Any) -> Any:
    try:
        return await settled(queue.enqueue(Probe(), label="one", isolation=0.3))
    except axeq.Isolated as error:
        raise AssertionError from error


async def test_other_labels_tasks_and_enqueues_without_isolation_are_not_kept_away(queue: Any, jobs: Any) -> None:
    await settled(queue.enqueue(Probe(), isolation=HOUR))
    await settled(queue.enqueue(Probe(), label="one", isolation=HOUR))

    await settled(queue.enqueue(Probe(), label="two", isolation=HOUR))
    await settled(queue.enqueue(Probe()))

    assert jobs.count_documents({}) == 4


async def test_a_conflict_that_is_ignored_returns_the_job_though_it_has_ended(queue: Any) -> None:
    first = await settled(queue.enqueue(Probe(value=1), label="one", isolation=HOUR))
    await settled(queue.cancel(first.id))

    second = await settled(queue.enqueue(Probe(value=2), label="one", isolation=HOUR, on_conflict="ignore"))

    assert (second.id, second.created, second.state) == (first.id, False, "cancelled")


async def test_a_conflict_that_is_ignored_shows_a_job_that_is_gone_as_it_was_enqueued(queue: Any) -> None:
    first = await settled(queue.enqueue(Probe(value=1), label="one", isolation=HOUR))
    await settled(queue.remove(first.id))

    second = await settled(queue.enqueue(Probe(value=2), label="one", isolation=HOUR, on_conflict="ignore"))

    assert (second.id, second.created, second.payload.value) == (first.id, False, 1)
    assert second.document == first.document
    with pytest.raises(axeq.JobNotFound):
        await settled(second.refresh())


async def test_a_label_that_is_taken_leaves_no_marker(queue: Any, jobs: Any, markers: Any) -> None:
    holder = await settled(queue.enqueue(Probe(), label="one"))

    with pytest.raises(axeq.LabelTaken) as caught:
        await settled(queue.enqueue(Probe(), label="one", isolation=HOUR))
    ignored = await settled(queue.enqueue(Probe(), label="one", isolation=HOUR, on_conflict="ignore"))

    assert (caught.value.existing_id, ignored.id) == (holder.id, holder.id)
    assert not isinstance(caught.value, axeq.Isolated)
    assert markers.count_documents({}) == 0


async def test_an_enqueue_of_the_same_id_is_the_same_job_and_not_kept_away_by_itself(queue: Any, jobs: Any) -> None:
    first = await settled(queue.enqueue(Probe(), id="order-17", isolation=HOUR))

    again = await settled(queue.enqueue(Probe(), id="order-17", isolation=HOUR))

    assert (first.created, again.created, again.id) == (True, False, "order-17")
    assert jobs.count_documents({}) == 1


async def test_an_id_that_was_there_before_leaves_no_marker(queue: Any, markers: Any) -> None:
    await settled(queue.enqueue(Probe(), id="order-17"))

    again = await settled(queue.enqueue(Probe(), id="order-17", isolation=HOUR))

    assert again.created is False
    assert markers.count_documents({}) == 0


async def test_equal_payloads_are_isolated_for_as_long_as_unique_says(queue: Any, jobs: Any) -> None:
    first = await settled(queue.enqueue(Probe(value=1), unique=timedelta(hours=1)))
    await settled(queue.remove(first.id))

    with pytest.raises(axeq.Isolated):
        await settled(queue.enqueue(Probe(value=1), unique=timedelta(hours=1)))
    other = await settled(queue.enqueue(Probe(value=2), unique=timedelta(hours=1)))

    assert other.created is True


async def test_the_server_removes_markers_by_their_time(queue: Any, markers: Any) -> None:
    job = await settled(queue.enqueue(Probe(), isolation=HOUR))

    (marker,) = markers.find()
    details = markers.index_information()["isolation"]
    until = marker["until"].replace(tzinfo=UTC)
    assert details["expireAfterSeconds"] == 60
    assert details["key"] == [("until", 1)]
    assert until - job.created_at - timedelta(seconds=HOUR) < timedelta(minutes=1)
    assert "void_at" not in marker


# Markers that nobody confirmed


@pytest.fixture
def unconfirmed(markers: Any) -> Any:
    """Puts a marker as a producer leaves it that dies before it has confirmed it."""

    def put(job: Any, *, void_in: float) -> None:
        now = datetime.now(UTC)
        until = now + timedelta(seconds=HOUR)
        void_at = now + timedelta(seconds=void_in)
        markers.insert_one({"_id": "probe one", "token": "its own", "job": job, "until": until, "void_at": void_at})

    return put


async def test_a_void_marker_without_a_job_makes_way(queue: Any, jobs: Any, markers: Any, unconfirmed: Any) -> None:
    unconfirmed({"_id": "never stored", "name": "probe", "label": "one"}, void_in=-10)

    job = await settled(queue.enqueue(Probe(), label="one", isolation=HOUR))

    assert job.created is True
    assert [document["job"]["_id"] for document in markers.find()] == [job.id]


async def test_a_void_marker_whose_job_is_there_is_as_good_as_confirmed(
    queue: Any, jobs: Any, markers: Any, unconfirmed: Any
) -> None:
    first = await settled(queue.enqueue(Probe(), label="one"))
    await settled(queue.cancel(first.id))
    unconfirmed(jobs.find_one(), void_in=-10)

    with pytest.raises(axeq.Isolated) as caught:
        await settled(queue.enqueue(Probe(), label="one", isolation=HOUR))

    assert caught.value.existing_id == first.id
    assert "void_at" not in markers.find_one()


async def test_a_marker_that_may_yet_be_confirmed_keeps_others_away_until_it_is_void(
    queue: Any, jobs: Any, unconfirmed: Any
) -> None:
    unconfirmed({"_id": "on its way", "name": "probe", "label": "one"}, void_in=60)

    with pytest.raises(axeq.Isolated) as caught:
        await settled(queue.enqueue(Probe(), label="one", isolation=HOUR))

    assert caught.value.until - datetime.now(UTC) < timedelta(seconds=61)
    assert jobs.count_documents({}) == 0


async def test_who_ignores_conflicts_waits_until_it_is_known_whether_there_is_a_job(
    queue: Any, jobs: Any, unconfirmed: Any
) -> None:
    unconfirmed({"_id": "never stored", "name": "probe", "label": "one"}, void_in=1)

    job = await settled(queue.enqueue(Probe(), label="one", isolation=HOUR, on_conflict="ignore"))

    assert job.created is True
    assert [document["_id"] for document in jobs.find()] == [job.id]


async def test_a_producer_that_came_too_late_takes_its_job_back(
    way: str, queue: Any, jobs: Any, markers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if way == "transaction":
        pytest.skip("a transaction has no gap in which it could be overtaken")
    winner = {"_id": "probe one", "token": "another", "until": datetime.now(UTC) + timedelta(hours=1)}
    confirming = isolation._inserted_or_unmarked

    def overtaken(document: Any, mine: Any, unanswered: bool) -> Any:
        stored = yield from confirming(document, mine, unanswered)
        markers.replace_one({"_id": "probe one"}, {**winner, "job": {"_id": 7, "name": "probe", "label": "one"}})
        return stored

    monkeypatch.setattr(isolation, "_inserted_or_unmarked", overtaken)

    with pytest.raises(axeq.Isolated) as caught:
        await settled(queue.enqueue(Probe(), label="one", isolation=HOUR))

    assert caught.value.existing_id == 7
    assert jobs.count_documents({}) == 0


# In the caller's transaction


@pytest.mark.needs("transactions")
async def test_in_a_transaction_the_marker_lives_and_dies_with_it(
    queue: Any, jobs: Any, markers: Any, sessions: Sessions
) -> None:
    async def work(queue: Any, session: Any) -> Any:
        return await settled(queue.enqueue(Probe(), label="one", isolation=HOUR, session=session))

    await settled(queue.ensure_indexes())
    await transact(queue, sessions, work, commit=False)
    before = (jobs.count_documents({}), markers.count_documents({}))
    job = await transact(queue, sessions, work)

    assert before == (0, 0)
    assert [document["job"]["_id"] for document in markers.find()] == [job.id]
    assert [document["_id"] for document in jobs.find()] == [job.id]


@pytest.mark.needs("transactions")
async def test_in_a_transaction_isolation_is_told_without_aborting_it(
    queue: Any, jobs: Any, sessions: Sessions
) -> None:
    first = await settled(queue.enqueue(Probe(), label="one", isolation=HOUR))
    await settled(queue.cancel(first.id))

    async def work(queue: Any, session: Any) -> Any:
        with pytest.raises(axeq.Isolated) as caught:
            await settled(queue.enqueue(Probe(), label="one", isolation=HOUR, session=session))
        assert (caught.value.existing_id, caught.value.aborted) == (first.id, False)
        return await settled(queue.enqueue(Probe(), label="one", isolation=HOUR, on_conflict="ignore", session=session))

    again = await transact(queue, sessions, work)

    assert (again.id, again.created) == (first.id, False)
    assert jobs.count_documents({}) == 1
