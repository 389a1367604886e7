"""What becomes of an enqueue whose label is taken, on both faces."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import BaseModel

import axeq
from axeq.wire.capabilities import Capabilities
from tests.support.masking import Mask
from tests.support.pools import quick_pool, running
from tests.support.probe import Probe, probe
from tests.support.sessions import Sessions, transact
from tests.support.waiting import DEADLINE, aeventually, settled

pytestmark = pytest.mark.kinds("uri", "motor", "mongomock")
"""Those whose sessions or whose transactions differ; nothing else of it depends on how a store was opened."""

WITHOUT = Capabilities(streams=False, transactions=False, clock=True, freed_labels=True, version="a stand-in")


class Report(BaseModel):
    filters: dict[str, int]


def value_of(payload: Probe) -> str | None:
    return None if payload.value is None else str(payload.value)


# One job


async def test_a_handle_tells_whether_its_enqueue_stored_the_job(queue: Any) -> None:
    first = await settled(queue.enqueue(Probe(), id="order-17"))
    second = await settled(queue.enqueue(Probe(), id="order-17"))
    many = await settled(queue.enqueue_many([Probe()]))

    assert (first.created, second.created, many[0].created) == (True, False, True)
    assert (await settled(queue.get("order-17"))).created is False


async def test_a_job_can_be_asked_for_by_its_id(queue: Any) -> None:
    await settled(queue.enqueue(Probe(), id="order-17"))

    assert await settled(queue.exists("order-17")) is True
    assert await settled(queue.exists("order-18")) is False
    with pytest.raises(axeq.ConfigurationError, match="id must be"):
        await settled(queue.exists({"$ne": None}))


async def test_a_conflict_that_is_ignored_returns_the_job_that_has_the_label(queue: Any, jobs: Any) -> None:
    first = await settled(queue.enqueue(Probe(value=1), label="one", on_conflict="ignore"))

    second = await settled(queue.enqueue(Probe(value=2), label="one", on_conflict="ignore"))

    assert (second.id, second.created, second.payload.value) == (first.id, False, 1)
    assert jobs.count_documents({}) == 1


async def test_a_replaced_job_keeps_its_id_and_becomes_the_new_one(queue: Any, jobs: Any) -> None:
    deadline = datetime.now(UTC) + timedelta(hours=2)
    first = await settled(queue.enqueue(Probe(value=1), label="one", delay=3600, deadline=deadline, retention=5))

    second = await settled(
        queue.enqueue(Probe(value=2), label="one", on_conflict="replace", priority=7, retention=60, group="g")
    )

    stored = await settled(queue.get(first.id, model=Probe))
    assert (second.id, second.created) == (first.id, False)
    assert stored.document == second.document
    assert (stored.payload.value, stored.priority, stored.retention, stored.group) == (2, 7, 60, "g")
    assert stored.deadline is None
    assert stored.available_at < first.available_at
    assert [entry["verb"] for entry in stored.events] == ["replace"]
    assert jobs.count_documents({"label": "one"}) == 1


async def test_a_replacement_that_finds_no_job_is_stored(queue: Any) -> None:
    job = await settled(queue.enqueue(Probe(), label="one", on_conflict="replace"))

    assert job.created is True
    assert await settled(queue.exists(job.id))


async def test_a_job_moved_by_its_replacement_to_at_once_is_run_without_waiting_for_its_old_time(
    queue: Any, store: axeq.Store
) -> None:
    pool = quick_pool(store)
    pool.add(axeq.Task(Probe, probe))
    job = await settled(queue.enqueue(Probe(value=1), label="one", delay=3600))
    with running(pool):
        await settled(queue.enqueue(Probe(value=2), label="one", on_conflict="replace"))

        done = await settled(queue.wait(job.id, timeout=DEADLINE))

    assert (done.result, done.attempts) == (2, 1)


async def test_a_job_that_runs_is_not_replaced(queue: Any, store: axeq.Store) -> None:
    pool = quick_pool(store)
    pool.add(axeq.Task(Probe, probe))
    job = await settled(queue.enqueue(Probe(outcome="hang"), label="one"))
    with running(pool):
        await aeventually(lambda: _is(queue, job, "dequeued"))

        with pytest.raises(axeq.LabelTaken) as caught:
            await settled(queue.enqueue(Probe(value=2), label="one", on_conflict="replace"))

        found = await settled(queue.get(job.id, model=Probe))
        await settled(queue.cancel(job.id))
    assert caught.value.existing_id == job.id
    assert found.payload.outcome == "hang"


async def _is(queue: Any, job: Any, state: str) -> bool:
    return bool((await settled(queue.get(job.id))).state == state)


async def test_equal_payloads_are_one_job_and_others_are_not(queue: Any, jobs: Any) -> None:
    first = await settled(queue.enqueue(Report(filters={"a": 1, "b": 2}), name="report", unique=True))
    same = await settled(
        queue.enqueue(Report(filters={"b": 2, "a": 1}), name="report", unique=True, on_conflict="ignore")
    )
    with pytest.raises(axeq.LabelTaken):
        await settled(queue.enqueue(Report(filters={"a": 1, "b": 2}), name="report", unique=True))

    others = [
        await settled(queue.enqueue(Report(filters={"a": 1}), name="report", unique=True)),
        await settled(queue.enqueue(Report(filters={"a": 1, "b": 2}), name="other", unique=True)),
    ]

    assert same.id == first.id
    assert all(other.created for other in others)
    assert jobs.count_documents({}) == 3


# Many


@pytest.mark.needs("transactions")
async def test_a_batch_whose_label_is_taken_is_not_stored_at_all(queue: Any, jobs: Any) -> None:
    holder = await settled(queue.enqueue(Probe(), label="2"))

    with pytest.raises(axeq.LabelTaken) as caught:
        await settled(queue.enqueue_many([Probe(value=number) for number in range(4)], label=value_of))

    assert (caught.value.label, caught.value.existing_id) == ("2", holder.id)
    assert [document["_id"] for document in jobs.find()] == [holder.id]


@pytest.mark.needs("transactions")
async def test_a_batch_with_labels_is_stored_as_a_whole(queue: Any, jobs: Any) -> None:
    made = await settled(queue.enqueue_many([Probe(value=1), Probe(), Probe(value=2)], label=value_of, group="g"))

    assert [job.label for job in made] == ["1", None, "2"]
    assert {document["_id"] for document in jobs.find({"group": "g"})} == {job.id for job in made}
    assert all(job.created for job in made)


@pytest.mark.needs("transactions")
async def test_two_equal_payloads_of_a_unique_batch_are_refused(queue: Any, jobs: Any) -> None:
    with pytest.raises(axeq.LabelTaken):
        await settled(queue.enqueue_many([Probe(value=1), Probe(value=1)], unique=True))

    assert jobs.count_documents({}) == 0


async def test_jobs_of_a_batch_whose_labels_are_taken_come_back_as_those_that_have_them(queue: Any, jobs: Any) -> None:
    holder = await settled(queue.enqueue(Probe(value="old"), label="2"))

    made = await settled(
        queue.enqueue_many([Probe(value=number) for number in (1, 2, 3, 1)], label=value_of, on_conflict="ignore")
    )

    assert [job.label for job in made] == ["1", "2", "3", "1"]
    assert [job.created for job in made] == [True, False, True, False]
    assert (made[1].id, made[1].payload.value) == (holder.id, "old")
    assert made[0].id == made[3].id
    assert jobs.count_documents({}) == 3


async def test_a_batch_of_nothing_is_nothing(queue: Any, jobs: Any) -> None:
    assert await settled(queue.enqueue_many([], label=value_of)) == []
    assert await settled(queue.enqueue_many([], unique=True, on_conflict="ignore")) == []
    assert jobs.count_documents({}) == 0


async def test_a_batch_with_labels_is_refused_where_it_could_be_stored_in_part(
    queue: Any, store: axeq.Store, jobs: Any
) -> None:
    store._capabilities = WITHOUT

    with pytest.raises(axeq.ServerUnsuitable, match="transactions"):
        await settled(queue.enqueue_many([Probe(value=1)], label=value_of))

    assert jobs.count_documents({}) == 0
    assert (await settled(queue.enqueue_many([Probe(value=None)], label=value_of)))[0].created


# In the caller's transaction


@pytest.mark.needs("transactions")
async def test_in_a_transaction_a_conflict_that_is_ignored_leaves_it_alive(
    queue: Any, jobs: Any, sessions: Sessions
) -> None:
    first = await settled(queue.enqueue(Probe(), label="1"))

    async def work(queue: Any, session: Any) -> Any:
        one = await settled(queue.enqueue(Probe(value=1), label="1", on_conflict="ignore", session=session))
        many = await settled(
            queue.enqueue_many([Probe(value=1), Probe(value=2)], label=value_of, on_conflict="ignore", session=session)
        )
        return [one, *many]

    made = await transact(queue, sessions, work)

    assert [job.id for job in made[:2]] == [first.id, first.id]
    assert [job.created for job in made] == [False, False, True]
    assert {document["_id"] for document in jobs.find()} == {first.id, made[2].id}


# What cannot work

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"on_conflict": "skip", "label": "a"}, "on_conflict must be"),
    ({"on_conflict": "ignore"}, "needs label, unique or isolation"),
    ({"on_conflict": "replace", "label": "a", "id": 1}, "cannot go with id"),
    ({"on_conflict": "replace", "label": "a", "isolation": 5}, "cannot go with isolation"),
    ({"on_conflict": "replace", "label": "a", "session": object()}, "cannot go with session"),
    ({"unique": True, "label": "a"}, "label or unique, not both"),
    ({"unique": 5, "isolation": 5}, "not both"),
    ({"unique": 0}, "unique must be longer than 0 s"),
    ({"unique": "yes"}, "unique must be a timedelta or seconds"),
    ({"isolation": 0}, "isolation must be longer than 0 s"),
    ({"isolation": "soon"}, "isolation must be a timedelta or seconds"),
    ({"group": ""}, "group must be text"),
]
MANY_REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"label": "a"}, "label must be a function of the payload"),
    ({"label": lambda payload: 7}, "label must be text"),
    ({"label": value_of, "on_conflict": "replace"}, "one by one"),
    ({"label": value_of, "unique": True}, "not both"),
    ({"unique": 5}, "unique=True alone"),
    ({"isolation": 5}, "takes no isolation"),
    ({"on_conflict": "ignore"}, "needs label, unique or isolation"),
]


@pytest.mark.parametrize("kind", ["mongomock"], indirect=True)
@pytest.mark.parametrize(("options", "told"), REFUSED, ids=[told for _, told in REFUSED])
async def test_terms_that_cannot_work_are_refused_before_anything_is_sent(
    queue: Any, jobs: Any, options: dict[str, Any], told: str
) -> None:
    with pytest.raises(axeq.ConfigurationError, match=told):
        await settled(queue.enqueue(Probe(), **options))

    assert jobs.count_documents({}) == 0


@pytest.mark.parametrize("kind", ["mongomock"], indirect=True)
@pytest.mark.parametrize(("options", "told"), MANY_REFUSED, ids=[told for _, told in MANY_REFUSED])
async def test_terms_of_a_batch_that_cannot_work_are_refused_before_anything_is_sent(
    queue: Any, jobs: Any, options: dict[str, Any], told: str
) -> None:
    with pytest.raises(axeq.ConfigurationError, match=told):
        await settled(queue.enqueue_many([Probe(value=1)], **options))

    assert jobs.count_documents({}) == 0


async def test_unique_is_refused_where_payloads_are_sealed(queue: Any, store: axeq.Store, jobs: Any) -> None:
    store.codec = Mask()

    with pytest.raises(axeq.ConfigurationError, match="unique needs payloads that can be read"):
        await settled(queue.enqueue(Probe(), unique=True))

    assert jobs.count_documents({}) == 0
