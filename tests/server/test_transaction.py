"""Transactions of axeq's own: a rule whose writes all happen, or none."""

from __future__ import annotations

from typing import Any

import pytest

import axeq
from axeq.wire.wire import JOBS, Call, Find, Op, Transaction
from axeq.words.errors import DuplicateKey
from tests.support.probe import stored_probe
from tests.support.waiting import settled

pytestmark = pytest.mark.usefixtures("collection")


@pytest.fixture(params=["run", "arun"])
def run(request: pytest.FixtureRequest, store: axeq.Store) -> Any:
    """Runs a rule in sync or in async code."""
    return getattr(store, request.param)


@pytest.fixture
async def collection(store: axeq.Store) -> None:
    await store.arun(_inserting(stored_probe(_id="there before")))


def _inserting(*documents: dict[str, Any]) -> Op[int]:
    for document in documents:
        yield Call(JOBS, "insert_one", (document,))
    return len(documents)


def _in_a_transaction(rule: Any) -> Op[Any]:
    return (yield Transaction(rule))


def _stored(jobs: Any) -> set[Any]:
    return {document["_id"] for document in jobs.find({}, {"_id": 1})}


@pytest.mark.needs("transactions")
async def test_all_writes_of_a_transaction_happen_and_its_rule_is_answered(run: Any, jobs: Any) -> None:
    answer = await settled(run(_in_a_transaction(lambda: _inserting(stored_probe(_id="one"), stored_probe(_id="two")))))

    assert answer == 2
    assert _stored(jobs) == {"there before", "one", "two"}


@pytest.mark.needs("transactions")
async def test_a_failure_in_a_transaction_undoes_it_and_reaches_the_rule(run: Any, jobs: Any) -> None:
    def rule() -> Op[int]:
        yield from _inserting(stored_probe(_id="one"))
        return (yield from _inserting(stored_probe(_id="there before")))

    with pytest.raises(DuplicateKey):
        await settled(run(_in_a_transaction(rule)))

    assert _stored(jobs) == {"there before"}


@pytest.mark.needs("transactions")
async def test_a_transaction_that_collides_with_another_write_is_run_anew(run: Any, jobs: Any) -> None:
    tries: list[int] = []

    def rule() -> Op[int]:
        found = yield Find(JOBS, {"_id": "there before"})
        if not tries:
            jobs.update_one({"_id": "there before"}, {"$inc": {"attempts": 1}})
        tries.append(found[0]["attempts"])
        yield Call(JOBS, "update_one", ({"_id": "there before"}, {"$inc": {"attempts": 1}}))
        return len(tries)

    answer = await settled(run(_in_a_transaction(rule)))

    assert (answer, tries) == (2, [0, 1])
    assert jobs.find_one({"_id": "there before"})["attempts"] == 2


@pytest.mark.needs("transactions")
async def test_a_transaction_inside_the_callers_own_joins_it(store: axeq.Store, jobs: Any) -> None:
    with store.sync_client().start_session() as session:
        session.start_transaction()
        store.run(_in_a_transaction(lambda: _inserting(stored_probe(_id="one"))), session=session)
        seen = _stored(jobs)
        session.abort_transaction()

    assert seen == _stored(jobs) == {"there before"}
