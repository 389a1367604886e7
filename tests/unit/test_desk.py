"""What a pool does for handlers while they run: for the jobs of their call, and for no others."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

import axeq
from axeq.attempts.desk import Desk
from axeq.attempts.executor import Attempt
from axeq.attempts.leases import Leases
from axeq.attempts.together import Member, Together
from axeq.documents.record import Record
from axeq.faces.context import Context
from axeq.rules.lifecycle import Held
from axeq.words.errors import StoreUnavailable
from tests.support.probe import Probe, probe
from tests.support.waiting import aeventually

from .playing import NOW, held_job

TASK = axeq.Task(Probe, probe, group=axeq.Group(grace=1))


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("axeq.attempts.desk._EVERY", 0.01)


def desk_of(store: axeq.Store, leases: Leases) -> Desk:
    return Desk(store, leases, lease=30, lost=lambda attempt, why: None, moved=lambda attempt, seconds: None)


def leases_of(store: axeq.Store, *attempts: Attempt) -> Leases:
    leases = Leases(store, lease=30, report=lambda holding: None)
    leases.hold([Held(record.id, record.token) for each in attempts for record in each.records], since=0.0)
    return leases


def running(attempt: Attempt, store: axeq.Store, *called: Record) -> Attempt:
    """Has an attempt run its handler, for `called` jobs of it."""
    context: Context[Any, Any] = Context(model=Probe(), job=called[0], result_type=Any, store=store)
    if len(attempt.records) > 1:
        context._share([Probe() for _ in called], list(called))
    attempt.begin(context, NOW, None)
    return attempt


def jobs_of(database: Any, count: int) -> list[Record]:
    records = [Record(held_job(available_at=NOW + timedelta(hours=1))) for _ in range(count)]
    database["jobs"].insert_many([record.document for record in records])
    return records


def group_of(records: list[Record]) -> Together:
    return Together([Member(record, TASK, NOW) for record in records])


def progress_of(database: Any, record: Record) -> Any:
    return database["jobs"].find_one({"_id": record.id}).get("progress")


def says(attempt: Attempt, progress: float) -> None:
    assert attempt.context is not None
    attempt.context._say({"progress": progress})


async def test_a_member_that_was_left_out_of_the_call_gets_none_of_its_progress(
    store: axeq.Store, database: Any
) -> None:
    left_out, *called = jobs_of(database, 3)
    attempt = running(group_of([left_out, *called]), store, *called)
    desk = desk_of(store, leases_of(store, attempt))

    says(attempt, 0.5)
    desk.report(attempt, {"progress": 0.5})
    await aeventually(lambda: progress_of(database, called[1]) == 0.5)
    await desk.close()

    assert [progress_of(database, record) for record in (left_out, *called)] == [None, 0.5, 0.5]


async def test_a_member_that_was_left_out_of_the_call_is_extended_during_its_transaction(
    store: axeq.Store, database: Any
) -> None:
    left_out, *called = jobs_of(database, 3)
    attempt = running(group_of([left_out, *called]), store, *called)
    leases = leases_of(store, attempt)
    desk = desk_of(store, leases)

    desk.suspend(attempt, 60)

    extended, suspended = leases._apart()
    assert [job.id for job in extended] == [left_out.id]
    assert [job.id for job in suspended] == [record.id for record in called]

    desk.resume(attempt)

    assert len(leases._apart()[0]) == 3


class Failing:
    """A store whose first command fails."""

    def __init__(self, store: axeq.Store, error: Exception) -> None:
        self._store = store
        self.errors = [error]

    async def arun(self, rule: Any) -> Any:
        if self.errors:
            raise self.errors.pop()
        return await self._store.arun(rule)


@pytest.mark.parametrize("error", [RuntimeError("a defect"), StoreUnavailable("db", "down")], ids=["defect", "store"])
async def test_whatever_fails_a_write_later_reports_are_stored(
    store: axeq.Store, database: Any, error: Exception
) -> None:
    held_up, other = jobs_of(database, 2)
    leases = leases_of(store)
    failing: Any = Failing(store, error)
    desk = desk_of(failing, leases)
    in_transaction, free = running(Attempt(held_up, TASK), store, held_up), running(Attempt(other, TASK), store, other)
    desk.suspend(in_transaction, 60)
    for attempt in (in_transaction, free):
        says(attempt, 0.5)
        desk.report(attempt, {"progress": 0.5})
    await aeventually(lambda: not failing.errors)

    says(free, 0.75)
    desk.report(free, {"progress": 0.75})

    await aeventually(lambda: progress_of(database, other) == 0.75)
    desk.resume(in_transaction)
    await aeventually(lambda: progress_of(database, held_up) == 0.5)
    await desk.close()
