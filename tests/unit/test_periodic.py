"""Periodic tasks: slots are the same for every pool, and the id of its job fills a slot once."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from bson import ObjectId
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

import axeq
from axeq.rules.enqueue import Draft
from axeq.rules.outcome import Limits
from axeq.rules.periodic import fill, kept, slot_id, slot_start
from axeq.running.ticker import Ticker
from axeq.supply.lag import RandomLag
from axeq.wire.wire import Call, Find, Op, drive
from axeq.words.errors import ConfigurationError, DuplicateKey, StoreUnavailable
from tests.support.waiting import DEADLINE

from .playing import ScriptedClock, play

moments = st.integers(0, 4_000_000_000_000).map(lambda number: datetime.fromtimestamp(number / 1000, UTC))
periods = st.integers(100, 366 * 86_400_000).map(lambda milliseconds: milliseconds / 1000)


class Report(axeq.Model[None], name="report"):
    kind: str = "daily"


class Needy(axeq.Model[None], name="needy"):
    kind: str


async def report(ctx: axeq.Context[Report, None]) -> None: ...


async def needy(ctx: axeq.Context[Needy, None]) -> None: ...


def a_draft() -> Draft:
    return Draft(name="report", version=1, queue="default", data={}, id="default/report@2026-01-01T00:00:00Z")


@given(moments, periods)
def test_a_moment_lies_in_the_slot_that_has_begun_and_not_yet_ended(now: datetime, every: float) -> None:
    start = slot_start(now, every)

    assert start <= now < start + timedelta(seconds=every)


@given(moments, periods, st.floats(0, 1, exclude_max=True))
def test_all_moments_of_a_slot_give_the_same_start(now: datetime, every: float, share: float) -> None:
    start = slot_start(now, every)

    assert slot_start(start, every) == start
    assert slot_start(start + timedelta(milliseconds=int(every * 1000 * share)), every) == start


@given(moments, moments, periods)
def test_two_slots_never_share_an_id(one: datetime, other: datetime, every: float) -> None:
    starts = {slot_start(one, every), slot_start(other, every)}

    assert len({slot_id("default", "report", start) for start in starts}) == len(starts)


def test_the_id_names_queue_task_and_the_start_of_the_slot() -> None:
    start = slot_start(datetime(2026, 1, 1, 13, 44, 59, 999_000, tzinfo=UTC), 3600)

    assert slot_id("default", "report", start) == "default/report@2026-01-01T13:00:00Z"
    assert slot_id("default", "report", start + timedelta(milliseconds=200)).endswith("T13:00:00.200Z")


@given(periods, st.floats(0, 1e9), st.floats(0, 1e9))
def test_a_slots_job_is_kept_for_two_slots_and_ten_minutes(every: float, retention: float, cancelled: float) -> None:
    limits = Limits(retention=retention, cancelled_retention=cancelled)

    own = kept(every, limits)

    least = max(2 * every, 600)
    if own is None:
        assert min(retention, cancelled, Limits().cancelled_retention) >= least
    else:
        assert own >= max(least, retention)


def test_a_slot_is_filled_with_one_insert() -> None:
    script = play(fill(a_draft(), ScriptedClock(), look=False), [None])

    (insert,) = script.commands
    assert isinstance(insert, Call)
    assert insert.method == "insert_one"
    assert script.result["_id"] == a_draft().id


def test_a_slot_that_another_pool_has_filled_is_left_as_it_is() -> None:
    assert play(fill(a_draft(), ScriptedClock(), look=False), [DuplicateKey()]).result is None


def test_a_pool_that_comes_late_looks_before_it_inserts() -> None:
    script = play(fill(a_draft(), ScriptedClock(), look=True), [[{"_id": a_draft().id}]])

    assert [type(command) for command in script.commands] == [Find]
    assert script.result is None


def test_a_pool_that_finds_the_slot_empty_fills_it() -> None:
    script = play(fill(a_draft(), ScriptedClock(), look=True), [[], None])

    assert script.result["_id"] == a_draft().id


def test_an_unanswered_insert_is_the_callers_to_repeat() -> None:
    with pytest.raises(StoreUnavailable):
        play(fill(a_draft(), ScriptedClock(), look=False), [StoreUnavailable("host", "gone", sent=True)])


async def test_a_lag_longer_than_the_slot_leaves_no_slot_empty() -> None:
    filled = asyncio.Event()

    async def arun(rule: Op[Any]) -> Any:
        return drive(rule, lambda command: filled.set())

    clock = SimpleNamespace(earliest=lambda: datetime.now(UTC), latest=lambda: datetime.now(UTC))
    store: Any = SimpleNamespace(clock=clock, codec=None, arun=arun, announce=lambda documents: None)
    lag = RandomLag(3600, chance=lambda: 1.0)
    ticker = Ticker(store, "default", [axeq.Task(Report, report, every=0.5)], lag=lag, resting=lambda name: False)

    running = asyncio.create_task(ticker.run())
    try:
        await asyncio.wait_for(filled.wait(), DEADLINE)
    finally:
        running.cancel()
        await asyncio.wait([running])

    assert filled.is_set()


def test_a_task_makes_the_payload_of_its_slots_anew() -> None:
    class Stamped(axeq.Model[None], name="stamped"):
        mark: str

        def __init__(self, **fields: Any) -> None:
            super().__init__(**{"mark": str(ObjectId()), **fields})

    async def stamped(ctx: axeq.Context[Stamped, None]) -> None: ...

    task = axeq.Task(Stamped, stamped, every=60)

    assert task.every == 60
    assert task.payload() != task.payload()


def test_a_task_takes_the_payload_of_its_slots() -> None:
    task = axeq.Task(Needy, needy, every=timedelta(hours=1), payload=Needy(kind="hourly"))

    assert task.every == 3600
    assert task.payload() == Needy(kind="hourly")


def test_a_task_is_not_periodic_by_default() -> None:
    assert axeq.Task(Report, report).every is None


class Other(BaseModel):
    pass


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"every": 0.05}, "between 0.1 s and 366 days"),
        ({"every": 0}, "between 0.1 s and 366 days"),
        ({"every": -1}, "every"),
        ({"every": timedelta(days=367)}, "between 0.1 s and 366 days"),
        ({"every": "hourly"}, "every"),
        ({"every": 60, "payload": Other()}, "must be a Report"),
        ({"payload": Report()}, "give it every="),
    ],
)
def test_a_period_that_cannot_work_is_named_at_once(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        axeq.Task(Report, report, **options)


def test_a_model_that_cannot_be_made_by_itself_asks_for_a_payload() -> None:
    with pytest.raises(ConfigurationError, match=r"needs payload=, a Needy with kind"):
        axeq.Task(Needy, needy, every=60)
