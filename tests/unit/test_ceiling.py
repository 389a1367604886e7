"""How many jobs a claim takes: few while the server is slow, any number while it is quick."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import mongomock
import pytest

import axeq
from axeq.documents.record import Record
from axeq.rules import lifecycle
from axeq.rules.due import Candidate
from axeq.running import claims
from axeq.running.ceiling import Ceiling
from axeq.wire.wire import Op, Sleep
from tests.support.pools import quick_pool, running
from tests.support.probe import Probe, probe
from tests.support.waiting import eventually

from .playing import UNANSWERED

PATIENCE = 2.0


@pytest.fixture
def ceiling() -> Ceiling:
    return Ceiling(PATIENCE)


def wanting(ceiling: Ceiling, wanted: int, server: Callable[[int], float], *, claims: int) -> list[int]:
    """Makes claims of a server that takes so long for so many jobs; returns how many jobs each was for."""
    made = []
    for _ in range(claims):
        count = wanted if ceiling.most is None else min(wanted, ceiling.most)
        seconds = server(count)
        if seconds < PATIENCE:
            ceiling.answered(count, seconds)
        else:
            ceiling.unanswered(count)
        made.append(count)
    return made


def test_quick_claims_have_no_limit(ceiling: Ceiling) -> None:
    assert wanting(ceiling, 1000, lambda count: 0.01 + count / 10_000, claims=5) == [1000] * 5
    assert ceiling.most is None


def test_a_slow_claim_brings_the_next_down_to_what_is_in_time(ceiling: Ceiling) -> None:
    ceiling.answered(4, 0.01)

    ceiling.answered(800, 1.0)

    assert ceiling.most == 400


def test_an_unanswered_claim_brings_the_next_down_to_a_quarter(ceiling: Ceiling) -> None:
    ceiling.unanswered(800)

    assert ceiling.most == 200


def test_a_slow_claim_never_raises_the_ceiling(ceiling: Ceiling) -> None:
    ceiling.unanswered(100)

    ceiling.answered(1000, 1.9)
    ceiling.unanswered(1000)

    assert ceiling.most == 25


def test_some_jobs_may_be_claimed_however_slow_the_server_is(ceiling: Ceiling) -> None:
    made = wanting(ceiling, 1000, lambda count: PATIENCE, claims=20)

    assert made[-1] == 20


@pytest.mark.parametrize("each", [0.002, 0.005, 0.01])
def test_claims_of_a_slow_server_come_to_take_a_quarter_of_the_patience(ceiling: Ceiling, each: float) -> None:
    ceiling.answered(4, 4 * each)

    made = wanting(ceiling, 1000, lambda count: count * each, claims=20)

    assert all(0.2 <= count * each <= 0.6 for count in made[5:])


def test_a_server_that_gets_quick_again_is_soon_asked_for_all(ceiling: Ceiling) -> None:
    wanting(ceiling, 1000, lambda count: PATIENCE, claims=10)

    made = wanting(ceiling, 1000, lambda count: 0.01 + count / 10_000, claims=10)

    assert made[-1] == 1000
    assert ceiling.most is None


def test_a_claim_far_below_the_ceiling_does_not_raise_it(ceiling: Ceiling) -> None:
    ceiling.unanswered(800)

    for _ in range(10):
        ceiling.answered(3, 0.001)

    assert ceiling.most == 200


def test_a_server_that_is_late_whatever_it_is_asked_for_is_not_asked_for_less(ceiling: Ceiling) -> None:
    made = wanting(ceiling, 500, lambda count: 0.6 + count / 10_000, claims=50)

    assert made == [500] * 50


def test_a_server_that_comes_to_be_late_whatever_it_is_asked_for_is_asked_for_all_again(ceiling: Ceiling) -> None:
    wanting(ceiling, 500, lambda count: 0.005, claims=10)

    made = wanting(ceiling, 500, lambda count: 0.6 + count / 10_000, claims=100)

    assert min(made) == 20
    assert made[-1] == 500


# Claims

Before = Callable[[], Op[None]]


@pytest.fixture
def store() -> Iterator[axeq.Store]:
    with axeq.Store(mongomock.MongoClient()["axeq"]) as store:
        yield store


def claiming(monkeypatch: pytest.MonkeyPatch, first: Before) -> list[int]:
    """Has something happen before the first claim of several jobs; returns for how many jobs each claim is."""
    made: list[int] = []

    def many(ids: list[Any], *given: Any, **options: Any) -> Op[list[Record]]:
        made.append(len(ids))
        if len(made) == 1:
            yield from first()
        return (yield from lifecycle.claim_many(ids, *given, **options))

    monkeypatch.setattr(claims, "claim_many", many)
    return made


def unanswered() -> Op[None]:
    yield from ()
    raise UNANSWERED


def test_a_claim_that_took_long_lowers_what_is_claimed_at_once(
    store: axeq.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow() -> Op[None]:
        yield Sleep(1.6)  # of 2 s

    claiming(monkeypatch, slow)
    jobs = axeq.Queue(store).enqueue_many([Probe()] * 80)
    found = [Candidate(job.id, "probe", 0, job.created_at, version=1, lost=0) for job in jobs]
    claims_of_a_pool = claims.Claims(store, worker="w", lease=30)
    before = claims_of_a_pool.most

    claimed = asyncio.run(claims_of_a_pool.claim(found))

    assert len(claimed) == 80
    assert before is None
    assert claims_of_a_pool.most is not None
    assert 20 <= claims_of_a_pool.most <= 50


def test_a_pool_claims_fewer_jobs_after_an_unanswered_claim_and_runs_all(
    store: axeq.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = claiming(monkeypatch, unanswered)
    queue = axeq.Queue(store)
    queue.enqueue_many([Probe()] * 120)
    pool = quick_pool(store, lease=30)
    pool.add(axeq.Task(Probe, probe, workers=80))

    with running(pool):
        eventually(lambda: queue.stats()[axeq.State.COMPLETED] == 120)

    assert made[:2] == [80, 20]
