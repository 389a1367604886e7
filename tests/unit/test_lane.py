"""How many jobs a task claims: slow handlers never hoard, fast ones are fed ahead."""

from __future__ import annotations

from typing import Any

import pytest

import axeq
from axeq.attempts.executor import Attempt
from axeq.running import pace as module
from axeq.running.lane import Lane, Places

from .playing import held_record


class Ping(axeq.Model, name="ping"):
    pass


async def handler(ctx: axeq.Context[Ping, Any]) -> None:
    return None


class Ticks:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def ticks(monkeypatch: pytest.MonkeyPatch) -> Ticks:
    ticks = Ticks()
    monkeypatch.setattr(module, "time", ticks)
    return ticks


@pytest.fixture
def lane(ticks: Ticks) -> Lane:
    return Lane(axeq.Task(Ping, handler, workers=4))


def claim(lane: Lane, count: int) -> None:
    for _ in range(count):
        lane.add(Attempt(held_record(name="ping"), lane.task))


def run_all(lane: Lane) -> list[Attempt]:
    """Starts what can start, and returns it."""
    started: list[Attempt] = []
    while (attempt := lane.start()) is not None:
        started.append(attempt)
    return started


def work(lane: Lane, ticks: Ticks, *, each: float, seconds: float) -> None:
    """Runs jobs that take `each` seconds, one after the other, for so long."""
    for _ in range(int(seconds / each)):
        claim(lane, 1)
        attempt = lane.start()
        assert attempt is not None
        ticks.now += each
        lane.finish(attempt)
        lane.settling()
        lane.settled()


def test_a_new_task_claims_one_job_for_each_worker(lane: Lane) -> None:
    assert lane.wanted == 4


def test_a_busy_task_of_slow_jobs_claims_nothing_ahead(lane: Lane, ticks: Ticks) -> None:
    work(lane, ticks, each=60.0, seconds=600.0)

    claim(lane, lane.wanted)
    run_all(lane)

    assert (lane.running, lane.wanted) == (4, 0)


def test_a_slow_task_claims_only_for_the_worker_that_is_free(lane: Lane, ticks: Ticks) -> None:
    claim(lane, 4)
    running = run_all(lane)

    ticks.now += 60
    lane.finish(running[0])

    assert lane.wanted == 1


def test_a_fast_task_claims_ahead_what_it_finishes_in_a_fifth_of_a_second(lane: Lane, ticks: Ticks) -> None:
    work(lane, ticks, each=0.001, seconds=3.0)

    assert lane.wanted == pytest.approx(4 + 200, abs=5)


def test_a_fast_task_claims_again_only_when_half_is_used_up(lane: Lane, ticks: Ticks) -> None:
    work(lane, ticks, each=0.001, seconds=3.0)
    claim(lane, lane.wanted)
    run_all(lane)

    wanted = []
    while lane.ready:
        lane.ready.popleft()
        wanted.append(lane.wanted)

    first = next(count for count in wanted if count)
    assert 0 in wanted
    assert first >= 95


def test_no_task_claims_more_than_a_thousand_ahead(lane: Lane, ticks: Ticks) -> None:
    work(lane, ticks, each=0.00001, seconds=1.0)

    assert lane.wanted == 4 + 1000


def test_a_task_that_turns_slow_stops_claiming_ahead(lane: Lane, ticks: Ticks) -> None:
    work(lane, ticks, each=0.001, seconds=3.0)

    work(lane, ticks, each=10.0, seconds=200.0)

    assert lane.wanted == 4


def test_a_task_claims_nothing_while_the_store_is_a_quarter_of_a_second_behind_with_outcomes(
    lane: Lane, ticks: Ticks
) -> None:
    for _ in range(3000):
        lane.settling()
    for _ in range(2000):
        ticks.now += 0.0005
        lane.settled()
    behind = lane.wanted

    for _ in range(600):
        ticks.now += 0.0005
        lane.settled()

    assert behind == 0
    assert lane.wanted > 0


def test_a_new_task_claims_more_and_more_ahead_within_a_few_rounds(lane: Lane, ticks: Ticks) -> None:
    wanted = [lane.wanted]
    for _ in range(2):
        claim(lane, lane.wanted)
        while (attempt := lane.start()) is not None:
            ticks.now += 0.0001
            lane.finish(attempt)
        wanted.append(lane.wanted)

    assert wanted == [4, 4 + 40, pytest.approx(4 + 480, abs=5)]


def test_jobs_claimed_when_they_were_faster_are_too_many_once_they_turn_slow(lane: Lane, ticks: Ticks) -> None:
    work(lane, ticks, each=0.001, seconds=1.0)
    claim(lane, lane.wanted)
    lane.start()
    before = lane.surplus

    ticks.now += 60

    assert before == 0
    assert lane.surplus == len(lane.ready) - lane.task.workers - 3  # those of one second, at 1,000 in 60 s


def test_jobs_start_in_the_order_of_their_claim_while_workers_are_free(lane: Lane) -> None:
    claim(lane, 6)
    claimed = list(lane.ready)

    started = [lane.start() for _ in range(6)]

    assert started == [*claimed[:4], None, None]
    assert (lane.running, lane.free, len(lane.ready)) == (4, 0, 2)


def test_a_worker_is_free_only_where_no_job_waits_for_it(lane: Lane) -> None:
    claim(lane, 3)

    before = lane.free
    run_all(lane)

    assert (before, lane.free) == (1, 1)


def places(most: int, *workers: int) -> tuple[Places, list[Lane]]:
    shared = Places(most)
    return shared, [Lane(axeq.Task(Ping, handler, workers=count), shared) for count in workers]


def test_running_attempts_of_a_task_have_workers_of_their_own_numbers(lane: Lane) -> None:
    claim(lane, 6)
    running = run_all(lane)

    before = [attempt.worker_index for attempt in running]
    lane.finish(running[1])
    lane.finish(running[3])
    after = {attempt.worker_index for attempt in run_all(lane)}

    assert sorted(before) == [0, 1, 2, 3]
    assert after == {before[1], before[3]}


def test_lanes_that_share_places_run_no_more_than_there_are(ticks: Ticks) -> None:
    shared, lanes = places(3, 4, 4)
    for lane in lanes * 4:
        claim(lane, 1)

    started = [attempt for lane in shared.in_turn() if (attempt := lane.start())]

    assert len(started) == 3
    assert [lane.running for lane in lanes] == [2, 1]
    assert [lane.start() for lane in lanes] == [None, None]


def test_a_place_that_gets_free_goes_to_what_was_claimed_first(ticks: Ticks) -> None:
    shared, lanes = places(1, 1, 1, 1)
    claimed = [0, 0, 1, 2, 0, 1]
    for number in claimed:
        claim(lanes[number], 1)

    order = []
    for _ in claimed:
        lane = next(iter(shared.in_turn()))
        attempt = lane.start()
        assert attempt is not None
        order.append(lanes.index(lane))
        lane.finish(attempt)

    assert order == claimed


def test_a_task_whose_workers_are_all_busy_lets_others_go_first(ticks: Ticks) -> None:
    shared, lanes = places(3, 1, 2)
    for number in (0, 0, 1):
        claim(lanes[number], 1)

    started = [lane.start() and lanes.index(lane) for lane in shared.in_turn()]

    assert started == [0, 1]


def test_the_first_lane_to_claim_leaves_none_of_the_places_it_took_to_the_next(ticks: Ticks) -> None:
    shared, (first, second) = places(4, 10, 10)
    before = first.wanted, second.wanted

    claim(first, first.wanted)

    assert before == (4, 4)
    assert (second.wanted, second.free, shared.room) == (0, 0, 0)
    assert second.waits_for_place


def test_lanes_that_share_places_claim_ahead_what_goes_through_these(ticks: Ticks) -> None:
    shared, lanes = places(2, 10, 10)
    for _ in range(500):
        for lane in lanes:
            claim(lane, 1)
            attempt = lane.start()
            assert attempt is not None
            ticks.now += 0.001
            lane.finish(attempt)

    assert shared.room == pytest.approx(2 + 200, abs=5)
    assert sum(lane.wanted for lane in lanes) >= shared.room


def test_slow_jobs_that_share_places_are_not_hoarded(ticks: Ticks) -> None:
    shared, lanes = places(2, 10, 10)
    claim(lanes[0], 2)
    running = run_all(lanes[0])
    ticks.now += 60

    lanes[0].finish(running[0])

    assert [lane.wanted for lane in lanes] == [1, 1]
    assert shared.room == 1
