"""What the environment says where an argument is left out.

| variable | is | as in |
| --- | --- | --- |
| `AXEQ_URI` | the `target` of a `Store` | `mongodb://localhost:27017/shop` |
| `AXEQ_DATABASE`, `AXEQ_COLLECTION` | its `database` and `collection` | `shop`, `jobs` |
| `AXEQ_TIMEOUT` | its `timeout` | `5`, `PT5S` |
| `AXEQ_QUEUES` | the `queues` of a `Pool` | `critical=6,default=3,low=1`, or `critical,default` for equal weights |
| `AXEQ_CONCURRENCY` | its `concurrency` | `20` |
| `AXEQ_LEASE`, `AXEQ_DRAIN`, `AXEQ_MAX_LAG` | its durations | `30`, `PT30S` |

Durations are seconds or ISO 8601. An argument wins over a variable, an empty variable counts as none, and a variable
whose argument is given is not read.
"""

from __future__ import annotations

import os
from datetime import timedelta
from functools import cache
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError

from axeq.words.duration import Duration, seconds
from axeq.words.errors import ConfigurationError, redact

__all__ = ["VARIABLES", "duration", "setting"]


def _weights(text: str) -> dict[str, Any]:
    """Reads `critical=6,default=3`, where a queue without a number weighs 1."""
    weights: dict[str, Any] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, separator, weight = (piece.strip() for piece in part.partition("="))
        if not name or name in weights:
            raise ValueError(f"{part!r} names no queue, or one that is there already")
        weights[name] = weight if separator else 1
    return weights


def _duration(text: str) -> Duration:
    """Reads seconds, or ISO 8601."""
    for kind in (float, timedelta):
        try:
            return _adapter(kind).validate_python(text)  # type: ignore[no-any-return]
        except ValidationError:
            continue
    raise ValueError("give seconds or ISO 8601, as in 30 or PT30S")


_Text = Annotated[str, Field(min_length=1)]
_Duration = Annotated[Duration, BeforeValidator(_duration)]
_Weights = Annotated[dict[_Text, Annotated[int, Field(ge=1)]], Field(min_length=1), BeforeValidator(_weights)]

VARIABLES: dict[str, Any] = {
    "AXEQ_URI": _Text,
    "AXEQ_DATABASE": _Text,
    "AXEQ_COLLECTION": _Text,
    "AXEQ_TIMEOUT": _Duration,
    "AXEQ_QUEUES": _Weights,
    "AXEQ_CONCURRENCY": Annotated[int, Field(ge=1)],
    "AXEQ_LEASE": _Duration,
    "AXEQ_DRAIN": _Duration,
    "AXEQ_MAX_LAG": _Duration,
}
"""Every variable that axeq reads, and what it may say."""


def setting(variable: str, default: Any = None) -> Any:
    """Returns what the environment says, or `default`; raises `ConfigurationError` that names the variable."""
    text = os.environ.get(variable, "").strip()
    if not text:
        return default
    try:
        return _adapter(VARIABLES[variable]).validate_python(text)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False, include_context=False)[0]
        raise ConfigurationError(f"{variable}={redact(text)!r:.200}: {_said(problem['msg'])}") from None


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def duration(given: Duration | None, option: str, variable: str, default: Duration, *, zero: bool = True) -> float:
    """Returns the seconds of an argument, or what the environment says, or `default`; `option` names the argument
    in errors, `zero` is as for `seconds`.
    """
    if given is not None:
        return seconds(given, option, zero=zero)
    return seconds(setting(variable, default), variable, zero=zero)


def _said(message: str) -> str:
    return message.removeprefix("Value error, ")
