"""Delays between attempts."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from axeq.backoff import Backoff


@st.composite
def backoffs(draw: st.DrawFn) -> Backoff:
    longest = draw(st.floats(0, 1e8, allow_subnormal=False))
    shortest = draw(st.floats(0, longest, allow_subnormal=False))
    return Backoff(shortest, longest, draw(st.floats(1, 1000)))


ATTEMPTS = st.integers(1, 10_000)


@pytest.mark.parametrize(("attempt", "delay"), [(1, 1), (2, 2), (3, 4), (10, 512), (11, 600), (10_000, 600)])
def test_the_default_doubles_from_a_second_to_ten_minutes(attempt: int, delay: float) -> None:
    assert Backoff().delay(attempt) == delay


def test_a_delay_grows_by_its_factor() -> None:
    assert [Backoff(0.5, 600, 3).delay(attempt) for attempt in (1, 2, 3)] == [0.5, 1.5, 4.5]


def test_a_factor_of_one_is_a_fixed_delay() -> None:
    assert {Backoff(5, 600, 1).delay(attempt) for attempt in (1, 2, 10_000)} == {5}


def test_no_delay_stays_none() -> None:
    assert Backoff(0, 0, 2).delay(10_000) == 0
    assert Backoff(0, 600, 2).delay(5) == 0


@given(backoffs(), ATTEMPTS)
def test_a_delay_never_exceeds_the_longest(backoff: Backoff, attempt: int) -> None:
    delay = backoff.delay(attempt)

    assert math.isfinite(delay)
    assert 0 <= delay <= backoff.max_delay


@given(backoffs(), ATTEMPTS)
def test_a_later_attempt_never_waits_less(backoff: Backoff, attempt: int) -> None:
    assert backoff.delay(attempt) <= backoff.delay(attempt + 1)


@given(backoffs())
def test_the_first_attempt_waits_the_shortest(backoff: Backoff) -> None:
    assert backoff.delay(1) == pytest.approx(backoff.min_delay)
