"""Values taken apart: what they say apart from times and tokens, which only mean something beside others."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from axeq.documents.record import Record

from .interleaving_rules import Token, Underway, milliseconds_of

__all__ = ["Flat", "flat"]

Flat = tuple[Any, tuple[Token, ...], tuple[int, ...]]
"""A shape that can be compared, and the tokens and times that were in it, in order."""

_TOLD = ("state", "attempts", "lost", "available_at", "claim", "cancel", "cause", "result", "token", "at")
"""What a rule can act on. The rest of a document follows from it, or is only looked at by people."""
_NOTHING: Flat = (None, (), ())


def flat(value: Any) -> Flat:
    """Returns a value taken apart; for a rule under way, all that decides how it goes on."""
    if value is None:
        return _NOTHING
    if isinstance(value, Underway):
        if not value.flat:
            value.flat.append(_underway(value))
        known: Flat = value.flat[0]
        return known
    tokens: list[Token] = []
    times: list[int] = []
    return _apart(value, tokens, times), tuple(tokens), tuple(times)


def _underway(asking: Underway) -> Flat:
    tokens: list[Token] = []
    times: list[int] = []
    shape: list[Any] = [asking.rule, _apart(asking.inputs, tokens, times)]
    for heard in asking.heard:
        times += (heard.server, heard.monotonic)
        shape.append(_apart(heard.reply, tokens, times))
    return tuple(shape), tuple(tokens), tuple(times)


def _apart(value: Any, tokens: list[Token], times: list[int]) -> Any:
    kind = type(value)
    if kind is Token:
        tokens.append(value)
        return "token"
    if kind is datetime:
        times.append(milliseconds_of(value))
        return "time"
    if kind is dict:
        return tuple((key, _apart(value[key], tokens, times)) for key in _TOLD if key in value)
    if kind is list or kind is tuple:
        return tuple([_apart(item, tokens, times) for item in value])
    return _apart(value.document, tokens, times) if kind is Record else value
