"""One attempt in a pool's hands: when it is to end, and what its outcome becomes on the way to the store."""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import Any

import pytest

import axeq
from axeq.attempts.executor import Attempt, Executor, Stop
from axeq.attempts.hooks import Hooks
from axeq.attempts.together import Member, Together, execute_together
from axeq.documents.failure import failure
from axeq.faces.hands import Hands
from axeq.rules.outcome import Cancelled, Failed, Outcome, Released, Snoozed
from axeq.words.backoff import never
from axeq.words.states import Cause

from .playing import DOUBT, NOW, ScriptedClock, held_record


class Page(axeq.Model[Any], name="page", version=3):
    number: int = 1


async def handler(ctx: axeq.Context[Page, Any]) -> Any:
    return None


def attempt(fields: dict[str, Any] | None = None, **options: Any) -> Attempt:
    return Attempt(held_record(name="page", **(fields or {})), axeq.Task(Page, handler, **options))


def executor() -> Executor:
    store = axeq.Store("mongodb://localhost/shop")
    store.clock = ScriptedClock()
    return Executor(store, Hooks(), Hands(), lambda *_: None)


def concluded(one: Attempt, outcome: Outcome) -> Outcome:
    return executor().conclude(one, outcome)


# Its payload


@pytest.mark.parametrize(("version", "runs"), [(2, True), (3, True), (4, False)])
def test_a_job_that_was_replaced_by_a_newer_version_is_given_back_to_pools_that_know_it(
    version: int, runs: bool
) -> None:
    model, instead = executor().read(attempt({"version": version, "data": {"number": 7}}))

    assert (model == Page(number=7)) is runs
    assert isinstance(instead, Released) is not runs


# Its end


@pytest.mark.parametrize(
    ("timeout", "deadline", "end"),
    [
        (None, None, (600.0, Stop.TIMEOUT)),
        (20.0, None, (20.0, Stop.TIMEOUT)),
        (20.0, 30, (20.0, Stop.TIMEOUT)),
        (20.0, 20, (20.0, Stop.TIMEOUT)),
        (20.0, 10, (10.0, Stop.DEADLINE)),
        (None, 599, (599.0, Stop.DEADLINE)),
        (20.0, -5, (0.0, Stop.DEADLINE)),
    ],
)
def test_an_attempt_ends_by_its_timeout_or_its_jobs_deadline_whichever_is_first(
    timeout: float | None, deadline: float | None, end: tuple[float, Stop]
) -> None:
    moment = None if deadline is None else NOW + timedelta(seconds=deadline)

    one = attempt({"timeout": timeout, "deadline": moment})

    assert one.first_end(ScriptedClock()) == end


def test_an_attempt_that_is_given_longer_still_ends_by_the_deadline() -> None:
    one = attempt({"deadline": NOW + timedelta(seconds=30)}, timeout=10)

    ends = []
    for timeout in (20.0, 60.0):
        one.timeout = timeout
        ends.append(one.first_end(ScriptedClock()))

    assert ends == [(20.0, Stop.TIMEOUT), (30.0, Stop.DEADLINE)]


# Its outcome


def test_a_new_payload_is_stored_in_the_shape_of_the_tasks_model() -> None:
    snooze = Snoozed(5.0, data=Page(number=2), reason="next")

    older, newer = (concluded(attempt({"version": version}), snooze) for version in (1, 4))

    assert older == Snoozed(5.0, data={"number": 2}, version=3, reason="next")
    assert newer == Snoozed(5.0, data={"number": 2}, version=4, reason="next")


def test_a_new_payload_that_cannot_be_stored_fails_the_attempt_whatever_its_task_tries_again() -> None:
    class Odd(Page, name="odd"):
        thing: Any

    tried_again = concluded(attempt(retry_on=()), Snoozed(5.0, data=Odd(thing=object())))
    given_up = concluded(attempt(backoff=never), Snoozed(5.0, data="text"))

    assert isinstance(tried_again, Failed)
    assert tried_again.error["type"] == "PayloadInvalid"
    assert "page.thing" in tried_again.error["message"]
    assert isinstance(given_up, Cancelled)
    assert given_up.error is not None
    assert "payload of 'page' must be a Page, not str" in given_up.error["message"]


def test_a_job_that_would_come_again_after_its_deadline_is_judged_by_the_upper_bound_of_time() -> None:
    again = Failed(failure("E", "m"), delay=60)
    moments = [NOW + DOUBT + timedelta(seconds=seconds) for seconds in (60, 60.001)]

    first, second = (concluded(attempt({"deadline": moment}), again) for moment in moments)

    assert isinstance(first, Cancelled)
    assert first.cause is Cause.EXPIRED
    assert second == again


async def test_jobs_of_one_call_end_by_their_own_deadlines() -> None:
    async def fail(ctx: axeq.Context[Page, Any]) -> Any:
        raise ValueError("broken")

    task = axeq.Task(Page, fail, min_delay=60)
    deadlines = [NOW + timedelta(seconds=30), None, NOW + timedelta(seconds=90)]
    members = [Member(held_record(name="page", deadline=deadline), task, NOW) for deadline in deadlines]

    outcomes = await execute_together(executor(), Together(members))

    assert [type(outcomes[member.record.id]) for member in members] == [Cancelled, Failed, Failed]


async def test_jobs_of_one_call_never_get_one_payload_for_all() -> None:
    async def snooze(ctx: axeq.Context[Page, Any]) -> Any:
        raise axeq.Snooze(delay=5, data=Page(number=2))

    task = axeq.Task(Page, snooze)
    members = [Member(held_record(name="page"), task, NOW) for _ in range(2)]

    outcomes = await execute_together(executor(), Together(members))

    for member in members:
        outcome = outcomes[member.record.id]
        assert isinstance(outcome, Failed)
        assert "one payload" in outcome.error["message"]


@pytest.mark.parametrize(
    ("fields", "options", "said"),
    [
        ({"attempts": 25}, {}, True),
        ({"attempts": 50}, {}, True),
        ({"attempts": 24}, {}, False),
        ({"attempts": 25}, {"max_attempts": 100}, False),
        ({"attempts": 25, "max_attempts": 100}, {}, False),
        ({"attempts": 25, "max_attempts": 0}, {"max_attempts": 100}, True),
    ],
)
def test_the_log_tells_of_each_25th_failure_of_a_job_without_a_limit(
    fields: dict[str, Any], options: dict[str, Any], said: bool, caplog: pytest.LogCaptureFixture
) -> None:
    concluded(attempt(fields, **options), Failed(failure("E", "m")))

    levels = [record.levelno for record in caplog.records if record.name == "axeq.pool"]
    assert levels == ([logging.WARNING] if said else [])
