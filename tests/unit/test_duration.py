"""Durations and moments as users give them."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any

import pytest

from axeq.words.duration import aware, seconds
from axeq.words.errors import ConfigurationError


@pytest.mark.parametrize(
    ("value", "number"), [(5, 5.0), (0.25, 0.25), (0, 0.0), (timedelta(minutes=1, milliseconds=500), 60.5)]
)
def test_a_duration_is_a_timedelta_or_seconds(value: Any, number: float) -> None:
    assert seconds(value, "delay") == number


@pytest.mark.parametrize(
    "value",
    [-1, timedelta(seconds=-1), float("nan"), float("inf"), timedelta(days=3651), 1e300, "5", None, True, [5]],
    ids=repr,
)
def test_what_is_no_duration_is_refused_by_the_name_of_its_option(value: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"^delay must be "):
        seconds(value, "delay")


def test_a_duration_of_nothing_is_refused_where_it_makes_no_sense() -> None:
    with pytest.raises(ConfigurationError, match=r"^timeout must be longer than 0 s"):
        seconds(timedelta(0), "timeout", zero=False)


@pytest.mark.parametrize("value", [10**400, -(10**400)], ids=["positive", "negative"])
def test_a_number_beyond_every_float_is_refused_like_any_other(value: int) -> None:
    with pytest.raises(ConfigurationError, match="delay"):
        seconds(value, "delay")


def test_an_aware_moment_is_taken_as_it_is() -> None:
    moment = datetime(2026, 5, 4, tzinfo=UTC)

    assert aware(moment, "run_at") is moment


@pytest.mark.parametrize("value", [datetime(2026, 5, 4), date(2026, 5, 4), "tomorrow", 5], ids=repr)  # noqa: DTZ001
def test_what_is_no_aware_moment_is_refused_by_the_name_of_its_option(value: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"^run_at .*(aware|time zone)"):
        aware(value, "run_at")


def test_a_moment_that_utc_cannot_hold_is_refused_by_the_name_of_its_option() -> None:
    beyond = datetime.max.replace(tzinfo=timezone(timedelta(hours=-3)))

    with pytest.raises(ConfigurationError, match=r"^run_at "):
        aware(beyond, "run_at")
