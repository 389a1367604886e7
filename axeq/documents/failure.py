"""What a job keeps of a failure: in `error` of the last one, in its events of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from axeq.documents.codec import Codec, opened, seal
from axeq.words.errors import ConfigurationError, PayloadSealed, redact

__all__ = [
    "FailedAttempt",
    "Failure",
    "excerpt",
    "failure",
    "opened_failure",
    "raised",
    "sealed_failure",
    "shortened",
    "stated",
]

Failure = dict[str, Any]
"""A failure as MongoDB stores it: `type`, `message` and `traceback`, or in place of the latter two `sealed`."""

_TYPE_LENGTH = 256
_MESSAGE_LENGTH = 2048
_TRACEBACK_LENGTH = 16_384
_EXCERPT_LENGTH = 1024


@dataclass(frozen=True, slots=True)
class FailedAttempt:
    """One failure of a job: the exception's `type` and `message`, the end of its `traceback`, when, and in which
    attempt.
    """

    type: str
    message: str
    traceback: str
    at: datetime
    attempt: int


def raised(entry: Mapping[str, Any], codec: Codec | None = None) -> FailedAttempt:
    """Returns the failure that an event tells of, opened by `codec` where that is needed and can be."""
    error: Mapping[str, Any] = {"message": entry.get("reason", ""), "traceback": "", **entry}
    error = opened_failure(error, codec) or error
    return FailedAttempt(
        str(entry["type"]), str(error["message"]), str(error["traceback"]), entry["at"], int(entry["attempt"])
    )


def excerpt(error: Failure) -> Failure:
    """Returns what an event keeps of a job's `error`: the end of the traceback at most."""
    return {**error, "traceback": _cut(error.get("traceback", ""), _EXCERPT_LENGTH, keep_end=True)}


def failure(kind: str, message: str, traceback: str = "") -> Failure:
    """Returns a job's `error`: at most 2 KiB of message and 16 KiB of traceback, without credentials."""
    return {
        "type": _cut(kind, _TYPE_LENGTH),
        "message": _cut(redact(message), _MESSAGE_LENGTH),
        "traceback": _cut(redact(traceback), _TRACEBACK_LENGTH, keep_end=True),
    }


def sealed_failure(error: Failure, codec: Codec) -> Failure:
    """Returns a job's `error` with its message and traceback sealed: exceptions tend to quote what they choke on.

    Its type stays readable. Where the codec fails, the two are dropped rather than stored as they are.
    """
    try:
        sealed = seal({"message": error["message"], "traceback": error["traceback"]}, codec, root="error")
    except PayloadSealed:
        return {"type": error["type"], "message": "(not kept: the codec could not seal it)", "traceback": ""}
    return {"type": error["type"], "message": "(sealed)", "traceback": "", "sealed": sealed}


def opened_failure(error: Mapping[str, Any] | None, codec: Codec | None) -> Mapping[str, Any] | None:
    """Returns a job's `error` with what `codec` can open of it."""
    if error is None or codec is None or "sealed" not in error:
        return error
    try:
        return {"type": error.get("type"), **opened(error["sealed"], codec, root="error")}
    except PayloadSealed:
        return error


def shortened(reason: object) -> str:
    """Returns the text of a reason, cut to the 2 KiB that are kept."""
    return _cut(str(reason), _MESSAGE_LENGTH)


def stated(reason: object) -> str:
    """Returns a reason that a caller gives, `shortened`. Raises `ConfigurationError` where it is no text."""
    if not isinstance(reason, str):
        raise ConfigurationError(f"reason must be text, not {type(reason).__name__}: give str(...) of it")
    return shortened(reason)


def _cut(text: str, length: int, *, keep_end: bool = False) -> str:
    """Returns `text` cut to `length` bytes, and without what UTF-8 cannot hold."""
    written = text.encode("utf-8", "replace")
    if len(written) <= length:
        return written.decode()
    kept = written[3 - length :] if keep_end else written[: length - 3]
    clean = kept.decode("utf-8", "ignore")
    return f"...{clean}" if keep_end else f"{clean}..."
