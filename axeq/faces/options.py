"""What an enqueue takes, and the check of each option before anything is sent."""

from __future__ import annotations

import typing
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, TypedDict

from axeq.documents.codec import Codec, plain
from axeq.documents.model import name_of
from axeq.documents.record import identity
from axeq.rules.enqueue import Conflict
from axeq.words.duration import Duration, aware, seconds
from axeq.words.errors import ConfigurationError
from axeq.words.number import whole
from axeq.words.states import State

__all__ = [
    "BATCH_OPTIONS",
    "CALLBACK_OPTIONS",
    "ENQUEUE_OPTIONS",
    "BatchOptions",
    "CallbackOptions",
    "EnqueueOptions",
    "JobOptions",
    "StateOrName",
    "checked",
    "counted_to",
    "labelled",
    "page",
    "payload_values",
    "task_name",
    "wanted",
]

StateOrName = State | Literal["enqueued", "dequeued", "completed", "failed", "cancelled"]
"""A state, or its value as plain text."""

_PRIORITIES = range(-(2**15), 2**15)
_LONGEST_NAME = 512
_MOST_ATTEMPTS = 2**31 - 1
_FARTHEST = timedelta(days=3650)
_LARGEST_COUNT = 2**31 - 1


class JobOptions(TypedDict, total=False):
    """What both `enqueue` and `enqueue_many` take; the meanings are those of `Queue.enqueue`."""

    delay: Duration
    run_at: datetime | None
    deadline: datetime | None
    priority: int
    max_attempts: int | None
    timeout: Duration | None
    retention: Duration | None
    group: str | None
    session: Any


class EnqueueOptions(JobOptions, total=False):
    """What `enqueue` takes; the meanings are those of `Queue.enqueue`."""

    label: str | None
    id: Any
    on_conflict: Conflict
    isolation: Duration | None
    unique: bool | Duration


class BatchOptions(JobOptions, total=False):
    """What `enqueue_many` takes for all of its jobs, beside `label`; the meanings are those of `Queue.enqueue`."""

    on_conflict: Literal["raise", "ignore"]
    unique: bool


class CallbackOptions(TypedDict, total=False):
    """What the jobs of a web callback take; the meanings are those of `Queue.enqueue_many`."""

    priority: int
    max_attempts: int | None
    timeout: Duration | None
    retention: Duration | None
    group: str | None
    label: Callable[[Any], str | None] | None
    on_conflict: Literal["raise", "ignore"]
    unique: bool


ENQUEUE_OPTIONS = frozenset(typing.get_type_hints(EnqueueOptions))
BATCH_OPTIONS = frozenset(typing.get_type_hints(BatchOptions)) | {"label"}
CALLBACK_OPTIONS = frozenset(typing.get_type_hints(CallbackOptions)) | {"delay"}


def checked(verb: str, options: Mapping[str, Any], known: frozenset[str] = ENQUEUE_OPTIONS) -> dict[str, Any]:
    """Returns the options of an enqueue as a draft takes them; raises `ConfigurationError` naming the one that
    is wrong.
    """
    unknown = options.keys() - known
    if unknown:
        raise ConfigurationError(f"{verb} takes no {', '.join(sorted(unknown))}: see help(axeq.Queue.{verb})")
    checks = _CHECKS if known is ENQUEUE_OPTIONS else _BATCH_CHECKS
    terms = {option: checks[option](value) for option, value in options.items()} | _due(options)
    if not _TERMS.isdisjoint(options):
        _check_terms(terms, verb, many=known is not ENQUEUE_OPTIONS)
    return terms


def labelled(label: Any, payload: Any) -> str | None:
    """Returns the label that a function gives a payload, checked."""
    return _label(label(payload))


def _check_terms(terms: dict[str, Any], verb: str, *, many: bool) -> None:
    """Refuses terms of an enqueue that do not fit each other; leaves a duration in `unique` to `isolation`."""
    unique, on_conflict = terms.get("unique", False), terms.get("on_conflict", "raise")
    if unique and terms.get("label") is not None:
        raise ConfigurationError("give label or unique, not both: unique makes a label from the payload")
    if unique and not isinstance(unique, bool):
        if terms.get("isolation") is not None:
            raise ConfigurationError("give isolation, or unique a duration, not both")
        if many:
            raise ConfigurationError(f"{verb} takes unique=True alone: a duration is for enqueue")
        terms["isolation"] = unique
    if on_conflict != "raise" and not unique and not terms.keys() & {"label", "isolation"}:
        raise ConfigurationError(
            f"on_conflict={on_conflict!r} needs label, unique or isolation: nothing else conflicts"
        )
    if on_conflict != "replace":
        return
    if many:
        raise ConfigurationError(f'{verb} takes on_conflict="raise" or "ignore": replace jobs one by one')
    for other in ("id", "isolation", "session"):
        if terms.get(other) is not None:
            raise ConfigurationError(f'on_conflict="replace" cannot go with {other}: {_WHY_NO_REPLACE[other]}')


def wanted(state: Any, name: Any, label: Any) -> dict[str, Any]:
    """Returns what a search asks for, checked: as text it can be no operator of a filter."""
    return {"state": _state(state), "name": task_name(name), "label": _label(label)}


def page(limit: Any, skip: Any) -> dict[str, Any]:
    """Returns which of the jobs found are asked for, checked."""
    return {"limit": whole("limit", limit, 1, _LARGEST_COUNT), "skip": whole("skip", skip, 0, _LARGEST_COUNT)}


def counted_to(cap: Any) -> int:
    """Returns how far a count is to go, checked."""
    return whole("cap", cap, 1, _LARGEST_COUNT)


def _state(state: Any) -> State | None:
    try:
        return None if state is None else State(state)
    except ValueError:
        known = ", ".join(repr(each.value) for each in State)
        raise ConfigurationError(f"state must be an axeq.State, one of {known}, not {state!r:.100}") from None


def payload_values(data: Any, codec: Codec | None) -> dict[str, Any] | None:
    """Returns what fields of a payload are searched for, checked and as they are stored: no operator gets through."""
    if data is None:
        return None
    if codec is not None:
        raise ConfigurationError("data: the payloads of a store with a codec are sealed and cannot be searched")
    if not isinstance(data, Mapping) or not data:
        raise ConfigurationError(f'data must be field names with values, as in {{"user_id": 7}}, not {data!r:.100}')
    return {_path(path): plain(value, root=f"data[{path!r:.100}]") for path, value in data.items()}


def _path(path: Any) -> str:
    parts = path.split(".") if isinstance(path, str) and "\0" not in path else [""]
    if any(not part or part.startswith("$") for part in parts):
        raise ConfigurationError(f"data: {path!r:.100} is no field of a payload: use its name, or names with dots")
    return str(path)


def task_name(name: Any) -> str | None:
    return None if name is None else name_of(name)


def _due(options: Mapping[str, Any]) -> dict[str, Any]:
    delay, run_at = options.get("delay", 0), options.get("run_at")
    wait = seconds(delay, "delay")
    if run_at is not None and wait:
        raise ConfigurationError("give delay or run_at, not both")
    if run_at is not None and aware(run_at, "run_at") > datetime.now(UTC) + _FARTHEST:
        raise ConfigurationError("run_at must be within ten years")
    return {"delay": wait, "run_at": run_at}


def _label(label: Any) -> str | None:
    return _text("label", label)


def _group(group: Any) -> str | None:
    return _text("group", group)


def _text(option: str, text: Any) -> str | None:
    if text is not None and not (isinstance(text, str) and 0 < len(text) <= _LONGEST_NAME):
        raise ConfigurationError(f"{option} must be text of 1 to {_LONGEST_NAME} characters, not {text!r:.100}")
    return text


def _priority(priority: Any) -> int:
    if isinstance(priority, bool) or not isinstance(priority, int) or priority not in _PRIORITIES:
        raise ConfigurationError(f"priority must be a whole number from -32768 to 32767, not {priority!r:.100}")
    return int(priority)  # plain, where it is a Priority


def _attempts(most: Any) -> int | None:
    return None if most is None else int(whole("max_attempts", most, 0, _MOST_ATTEMPTS))


def _identity(value: Any) -> Any:
    # One line, for logs name jobs by their ids.
    if isinstance(value, str | bytes) and not (0 < len(value) <= _LONGEST_NAME):
        raise ConfigurationError(f"id must be 1 to {_LONGEST_NAME} characters, not {len(value):,}")
    if isinstance(value, str) and not value.isprintable():
        raise ConfigurationError(f"id must be of printable characters, not {value!r:.100}")
    return None if value is None else identity(value)


def _label_maker(label: Any) -> Any:
    if label is not None and not callable(label):
        raise ConfigurationError(f"label must be a function of the payload here, not {label!r:.100}")
    return label


def _on_conflict(value: Any) -> str:
    if value not in _CONFLICTS:
        raise ConfigurationError(f'on_conflict must be "raise", "ignore" or "replace", not {value!r:.100}')
    return str(value)


def _isolation(value: Any) -> float | None:
    return None if value is None else seconds(value, "isolation", zero=False)


def _unique(value: Any) -> bool | float:
    return value if isinstance(value, bool) else seconds(value, "unique", zero=False)


def _same(value: Any) -> Any:
    return value


_CONFLICTS = typing.get_args(Conflict)
_TERMS = frozenset({"on_conflict", "isolation", "unique"})
_WHY_NO_REPLACE = {
    "id": "a job that is replaced keeps its own",
    "isolation": "a job that is replaced is not enqueued anew",
    "session": "a job that waits must not be locked by a transaction, for claims would wait for it",
}

_CHECKS: Mapping[str, Callable[[Any], Any]] = {
    "delay": _same,
    "run_at": _same,
    "deadline": lambda value: None if value is None else aware(value, "deadline"),
    "max_attempts": _attempts,
    "timeout": lambda value: None if value is None else seconds(value, "timeout", zero=False),
    "retention": lambda value: None if value is None else seconds(value, "retention"),
    "label": _label,
    "group": _group,
    "priority": _priority,
    "id": _identity,
    "session": _same,
    "on_conflict": _on_conflict,
    "isolation": _isolation,
    "unique": _unique,
}

_BATCH_CHECKS = {**_CHECKS, "label": _label_maker}
