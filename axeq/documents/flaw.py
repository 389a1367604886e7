"""What in a job's document, changed by hand or by another program, no rule can work with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from axeq.documents.record import Document
from axeq.words.duration import seconds
from axeq.words.errors import ConfigurationError

__all__ = ["flaw", "usual"]

_LATEST = datetime(9000, 1, 1, tzinfo=UTC)
"""Later than any job was enqueued: sums with it must stay within the years that a datetime holds."""
_MOST = 2**53
_SELDOM = frozenset(("cancel", "deadline", "group", "max_attempts", "retention", "timeout"))
_NO_ERROR: Document = {}
_NO_EVENTS: list[Document] = []


def usual(document: Document) -> bool:
    """Whether a claimed job's document looks, at a glance, as almost all do, and so has no flaw."""
    get = document.get
    return (
        type(get("attempts")) is int
        and type(get("lost")) is int
        and type(get("version")) is int
        and type(get("priority")) is int
        and type(created_at := get("created_at")) is datetime
        and created_at < _LATEST
        and type(get("error", _NO_ERROR)) is dict
        and type(get("events", _NO_EVENTS)) is list
        and _SELDOM.isdisjoint(document)
    )


def flaw(document: Document) -> str | None:
    """Returns what in a live job's document no rule can work with, None where there is nothing.

    It names the field and never quotes its value. What the claim replaces is not looked at.
    """
    for field, (wanted, fits, needed) in _FIELDS.items():
        if field not in document:
            if needed:
                return f"{field} is missing"
        elif not fits(document[field]):
            return f"{field} must be {wanted}, not {type(document[field]).__name__}"
    return None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _MOST  # never so for NaN


def _is_count(value: Any) -> bool:
    return _is_number(value) and value >= 0


def _is_duration(value: Any, *, zero: bool) -> bool:
    try:
        seconds(value, "", zero=zero)
    except ConfigurationError:
        return False
    return True


def _is_hashable(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


def _is_moment(value: Any) -> bool:
    return isinstance(value, datetime) and value < _LATEST


_FIELDS: Mapping[str, tuple[str, Callable[[Any], bool], bool]] = {
    "_id": ("of a type that ids have", _is_hashable, True),
    "name": ("text", lambda value: isinstance(value, str), True),
    "version": ("a number", _is_number, False),
    "priority": ("a number", _is_number, False),
    "group": ("text", lambda value: isinstance(value, str), False),
    "created_at": ("a date", _is_moment, True),
    "available_at": ("a date", lambda value: isinstance(value, datetime), True),
    "attempts": ("a number", _is_number, False),
    "lost": ("a number from 0", _is_count, True),
    "max_attempts": ("a number", lambda value: value is None or _is_number(value), False),
    "timeout": ("seconds", lambda value: value is None or _is_duration(value, zero=False), False),
    "retention": ("seconds", lambda value: value is None or _is_duration(value, zero=True), False),
    "deadline": ("a date", lambda value: value is None or isinstance(value, datetime), False),
    "cancel": ("an object", lambda value: value is None or isinstance(value, Mapping), False),
    "error": ("an object", lambda value: value is None or isinstance(value, Mapping), False),
    "events": ("an array", lambda value: isinstance(value, list), False),
}
"""Of each field that rules work with: what it must be, the test of that, and whether it must be there."""
