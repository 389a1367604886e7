"""Shares: turns go by weight among those that can use them, and none is wasted."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from axeq.supply.shares import Shares

WEIGHTS = st.dictionaries(st.sampled_from("abcde"), st.integers(1, 20), min_size=1)


class Supply:
    """What each key still has; None is without end."""

    def __init__(self, having: dict[str, int | None]) -> None:
        self.having = dict(having)
        self.used: Counter[str] = Counter()

    def __call__(self, key: str, turns: int) -> int:
        left = self.having.get(key, 0)
        used = turns if left is None else min(turns, left)
        if left is not None:
            self.having[key] = left - used
        self.used[key] += used
        return used


def lead(supply: Supply, weights: dict[str, int], one: str, other: str) -> Fraction:
    """How much further than by its weight one has come than the other."""
    return Fraction(supply.used[one], weights[one]) - Fraction(supply.used[other], weights[other])


@given(WEIGHTS, st.lists(st.integers(1, 60), max_size=30))
def test_those_that_always_have_something_never_drift_from_their_weights(
    weights: dict[str, int], claims: list[int]
) -> None:
    shares, supply = Shares(weights), Supply(dict.fromkeys(weights))

    for count in claims:
        shares.portion(count, supply)

    for one in weights:
        for other in weights:
            assert lead(supply, weights, one, other) <= Fraction(1, weights[one])


@given(WEIGHTS, st.lists(st.tuples(st.integers(1, 30), st.dictionaries(st.sampled_from("abcde"), st.integers(0, 20)))))
def test_no_turn_is_wasted_while_anybody_has_something(
    weights: dict[str, int], rounds: list[tuple[int, dict[str, int]]]
) -> None:
    shares = Shares(weights)

    for count, having in rounds:
        there = sum(having.get(key, 0) for key in weights)
        assert shares.portion(count, Supply(dict(having))) == min(count, there)


@given(
    WEIGHTS.filter(lambda weights: len(weights) > 2),
    st.lists(st.tuples(st.integers(1, 30), st.dictionaries(st.sampled_from("cde"), st.integers(0, 20)))),
    st.data(),
)
def test_others_that_come_and_go_take_nothing_from_the_shares_of_those_that_stay(
    weights: dict[str, int], rounds: list[tuple[int, dict[str, int]]], data: Any
) -> None:
    staying = data.draw(st.lists(st.sampled_from(sorted(weights)), min_size=2, max_size=2, unique=True))
    shares, supply = Shares(weights), Supply({})

    for count, having in rounds:
        supply.having = {**having, **dict.fromkeys(staying)}
        shares.portion(count, supply)

    assert lead(supply, weights, *staying) <= Fraction(1, weights[staying[0]])


@given(WEIGHTS, st.lists(st.integers(1, 30), max_size=30), st.data())
def test_whoever_had_nothing_for_long_neither_has_turns_saved_nor_waits(
    weights: dict[str, int], claims: list[int], data: Any
) -> None:
    idle = data.draw(st.sampled_from(sorted(weights)))
    shares, supply = Shares(weights), Supply({key: 0 if key == idle else None for key in weights})
    for count in claims:
        shares.portion(count, supply)

    supply.having[idle], supply.used = None, Counter()
    shares.portion(10 * sum(weights.values()), supply)

    assert supply.used[idle] >= 10 * weights[idle] - 1
    assert supply.used[idle] <= 10 * weights[idle] + len(weights)


@given(WEIGHTS, st.integers(0, 100))
def test_a_division_gives_out_every_turn(weights: dict[str, int], count: int) -> None:
    assert sum(Shares(weights).divide(count, weights).values()) == count


def test_single_turns_are_spread_and_not_lumped() -> None:
    shares, order = Shares({"critical": 6, "default": 3, "low": 1}), []

    for _ in range(20):
        shares.portion(1, lambda key, turns: order.append(key) or turns)  # type: ignore[func-returns-value]

    assert Counter(order) == {"critical": 12, "default": 6, "low": 2}
    assert Counter(order[:10]) == {"critical": 6, "default": 3, "low": 1}
    assert "critical critical critical critical" not in " ".join(order)


def test_in_strict_order_the_lighter_get_only_what_the_heavier_leave() -> None:
    shares = Shares({"low": 1, "critical": 6, "default": 3}, strict=True)
    supply = Supply({"critical": 5, "default": 2, "low": None})

    for _ in range(3):
        shares.portion(3, supply)

    assert supply.used == {"critical": 5, "default": 2, "low": 2}


def test_of_equal_weights_the_first_goes_first_in_strict_order() -> None:
    shares = Shares({"second": 1, "first": 1}, strict=True)

    assert shares.order == ["second", "first"]
    assert shares.divide(5, ["first", "second"]) == {"second": 5}


@pytest.mark.parametrize("count", [0, -1])
def test_without_turns_nobody_is_asked(count: int) -> None:
    assert Shares({"a": 1}).portion(count, Supply({})) == 0
