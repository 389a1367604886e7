"""How often a job may be tried and how long it is kept: what tasks and those who pull take alike, and its checks."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypedDict, cast

from axeq.rules.outcome import Limits
from axeq.words.backoff import Curve, Exponential, gue, sidekiq
from axeq.words.duration import Duration, seconds
from axeq.words.errors import ConfigurationError
from axeq.words.number import whole

__all__ = ["LARGEST_RESULT", "Errors", "LimitOptions", "check_arguments", "is_async", "limits_of", "named"]

Errors = type[BaseException] | tuple[type[BaseException], ...]
"""A class of exceptions, or a tuple of them, as `except` takes it."""

LARGEST_RESULT = 7 * 1024 * 1024  # beside the largest payload in one document of MongoDB's 16 MiB
_CURVE = frozenset({"min_delay", "max_delay", "delay_factor"})


class LimitOptions(TypedDict, total=False):
    """What tasks and those who pull take alike; the meanings and defaults are those of `Task`."""

    max_attempts: int
    max_lost: int | None
    min_delay: Duration
    max_delay: Duration
    delay_factor: float
    backoff: Curve
    retry_on: Errors | None
    no_retry_on: Errors
    is_failure: Callable[[BaseException], bool] | None
    retention: Duration
    cancelled_retention: Duration
    max_result: int


def limits_of(options: Mapping[str, Any]) -> Limits:
    """Returns the limits that options of `LimitOptions` set, checked; raises `ConfigurationError`."""
    max_lost = options.get("max_lost", 5)
    return Limits(
        max_attempts=whole("max_attempts", options.get("max_attempts", 0), 0),
        max_lost=None if max_lost is None else whole("max_lost", max_lost, 0),
        backoff=_curve(options),
        retry_on=_errors("retry_on", retry_on) if (retry_on := options.get("retry_on")) is not None else None,
        no_retry_on=_errors("no_retry_on", options.get("no_retry_on", ())),
        is_failure=_is_failure(options.get("is_failure")),
        retention=seconds(options.get("retention", 7 * 86_400), "retention"),
        cancelled_retention=seconds(options.get("cancelled_retention", 30 * 86_400), "cancelled_retention"),
    )


def _curve(options: Mapping[str, Any]) -> Curve:
    if "backoff" in options:
        return _backoff(options["backoff"], _CURVE & options.keys())
    shortest = seconds(options.get("min_delay", 1), "min_delay")
    longest = seconds(options.get("max_delay", 600), "max_delay")
    factor = options.get("delay_factor", 2)
    if shortest > longest:
        raise ConfigurationError(f"min_delay ({shortest:g} s) must not exceed max_delay ({longest:g} s)")
    if not isinstance(factor, int | float) or isinstance(factor, bool) or not 1 <= factor <= 1000:
        raise ConfigurationError(f"delay_factor must be a number from 1 to 1000, not {factor!r}")
    return Exponential(shortest, factor, longest, jitter=0)


def _backoff(backoff: Any, others: Collection[str]) -> Curve:
    if others:
        raise ConfigurationError(f"give backoff or {', '.join(sorted(others))}, not both: a curve holds its own delays")
    if isinstance(backoff, type) or not callable(backoff) or is_async(backoff):
        raise ConfigurationError(
            f"backoff must be a curve of axeq.backoff, such as Exponential(), or a plain function, not {backoff!r:.100}"
        )
    if backoff in (gue, sidekiq):
        raise ConfigurationError(f"backoff must be what {named(backoff)}() returns: call it")
    check_arguments("backoff", backoff, "the attempt, its exception and the job", 3)
    return cast("Curve", backoff)


def _is_failure(judge: Any) -> Callable[[BaseException], bool] | None:
    if judge is None:
        return None
    if isinstance(judge, type) or not callable(judge) or is_async(judge):
        raise ConfigurationError(f"is_failure must be a plain function of an exception, not {judge!r:.100}")
    check_arguments("is_failure", judge, "the exception", 1)
    return cast("Callable[[BaseException], bool]", judge)


def check_arguments(option: str, function: Any, meaning: str, count: int) -> None:
    """Raises `ConfigurationError` where `function` cannot be called with `count` arguments, which are `meaning`."""
    try:
        inspect.signature(function).bind(*[None] * count)
    except TypeError:
        raise ConfigurationError(f"{option} {named(function)} must be callable with {meaning}") from None
    except ValueError:
        return  # a builtin that does not tell


def _errors(option: str, given: Any) -> tuple[type[BaseException], ...]:
    classes = given if isinstance(given, tuple) else (given,)
    for each in classes:
        if not (isinstance(each, type) and issubclass(each, BaseException)):
            raise ConfigurationError(f"{option} must be an exception class or a tuple of them, not {given!r:.100}")
    return classes


def is_async(handler: Any) -> bool:
    """Returns whether a function, or an object that can be called, is async."""
    called = type(handler).__call__ if not inspect.isroutine(handler) else handler
    return inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(called)


def named(handler: Any) -> str:
    """Returns the name of a function, for messages."""
    return getattr(handler, "__qualname__", None) or repr(handler)
