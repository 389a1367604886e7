"""The board: what is due, in order, spread over the lag, and the lost ones apart."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest

from axeq.rules.due import Candidate
from axeq.supply.board import Board
from axeq.supply.lag import RandomLag, RankedLag

from .playing import NOW

LATER = NOW + timedelta(hours=1)


class Ticks:
    def __init__(self) -> None:
        self.now = 50.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def ticks() -> Ticks:
    return Ticks()


@pytest.fixture
def board(ticks: Ticks) -> Board:
    return Board(RandomLag(0.0), monotonic=ticks)


def candidate(identity: Any, *, name: str = "a", priority: int = 0, due: float = -10.0, lost: int = 0) -> Candidate:
    return Candidate(identity, name, priority, NOW + timedelta(seconds=due), 1, lost)


def fill(board: Board, *candidates: Candidate, horizon: datetime = NOW, more: bool = False) -> None:
    board.fill(["a"], candidates, horizon=horizon, since=1e9, full=False)
    board.expect_more("a", more)


def taken(board: Board, count: int = 100, now: datetime = LATER, *, idle: int = 100, apart: Any = ()) -> list[Any]:
    return [each.id for each in board.take("a", count, now, idle=idle, apart=apart)]


def test_jobs_are_taken_in_the_order_of_the_read_and_once(board: Board) -> None:
    fill(board, candidate(1, priority=-5), candidate(2), candidate(3))

    assert taken(board, 2) == [1, 2]
    assert taken(board) == [3]
    assert taken(board) == []


def test_jobs_announced_by_a_stream_are_taken_by_priority_and_then_due_time(board: Board) -> None:
    for each in (
        candidate(1, due=-1),
        candidate(2, priority=5, due=-9),
        candidate(3, due=-3),
        candidate(4, priority=-1),
    ):
        board.offer(each, NOW)

    assert taken(board) == [4, 3, 1, 2]


def test_jobs_announced_after_a_read_are_put_in_their_place(board: Board) -> None:
    fill(board, candidate(1, due=-9), candidate(2, due=-1), candidate(3, priority=7))

    board.offer(candidate(4, due=-5), NOW)

    assert taken(board) == [1, 4, 2, 3]


def test_a_read_goes_before_the_jobs_that_fall_due_later(board: Board) -> None:
    board.offer(candidate("later", due=5), NOW)

    fill(board, candidate("sooner", due=-5))

    assert taken(board) == ["sooner", "later"]


def test_a_job_announced_twice_is_known_once(board: Board) -> None:
    board.offer(candidate(1), NOW)
    board.offer(candidate(1), NOW)

    assert board.count("a") == 1


def test_a_read_replaces_what_was_known_to_be_due_and_keeps_what_falls_due_later(board: Board) -> None:
    fill(board, candidate("claimed elsewhere"))
    board.offer(candidate("to come", due=60), NOW)

    fill(board, candidate("new"))

    assert sorted(taken(board)) == ["new", "to come"]


def test_a_read_of_one_task_leaves_the_others(board: Board) -> None:
    board.offer(candidate(1, name="b"), NOW)

    fill(board)

    assert board.count("b") == 1


def test_a_job_is_not_taken_before_it_is_due(board: Board) -> None:
    board.offer(candidate(1, due=10), NOW)

    assert taken(board, now=NOW + timedelta(seconds=9.999)) == []
    assert taken(board, now=NOW + timedelta(seconds=10)) == [1]


@pytest.mark.parametrize(("chance", "wait"), [(0.0, 0.0), (0.5, 0.05), (0.999, 0.0999)])
def test_a_job_is_taken_a_random_part_of_the_lag_after_its_due_time(ticks: Ticks, chance: float, wait: float) -> None:
    board = Board(RandomLag(0.1, chance=lambda: chance), monotonic=ticks)
    visible = NOW + timedelta(seconds=wait)

    board.offer(candidate(1, due=0), NOW)

    assert board.next_visible(["a"]) == visible
    assert taken(board, now=visible - timedelta(milliseconds=1)) == []
    assert taken(board, now=visible) == [1]


def test_a_job_keeps_its_lag_when_it_is_read_again(ticks: Ticks) -> None:
    chances = iter([0.2, 0.9, 0.9])
    board = Board(RandomLag(0.1, chance=lambda: next(chances)), monotonic=ticks)

    fill(board, candidate(1, due=0))
    fill(board, candidate(1, due=0))

    assert board.next_visible(["a"]) == NOW + timedelta(seconds=0.02)


def test_jobs_that_lost_a_lease_are_never_taken_with_the_others(board: Board) -> None:
    fill(board, candidate(1, lost=1), candidate(2))

    assert taken(board) == [2]
    lost = board.take_lost("a", LATER, most_lost=None)
    assert lost is not None
    assert lost.id == 1


def test_a_suspect_is_left_where_it_is_until_it_may_be_taken(board: Board) -> None:
    fill(board, candidate("suspect", lost=2), candidate("once", lost=1))

    first = board.take_lost("a", LATER, most_lost=1)
    second = board.take_lost("a", LATER, most_lost=1)
    third = board.take_lost("a", LATER, most_lost=None)

    assert first is not None
    assert third is not None
    assert (first.id, second, third.id) == ("once", None, "suspect")


@pytest.mark.parametrize(
    ("lost", "others", "most_lost", "first"),
    [
        (candidate(1, due=-9, lost=1), [candidate(2, due=-8)], None, True),
        (candidate(1, due=-9, lost=1), [], None, True),
        (candidate(1, due=-8, lost=1), [candidate(2, due=-9)], None, False),
        (candidate(1, due=-9, lost=1), [candidate(2, priority=-1)], None, False),
        (candidate(1, due=-9, lost=2), [candidate(2, due=-8)], 1, False),
        (candidate(1, due=3601, lost=1), [candidate(2, due=3602)], None, False),
        (candidate(1, due=-9), [candidate(2, due=-8, lost=1)], None, False),
    ],
    ids=["first", "alone", "later", "less urgent", "lost too often", "not yet due", "others first"],
)
def test_a_lost_job_goes_first_when_it_is_first_in_order(
    board: Board, lost: Candidate, others: list[Candidate], most_lost: int | None, first: bool
) -> None:
    for each in (lost, *others):
        board.offer(each, NOW)

    assert board.lost_first("a", LATER, most_lost=most_lost) == first
    assert not board.lost_first("a", LATER, most_lost=most_lost, apart=[1, 2])


def test_a_lost_job_is_not_taken_before_it_is_due(board: Board) -> None:
    board.offer(candidate(1, lost=1, due=10), NOW)

    assert board.take_lost("a", NOW, most_lost=None) is None


def test_jobs_that_this_pool_still_runs_are_dropped(board: Board) -> None:
    fill(board, candidate(1), candidate(2), candidate(3, lost=1))

    assert taken(board, apart={1}) == [2]
    assert board.take_lost("a", LATER, most_lost=None, apart={3}) is None
    assert board.count("a") == 0


def test_a_board_is_fresh_for_as_long_as_is_asked_for(board: Board, ticks: Ticks) -> None:
    never = board.fresh("a", within=1.0)
    fill(board)
    at_once = board.fresh("a", within=1.0)
    ticks.now += 1.0
    after_a_second = board.fresh("a", within=1.0)
    ticks.now += 0.001

    assert (never, at_once, after_a_second, board.fresh("a", within=1.0)) == (False, True, True, False)


def test_what_a_read_says_of_more_jobs_is_kept(board: Board) -> None:
    fill(board, candidate(1), more=True)
    more = board.more("a")
    fill(board, candidate(1), more=False)

    assert (more, board.more("a")) == (True, False)


def test_the_next_visible_job_is_the_first_of_all_tasks(board: Board) -> None:
    board.offer(candidate(1, due=30), NOW)
    board.offer(candidate(2, name="b", due=20), NOW)

    assert board.next_visible(["a", "b"]) == NOW + timedelta(seconds=20)
    assert board.next_visible(["a"]) == NOW + timedelta(seconds=30)
    assert board.next_visible(["c"]) is None


# Deep backlogs


def page(board: Board, *candidates: Candidate) -> None:
    """A read that was cut at its limit."""
    board.fill(["a"], candidates, horizon=NOW, since=1e9, full=True)


def test_a_full_page_leaves_what_comes_after_it(board: Board) -> None:
    fill(board, candidate("early", due=-9), candidate("claimed elsewhere", due=-8), candidate("later", due=-3))

    page(board, candidate("late arrival", due=-10), candidate("early", due=-9), candidate("last", due=-5))

    assert taken(board) == ["late arrival", "early", "last", "later"]


def test_a_full_page_leaves_jobs_that_share_the_due_time_of_its_last(board: Board) -> None:
    fill(board, candidate(1, due=-5), candidate(2, due=-5), candidate(3, due=-5))

    page(board, candidate(1, due=-5), candidate(2, due=-5))

    assert board.count("a") == 3


def test_a_full_page_of_an_urgent_priority_says_nothing_of_the_less_urgent(board: Board) -> None:
    fill(board, candidate("less", priority=5, due=-60))

    page(board, candidate("urgent", priority=0, due=-1))

    assert taken(board) == ["urgent", "less"]


def test_a_further_page_adds_to_what_is_known(board: Board) -> None:
    fill(board, candidate(1, due=-9), candidate(2, due=-8))

    board.extend("a", [candidate(2, due=-8), candidate(3, due=-7)], horizon=NOW, since=1e9)

    assert taken(board) == [1, 2, 3]


@pytest.mark.parametrize("further", [False, True], ids=["read", "further page"])
def test_a_job_that_was_taken_while_a_read_went_on_is_not_gone_for_again(
    board: Board, ticks: Ticks, further: bool
) -> None:
    fill(board, candidate(1), candidate(2))
    began = ticks.now
    ticks.now += 0.1
    assert taken(board, 1) == [1]

    if further:
        board.extend("a", [candidate(1), candidate(3)], horizon=NOW, since=began)
    else:
        board.fill(["a"], [candidate(1), candidate(2), candidate(3)], horizon=NOW, since=began, full=False)

    assert taken(board) == [2, 3]


def test_a_job_that_a_later_read_shows_is_taken_again(board: Board, ticks: Ticks) -> None:
    fill(board, candidate(1))
    assert taken(board) == [1]
    ticks.now += 0.1

    board.fill(["a"], [candidate(1)], horizon=NOW, since=ticks.now, full=False)

    assert taken(board) == [1]


def test_a_stream_that_reports_a_job_after_its_claim_is_not_heard(board: Board) -> None:
    fill(board, candidate(1, due=-5))
    assert taken(board) == [1]

    board.offer(candidate(1, due=-5), NOW)

    assert taken(board) == []


def test_a_job_that_is_enqueued_anew_under_the_id_of_one_that_was_taken_is_heard_of(board: Board) -> None:
    fill(board, candidate(1, due=-5))
    assert taken(board) == [1]

    board.offer(candidate(1, due=-1), NOW)

    assert taken(board) == [1]


def test_what_was_taken_is_forgotten_in_time(board: Board, ticks: Ticks) -> None:
    fill(board, candidate(1), candidate(2))
    assert taken(board, 1) == [1]
    began = ticks.now
    ticks.now += 60.0
    assert taken(board, 1) == [2]

    board.fill(["a"], [candidate(1), candidate(2)], horizon=NOW, since=began, full=False)

    assert taken(board) == [1]


def test_a_board_stays_bounded_however_many_jobs_other_pools_have(ticks: Ticks) -> None:
    board = Board(Others(), monotonic=ticks)

    for first in range(0, 20_000, 4000):
        board.extend("a", [candidate(number) for number in range(first, first + 4000)], horizon=NOW, since=1e9)

    assert board.count("a") <= 8000


# Jobs of other pools


class Others:
    """A lag under which every job is another pool's, which has two seconds for it."""

    def delay(self, candidate: Candidate) -> tuple[bool, float]:
        return False, 2.0

    def raced(self, attempted: int, lost: int, took: float) -> None: ...


AFTER = NOW + timedelta(seconds=3)


def test_a_job_of_another_pool_is_taken_only_where_a_read_found_it_after_that_pool_had_time(ticks: Ticks) -> None:
    board = Board(Others(), monotonic=ticks)
    fill(board, candidate(1))

    before = (taken(board, now=AFTER), board.unconfirmed("a", NOW), board.unconfirmed("a", AFTER))
    fill(board, candidate(1), horizon=AFTER)

    assert before == ([], False, True)
    assert not board.unconfirmed("a", AFTER)
    assert taken(board, now=AFTER) == [1]


def test_jobs_of_other_pools_are_taken_for_idle_workers_only(ticks: Ticks) -> None:
    board = Board(Others(), monotonic=ticks)
    for horizon in (NOW, AFTER):
        fill(board, *(candidate(number) for number in range(50)), horizon=horizon)

    assert len(taken(board, 50, AFTER, idle=3)) == 3


def test_jobs_of_other_pools_are_left_while_there_may_be_own_ones(ticks: Ticks) -> None:
    board = Board(Others(), monotonic=ticks)
    for horizon in (NOW, AFTER):
        fill(board, candidate(1), horizon=horizon, more=True)

    assert taken(board, now=AFTER) == []


def test_a_job_that_its_pool_has_left_for_seconds_is_taken_like_an_own_one(ticks: Ticks) -> None:
    board = Board(Others(), monotonic=ticks)
    fill(board, candidate(1), horizon=NOW, more=True)

    fill(board, candidate(1), horizon=NOW + timedelta(seconds=5), more=True)

    assert taken(board) == [1]


def test_the_jobs_of_a_pool_that_has_ended_are_this_ones_at_once(ticks: Ticks) -> None:
    lag = RankedLag("me", 0.1)
    lag.meet({"other": ["a"]})
    board = Board(lag, monotonic=ticks)
    fill(board, *(candidate(number) for number in range(20)), more=True)
    before = board.count_own("a")

    news = lag.meet({})
    board.rank_anew(NOW)

    assert news
    assert 0 < before < 20
    assert len(taken(board)) == 20
