"""Durations as users give them: a `timedelta`, or seconds."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta

from axeq.words.errors import ConfigurationError

__all__ = ["Duration", "aware", "limit", "seconds"]

Duration = timedelta | float
"""A `timedelta`, or a number of seconds."""

_MOMENT = ": as in datetime.now(timezone.utc) + timedelta(hours=1)"
_LONGEST = timedelta(days=3650).total_seconds()


def seconds(value: Duration, option: str, *, zero: bool = True) -> float:
    """Returns `value` in seconds.

    `option` names it in errors; `zero=False` refuses a duration of nothing. The longest is ten years.
    Raises `ConfigurationError` where it is negative, not finite, too long or no duration at all.
    """
    if isinstance(value, timedelta):
        number = value.total_seconds()
    elif isinstance(value, int | float) and not isinstance(value, bool):
        number = float(value) if abs(value) <= _LONGEST else math.inf
    else:
        raise ConfigurationError(f"{option} must be a timedelta or seconds, not {type(value).__name__}")
    if not math.isfinite(number) or number < 0 or number > _LONGEST:
        raise ConfigurationError(f"{option} must be between 0 s and ten years, not {value!r:.40}")
    if number == 0 and not zero:
        raise ConfigurationError(f"{option} must be longer than 0 s")
    return number


def limit(value: Duration | None, option: str) -> float | None:
    """Returns `value` in seconds, or None where there is no limit; otherwise as `seconds`."""
    return None if value is None else seconds(value, option)


def aware(value: datetime, option: str) -> datetime:
    """Returns `value` if it is a datetime with a time zone; `option` names it in errors.

    Raises `ConfigurationError` for a naive one, which could mean any moment of a day.
    """
    if not isinstance(value, datetime):
        raise ConfigurationError(f"{option} must be an aware datetime, not {type(value).__name__}{_MOMENT}")
    if value.utcoffset() is None:
        raise ConfigurationError(f"{option} is a naive datetime: give it a time zone, as in datetime.now(timezone.utc)")
    try:
        _ = value.astimezone(UTC) + timedelta(seconds=1)  # what counts from it must be a datetime too
    except OverflowError:
        raise ConfigurationError(f"{option} is beyond the years that a datetime holds in UTC") from None
    return value
