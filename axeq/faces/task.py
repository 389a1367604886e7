"""A task: a model bound to a handler, with its limits. Mistakes fail here, at import, not in the worker."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Awaitable, Callable
from typing import Any, Generic, Literal, Unpack, cast, overload

from pydantic import ValidationError

from axeq.documents.model import Binding, M, Payload, R, bind
from axeq.faces.context import Context
from axeq.faces.handle import AsyncJob, Job
from axeq.faces.limits import LARGEST_RESULT, LimitOptions, check_arguments, is_async, limits_of, named
from axeq.rules.group import Group
from axeq.rules.outcome import Limits
from axeq.rules.periodic import LONGEST_PERIOD, SHORTEST_PERIOD
from axeq.words.duration import Duration, seconds
from axeq.words.errors import ConfigurationError, HandlerInvalid
from axeq.words.number import whole

__all__ = ["Executor", "Handler", "Notify", "Task", "TaskOptions", "is_async"]

Handler = Callable[[Context[M, R]], Awaitable[R] | R]
"""An async function, or a plain one, of a `Context`."""

Notify = Callable[[Job[Any, Any]], object] | Callable[[AsyncJob[Any, Any]], Awaitable[object]]
"""A plain function of a `Job`, or an async one of an `AsyncJob`."""

Executor = Literal["loop", "thread", "process"]
"""Where a handler runs: on the pool's loop, in a thread, or in a process of its own."""

_MOST_WORKERS = 10_000


class TaskOptions(LimitOptions, total=False):
    """What a task takes; the meanings and defaults are those of `Task`."""

    workers: int
    interval: Duration
    timeout: Duration
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
        self.workers = whole("workers", options.get("workers", 2), 1, _MOST_WORKERS)
        self.interval = seconds(options.get("interval", 0.1), "interval", zero=False)
        self.timeout = seconds(options.get("timeout", 600), "timeout", zero=False)
        self.max_result = whole("max_result", options.get("max_result", 256 * 1024), 1, LARGEST_RESULT)
        self.limits = limits_of(options)
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
                    f"{option} takes {named(value)}, which must be defined at the top of a module to run with "
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
        kind = "the class itself" if isinstance(payload, type) else type(payload).__name__
        raise ConfigurationError(f"payload must be a {binding.model.__name__}, not {kind}")
    return lambda: payload


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
        raise HandlerInvalid(f'{named(handler)} is {kind} function: it cannot run with executor="{executor}"')
    if executor == "process" and "<" in getattr(handler, "__qualname__", "<"):
        raise HandlerInvalid(
            f'{named(handler)} must be a function at the top of a module to run with executor="process"'
        )
    return executor


def _notify(notify: Notify | None) -> Notify | None:
    if notify is not None:
        if not callable(notify):
            raise ConfigurationError(f"notify must be a function of one job, not {notify!r:.100}")
        check_arguments("notify", notify, "the job", 1)
    return notify


def _check_handler(handler: Any, binding: Binding[Any, Any]) -> None:
    """Raises `HandlerInvalid` where the handler's parameters or annotations disagree with the model."""
    signature = inspect.signature(handler)
    try:
        signature.bind(None)
    except TypeError:
        raise HandlerInvalid(f"{named(handler)}{signature} must take one argument, the Context") from None
    try:
        hints = typing.get_type_hints(handler if inspect.isroutine(handler) else handler.__call__)
    except (NameError, TypeError, AttributeError):
        return  # annotations that name what only a type checker can see
    _check_context(handler, binding, hints.get(next(iter(signature.parameters), "")))
    returned = hints.get("return", Any)
    declared = binding.result
    if not _fits(_plain(returned), _plain(declared)):
        raise HandlerInvalid(
            f"{named(handler)} returns {_shown(returned)}, but {binding.model.__name__} declares {_shown(declared)}: "
            f"declare the model as axeq.Model[{_shown(returned)}], or return what it says"
        )


def _check_context(handler: Any, binding: Binding[Any, Any], annotation: Any) -> None:
    if annotation is None or annotation is Any:
        return
    origin = typing.get_origin(annotation) or annotation
    if not (isinstance(origin, type) and issubclass(origin, Context)):
        raise HandlerInvalid(
            f"{named(handler)} takes a {_shown(annotation)}; it is given a Context[{binding.model.__name__}, ...]"
        )
    arguments = typing.get_args(annotation)
    bound: object = arguments[0] if arguments else None
    if isinstance(bound, type) and bound is not Any and not issubclass(binding.model, bound):
        raise HandlerInvalid(
            f"{named(handler)} takes a Context of {_shown(arguments[0])}, but is bound to {binding.model.__name__}"
        )


def _fits(returned: Any, declared: Any) -> bool:
    if Any in (returned, declared) or isinstance(returned, typing.TypeVar) or returned == declared:
        return True
    return isinstance(returned, type) and isinstance(declared, type) and issubclass(returned, declared)


def _plain(annotation: Any) -> Any:
    return type(None) if annotation is None else annotation


def _shown(annotation: Any) -> str:
    return annotation.__name__ if isinstance(annotation, type) else str(annotation)
