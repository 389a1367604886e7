"""Transfers in transactions by several processes at once, and by processes that are killed on the way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import pymongo
import pytest
from pymongo.errors import OperationFailure, PyMongoError

import axeq
from axeq.wire.capabilities import Capabilities
from tests.support.waiting import until

from .bank import ACCOUNTS, LIMIT, Moment, Place, PlainTransfer, Transfer, Walk
from .conftest import Workers

FUNDS = 1000
LEASE = 1.0
SHORT = 5
"""Seconds that a transaction may take where its process is killed, so that what it held is free again soon."""


class Bank:
    """The documents that transfers change, looked at past axeq."""

    def __init__(self, database: Any) -> None:
        self._database = database
        database["accounts"].insert_many({"_id": number, "has": FUNDS} for number in range(ACCOUNTS))
        for name in ("moves", "receipts"):
            database.create_collection(name)

    @property
    def accounts(self) -> list[int]:
        return [account["has"] for account in self._database["accounts"].find(sort=[("_id", 1)])]

    def transfers(self, kind: str) -> list[str]:
        """Returns which transfers have left a move, or a receipt, in order."""
        return sorted(document["transfer"] for document in self._database[kind].find())

    def forget_the_dead(self) -> None:
        """Undoes what a dead process left open, where the server does not do so by itself in time."""
        with suppress(PyMongoError):
            self._database.client.admin.command({"killAllSessions": []})


@pytest.fixture
def bank(queue: axeq.Queue, server: pymongo.MongoClient[dict[str, Any]], capabilities: Capabilities) -> Iterator[Bank]:
    if not capabilities.transactions:
        pytest.skip("the server has no transactions, tried")
    yield Bank(server[queue.store.place.database])
    server.drop_database(queue.store.place.database)


@pytest.fixture
def reaping(server: pymongo.MongoClient[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> Iterator[bool]:
    """Has the worker processes allow their transactions a short time, and tells whether the server then undoes them
    by itself.
    """
    monkeypatch.setenv(LIMIT, str(SHORT))
    limit = {"setParameter": 1, "transactionLifetimeLimitSeconds": SHORT}
    try:
        server.admin.command(limit)
    except OperationFailure:
        yield False
        return
    yield True
    server.admin.command({**limit, "transactionLifetimeLimitSeconds": 60})


def test_transfers_of_several_processes_happen_once_each_with_what_follows(
    queue: axeq.Queue, workers: Workers, bank: Bank
) -> None:
    kinds = (Transfer, PlainTransfer)
    orders = [
        kinds[number % 2](source=number % ACCOUNTS, target=(number + 1 + number % 2) % ACCOUNTS, amount=number // 2 % 7)
        for number in range(60)
    ]
    started = [workers.start(workers=3, program="bank") for _ in range(3)]
    for process in started:
        workers.ready(process)

    jobs = queue.enqueue_many(orders)
    for job in jobs:
        job.wait(120)
    until(lambda: len(bank.transfers("receipts")) >= len(jobs), seconds=60, what="every receipt")

    expected = [FUNDS] * ACCOUNTS
    for order in orders:
        expected[order.source] -= order.amount
        expected[order.target] += order.amount
    ids = sorted(str(job.id) for job in jobs)
    assert bank.accounts == expected
    assert bank.transfers("moves") == ids
    assert sorted(job.data["transfer"] for job in queue.find(name="receipt", limit=1000)) == ids
    assert bank.transfers("receipts") == ids
    assert {(job.state, job.attempts, job.result == job.payload.amount) for job in jobs} == {("completed", 1, True)}
    assert all("LeaseLost" not in workers.log(process) for process in started)


@pytest.mark.parametrize(("dies", "runs_again"), [("written", True), ("completed", True), ("committed", False)])
def test_a_process_killed_in_a_transaction_has_done_all_of_it_or_nothing(
    queue: axeq.Queue, workers: Workers, bank: Bank, reaping: bool, dies: Moment, runs_again: bool
) -> None:
    victim = workers.ready(workers.start(lease=LEASE, workers=1, program="bank"))
    job = queue.enqueue(Transfer(source=0, target=1, amount=5, dies=dies))

    assert victim.wait(120) == -9
    if not reaping:
        bank.forget_the_dead()
    left = (bank.accounts, len(bank.transfers("moves")), len(queue.find(name="receipt")), job.refresh().state)
    workers.ready(workers.start(lease=LEASE, workers=1, program="bank"))
    job.wait(120)
    until(lambda: bank.transfers("receipts") == [str(job.id)], seconds=60, what="the receipt")

    nothing = ([FUNDS] * ACCOUNTS, 0, 0, "dequeued")
    everything = ([FUNDS - 5, FUNDS + 5, FUNDS], 1, 1, "completed")
    assert left == (nothing if runs_again else everything)
    assert (bank.accounts, bank.transfers("moves")) == (everything[0], [str(job.id)])
    assert (job.attempts, job.lost, job.result, len(queue.find(name="receipt"))) == (1, 0, 5, 1)


def test_a_checkpoint_survives_kill_9_and_is_given_to_the_next_attempt(queue: axeq.Queue, workers: Workers) -> None:
    victim = workers.ready(workers.start(lease=LEASE, workers=1, program="bank"))
    job = queue.enqueue(Walk())

    assert victim.wait(120) == -9
    workers.ready(workers.start(lease=LEASE, workers=1, program="bank"))

    assert job.wait(120) == [repr(Place(page=3, at=datetime(2026, 1, 1, tzinfo=UTC)))]
    assert (job.attempts, job.checkpoint) == (1, None)
