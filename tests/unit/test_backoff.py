"""Delays between attempts."""

from __future__ import annotations

import math
import pickle
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from axeq import backoff
from axeq.words.backoff import CLASSIC, Constant, Exponential, Linear, Sawtooth, gue, never, pause, sidekiq
from axeq.words.errors import ConfigurationError

from .playing import held_record

ATTEMPTS = st.integers(1, 10_000)
TEN_YEARS = 3650 * 86_400.0
ERROR = ValueError("bad colour")


@st.composite
def exponentials(draw: st.DrawFn) -> Exponential:
    longest = draw(st.floats(0, 1e8, allow_subnormal=False))
    shortest = draw(st.floats(0, longest, allow_subnormal=False))
    return Exponential(shortest, draw(st.floats(1, 1000)), longest, draw(st.floats(0, 1)))


def first(curve: Any, count: int) -> list[float]:
    return [curve(attempt) for attempt in range(1, count + 1)]


@pytest.mark.parametrize(("attempt", "delay"), [(1, 1), (2, 2), (3, 4), (10, 512), (11, 600), (10_000, 600)])
def test_the_classic_curve_doubles_from_a_second_to_ten_minutes(attempt: int, delay: float) -> None:
    assert CLASSIC(attempt) == delay


def test_a_constant_waits_the_same_each_time() -> None:
    assert first(Constant(timedelta(minutes=1)), 3) == [60, 60, 60]


def test_a_line_grows_up_to_its_maximum() -> None:
    assert first(Linear(initial=2, maximum=5), 4) == [2, 4, 5, 5]


def test_a_sawtooth_falls_back_at_its_maximum() -> None:
    assert first(Sawtooth(initial=2, maximum=5), 5) == [2, 4, 1, 3, 0]


def test_an_exponential_grows_by_its_factor_without_truncation() -> None:
    delays = first(Exponential(initial=1, factor=1.6, maximum=900, jitter=0), 4)

    assert delays == pytest.approx([1, 1.6, 2.56, 4.096])


def test_jitter_only_ever_makes_a_delay_longer_and_differs_between_jobs() -> None:
    curve = Exponential(initial=10, factor=1, maximum=900, jitter=0.5)

    delays = {curve(1, ERROR, held_record(_id=number)) for number in range(200)}

    assert len(delays) == 200
    assert min(delays) < 11
    assert max(delays) > 14
    assert all(10 <= delay < 15 for delay in delays)


def test_one_attempt_of_a_job_always_waits_the_same() -> None:
    job = held_record()

    for curve in (gue(), sidekiq()):
        assert curve(3, ERROR, job) == curve(3, ERROR, job)


def test_the_curve_of_gue_goes_to_an_hour() -> None:
    assert 1 <= gue()(1) < 1.2
    assert gue()(10_000) == 3600


@pytest.mark.parametrize(("attempt", "retried"), [(1, 0), (2, 1), (5, 4), (25, 24)])
def test_the_curve_of_sidekiq_grows_with_the_fourth_power_of_the_retries(attempt: int, retried: int) -> None:
    least = retried**4 + 15

    delays = {sidekiq()(attempt, ERROR, held_record(_id=number)) for number in range(500)}

    assert delays == {least + chance * (retried + 1) for chance in range(30)}


def test_the_curve_of_sidekiq_stays_a_duration() -> None:
    assert pause(sidekiq(), 10**6, ERROR, None) == TEN_YEARS


def test_no_delay_stays_none() -> None:
    assert Exponential(0, 2, 0)(10_000) == 0
    assert Exponential(0, 2, 600)(5) == 0


@given(exponentials(), ATTEMPTS)
def test_a_delay_never_exceeds_the_longest_jitter_or_not(curve: Exponential, attempt: int) -> None:
    delay = curve(attempt, ERROR, held_record())

    assert math.isfinite(delay)
    assert 0 <= delay <= curve.maximum  # type: ignore[operator]


@given(exponentials(), ATTEMPTS)
def test_without_jitter_a_later_attempt_never_waits_less(curve: Exponential, attempt: int) -> None:
    steady = Exponential(curve.initial, curve.factor, curve.maximum, jitter=0)

    assert steady(attempt) <= steady(attempt + 1)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: Constant(-1), "delay"),
        (lambda: Constant("soon"), "delay"),
        (lambda: Exponential(initial=1000), "initial"),
        (lambda: Exponential(factor=0.5), "factor"),
        (lambda: Exponential(factor=True), "factor"),
        (lambda: Exponential(jitter=1.5), "jitter"),
        (lambda: Exponential(jitter=float("nan")), "jitter"),
        (lambda: Exponential(maximum=timedelta(days=4000)), "maximum"),
        (lambda: Linear(initial=2, maximum=1), "initial"),
        (lambda: Sawtooth(initial=0, maximum=0), "maximum"),
    ],
)
def test_a_curve_that_cannot_work_is_refused_by_name(make: Any, named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        make()


# What a curve may return


@pytest.mark.parametrize(
    ("returned", "wait"),
    [(0, 0.0), (2.5, 2.5), (timedelta(minutes=1), 60.0), (None, None), (-1, None), (timedelta(seconds=-1), None)],
)
def test_a_duration_is_waited_for_and_none_or_a_negative_one_is_no_further_attempt(returned: Any, wait: Any) -> None:
    assert pause(lambda *_: returned, 1, ERROR, None) == wait


@pytest.mark.parametrize("nonsense", ["soon", True, float("nan"), float("inf"), 1e12, [1]])
def test_what_is_no_duration_is_said_to_be_none(nonsense: Any) -> None:
    with pytest.raises(ConfigurationError, match="what the backoff returns"):
        pause(lambda *_: nonsense, 1, ERROR, None)


def test_a_curve_is_told_the_attempt_its_error_and_the_job() -> None:
    told: list[Any] = []
    job = held_record()

    pause(lambda *arguments: told.extend(arguments), 3, ERROR, job)

    assert told == [3, ERROR, job]


def test_never_allows_no_further_attempt() -> None:
    assert pause(never, 1, ERROR, None) is None


@pytest.mark.parametrize("curve", [CLASSIC, Constant(1), Linear(1, 2), Sawtooth(1, 2), never, gue(), sidekiq()])
def test_every_curve_can_go_to_a_handlers_process(curve: Any) -> None:
    assert pickle.loads(pickle.dumps(curve)) == curve


def test_every_curve_is_named_by_its_module() -> None:
    assert {"Constant", "Exponential", "Linear", "Sawtooth", "gue", "never", "sidekiq"} <= set(backoff.__all__)
