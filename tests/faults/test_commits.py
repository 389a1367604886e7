"""Commits of a handler's transaction whose answer is lost: they happen once, whatever became of them at the server."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pymongo
import pytest

import axeq
from axeq.wire.capabilities import Capabilities
from tests.faults.proxy import Proxy
from tests.faults.seeds import rng
from tests.faults.toxics import Broken, Cut, Exchange, Toxic
from tests.support.long import Mail, Order, orders
from tests.support.pools import quick_pool, running
from tests.support.waiting import DEADLINE, eventually

COMMIT = "commitTransaction"

every_face = pytest.mark.parametrize("face", ["loop", "thread"])


class Undone(Toxic):
    """Loses the first commit on its way, and has the server forget its transaction meanwhile."""

    def __init__(self, server: pymongo.MongoClient[dict[str, Any]]) -> None:
        super().__init__()
        self._server = server

    async def request(self, exchange: Exchange) -> None:
        if exchange.command == COMMIT and not self.count:
            self.count += 1
            lsid = exchange.request.document["lsid"]
            await asyncio.to_thread(self._server.admin.command, {"killSessions": [lsid]})
            raise Broken


@pytest.fixture
def shop(server: pymongo.MongoClient[dict[str, Any]], capabilities: Capabilities, database: str) -> Iterator[Any]:
    if not capabilities.transactions:
        pytest.skip("the server has no transactions, tried")
    shop = server[database]
    shop["stock"].insert_one({"_id": "tea", "left": 10})
    shop.create_collection("orders")
    yield shop
    server.drop_database(database)


def sell(proxy: Proxy, database: str, face: str, toxic: Toxic) -> tuple[axeq.Record, dict[str, int], int]:
    """Has one order placed while `toxic` strikes; returns its job, what the pool counted, and how many mails follow."""
    with axeq.Store(proxy.uri(database), timeout=5) as store:
        pool = quick_pool(store)
        pool.add(axeq.Task(Order, orders(face), max_attempts=1))
        with proxy.toxic(toxic), running(pool):
            job = axeq.Queue(store).enqueue(Order(database=database))
            job.wait(DEADLINE)
            eventually(lambda: pool.counts["complete"] == 1)
        return job.refresh(), dict(pool.counts), len(axeq.Queue(store).find(name=Mail.__axeq__["name"]))


@every_face
@pytest.mark.parametrize("times", [1, 2, 3])
def test_a_commit_that_happened_though_its_answers_are_lost_counts(
    proxy: Proxy, database: str, shop: Any, face: str, times: int
) -> None:
    cut = Cut(1.0, {COMMIT}, rng("commits"), times=times)

    job, counts, mails = sell(proxy, database, face, cut)

    assert cut.count == times
    assert (job.state, job.attempts, job.result, job.events) == ("completed", 1, "TEA", [])
    assert (counts["complete"], counts.get("snooze", 0), counts.get("lost", 0)) == (1, 0, 0)
    assert (shop["stock"].find_one()["left"], shop["orders"].count_documents({}), mails) == (9, 1, 1)


@every_face
def test_a_commit_that_never_happened_is_found_out_and_the_job_tried_again_uncharged(
    proxy: Proxy, database: str, shop: Any, face: str, server: pymongo.MongoClient[dict[str, Any]]
) -> None:
    undone = Undone(server)

    job, counts, mails = sell(proxy, database, face, undone)

    assert undone.count == 1
    assert (job.state, job.attempts, job.result) == ("completed", 1, "TEA")
    assert [event["verb"] for event in job.events] == ["snooze"]
    assert counts.get("lost", 0) == 0
    assert (shop["stock"].find_one()["left"], shop["orders"].count_documents({}), mails) == (9, 1, 1)
