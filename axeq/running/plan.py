"""What a pool is told: its options, the check of each, and the plan that a run of it follows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Literal, TypedDict, get_args

from pydantic import BaseModel, ConfigDict

from axeq.attempts.hooks import Hooks
from axeq.documents.model import name_of
from axeq.documents.settings import duration, setting
from axeq.faces.task import Handler, Task
from axeq.rules.workers import worker_id
from axeq.wire.store import Store
from axeq.words.duration import Duration, seconds
from axeq.words.errors import ConfigurationError
from axeq.words.number import whole

__all__ = ["Plan", "PoolOptions", "Whatever", "planned"]

Lag = Literal["ranked", "random"]
Order = Literal["priority", "due"]
Strangers = Literal["leave", "park"] | Handler[Any, Any]

_SHORTEST_LEASE = 0.5
_MOST_QUEUES = 100
_HEAVIEST = 1000
_MOST_PLACES = 100_000


class Whatever(BaseModel):
    """A payload of fields that nobody has declared."""

    model_config = ConfigDict(extra="allow")


class PoolOptions(TypedDict, total=False):
    """What a pool takes; the meanings and defaults are those of `Pool`."""

    queue: str
    queues: Mapping[str, int] | Sequence[str]
    strict: bool
    order: Order
    concurrency: int | None
    lease: Duration | None
    drain: Duration | None
    max_lag: Duration | None
    lag: Lag
    max_interval: Duration
    unknown: Strangers
    worker: str | None
    lifespan: Callable[[Any], AbstractAsyncContextManager[Any]] | None
    health_interval: Duration


@dataclass(slots=True)
class Plan:
    """What a pool was told to run, and on what terms: durations in seconds. `queues` are weights by name;
    `strangers` says what becomes of jobs that no task understands. `counts` and `unknown` are kept up to date as it
    runs.
    """

    store: Store
    queues: Mapping[str, int]
    tasks: Sequence[Task[Any, Any]]
    worker: str
    lease: float
    drain: float
    max_lag: float
    lag: Lag
    strict: bool = False
    order: Order = "priority"
    concurrency: int | None = None
    max_interval: float = 1.0
    strangers: Strangers = "leave"
    counts: Counter[str] = field(default_factory=Counter)
    unknown: dict[str, int] = field(default_factory=dict)
    hooks: Hooks = field(default_factory=Hooks)
    lifespan: Callable[..., AbstractAsyncContextManager[Any]] | None = None
    health_interval: float = 15.0


def planned(store: Store, options: PoolOptions) -> Plan:
    """Returns the plan that a pool's options make, as yet without tasks; raises `ConfigurationError` naming the
    option that cannot work.
    """
    if not isinstance(store, Store):
        raise ConfigurationError(f"a pool takes an axeq.Store, not {type(store).__name__}: Pool(Store(...))")
    unknown = options.keys() - PoolOptions.__annotations__.keys()
    if unknown:
        raise ConfigurationError(f"a pool has no option {', '.join(sorted(unknown))}: see help(axeq.Pool)")
    return Plan(
        store=store,
        queues=_queues(options),
        tasks=(),
        worker=options.get("worker") or worker_id(),
        lease=_lease(options.get("lease")),
        drain=duration(options.get("drain"), "drain", "AXEQ_DRAIN", 25),
        max_lag=duration(options.get("max_lag"), "max_lag", "AXEQ_MAX_LAG", 0.1),
        lag=_one_of("lag", options.get("lag", "ranked"), get_args(Lag)),
        strict=_flag("strict", options.get("strict", False)),
        order=_one_of("order", options.get("order", "priority"), get_args(Order)),
        concurrency=_concurrency(options.get("concurrency")),
        max_interval=seconds(options.get("max_interval", 1), "max_interval", zero=False),
        strangers=_strangers(options.get("unknown", "leave")),
        lifespan=_lifespan(options.get("lifespan")),
        health_interval=seconds(options.get("health_interval", 15), "health_interval", zero=False),
    )


def _strangers(unknown: Any) -> Any:
    if not (callable(unknown) or unknown in ("leave", "park")):
        raise ConfigurationError(f'unknown must be "leave", "park" or a handler, not {unknown!r:.100}')
    if callable(unknown):
        Task(Whatever, unknown, name="unknown")  # raises where it is none
    return unknown


def _lease(given: Duration | None) -> float:
    lease = duration(given, "lease", "AXEQ_LEASE", 30)
    if lease < _SHORTEST_LEASE:
        named = "AXEQ_LEASE" if given is None else "lease"
        raise ConfigurationError(f"{named} must be at least {_SHORTEST_LEASE} s, not {lease:g} s")
    return lease


def _lifespan(lifespan: Any) -> Any:
    if lifespan is not None and not callable(lifespan):
        raise ConfigurationError(f"lifespan must be a function of the pool, not {type(lifespan).__name__}")
    return lifespan


def _queues(options: PoolOptions) -> dict[str, int]:
    """Returns the weights of a pool's queues by name."""
    queues, named = options.get("queues"), "queues"
    if queues is not None and "queue" in options:
        raise ConfigurationError("give queue= or queues=, not both")
    if queues is None and "queue" not in options:
        queues, named = setting("AXEQ_QUEUES"), "AXEQ_QUEUES"
    if queues is not None:
        return _weights(queues, named)
    if options.get("strict"):
        raise ConfigurationError("strict orders several queues: give queues= in place of queue=")
    return {name_of(options.get("queue", "default")): 1}


def _weights(queues: Any, named: str) -> dict[str, int]:
    if isinstance(queues, str) or not isinstance(queues, Mapping | Sequence):
        raise ConfigurationError(f"{named} must be a list of names, or names with weights, not {queues!r:.100}")
    if not 0 < len(queues) <= _MOST_QUEUES:
        raise ConfigurationError(f"{named} must have 1 to {_MOST_QUEUES} queues, not {len(queues)}")
    names = [name_of(name) for name in queues]
    if len(set(names)) < len(names):
        raise ConfigurationError(f"{named} has one of {', '.join(sorted(set(names)))} twice")
    weights = queues if isinstance(queues, Mapping) else dict.fromkeys(names, 1)
    return {name: whole(f"{named}: the weight of {name!r}", weights[name], 1, _HEAVIEST) for name in names}


def _concurrency(most: int | None) -> int | None:
    if most is not None:
        return whole("concurrency", most, 1, _MOST_PLACES)
    most = setting("AXEQ_CONCURRENCY")
    return None if most is None else whole("AXEQ_CONCURRENCY", most, 1, _MOST_PLACES)


def _flag(option: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise ConfigurationError(f"{option} must be True or False, not {value!r:.100}")
    return value


def _one_of(option: str, value: Any, known: Sequence[str]) -> Any:
    if value not in known:
        words = " or ".join(f'"{word}"' for word in known)
        raise ConfigurationError(f"{option} must be {words}, not {value!r:.100}")
    return value
