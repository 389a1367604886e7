"""Turns: which jobs of which queue and task a claim takes."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta
from typing import Any

import axeq
from axeq.rules.due import Candidate
from axeq.running.lane import Lane, Places
from axeq.running.turns import Basket, Turns
from axeq.supply.board import Board
from axeq.supply.lag import RandomLag
from axeq.supply.source import Source

from .playing import NOW, ScriptedClock


class Ping(axeq.Model, name="ping"):
    pass


class Pong(axeq.Model, name="pong"):
    pass


async def handler(ctx: axeq.Context[Any, Any]) -> None:
    return None


def source(queue: str, **jobs: int) -> Source:
    """A queue with so many due jobs of each task."""
    lag = RandomLag(0.0)
    board = Board(lag, monotonic=lambda: 0.0)
    for name, count in jobs.items():
        found = [Candidate((queue, name, number), name, 0, NOW - timedelta(seconds=1), 1, 0) for number in range(count)]
        board.fill([name], found, horizon=NOW, since=1.0, full=False)
    nothing: Any = None
    return Source(queue, board=board, feed=nothing, lag=lag, clock=ScriptedClock())


def divided(
    sources: list[Source], weights: dict[str, int], lanes: list[Lane], count: int, *, strict: bool = False
) -> Counter[tuple[str, str]]:
    named = {lane.task.name: lane for lane in lanes}
    basket = Basket(lanes, NOW, apart=())
    Turns(sources, weights, named, strict=strict).divide(count, basket)
    taken: Counter[tuple[str, str]] = Counter()
    for pick in basket.picks:
        taken[pick.source.queue, pick.lane.task.name] += len(pick.candidates)
    return taken


def lane(model: Any = Ping, *, workers: int = 10, places: Places | None = None) -> Lane:
    return Lane(axeq.Task(model, handler, workers=workers), places)


def test_a_claim_is_divided_by_the_weights_of_the_queues() -> None:
    sources = [source("critical", ping=50), source("low", ping=50)]

    taken = divided(sources, {"critical": 4, "low": 1}, [lane()], 10)

    assert taken == {("critical", "ping"): 8, ("low", "ping"): 2}


def test_what_a_queue_cannot_give_comes_from_the_others() -> None:
    sources = [source("critical", ping=3), source("low", ping=50)]

    taken = divided(sources, {"critical": 9, "low": 1}, [lane()], 10)

    assert taken == {("critical", "ping"): 3, ("low", "ping"): 7}


def test_a_paused_queue_gives_nothing() -> None:
    sources = [source("critical", ping=50), source("low", ping=50)]
    sources[0].paused = frozenset({"ping"})

    assert divided(sources, {"critical": 9, "low": 1}, [lane()], 10) == {("low", "ping"): 10}


def test_in_strict_order_a_queue_gives_only_what_is_left() -> None:
    sources = [source("critical", ping=9), source("low", ping=50)]

    taken = divided(sources, {"critical": 2, "low": 1}, [lane()], 10, strict=True)

    assert taken == {("critical", "ping"): 9, ("low", "ping"): 1}


def test_tasks_that_share_places_have_equal_turns_in_a_queue() -> None:
    shared = Places(10)
    lanes = [lane(Ping, places=shared), lane(Pong, places=shared)]

    assert divided([source("default", ping=50, pong=50)], {"default": 1}, lanes, 10) == {
        ("default", "ping"): 5,
        ("default", "pong"): 5,
    }


def test_weights_hold_between_queues_that_have_jobs_of_different_tasks() -> None:
    shared = Places(10)
    lanes = [lane(Ping, places=shared), lane(Pong, places=shared)]
    sources = [source("critical", ping=50), source("low", pong=50)]

    assert divided(sources, {"critical": 4, "low": 1}, lanes, 10) == {("critical", "ping"): 8, ("low", "pong"): 2}


def test_no_task_is_given_more_than_it_wants() -> None:
    shared = Places(10)
    lanes = [lane(Ping, workers=2, places=shared), lane(Pong, workers=10, places=shared)]

    assert divided([source("default", ping=50, pong=50)], {"default": 1}, lanes, 10) == {
        ("default", "ping"): 2,
        ("default", "pong"): 8,
    }
