"""Parked jobs: a pool that starts at any moment of a parking finds its own jobs due."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import mongomock
import pytest

import axeq
from axeq.rules.strangers import park, served, welcome
from axeq.rules.workers import Serving, announce, leave, live
from axeq.wire.commands import Command, Op

FAR = timedelta(minutes=4)


@pytest.fixture
def store() -> Iterator[axeq.Store]:
    with axeq.Store(mongomock.MongoClient()["axeq"]) as store:
        yield store


class Note(axeq.Model, name="note"):
    pass


class Other(axeq.Model, name="other"):
    pass


def starts(store: axeq.Store, worker: str, *names: str, queue: str = "default") -> None:
    store.run(announce(worker, Serving([queue], names), store.clock))


def takes_anything(store: axeq.Store, *others: str) -> None:
    store.run(announce("any", Serving(["default"], ["note"], others, anything=True), store.clock))


def comes(store: axeq.Store, *names: str) -> int:
    """Does what a pool does for parked jobs once it has announced itself."""
    return store.run(welcome(["default"], names, store.clock))


def parked(store: axeq.Store, *own: str) -> dict[str, int]:
    return dict(store.run(park("default", own, store.clock)))


def waits(store: axeq.Store, job: Any) -> bool:
    """Whether a job waits for long."""
    return bool(job.refresh().available_at > store.clock.latest() + FAR)


def interrupted(rule: Op[Any], act: Callable[[int], None]) -> Op[Any]:
    """Yields what a rule does, and calls `act` with how many of its commands have been carried out."""
    done = 0
    act(done)
    command: Command = next(rule)
    while True:
        reply = yield command
        done += 1
        act(done)
        try:
            command = rule.send(reply)
        except StopIteration as ended:
            return ended.value


def test_due_jobs_of_names_that_no_live_pool_serves_wait_for_five_minutes(store: axeq.Store) -> None:
    queue = axeq.Queue(store)
    mine, theirs, strange = queue.enqueue(Note()), queue.enqueue(Other()), queue.enqueue(Other(), delay=60)
    elsewhere = axeq.Queue(store, "elsewhere").enqueue(Other())

    assert parked(store, "note") == {"other": 1}
    assert waits(store, theirs)
    assert not waits(store, mine)
    assert strange.available_at == strange.refresh().available_at
    assert not waits(store, elsewhere)


def test_what_a_live_pool_serves_is_never_parked(store: axeq.Store) -> None:
    job = axeq.Queue(store).enqueue(Other())
    starts(store, "theirs", "other")

    assert parked(store, "note") == {}
    assert not waits(store, job)


def test_what_a_live_pool_has_adopted_is_never_parked_and_remains_without_a_task(store: axeq.Store) -> None:
    job = axeq.Queue(store).enqueue(Other())
    store.run(announce("adopting", Serving(["default"], ["note"], ["other"]), store.clock))

    assert parked(store) == {}
    assert not waits(store, job)
    assert store.run(served("default", store.clock)) == {"note"}


def test_a_pool_of_another_queue_or_one_that_has_left_serves_nothing_here(store: axeq.Store) -> None:
    job = axeq.Queue(store).enqueue(Other())
    starts(store, "elsewhere", "other", queue="elsewhere")
    starts(store, "gone", "other")
    store.run(leave("gone", store.clock))

    assert parked(store) == {"other": 1}
    assert waits(store, job)


def test_where_a_live_pool_takes_anything_nothing_is_parked(store: axeq.Store) -> None:
    job = axeq.Queue(store).enqueue(Other())
    takes_anything(store)

    assert parked(store) == {}
    assert not waits(store, job)


def test_a_pool_that_takes_anything_says_what_it_has_adopted_until_it_gives_it_up(store: axeq.Store) -> None:
    for others in (["other"], []):
        takes_anything(store, *others)

        assert list(store.run(live(["default"], store.clock))["any"].others) == others


def commands_of_a_parking() -> int:
    with axeq.Store(mongomock.MongoClient()["axeq"]) as store:
        axeq.Queue(store).enqueue(Other())
        seen: list[int] = []
        store.run(interrupted(park("default", [], store.clock), seen.append))
        return max(seen)


@pytest.mark.parametrize("announced", range(commands_of_a_parking() + 1))
def test_a_pool_that_starts_at_any_moment_of_a_parking_finds_its_jobs_due(store: axeq.Store, announced: int) -> None:
    for welcomed in range(announced, commands_of_a_parking() + 1):
        job = axeq.Queue(store).enqueue(Other())

        def act(done: int, welcomed: int = welcomed) -> None:
            if done == announced:
                starts(store, "just started", "other")
            if done == welcomed:
                comes(store, "other")

        store.run(interrupted(park("default", [], store.clock), act))

        assert not waits(store, job)
        job.remove()
        store.run(leave("just started", store.clock))


@pytest.mark.parametrize("announced", range(commands_of_a_parking() + 1))
def test_a_pool_that_takes_anything_finds_all_due_at_whatever_moment_of_a_parking_it_starts(
    store: axeq.Store, announced: int
) -> None:
    for welcomed in range(announced, commands_of_a_parking() + 1):
        job = axeq.Queue(store).enqueue(Other())

        def act(done: int, welcomed: int = welcomed) -> None:
            if done == announced:
                takes_anything(store)
            if done == welcomed:
                store.run(welcome(["default"], None, store.clock))

        store.run(interrupted(park("default", [], store.clock), act))

        assert not waits(store, job)
        job.remove()
        store.run(leave("any", store.clock))


def test_a_pool_that_comes_later_finds_what_was_parked_due_and_nothing_else(store: axeq.Store) -> None:
    queue = axeq.Queue(store)
    job, later, other = queue.enqueue(Other()), queue.enqueue(Other(), delay=299), queue.enqueue(Note())
    assert parked(store) == {"note": 1, "other": 1}

    assert comes(store, "other") == 1
    assert comes(store, "other") == 0
    assert not waits(store, job)
    assert waits(store, later)
    assert waits(store, other)


def test_a_job_that_was_parked_once_and_waits_for_another_reason_is_not_made_due(store: axeq.Store) -> None:
    job = axeq.Queue(store).enqueue(Other())
    parked(store)
    jobs: Any = store._given["jobs"]  # type: ignore[index]
    snoozed = store.clock.latest() + timedelta(hours=1)
    jobs.update_one({"_id": job.id}, {"$set": {"available_at": snoozed}})

    assert comes(store, "other") == 0
    assert waits(store, job)


def test_a_running_job_is_not_parked(store: axeq.Store) -> None:
    job = axeq.Queue(store).enqueue(Other())
    jobs: Any = store._given["jobs"]  # type: ignore[index]
    jobs.update_one({"_id": job.id}, {"$set": {"state": "dequeued"}})

    assert parked(store) == {}
    assert not waits(store, job)


def test_more_jobs_than_a_page_are_all_parked(store: axeq.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("axeq.rules.strangers._PAGE", 10)
    axeq.Queue(store).enqueue_many([Other() for _ in range(35)])

    assert parked(store) == {"other": 35}
