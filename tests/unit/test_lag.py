"""Ranked and random lag: every job has one pool that goes first, and the order is shared without a word."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta

from bson.objectid import ObjectId

from axeq.rules.due import Candidate
from axeq.supply.board import Board
from axeq.supply.lag import RandomLag, RankedLag

from .playing import NOW


def candidate(name: str = "a", identity: object = None) -> Candidate:
    return Candidate(identity or ObjectId(), name, 0, NOW, 1, 0)


def pools(count: int) -> dict[str, list[str]]:
    return {f"host:{1000 + number}:{number:06x}": ["a"] for number in range(count)}


def ranked(count: int) -> list[RankedLag]:
    lags = [RankedLag(worker, 0.1) for worker in pools(count)]
    for lag in lags:
        lag.meet(pools(count))
    return lags


def test_a_lone_pool_never_waits() -> None:
    assert RankedLag("me", 0.1).delay(candidate()) == (True, 0.0)


def test_pools_that_know_each_other_agree_on_an_order_for_every_job() -> None:
    lags = ranked(5)

    for _ in range(200):
        job = candidate()
        assert sorted(lag.rank(job) for lag in lags) == [0, 1, 2, 3, 4]


def test_every_pool_goes_first_for_a_fair_share() -> None:
    lags = ranked(4)
    jobs = [candidate(identity=ObjectId(f"{number:024x}")) for number in range(4000)]

    firsts = Counter(next(index for index, lag in enumerate(lags) if lag.rank(job) == 0) for job in jobs)

    assert set(firsts) == {0, 1, 2, 3}
    assert all(800 < count < 1200 for count in firsts.values())


def test_a_pool_that_serves_other_tasks_is_no_rival() -> None:
    lag = RankedLag("me", 0.1)
    lag.meet({"other": ["b"]})

    assert {lag.rank(candidate("a")) for _ in range(50)} == {0}
    assert {lag.rank(candidate("b")) for _ in range(50)} == {0, 1}


def test_a_job_is_left_one_step_for_each_pool_that_goes_before_and_no_longer_than_the_lag() -> None:
    lags = ranked(30)
    job = candidate()

    delays = {lag.rank(job): lag.delay(job) for lag in lags}

    assert delays[0] == (True, 0.0)
    assert delays[1] == (False, lags[0].step)
    assert delays[2] == (False, 2 * lags[0].step)
    assert delays[29] == (False, 0.1)


def test_the_step_widens_while_claims_are_lost_and_narrows_while_they_are_not() -> None:
    lag = RankedLag("me", 0.1)
    before = lag.step

    lag.raced(200, 20, 0.0)
    widened = lag.step
    for _ in range(3):
        lag.raced(200, 0, 0.0)

    assert widened > before
    assert lag.step < widened


def test_the_step_narrows_as_soon_after_many_lost_claims_as_after_few() -> None:
    few, many = RankedLag("me", 0.1), RankedLag("me", 0.1)
    while few.step < 0.1:
        few.raced(200, 100, 0.0)
    for _ in range(100):
        many.raced(200, 100, 0.0)

    for _ in range(3):
        few.raced(200, 0, 0.0)
        many.raced(200, 0, 0.0)

    assert many.step == few.step < 0.1


def test_a_pool_takes_its_own_share_before_that_of_others() -> None:
    first, second = ranked(2)
    jobs = [candidate() for _ in range(40)]
    board = Board(first, monotonic=lambda: 0.0)
    for horizon in (NOW, NOW + timedelta(seconds=1)):
        board.fill(["a"], jobs, horizon=horizon, since=1.0, full=False)

    taken = [job for _ in range(2) for job in board.take("a", 40, NOW + timedelta(seconds=1), idle=40)]

    own = [job for job in jobs if first.rank(job) == 0]
    assert taken[: len(own)] == own
    assert all(second.rank(job) == 0 for job in taken[len(own) :])
    assert 0 < len(own) < 40


def test_a_job_that_another_pool_has_claimed_is_off_the_board() -> None:
    board = Board(RandomLag(0.0), monotonic=lambda: 0.0)
    job = candidate()
    board.offer(job, NOW)

    board.drop(job.id)

    assert board.take("a", 1, NOW, idle=1) == []
