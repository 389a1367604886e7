"""A task: a model bound to a handler, with its limits. Mistakes fail here, at import, not in the worker."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Awaitable, Callable, Collection
from typing import Any, Generic, Literal, TypedDict, Unpack, cast, overload

from pydantic import ValidationError

from axeq.backoff import Curve, Exponential
from axeq.context import Context
from axeq.duration import Duration, seconds
from axeq.errors import ConfigurationError, HandlerInvalid
from axeq.group import Group
from axeq.handle import AsyncJob, Job
from axeq.model import Binding, M, Payload, R, bind
from axeq.outcome import Limits
from axeq.periodic import LONGEST_PERIOD, SHORTEST_PERIOD

__all__ = ["Executor", "Handler", "Notify", "Task", "TaskOptions", "is_async"]

Handler = Callable[[Context[M, R]], Awaitable[R] | R]
"""An async function, or a plain one, of a `Context`."""

Notify = Callable[[Job[Any, Any]], object] | Callable[[AsyncJob[Any, Any]], Awaitable[object]]
"""A plain function of a `Job`, or an async one of an `AsyncJob`."""

Executor = Literal["loop", "thread", "process"]
"""Where a handler runs: on the pool's loop, in a thread, or in a process of its own."""

Errors = type[BaseException] | tuple[type[BaseException], ...]
"""A class of exceptions, or a tuple of them, as `except` takes it."""

_MOST_WORKERS = 10_000
_CURVE = frozenset({"min_delay", "max_delay", "delay_factor"})
_LARGEST_RESULT = 7 * 1024 * 1024  # beside the largest payload in one document of MongoDB's 16 MiB


class TaskOptions(TypedDict, total=False):
    """What a task takes; the meanings and defaults are those of `Task`."""

    workers: int
    max_attempts: int
    max_lost: int | None
    interval: Duration
    min_delay: Duration
    max_delay: Duration
    delay_factor: float
    backoff: Curve
    retry_on: Errors | None
    no_retry_on: Errors
    is_failure: Callable[[BaseException], bool] | None
    timeout: Duration
    retention: Duration
    cancelled_retention: Duration
    max_result: int
    executor: Executor | None
    every: Duration | None
    payload: Any
    group: Group | None
    notify: Notify | None


class Task(Generic[M, R]):
    """A task: what a pool runs for the jobs of a name.

    `model` is a `Model`, or any pydantic model with a `name`; `handler` takes a `Context` and returns the
    result. Keyword options, durations as `timedelta` or seconds:

    - `workers`: how many run at once in one pool, default 2
    - `max_attempts`: how often a job is tried, default 0, for ever
    - `max_lost`: how many leases in a row a job may lose before it is given up, default 5; 0 never runs it
      again after a lost lease, None does for ever
    - `interval`: the shortest pause between two looks for jobs where the server has no change streams, default
      100 ms
    - `min_delay`, `max_delay`, `delay_factor`: before attempt n + 1 it waits `min_delay * delay_factor ** (n -
      1)`, at most `max_delay`; defaults 1 s, 10 min, 2
    - `backoff`, instead of those three: a curve of `axeq.backoff`, or a function of the attempt, its exception and
      the job that returns a duration, or None for no further attempt; called on the pool's loop, so it must be quick
    - `retry_on`: only after these exceptions (as `except` takes them), and `Retry`, is a job tried again, default
      all; `no_retry_on`: after these never. Others end it cancelled (cause handler), their error kept
    - `is_failure`: told an exception, returns whether it is a failure, default all are; after one that is none the
      job is put back for the backoff's delay, uncounted. Asked before the two above
    - `timeout`: the limit of one attempt, default 10 min; beyond it, it has failed with a `TimeoutError`
    - `retention`, `cancelled_retention`: how long completed and cancelled jobs are kept, defaults 7 and 30 days
    - `max_result`: the largest result in bytes of BSON, default 256 KiB, at most 7 MiB
    - `executor`: "loop" (async functions), "thread" (plain functions) or "process"; default by the handler
    - `every`: has pools enqueue a job for each slot of so long, counted from 1970 by the server's clock, one over
      all pools; 100 ms to 366 days, default None, none. Slots that pass while no pool runs, or while the task is
      paused, stay empty
    - `payload`: the model of those jobs, default `Model()`, made anew for each
    - `group`: has one call of the handler take all jobs of a group together, in `ctx.models` and `ctx.jobs`; the jobs
      of one group are enqueued with `group="name"`, or all without. Each ends by itself: it is as the handler ends, but
      for its own attempts. Default None, each job alone
    - `notify`: called with the job's handle once it is stored that the job has completed or is cancelled, by the
      pool that had it; an `AsyncJob` for an async function, a `Job` for a plain one, which runs in a thread. Its
      errors are logged and change nothing

    Raises `ConfigurationError` naming the option that cannot work, `HandlerInvalid` where the handler does not
    fit the model.
    """

    @overload
    def __init__(self, model: type[Payload[M, R]], handler: Handler[M, R], **options: Unpack[TaskOptions]) -> None: ...
    @overload
    def __init__(
        self, model: type[M], handler: Handler[M, R], *, name: str, **options: Unpack[TaskOptions]
    ) -> None: ...
    def __init__(self, model: Any, handler: Any, *, name: str | None = None, **options: Unpack[TaskOptions]) -> None:
        unknown = options.keys() - TaskOptions.__annotations__.keys()
        if unknown:
            raise ConfigurationError(f"a task has no option {', '.join(sorted(unknown))}: see help(axeq.Task)")
        self.handler: Handler[M, R] = handler
        self.binding = cast("Binding[M, R]", bind(model, name=name))
        self.workers = _whole("workers", options.get("workers", 2), 1, _MOST_WORKERS)
        self.interval = seconds(options.get("interval", 0.1), "interval", zero=False)
        self.timeout = seconds(options.get("timeout", 600), "timeout", zero=False)
        self.max_result = _whole("max_result", options.get("max_result", 256 * 1024), 1, _LARGEST_RESULT)
        self.limits = _limits(options)
        self.executor = _executor(handler, options.get("executor"))
        self.every = _every(options)
        self.payload = _payload(self.binding, options)
        self.group = _group(options.get("group"))
        self.notify = _notify(options.get("notify"))
        if self.executor == "process":
            _check_portable(self.limits)
        _check_handler(handler, self.binding)

    @property
    def name(self) -> str:
        """The task's name."""
        return self.binding.name

    def __repr__(self) -> str:
        return f"<Task {self.name!r} workers={self.workers}>"


def _limits(options: TaskOptions) -> Limits:
    max_lost = options.get("max_lost", 5)
    return Limits(
        max_attempts=_whole("max_attempts", options.get("max_attempts", 0), 0),
        max_lost=None if max_lost is None else _whole("max_lost", max_lost, 0),
        backoff=_curve(options),
        retry_on=_errors("retry_on", retry_on) if (retry_on := options.get("retry_on")) is not None else None,
        no_retry_on=_errors("no_retry_on", options.get("no_retry_on", ())),
        is_failure=_is_failure(options.get("is_failure")),
        retention=seconds(options.get("retention", 7 * 86_400), "retention"),
        cancelled_retention=seconds(options.get("cancelled_retention", 30 * 86_400), "cancelled_retention"),
    )


def _whole(option: str, value: int, least: int, most: int | None = None) -> int:
    fits = isinstance(value, int) and not isinstance(value, bool) and value >= least
    if not fits or (most is not None and value > most):
        bounds = f"from {least}" + (f" to {most}" if most is not None else "")
        raise ConfigurationError(f"{option} must be a whole number {bounds}, not {value!r}")
    return value


def _curve(options: TaskOptions) -> Curve:
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
    _check_arguments("backoff", backoff, "the attempt, its exception and the job", 3)
    return cast("Curve", backoff)


def _is_failure(judge: Any) -> Callable[[BaseException], bool] | None:
    if judge is None:
        return None
    if isinstance(judge, type) or not callable(judge) or is_async(judge):
        raise ConfigurationError(f"is_failure must be a plain function of an exception, not {judge!r:.100}")
    _check_arguments("is_failure", judge, "the exception", 1)
    return cast("Callable[[BaseException], bool]", judge)


def _check_arguments(option: str, function: Any, meaning: str, count: int) -> None:
    try:
        inspect.signature(function).bind(*[None] * count)
    except TypeError:
        raise ConfigurationError(f"{option} {_named(function)} must be callable with {meaning}") from None
    except ValueError:
        return  # a builtin that does not tell


def _errors(option: str, given: Any) -> tuple[type[BaseException], ...]:
    classes = given if isinstance(given, tuple) else (given,)
    for each in classes:
        if not (isinstance(each, type) and issubclass(each, BaseException)):
            raise ConfigurationError(f"{option} must be a tuple of exception classes, without {each!r:.100}")
    return classes


def _check_portable(limits: Limits) -> None:
    """Raises `ConfigurationError` for what a handler's process, which judges its exceptions, could not find."""
    options = {
        "backoff": (limits.backoff,),
        "retry_on": limits.retry_on or (),
        "no_retry_on": limits.no_retry_on,
        "is_failure": (limits.is_failure,),
    }
    for option, values in options.items():
        for value in values:
            if "<" in getattr(value, "__qualname__", type(value).__qualname__):
                raise ConfigurationError(
                    f"{option} takes {_named(value)}, which must be defined at the top of a module to run with "
                    'executor="process"'
                )


def _every(options: TaskOptions) -> float | None:
    if (every := options.get("every")) is None:
        return None
    period = seconds(every, "every")
    if not SHORTEST_PERIOD <= period <= LONGEST_PERIOD:
        raise ConfigurationError(f"every must be between {SHORTEST_PERIOD:g} s and 366 days, not {period:g} s")
    return period


def _group(group: Any) -> Group | None:
    if group is not None and not isinstance(group, Group):
        raise ConfigurationError(f"group must be an axeq.Group, as in group=axeq.Group(grace=10), not {group!r:.100}")
    return group


def _payload(binding: Binding[Any, Any], options: TaskOptions) -> Callable[[], Any]:
    """Returns what makes the payload of a slot's job."""
    payload, every = options.get("payload"), options.get("every")
    if payload is None:
        if every is not None:
            try:
                binding.model()
            except ValidationError as error:
                fields = ", ".join(str(problem["loc"][0]) for problem in error.errors() if problem["loc"])
                raise ConfigurationError(
                    f"every= needs payload=, a {binding.model.__name__} with {fields or 'what it asks for'}"
                ) from None
        return binding.model
    if every is None:
        raise ConfigurationError("payload is that of a periodic task: give it every=, as in every=60")
    if not isinstance(payload, binding.model):
        raise ConfigurationError(f"payload must be a {binding.model.__name__}, not {type(payload).__name__}")
    return lambda: payload


def is_async(handler: Any) -> bool:
    """Returns whether a function, or an object that can be called, is async."""
    called = type(handler).__call__ if not inspect.isroutine(handler) else handler
    return inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(called)


def _executor(handler: Any, executor: Executor | None) -> Executor:
    if not callable(handler):
        raise HandlerInvalid(f"a handler must be a function of a Context, not {handler!r}")
    asynchronous = is_async(handler)
    if executor is None:
        return "loop" if asynchronous else "thread"
    if executor not in typing.get_args(Executor):
        raise ConfigurationError(f'executor must be "loop", "thread" or "process", not {executor!r}')
    if (executor == "loop") != asynchronous:
        kind = "an async" if asynchronous else "a plain"
        raise HandlerInvalid(f'{_named(handler)} is {kind} function: it cannot run with executor="{executor}"')
    if executor == "process" and "<" in getattr(handler, "__qualname__", "<"):
        raise HandlerInvalid(
            f'{_named(handler)} must be a function at the top of a module to run with executor="process"'
        )
    return executor


def _notify(notify: Notify | None) -> Notify | None:
    if notify is not None:
        if not callable(notify):
            raise ConfigurationError(f"notify must be a function of one job, not {notify!r:.100}")
        _check_arguments("notify", notify, "the job", 1)
    return notify


def _check_handler(handler: Any, binding: Binding[Any, Any]) -> None:
    """Raises `HandlerInvalid` where the handler's parameters or annotations disagree with the model."""
    signature = inspect.signature(handler)
    try:
        signature.bind(None)
    except TypeError:
        raise HandlerInvalid(f"{_named(handler)}{signature} must take one argument, the Context") from None
    try:
        hints = typing.get_type_hints(handler if inspect.isroutine(handler) else handler.__call__)
    except (NameError, TypeError, AttributeError):
        return  # annotations that name what only a type checker can see
    _check_context(handler, binding, hints.get(next(iter(signature.parameters), "")))
    returned = hints.get("return", Any)
    declared = binding.result
    if not _fits(_plain(returned), _plain(declared)):
        raise HandlerInvalid(
            f"{_named(handler)} returns {_shown(returned)}, but {binding.model.__name__} declares {_shown(declared)}: "
            f"declare the model as axeq.Model[{_shown(returned)}], or return what it says"
        )


def _check_context(handler: Any, binding: Binding[Any, Any], annotation: Any) -> None:
    if annotation is None or annotation is Any:
        return
    origin = typing.get_origin(annotation) or annotation
    if not (isinstance(origin, type) and issubclass(origin, Context)):
        raise HandlerInvalid(
            f"{_named(handler)} takes a {_shown(annotation)}; it is given a Context[{binding.model.__name__}, ...]"
        )
    arguments = typing.get_args(annotation)
    bound: object = arguments[0] if arguments else None
    if isinstance(bound, type) and bound is not Any and not issubclass(binding.model, bound):
        raise HandlerInvalid(
            f"{_named(handler)} takes a Context of {_shown(arguments[0])}, but is bound to {binding.model.__name__}"
        )


def _fits(returned: Any, declared: Any) -> bool:
    if Any in (returned, declared) or isinstance(returned, typing.TypeVar) or returned == declared:
        return True
    return isinstance(returned, type) and isinstance(declared, type) and issubclass(returned, declared)


def _plain(annotation: Any) -> Any:
    return type(None) if annotation is None else annotation


def _shown(annotation: Any) -> str:
    return annotation.__name__ if isinstance(annotation, type) else str(annotation)


def _named(handler: Any) -> str:
    return getattr(handler, "__qualname__", None) or repr(handler)
