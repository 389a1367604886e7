"""Tasks: every mistake is found where the task is declared, and named."""

from __future__ import annotations

import functools
import pickle
from datetime import timedelta
from typing import Any, TypeVar

import pytest
from pydantic import BaseModel

import axeq
from axeq.rules.outcome import Limits
from axeq.words.backoff import Constant, Exponential, Linear, gue, sidekiq
from axeq.words.errors import ConfigurationError, HandlerInvalid


class Made(BaseModel):
    path: str


class MadeWell(Made):
    quality: int = 90


class Thumbnail(axeq.Model[Made], name="thumbnail"):
    image: str


class Small(Thumbnail, name="small"):
    pass


class Ping(axeq.Model, name="ping"):
    pass


class Plain(BaseModel):
    pass


async def handler(ctx: axeq.Context[Thumbnail, Made]) -> Made:
    return Made(path=ctx.model.image)


def plain_handler(ctx: axeq.Context[Thumbnail, Made]) -> Made:
    return Made(path=ctx.model.image)


async def unannotated(ctx):  # type: ignore[no-untyped-def]
    return None


# Defaults


def test_a_task_has_the_classic_defaults() -> None:
    task = axeq.Task(Thumbnail, handler)

    assert (task.name, task.workers, task.interval, task.timeout) == ("thumbnail", 2, 0.1, 600.0)
    assert task.limits == Limits(
        max_attempts=0,
        max_lost=5,
        backoff=Exponential(1, 2, 600, jitter=0),
        retention=7 * 86_400.0,
        cancelled_retention=30 * 86_400.0,
    )
    assert task.max_result == 256 * 1024


def test_options_are_taken_as_timedelta_or_seconds() -> None:
    task = axeq.Task(Thumbnail, handler, timeout=timedelta(minutes=1), min_delay=0.5, max_delay=timedelta(hours=1))

    assert task.timeout == 60.0
    assert task.limits.backoff == Exponential(0.5, 2, 3600, jitter=0)


def test_a_job_may_be_tried_for_ever_and_lose_any_number_of_leases() -> None:
    limits = axeq.Task(Thumbnail, handler, max_attempts=0, max_lost=None).limits

    assert (limits.max_attempts, limits.max_lost) == (0, None)


# Options


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("workers", 0),
        ("workers", -1),
        ("workers", 10_001),
        ("workers", 2.5),
        ("workers", True),
        ("workers", "4"),
        ("max_attempts", -1),
        ("max_attempts", 1.5),
        ("max_attempts", None),
        ("max_lost", -1),
        ("max_lost", "5"),
        ("interval", 0),
        ("interval", -1),
        ("timeout", 0),
        ("timeout", -5),
        ("timeout", "10 min"),
        ("timeout", None),
        ("timeout", float("inf")),
        ("min_delay", -1),
        ("min_delay", 601),
        ("max_delay", 0.5),
        ("max_delay", timedelta(days=4000)),
        ("delay_factor", 0.5),
        ("delay_factor", 1001),
        ("delay_factor", float("nan")),
        ("delay_factor", "2"),
        ("delay_factor", True),
        ("backoff", None),
        ("backoff", 5),
        ("backoff", Exponential),
        ("backoff", gue),
        ("backoff", lambda attempt: attempt),
        ("backoff", handler),
        ("retry_on", ValueError("bad colour")),
        ("retry_on", [ValueError]),
        ("retry_on", (ValueError, "KeyError")),
        ("no_retry_on", int),
        ("no_retry_on", None),
        ("is_failure", True),
        ("is_failure", handler),
        ("is_failure", lambda: True),
        ("retention", -1),
        ("cancelled_retention", timedelta(seconds=-1)),
        ("max_result", 0),
        ("max_result", 7 * 1024 * 1024 + 1),
        ("executor", "fiber"),
        ("wrokers", 4),
    ],
)
def test_an_option_that_cannot_work_is_refused_by_name(option: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=option):
        axeq.Task(Thumbnail, handler, **{option: value})


@pytest.mark.parametrize(
    ("option", "value", "mend"),
    [
        ("backoff", gue, "gue() returns: call it"),
        ("retry_on", [ValueError], "an exception class or a tuple of them, not [<class 'ValueError'>]"),
    ],
)
def test_a_likely_mistake_is_told_its_mend(option: str, value: Any, mend: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        axeq.Task(Thumbnail, handler, **{option: value})

    assert mend in str(caught.value)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("workers", 1),
        ("workers", 10_000),
        ("max_lost", 0),
        ("min_delay", 0),
        ("delay_factor", 1),
        ("delay_factor", 1000),
        ("retention", 0),
        ("max_result", 7 * 1024 * 1024),
        ("executor", None),
    ],
)
def test_an_option_at_its_limit_is_taken(option: str, value: Any) -> None:
    assert axeq.Task(Thumbnail, handler, **{option: value}).name == "thumbnail"


@pytest.mark.parametrize("other", ["min_delay", "max_delay", "delay_factor"])
def test_a_curve_and_the_numbers_of_the_default_one_do_not_go_together(other: str) -> None:
    with pytest.raises(ConfigurationError, match=f"give backoff or {other}, not both"):
        axeq.Task(Thumbnail, handler, backoff=Constant(5), **{other: 2})  # type: ignore[call-overload]


def test_a_task_takes_a_curve_or_any_function_for_its_backoff() -> None:
    def waits(attempt: int, error: BaseException, job: axeq.Record) -> timedelta | None:
        return timedelta(seconds=attempt) if job.attempts < 5 else None

    for backoff in (Constant(5), Linear(1, 60), sidekiq(), waits, lambda attempt, error, job: 2.5):
        assert axeq.Task(Thumbnail, handler, backoff=backoff).limits.backoff is backoff


def test_exceptions_are_named_one_or_several() -> None:
    limits = axeq.Task(Thumbnail, handler, retry_on=OSError, no_retry_on=(KeyError, BrokenPipeError)).limits

    assert (limits.retry_on, limits.no_retry_on) == ((OSError,), (KeyError, BrokenPipeError))
    assert axeq.Task(Thumbnail, handler, retry_on=()).limits.retry_on == ()
    assert axeq.Task(Thumbnail, handler, retry_on=None, is_failure=None).limits == axeq.Task(Thumbnail, handler).limits


def counts(error: BaseException) -> bool:
    return True


def test_a_handlers_process_takes_rules_that_it_can_find_too() -> None:
    task = axeq.Task(
        Thumbnail,
        plain_handler,
        executor="process",
        backoff=gue(),
        is_failure=counts,
        retry_on=OSError,
    )

    assert pickle.loads(pickle.dumps(task.limits)) == task.limits


@pytest.mark.parametrize("option", ["backoff", "is_failure", "retry_on", "no_retry_on"])
def test_a_handlers_process_takes_no_rules_that_it_could_not_find(option: str) -> None:
    class Local(Exception):
        pass

    values = {"backoff": lambda *_: 1, "is_failure": lambda error: True, "retry_on": Local, "no_retry_on": Local}

    with pytest.raises(ConfigurationError, match=f"{option} takes .* at the top of a module"):
        axeq.Task(Thumbnail, plain_handler, executor="process", **{option: values[option]})


def test_several_misspelt_options_are_all_named() -> None:
    with pytest.raises(ConfigurationError, match="no option max_attempt, wrokers"):
        axeq.Task(Thumbnail, handler, wrokers=4, max_attempt=3)  # type: ignore[call-overload]


# Handlers


def test_an_async_handler_runs_on_the_loop_and_a_plain_one_in_a_thread() -> None:
    assert axeq.Task(Thumbnail, handler).executor == "loop"
    assert axeq.Task(Thumbnail, plain_handler).executor == "thread"
    assert axeq.Task(Thumbnail, plain_handler, executor="process").executor == "process"


class Painter:
    async def __call__(self, ctx: axeq.Context[Thumbnail, Made]) -> Made:
        return Made(path="")

    async def method(self, ctx: axeq.Context[Thumbnail, Made]) -> Made:
        return Made(path="")


async def with_more(more: int, ctx: axeq.Context[Thumbnail, Made]) -> Made:
    return Made(path=str(more))


@pytest.mark.parametrize(
    "valid",
    [Painter(), Painter().method, functools.partial(with_more, 3), unannotated],
    ids=["object", "method", "partial", "unannotated"],
)
def test_a_handler_may_be_any_callable_of_a_context(valid: Any) -> None:
    assert axeq.Task(Thumbnail, valid).executor == "loop"


def test_a_handler_of_a_base_model_serves_its_subclass() -> None:
    assert axeq.Task(Small, handler).name == "small"


def test_a_plain_model_takes_a_handler_of_any_result() -> None:
    def count(ctx: axeq.Context[Plain, int]) -> int:
        return 1

    assert axeq.Task(Plain, count, name="plain").name == "plain"


async def of_ping(ctx: axeq.Context[Ping, Any]) -> Made:
    return Made(path="")


async def of_model(model: Thumbnail) -> Made:
    return Made(path=model.image)


async def returning_int(ctx: axeq.Context[Thumbnail, Made]) -> int:
    return 1


async def returning_none(ctx: axeq.Context[Thumbnail, Made]) -> None:
    return None


async def of_nothing() -> Made:
    return Made(path="")


async def of_two(ctx: axeq.Context[Thumbnail, Made], more: int) -> Made:
    return Made(path=str(more))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (of_ping, "of_ping takes a Context of Ping, but is bound to Thumbnail"),
        (of_model, "of_model takes a Thumbnail; it is given a Context"),
        (returning_int, "returning_int returns int, but Thumbnail declares Made"),
        (returning_none, "returning_none returns NoneType, but Thumbnail declares Made"),
        (of_nothing, "of_nothing.* must take one argument, the Context"),
        (of_two, "of_two.* must take one argument, the Context"),
        ("thumbnail", "must be a function of a Context"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_handler_that_does_not_fit_its_model_is_refused(wrong: Any, message: str) -> None:
    with pytest.raises(HandlerInvalid, match=message):
        axeq.Task(Thumbnail, wrong)


@pytest.mark.parametrize(
    ("function", "executor", "message"),
    [
        (handler, "thread", 'handler is an async function: it cannot run with executor="thread"'),
        (handler, "process", 'handler is an async function: it cannot run with executor="process"'),
        (plain_handler, "loop", 'plain_handler is a plain function: it cannot run with executor="loop"'),
        (lambda ctx: None, "process", "must be a function at the top of a module"),
    ],
    ids=["async in a thread", "async in a process", "plain on the loop", "lambda in a process"],
)
def test_an_executor_that_cannot_run_the_handler_is_refused(function: Any, executor: Any, message: str) -> None:
    with pytest.raises(HandlerInvalid, match=message):
        axeq.Task(Thumbnail, function, executor=executor)


def test_a_handler_may_return_a_subclass_of_the_result_type() -> None:
    async def better(ctx: axeq.Context[Thumbnail, Made]) -> MadeWell:
        return MadeWell(path="")

    assert axeq.Task(Thumbnail, better).name == "thumbnail"


AnyModel = TypeVar("AnyModel", bound=BaseModel)


def test_a_generic_handler_serves_every_model() -> None:
    async def generic(ctx: axeq.Context[AnyModel, Any]) -> Any:
        return ctx.model

    assert axeq.Task(Ping, generic).name == "ping"


def test_a_plain_model_without_a_name_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="Plain has no task name"):
        axeq.Task(Plain, unannotated)  # type: ignore[call-overload]
