"""Enqueuing: what is stored, when it is due, and what is refused, on both faces."""

from __future__ import annotations

import asyncio
import enum
import threading
import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import PurePosixPath
from typing import Any

import pytest
from bson import ObjectId
from pydantic import BaseModel, Field
from pymongo.write_concern import WriteConcern

import axeq
from tests.support.pools import probe_pool, quick_pool, running
from tests.support.probe import Probe
from tests.support.sessions import Sessions, transact
from tests.support.waiting import DEADLINE, aeventually, due, settled


class Colour(enum.Enum):
    RED = "red"


class Line(BaseModel):
    sku: str
    price: Decimal


class Order(axeq.Model[None], name="order", arbitrary_types_allowed=True):
    lines: list[Line] = Field(default_factory=list)
    at: datetime = datetime(2020, 2, 29, 12, 30, 15, 250_000, tzinfo=UTC)
    day: date = date(2020, 2, 29)
    wait: timedelta = timedelta(minutes=1.5)
    colour: Colour = Colour.RED
    path: PurePosixPath = PurePosixPath("a/b")
    reference: uuid.UUID = uuid.UUID(int=7)
    tags: frozenset[str] = frozenset("ab")
    blob: bytes = b"\x00\xff"
    large: int = 2**62
    owner: ObjectId | None = None


class Plain(BaseModel):
    number: int


FULL = {"lines": [Line(sku="x", price=Decimal("1.10"))], "owner": ObjectId("0" * 24)}
INVALID_OPTIONS: list[dict[str, Any]] = [
    {"delay": -1},
    {"delay": 1, "run_at": datetime.now(UTC)},
    {"run_at": datetime(2020, 1, 1)},  # noqa: DTZ001 - a naive one is what is refused
    {"deadline": datetime(2020, 1, 1)},  # noqa: DTZ001
    {"priority": 40_000},
    {"label": ""},
    {"retention": -5},
    {"delayed": 3},
]


def recording(store: axeq.Store, order: list[Any], **options: Any) -> axeq.Pool:
    pool = quick_pool(store)

    @pool.task(Probe, **options)
    async def record(ctx: axeq.Context[Probe, Any]) -> None:
        order.append(ctx.model.value)

    return pool


async def test_an_enqueued_job_is_stored_as_it_was_given(queue: Any, store: axeq.Store, jobs: Any) -> None:
    payload = Order(**FULL)

    job = await settled(queue.enqueue(payload))
    found = await settled(queue.get(job.id, model=Order))

    assert found.payload == job.payload == payload
    assert found.document == job.document
    assert (found.name, found.queue, found.state, found.attempts) == ("order", "default", axeq.State.ENQUEUED, 0)
    assert found.available_at == found.created_at
    assert jobs.count_documents({}) == 1


async def test_a_payload_can_be_queried_field_by_field(queue: Any, jobs: Any) -> None:
    job = await settled(queue.enqueue(Order(**FULL)))

    for query in (
        {"data.lines.sku": "x"},
        {"data.at": {"$lt": datetime(2021, 1, 1, tzinfo=UTC)}},
        {"data.day": "2020-02-29"},
        {"data.wait": 90},
        {"data.colour": "red"},
        {"data.path": "a/b"},
        {"data.tags": "b"},
        {"data.large": 2**62},
        {"data.owner": ObjectId("0" * 24)},
    ):
        assert [found["_id"] for found in jobs.find(query)] == [job.id], query


async def test_a_plain_model_is_enqueued_under_the_name_given(queue: Any) -> None:
    job = await settled(queue.enqueue(Plain(number=1), name="plain"))

    assert (job.name, job.payload) == ("plain", Plain(number=1))


async def test_many_jobs_are_stored_in_their_order(queue: Any, jobs: Any) -> None:
    made = await settled(queue.enqueue_many([Probe(value=number) for number in range(20)], priority=3))

    assert [job.payload.value for job in made] == list(range(20))
    assert [found["data"]["value"] for found in jobs.find(sort=[("_id", 1)])] == list(range(20))
    assert jobs.distinct("priority") == [3]
    assert await settled(queue.enqueue_many([])) == []


async def test_a_delayed_job_never_starts_before_its_time(queue: Any, store: axeq.Store) -> None:
    with running(probe_pool(store)):
        job = await settled(queue.enqueue(Probe(), delay=0.6))
        done = await settled(queue.wait(job.id, timeout=DEADLINE))

    assert job.available_at - job.created_at >= timedelta(seconds=0.6)
    assert done.started_at >= job.available_at


async def test_a_job_starts_at_the_moment_given(queue: Any, store: axeq.Store) -> None:
    with running(probe_pool(store)):
        await settled(queue.exists("connected by now"))
        moment = datetime.now(UTC) + timedelta(seconds=2)

        job = await settled(queue.enqueue(Probe(), run_at=moment))
        done = await settled(queue.wait(job.id, timeout=DEADLINE))

    assert abs(job.available_at - moment) <= timedelta(milliseconds=1)
    assert done.started_at >= job.available_at


async def test_a_moment_in_the_past_means_at_once(queue: Any) -> None:
    job = await settled(queue.enqueue(Probe(), run_at=datetime(2020, 1, 1, tzinfo=UTC)))

    assert job.available_at == job.created_at


async def test_a_job_whose_deadline_has_passed_is_cancelled_and_not_run(queue: Any, store: axeq.Store) -> None:
    order: list[Any] = []
    late = await settled(queue.enqueue(Probe(value="late"), deadline=datetime.now(UTC) - timedelta(seconds=60)))
    early = await settled(queue.enqueue(Probe(value="early"), deadline=datetime.now(UTC) + timedelta(seconds=600)))

    with running(recording(store, order)):
        with pytest.raises(axeq.JobCancelled) as caught:
            await settled(queue.wait(late.id, timeout=DEADLINE))
        await settled(queue.wait(early.id, timeout=DEADLINE))

    assert caught.value.cause == "expired"
    assert order == ["early"]


async def test_a_lower_priority_number_runs_sooner(queue: Any, store: axeq.Store) -> None:
    order: list[Any] = []
    for priority in (5, 0, -5, 5, -5):
        due(store, await settled(queue.enqueue(Probe(value=priority), priority=priority)))

    with running(recording(store, order, workers=1)):
        await aeventually(lambda: len(order) == 5)

    assert order == [-5, -5, 0, 5, 5]


async def test_a_label_is_taken_while_its_job_is_live(queue: Any, jobs: Any) -> None:
    first = await settled(queue.enqueue(Probe(), label="one"))

    with pytest.raises(axeq.LabelTaken, match="label 'one' of 'probe' is taken") as caught:
        await settled(queue.enqueue(Probe(), label="one"))
    other = await settled(queue.enqueue(Order(), label="one"))

    assert caught.value.existing_id == first.id
    assert {found["_id"] for found in jobs.find()} == {first.id, other.id}


@pytest.mark.parametrize("outcome", ["ok", "cancel"])
async def test_a_label_is_free_once_its_job_has_ended(queue: Any, store: axeq.Store, outcome: Any) -> None:
    first = await settled(queue.enqueue(Probe(outcome=outcome), label="one"))
    with running(probe_pool(store)):
        await aeventually(lambda: _is_final(queue, first.id))

    second = await settled(queue.enqueue(Probe(), label="one"))

    assert second.id != first.id


async def test_a_label_stays_taken_by_a_job_that_will_be_retried(queue: Any, store: axeq.Store) -> None:
    first = await settled(queue.enqueue(Probe(outcome="raise"), label="one"))
    with running(probe_pool(store, min_delay=600)):
        await aeventually(lambda: _is_in(queue, first.id, axeq.State.FAILED))

    with pytest.raises(axeq.LabelTaken):
        await settled(queue.enqueue(Probe(), label="one"))


async def _is_final(queue: Any, identity: Any) -> bool:
    return bool((await settled(queue.get(identity))).final)


async def _is_in(queue: Any, identity: Any, state: axeq.State) -> bool:
    return bool((await settled(queue.get(identity))).state is state)


@pytest.mark.needs("exclusive")
def test_twenty_threads_with_one_label_make_one_job(store: axeq.Store, jobs: Any) -> None:
    queue = axeq.Queue(store)
    start = threading.Barrier(20)

    def enqueue(number: int) -> str:
        start.wait()
        try:
            queue.enqueue(Probe(value=number), label="one")
        except axeq.LabelTaken:
            return "taken"
        return "made"

    with ThreadPoolExecutor(20) as threads:
        outcomes = Counter(threads.map(enqueue, range(20)))

    assert outcomes == {"made": 1, "taken": 19}
    assert jobs.count_documents({}) == 1


@pytest.mark.needs("exclusive")
async def test_twenty_coroutines_with_one_label_make_one_job(store: axeq.Store, jobs: Any) -> None:
    queue = axeq.AsyncQueue(store)

    outcomes = await asyncio.gather(
        *(queue.enqueue(Probe(value=number), label="one") for number in range(20)), return_exceptions=True
    )

    assert Counter(type(outcome).__name__ for outcome in outcomes) == {"AsyncJob": 1, "LabelTaken": 19}
    assert jobs.count_documents({}) == 1


async def test_an_id_makes_the_enqueue_idempotent(queue: Any, jobs: Any) -> None:
    first = await settled(queue.enqueue(Probe(value="first"), id="order-17"))
    again = await settled(queue.enqueue(Probe(value="again"), id="order-17"))

    assert again.document == first.document
    assert again.payload.value == "first"
    assert jobs.count_documents({}) == 1


@pytest.mark.parametrize("id", [uuid.UUID(int=7), b"seven", 7], ids=repr)
async def test_a_job_is_found_run_and_removed_by_an_id_of_any_type(queue: Any, store: axeq.Store, id: Any) -> None:
    with running(probe_pool(store)):
        job = await settled(queue.enqueue(Probe(value=1), id=id))

        assert await settled(job.wait(DEADLINE)) == 1

    assert (await settled(queue.get(id))).id == id
    assert (await settled(queue.remove_many([id]))) == 1
    assert not await settled(queue.exists(id))


async def test_a_payload_that_is_too_large_is_refused_and_nothing_is_sent(store: axeq.Store, jobs: Any) -> None:
    for face in (axeq.Queue(store, max_payload=1000), axeq.AsyncQueue(store, max_payload=1000)):
        with pytest.raises(axeq.PayloadTooLarge, match=r"payload of 'probe' is 1,\d+ bytes, the limit is 1,000"):
            await settled(face.enqueue(Probe(value="x" * 1000)))
        with pytest.raises(axeq.PayloadTooLarge):
            await settled(face.enqueue_many([Probe(), Probe(value="x" * 1000)]))

    assert jobs.count_documents({}) == 0


async def test_a_payload_that_cannot_be_stored_is_refused_by_field(queue: Any, jobs: Any) -> None:
    with pytest.raises(axeq.PayloadInvalid, match=r"probe.value.when\[0\]: a naive datetime"):
        await settled(queue.enqueue(Probe(value={"when": [datetime(2020, 1, 1)]})))  # noqa: DTZ001
    with pytest.raises(axeq.PayloadInvalid, match=r"probe.value: a builtins.object has no place in BSON"):
        await settled(queue.enqueue_many([Probe(), Probe(value=object())]))

    assert jobs.count_documents({}) == 0


@pytest.mark.kinds("uri", "motor", "mongomock")
@pytest.mark.parametrize("options", INVALID_OPTIONS, ids=lambda options: " ".join(options))
async def test_an_option_that_cannot_work_is_refused_and_nothing_is_sent(
    queue: Any, jobs: Any, options: dict[str, Any]
) -> None:
    with pytest.raises((axeq.ConfigurationError, TypeError), match="|".join(options)):
        await settled(queue.enqueue(Probe(), **options))

    assert jobs.count_documents({}) == 0


async def test_ids_are_not_for_many(queue: Any, jobs: Any) -> None:
    with pytest.raises(axeq.ConfigurationError, match="enqueue_many takes no id"):
        await settled(queue.enqueue_many([Probe()], id=1))

    assert jobs.count_documents({}) == 0


@pytest.mark.needs("transactions")
async def test_a_job_of_a_transaction_is_seen_and_run_once_it_commits(
    queue: Any, store: axeq.Store, jobs: Any, sessions: Sessions
) -> None:
    async def work(queue: Any, session: Any) -> Any:
        job = await settled(queue.enqueue(Probe(value=1), session=session))
        many = await settled(queue.enqueue_many([Probe(value=2), Probe(value=3)], session=session))
        assert jobs.count_documents({}) == 0
        return [job, *many]

    with running(probe_pool(store)):
        made = await transact(queue, sessions, work)

        done = [await settled(queue.wait(job.id, timeout=DEADLINE)) for job in made]

    assert [job.result for job in done] == [1, 2, 3]


@pytest.mark.needs("transactions")
async def test_a_job_of_an_aborted_transaction_never_was(queue: Any, jobs: Any, sessions: Sessions) -> None:
    async def work(queue: Any, session: Any) -> Any:
        return await settled(queue.enqueue(Probe(), label="one", session=session))

    made = await transact(queue, sessions, work, commit=False)

    assert jobs.count_documents({}) == 0
    with pytest.raises(axeq.JobNotFound):
        await settled(queue.get(made.id))


@pytest.mark.needs("transactions")
async def test_a_label_as_the_first_word_of_a_transaction_has_its_index(
    queue: Any, jobs: Any, sessions: Sessions
) -> None:
    async def work(queue: Any, session: Any) -> Any:
        return await settled(queue.enqueue(Probe(), label="one", session=session))

    made = await transact(queue, sessions, work)

    assert "label" in jobs.index_information()
    assert [found["_id"] for found in jobs.find()] == [made.id]


@pytest.mark.needs("transactions")
@pytest.mark.parametrize("terms", [{"label": "one"}, {"isolation": 60}], ids=repr)
async def test_an_index_is_not_created_beside_an_open_transaction_which_could_wait_for_itself(
    queue: Any, jobs: Any, sessions: Sessions, terms: Any
) -> None:
    async def work(queue: Any, session: Any) -> Any:
        first = await settled(queue.enqueue(Probe(), session=session))
        with pytest.raises(axeq.IndexMissing, match=r"before you start it: call queue\.ensure_indexes"):
            await settled(queue.enqueue(Probe(), session=session, **terms))
        return first

    first = await transact(queue, sessions, work)

    assert [found["_id"] for found in jobs.find()] == [first.id]
    await settled(queue.ensure_indexes())
    await transact(queue, sessions, lambda queue, session: settled(queue.enqueue(Probe(), session=session, **terms)))
    assert jobs.count_documents({}) == 2


@pytest.mark.needs("transactions")
async def test_a_taken_label_is_refused_without_aborting_the_transaction(
    queue: Any, jobs: Any, sessions: Sessions
) -> None:
    first = await settled(queue.enqueue(Probe(), label="one"))

    async def work(queue: Any, session: Any) -> Any:
        with pytest.raises(axeq.LabelTaken) as caught:
            await settled(queue.enqueue(Probe(), label="one", session=session))
        assert (caught.value.existing_id, caught.value.aborted) == (first.id, False)
        return await settled(queue.enqueue(Probe(), label="two", session=session))

    second = await transact(queue, sessions, work)

    assert {found["_id"] for found in jobs.find()} == {first.id, second.id}


@pytest.mark.needs("transactions")
@pytest.mark.parametrize("terms", [{}, {"label": "one"}, {"isolation": 60}], ids=repr)
async def test_an_id_that_is_there_comes_back_without_aborting_the_transaction(
    queue: Any, jobs: Any, sessions: Sessions, terms: Any
) -> None:
    first = await settled(queue.enqueue(Probe(value="first"), id="order-17"))

    async def work(queue: Any, session: Any) -> Any:
        again = await settled(queue.enqueue(Probe(value="again"), id="order-17", session=session, **terms))
        return again, await settled(queue.enqueue(Probe(value="other"), session=session))

    again, other = await transact(queue, sessions, work)

    assert (again.id, again.created, again.data["value"]) == ("order-17", False, "first")
    assert {document["_id"] for document in jobs.find()} == {first.id, other.id}


@pytest.mark.needs("transactions")
async def test_a_job_joins_the_transaction_of_a_motor_session(store: axeq.Store, jobs: Any, sessions: Sessions) -> None:
    queue = axeq.AsyncQueue(store)
    client = sessions.motor()

    async with await client.start_session() as session, session.start_transaction():
        job = await queue.enqueue(Probe(), session=session)
        assert jobs.count_documents({}) == 0

    assert jobs.find_one()["_id"] == job.id


@pytest.mark.needs("transactions")
async def test_a_session_of_the_other_face_is_a_type_error(store: axeq.Store, jobs: Any, sessions: Sessions) -> None:
    async with (await sessions.asynchronous()).start_session() as session:
        with pytest.raises(TypeError, match="use AsyncQueue with async sessions"):
            axeq.Queue(store).enqueue(Probe(), session=session)
    with sessions.sync().start_session() as session, pytest.raises(TypeError, match="use Queue with it"):
        await axeq.AsyncQueue(store).enqueue(Probe(), session=session)

    assert jobs.count_documents({}) == 0


@pytest.mark.needs("transactions")
async def test_a_transaction_that_asks_for_less_than_majority_is_refused(
    queue: Any, jobs: Any, sessions: Sessions
) -> None:
    weak = WriteConcern(1)
    refused = pytest.raises(axeq.ConfigurationError, match="majority")
    if isinstance(queue, axeq.Queue):
        with sessions.sync().start_session() as session, session.start_transaction(write_concern=weak), refused:
            queue.enqueue(Probe(), session=session)
    else:
        client = await sessions.asynchronous()
        async with client.start_session() as session, await session.start_transaction(write_concern=weak):
            with refused:
                await queue.enqueue(Probe(), session=session)

    assert jobs.count_documents({}) == 0


async def test_mongomock_refuses_a_session_by_name(kind: str, queue: Any, jobs: Any, sessions: Sessions) -> None:
    if kind != "mongomock":
        pytest.skip(f"{kind}: has transactions; only mongomock refuses them")
    refused = pytest.raises(axeq.ServerUnsuitable, match="mongomock has no transactions")
    with sessions.sync().start_session() as session, refused:
        await settled(queue.enqueue(Probe(), session=session))

    assert jobs.count_documents({}) == 0
