"""How long a failed job waits before its next attempt: curves, and what any callable that serves as one may return.

A curve is called with the number of the attempt that failed (counted from 1), its exception and the job's record, and
returns seconds or a `timedelta`; None or a negative one ends the job. What a curve here leaves to chance follows from
the job's id and the attempt: jobs that fail together come back apart, and one attempt's delay is always the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from random import Random
from typing import Any

from axeq.words.duration import Duration, seconds
from axeq.words.errors import ConfigurationError

__all__ = [
    "CLASSIC",
    "Constant",
    "Curve",
    "Exponential",
    "Linear",
    "Sawtooth",
    "gue",
    "never",
    "pause",
    "sidekiq",
]

Curve = Callable[[int, BaseException, Any], Duration | None]
"""A backoff: of the attempt that failed, its exception and the job's record."""

_LARGEST_FACTOR = 1000
_LONGEST = timedelta(days=3650).total_seconds()


@dataclass(frozen=True)
class Constant:
    """The same `delay` (`timedelta` or seconds) after every attempt."""

    delay: Duration

    def __post_init__(self) -> None:
        _as_seconds(self, "delay")

    def __call__(self, attempt: int, error: BaseException | None = None, job: Any = None) -> float:
        """Returns the seconds to wait after attempt number `attempt`."""
        return _length(self.delay)


@dataclass(frozen=True)
class Exponential:
    """`initial * factor ** (attempt - 1)`, longer by up to the share `jitter` of itself, at most `maximum`.

    `initial` (default 1 s) and `maximum` (default 15 min) are `timedelta` or seconds; `factor` is 1 to 1000,
    default 1.6; `jitter` 0 to 1, default 0.2. Raises `ConfigurationError`.
    """

    initial: Duration = 1.0
    factor: float = 1.6
    maximum: Duration = 900.0
    jitter: float = 0.2

    def __post_init__(self) -> None:
        _as_seconds(self, "initial", "maximum")
        _in_order(self.initial, self.maximum)
        _between("factor", self.factor, 1, _LARGEST_FACTOR)
        _between("jitter", self.jitter, 0, 1)

    def __call__(self, attempt: int, error: BaseException | None = None, job: Any = None) -> float:
        """Returns the seconds to wait after attempt number `attempt`."""
        delay, maximum = self._unspread(attempt), _length(self.maximum)
        if not self.jitter or delay >= maximum:
            return delay
        return min(delay * (1 + self.jitter * _chance(attempt, job)), maximum)

    def _unspread(self, attempt: int) -> float:
        initial, maximum = _length(self.initial), _length(self.maximum)
        if initial <= 0:
            return 0.0
        # In logarithms first, so that attempt ten thousand does not overflow.
        exponent = math.log(initial) + max(attempt - 1, 0) * math.log(self.factor)
        if exponent >= math.log(maximum):
            return maximum
        return min(initial * self.factor ** max(attempt - 1, 0), maximum)


@dataclass(frozen=True)
class Linear:
    """`initial * attempt`, at most `maximum`. Both are `timedelta` or seconds. Raises `ConfigurationError`."""

    initial: Duration
    maximum: Duration

    def __post_init__(self) -> None:
        _as_seconds(self, "initial", "maximum")
        _in_order(self.initial, self.maximum)

    def __call__(self, attempt: int, error: BaseException | None = None, job: Any = None) -> float:
        """Returns the seconds to wait after attempt number `attempt`."""
        return min(_length(self.initial) * attempt, _length(self.maximum))


@dataclass(frozen=True)
class Sawtooth:
    """`initial * attempt`, from nothing again each time that it reaches `maximum`.

    Both are `timedelta` or seconds, `maximum` longer than 0 s. Raises `ConfigurationError`.
    """

    initial: Duration
    maximum: Duration

    def __post_init__(self) -> None:
        _as_seconds(self, "initial", "maximum")
        seconds(self.maximum, "maximum", zero=False)
        _in_order(self.initial, self.maximum)

    def __call__(self, attempt: int, error: BaseException | None = None, job: Any = None) -> float:
        """Returns the seconds to wait after attempt number `attempt`."""
        return math.fmod(_length(self.initial) * attempt, _length(self.maximum))


@dataclass(frozen=True)
class _Quartic:
    def __call__(self, attempt: int, error: BaseException | None = None, job: Any = None) -> float:
        retried = max(attempt - 1, 0)
        return min(float(retried**4 + 15 + int(30 * _chance(attempt, job)) * (retried + 1)), _LONGEST)


def never(attempt: int, error: BaseException | None = None, job: Any = None) -> None:
    """Allows no further attempt: a job that fails ends cancelled (cause exhausted)."""


def gue() -> Exponential:
    """Returns the curve of gue: from 1 s by a factor of 1.6 to an hour, up to a fifth longer."""
    return Exponential(initial=1, factor=1.6, maximum=3600, jitter=0.2)


def sidekiq() -> Curve:
    """Returns the curve of Sidekiq and asynq: `n ** 4 + 15 + chance * (n + 1)` seconds, where n counts the retries
    so far, from 0, and chance is a whole number from 0 to 29. The fifth retry waits some five minutes, the 25th
    some four days.
    """
    return _Quartic()


def pause(curve: Curve, attempt: int, error: BaseException, job: Any) -> float | None:
    """Returns the seconds that `curve` has a job wait after an attempt, None where there is to be no other.

    Raises `ConfigurationError` for what is no duration, and whatever the curve itself raises.
    """
    delay = curve(attempt, error, job)
    if delay is None:
        return None
    if isinstance(delay, timedelta):
        delay = delay.total_seconds()
    if isinstance(delay, int | float) and not isinstance(delay, bool) and delay < 0:
        return None
    return seconds(delay, "what the backoff returns")


def _chance(attempt: int, job: Any) -> float:
    """Returns a number from 0 to 1, 1 excluded, that is the job's for this attempt."""
    return Random(f"{getattr(job, 'id', None)} {attempt}").random()  # noqa: S311 - it spreads load, it guards nothing


def _as_seconds(curve: Any, *options: str) -> None:
    for option in options:
        object.__setattr__(curve, option, seconds(getattr(curve, option), option))


def _length(value: Duration) -> float:
    return value if isinstance(value, float) else seconds(value, "a delay")


def _in_order(initial: Duration, maximum: Duration) -> None:
    shortest, longest = _length(initial), _length(maximum)
    if shortest > longest:
        raise ConfigurationError(f"initial ({shortest:g} s) must not exceed maximum ({longest:g} s)")


def _between(option: str, value: Any, least: float, most: float) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool) or not least <= value <= most:
        raise ConfigurationError(f"{option} must be a number from {least:g} to {most:g}, not {value!r:.100}")


CLASSIC = Exponential(initial=1, factor=2, maximum=600, jitter=0)
"""The curve of a task that names none: from 1 s, doubled each time, to 10 min."""
