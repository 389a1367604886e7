"""What an enqueue takes, and the check of each option before anything is sent."""

from __future__ import annotations

import typing
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, TypedDict

from axeq.codec import Codec, plain
from axeq.duration import Duration, aware, seconds
from axeq.errors import ConfigurationError
from axeq.model import name_of
from axeq.record import identity

__all__ = [
    "BATCH_OPTIONS",
    "ENQUEUE_OPTIONS",
    "BatchOptions",
    "EnqueueOptions",
    "checked",
    "payload_values",
    "task_name",
    "wanted",
]

_PRIORITIES = range(-(2**15), 2**15)
_LONGEST_NAME = 512
_MOST_ATTEMPTS = 2**31 - 1
_FARTHEST = timedelta(days=3650)


class BatchOptions(TypedDict, total=False):
    """What `enqueue_many` takes for all of its jobs; the meanings are those of `Queue.enqueue`."""

    delay: Duration
    run_at: datetime | None
    deadline: datetime | None
    priority: int
    max_attempts: int | None
    timeout: Duration | None
    retention: Duration | None
    group: str | None
    session: Any


class EnqueueOptions(BatchOptions, total=False):
    """What `enqueue` takes; the meanings are those of `Queue.enqueue`."""

    label: str | None
    id: Any


BATCH_OPTIONS = frozenset(typing.get_type_hints(BatchOptions))
ENQUEUE_OPTIONS = frozenset(typing.get_type_hints(EnqueueOptions))


def checked(verb: str, options: Mapping[str, Any], known: frozenset[str] = ENQUEUE_OPTIONS) -> dict[str, Any]:
    """Returns the options of an enqueue as a draft takes them; raises `ConfigurationError` naming the one that
    is wrong.
    """
    unknown = options.keys() - known
    if unknown:
        raise ConfigurationError(f"{verb} takes no {', '.join(sorted(unknown))}: see help(axeq.Queue.{verb})")
    return {option: _CHECKS[option](value) for option, value in options.items()} | _due(options)


def wanted(name: Any, label: Any) -> dict[str, str | None]:
    """Returns what a search asks for, checked: as text it can be no operator of a filter."""
    return {"name": task_name(name), "label": _label(label)}


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
    if most is None:
        return None
    if isinstance(most, bool) or not isinstance(most, int) or not 0 <= most <= _MOST_ATTEMPTS:
        raise ConfigurationError(f"max_attempts must be a whole number from 0 to {_MOST_ATTEMPTS:,}, not {most!r:.100}")
    return int(most)


def _identity(value: Any) -> Any:
    # One line, for logs name jobs by their ids.
    if isinstance(value, str | bytes) and not (0 < len(value) <= _LONGEST_NAME):
        raise ConfigurationError(f"id must be 1 to {_LONGEST_NAME} characters, not {len(value):,}")
    if isinstance(value, str) and not value.isprintable():
        raise ConfigurationError(f"id must be of printable characters, not {value!r:.100}")
    return None if value is None else identity(value)


def _same(value: Any) -> Any:
    return value


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
}
