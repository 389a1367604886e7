"""A handler's own transaction: its writes, its follow-up and the job's completion happen together, or not at all."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import Any

import pymongo
import pytest

import axeq
from tests.support.long import FACES, Mail, Order, orders
from tests.support.pools import quick_pool, running
from tests.support.probe import Probe
from tests.support.waiting import DEADLINE, eventually

transactional = pytest.mark.needs("transactions")
anywhere = pytest.mark.parametrize("kind", ["uri"], indirect=True)
"""Of what a session's origin makes no difference to."""
every_face = pytest.mark.parametrize("face", FACES)


class Shop:
    """What the handlers write beside their jobs, looked at past axeq."""

    def __init__(self, database: Any) -> None:
        self.name = database.name
        self._database = database
        database["stock"].insert_one({"_id": "tea", "left": 10})
        for name in ("orders", "tries", "hanging"):
            database.create_collection(name)

    @property
    def left(self) -> int:
        left: int = self._database["stock"].find_one({"_id": "tea"})["left"]
        return left

    @property
    def orders(self) -> int:
        count: int = self._database["orders"].count_documents({})
        return count

    @property
    def hanging(self) -> bool:
        return self._database["hanging"].count_documents({}) > 0

    def take(self) -> None:
        """Changes the document that the handlers change, as another writer does."""
        with pymongo.timeout(DEADLINE):
            self._database["stock"].update_one({"_id": "tea"}, {"$inc": {"left": -1}})


@pytest.fixture
def shop(server: pymongo.MongoClient[dict[str, Any]], database: str, kind: str) -> Shop:
    return Shop(server[database])


def selling(store: axeq.Store, face: str, **options: Any) -> axeq.Pool:
    pool = quick_pool(store)
    executor: Any = face
    pool.add(axeq.Task(Order, orders(face), executor=executor, min_delay=0.01, **options))
    return pool


def sold(store: axeq.Store, shop: Shop, **fields: Any) -> axeq.Job[Order, str]:
    return axeq.Queue(store).enqueue(Order(database=shop.name, **fields))


def mails(store: axeq.Store) -> int:
    return len(axeq.Queue(store).find(name="mail"))


def ended(job: axeq.Job[Any, Any]) -> axeq.Job[Any, Any]:
    eventually(lambda: job.refresh().final)
    return job


@transactional
@every_face
@pytest.mark.parametrize("transacts", [False, True])
def test_the_handlers_writes_its_follow_up_and_the_result_are_there_once_the_job_has_completed(
    store: axeq.Store, shop: Shop, face: str, transacts: bool
) -> None:
    with running(selling(store, face)) as pool:
        job = sold(store, shop, transacts=transacts)

        assert job.wait(DEADLINE) == "TEA"
        assert (shop.left, shop.orders, mails(store)) == (9, 1, 1)
        eventually(lambda: pool.counts["complete"] == 1)
    assert (job.attempts, job.lost, job.available_at, job.events) == (1, 0, None, [])
    assert job.started_at is not None
    assert job.started_at <= job.ended_at <= job.finished_at < job.expire_at


@transactional
@anywhere
@every_face
@pytest.mark.parametrize("transacts", [False, True])
def test_nothing_of_a_transaction_that_fails_has_happened(
    store: axeq.Store, shop: Shop, face: str, transacts: bool
) -> None:
    with running(selling(store, face, max_attempts=2)):
        job = ended(sold(store, shop, fails="inside", transacts=transacts))

    assert (job.cause, job.attempts, job.error["type"]) == ("exhausted", 2, "ValueError")
    assert (shop.left, shop.orders, mails(store)) == (10, 0, 0)


@transactional
@anywhere
@every_face
def test_what_a_handler_raises_after_its_transaction_changes_nothing_and_is_logged(
    store: axeq.Store, shop: Shop, face: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR, "axeq.pool"), running(selling(store, face)) as pool:
        job = sold(store, shop, fails="after")

        assert job.wait(DEADLINE) == "TEA"
        eventually(lambda: pool.counts["complete"] == 1)
    assert (job.refresh().state, job.attempts, shop.orders) == ("completed", 1, 1)
    assert "after its job had completed" in caplog.text


@transactional
@anywhere
@every_face
def test_a_result_that_cannot_be_stored_undoes_the_transaction(store: axeq.Store, shop: Shop, face: str) -> None:
    with running(selling(store, face)):
        job = ended(sold(store, shop, fails="result"))

    assert (job.cause, shop.left, shop.orders, mails(store)) == ("result", 10, 0, 0)


@transactional
@anywhere
@every_face
def test_a_transaction_that_collides_with_another_writer_is_tried_again_uncharged(
    store: axeq.Store, shop: Shop, face: str
) -> None:
    with running(selling(store, face, max_attempts=1)):
        job = sold(store, shop, fails="collides")

        assert job.wait(DEADLINE) == "TEA"
    assert (job.attempts, job.error) == (1, None)
    assert [event["verb"] for event in job.events] == ["snooze"]
    assert "collided" in job.events[0]["reason"]
    assert (shop.left, shop.orders, mails(store)) == (8, 1, 1)


@transactional
@anywhere
@every_face
def test_transact_calls_again_what_collides_with_another_writer(store: axeq.Store, shop: Shop, face: str) -> None:
    with running(selling(store, face, max_attempts=1)):
        job = sold(store, shop, fails="collides", transacts=True)

        assert job.wait(DEADLINE) == "TEA"
    assert (job.attempts, job.events) == (1, [])
    assert (shop.left, shop.orders, mails(store)) == (8, 1, 1)


@transactional
@anywhere
@every_face
@pytest.mark.parametrize(
    ("fails", "said"), [("nests", "in a transaction already"), ("keeps", "inside the transaction")]
)
def test_what_would_undo_a_transaction_is_refused_in_it(
    store: axeq.Store, shop: Shop, face: str, fails: str, said: str
) -> None:
    with running(selling(store, face, max_attempts=1)):
        job = ended(sold(store, shop, fails=fails))

    assert job.error["type"] == "ConfigurationError"
    assert said in job.error["message"]
    assert (shop.left, shop.orders, mails(store)) == (10, 0, 0)


@transactional
@anywhere
def test_a_second_transaction_is_refused_and_the_first_stands(
    store: axeq.Store, shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR, "axeq.pool"), running(selling(store, "loop")) as pool:
        assert sold(store, shop, fails="again").wait(DEADLINE) == "TEA"
        eventually(lambda: pool.counts["complete"] == 1)

    assert "ConfigurationError" in caplog.text
    assert shop.orders == 1


@transactional
@anywhere
@every_face
def test_a_cancel_undoes_the_transaction_and_frees_its_documents(store: axeq.Store, shop: Shop, face: str) -> None:
    with running(selling(store, face)):
        job = sold(store, shop, fails="hangs")
        eventually(lambda: shop.hanging)
        job.cancel("enough")
        ended(job)
        shop.take()

    assert (job.state, job.cause) == ("cancelled", "requested")
    assert (shop.left, shop.orders, mails(store)) == (9, 0, 0)


@transactional
@anywhere
@every_face
def test_a_timeout_undoes_the_transaction_and_frees_its_documents(store: axeq.Store, shop: Shop, face: str) -> None:
    with running(selling(store, face, max_attempts=1)):
        job = sold(store, shop, fails="overruns")
        eventually(lambda: shop.hanging)
        ended(job)
        shop.take()

    assert (job.cause, job.error["type"]) == ("exhausted", "TimeoutError")
    assert (shop.left, shop.orders, mails(store)) == (9, 0, 0)


@transactional
@anywhere
@pytest.mark.parametrize("moment", ["before", "inside"])
@pytest.mark.parametrize("face", ["loop", "thread"])
def test_a_handler_whose_lease_is_lost_leaves_nothing(
    store: axeq.Store, shop: Shop, jobs: Any, face: str, moment: str
) -> None:
    heard: list[BaseException] = []

    def robbed(ctx: axeq.Context[Probe, Any]) -> None:
        jobs.update_one({"_id": ctx.job.id}, {"$set": {"claim.token": "another's"}})

    async def steal(ctx: axeq.Context[Probe, Any]) -> None:
        try:
            _ = moment == "before" and robbed(ctx)
            async with ctx.transaction() as session:
                await session.client[shop.name]["orders"].insert_one({}, session=session)
                _ = moment == "inside" and robbed(ctx)
                await ctx.queue.enqueue(Mail(item="tea"), session=session)
        except BaseException as error:
            heard.append(error)
            raise

    def sync_steal(ctx: axeq.Context[Probe, Any]) -> None:
        try:
            _ = moment == "before" and robbed(ctx)
            with ctx.sync_transaction() as session:
                session.client[shop.name]["orders"].insert_one({}, session=session)
                _ = moment == "inside" and robbed(ctx)
                ctx.sync_queue.enqueue(Mail(item="tea"), session=session)
        except BaseException as error:
            heard.append(error)
            raise

    pool = quick_pool(store)
    pool.add(axeq.Task(Probe, steal if face == "loop" else sync_steal))
    with running(pool):
        job = axeq.Queue(store).enqueue(Probe())
        eventually(lambda: pool.counts["lost"] == 1)

    assert moment == "inside" or isinstance(heard[0], axeq.LeaseLost)
    assert len(heard) == 1
    assert (job.refresh().state, shop.orders, mails(store)) == ("dequeued", 0, 0)
    assert jobs.find_one({"_id": job.id})["claim"]["token"] == "another's"


@transactional
@anywhere
def test_a_job_keeps_its_lease_while_its_transaction_is_open_and_afterwards(
    store: axeq.Store, shop: Shop, jobs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("axeq.rules.transaction.LIMIT", 4.0)
    monkeypatch.setattr("axeq.faces.atomic.LIMIT", 4.0)
    ends: list[Any] = []
    pool = quick_pool(store, lease=3)

    @pool.task(Probe, max_attempts=1)
    async def slow(ctx: axeq.Context[Probe, Any]) -> None:
        with suppress(ZeroDivisionError):
            async with ctx.transaction():
                ends.append(jobs.find_one({"_id": ctx.job.id})["available_at"])
                await asyncio.sleep(3.2)
                raise ZeroDivisionError
        while jobs.find_one({"_id": ctx.job.id})["available_at"] <= ends[0]:
            await asyncio.sleep(0.05)

    with running(pool):
        job = axeq.Queue(store).enqueue(Probe())
        job.wait(DEADLINE)

    assert (job.attempts, pool.counts["lost"]) == (1, 0)
    assert (ends[0] - job.started_at).total_seconds() >= 6.9


@transactional
@anywhere
def test_an_async_handler_is_not_let_block_its_own_loop(store: axeq.Store) -> None:
    pool = quick_pool(store)

    @pool.task(Probe, max_attempts=1)
    async def wrong(ctx: axeq.Context[Probe, Any]) -> None:
        with ctx.sync_transaction():
            pass

    with running(pool):
        job = ended(axeq.Queue(store).enqueue(Probe()))

    assert (job.error["type"], job.cause) == ("ConfigurationError", "exhausted")


@transactional
@anywhere
@pytest.mark.parametrize("face", ["loop", "thread"])
def test_a_callback_of_the_other_kind_is_refused_before_anything_is_kept(
    store: axeq.Store, shop: Shop, face: str
) -> None:
    async def order(session: Any) -> None: ...

    def sync_order(session: Any) -> None:
        session.client[shop.name]["orders"].insert_one({}, session=session)

    async def wrong(ctx: axeq.Context[Probe, Any]) -> Any:
        return await ctx.transact(lambda session: None)  # type: ignore[arg-type,return-value]

    def sync_wrong(ctx: axeq.Context[Probe, Any]) -> Any:
        return ctx.sync_transact(lambda session: (sync_order(session), order(session))[1])

    pool = quick_pool(store)
    pool.add(axeq.Task(Probe, wrong if face == "loop" else sync_wrong, max_attempts=1))
    with running(pool):
        job = ended(axeq.Queue(store).enqueue(Probe()))

    assert (job.error["type"], job.cause, shop.orders) == ("ConfigurationError", "exhausted", 0)
    assert "transact takes" in job.error["message"]


@pytest.mark.parametrize("kind", ["mongomock"], indirect=True)
def test_without_transactions_it_is_refused_by_name(store: axeq.Store, database: str) -> None:
    with running(selling(store, "thread", max_attempts=1)):
        job = ended(axeq.Queue(store).enqueue(Order(database=database)))

    assert job.error["type"] == "ServerUnsuitable"
    assert "replica set" in job.error["message"]
