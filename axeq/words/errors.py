"""What can go wrong, as a tree, and the outcomes a handler can raise.

AxeqError
 +- ConfigurationError      a declaration that cannot work (also a ValueError)
 |   +- TaskExists          a pool has a task of that name already
 |   +- HandlerInvalid      a handler that does not fit its model
 +- PayloadInvalid          a payload that cannot be stored, or no longer validates (also a ValueError)
 |   +- PayloadTooLarge     over the size limit
 +- PayloadSealed           what a codec sealed, or should have sealed, without a codec that can
 +- ResultInvalid           a handler's return value that cannot be stored
 +- LabelTaken              a live job of that task has the label
 |   +- Isolated            one was enqueued too short a while ago
 +- EnqueueUnknown          the server's answer was lost; the job may or may not exist
 +- JobNotFound             no job has that id
 |   +- JobGone             it had one, and is removed
 +- JobCancelled            waited for a job that ended cancelled
 +- WaitTimeout             a job did not end in time (also a TimeoutError)
 +- LeaseLost               the worker no longer owns the job
 +- AlreadyRunning          a pool runs once at a time
 +- StoreError              the server or the connection to it
     +- StoreUnavailable    no answer: host and cause
     +- AccessDenied        wrong credentials or missing rights
     +- IndexMissing        an index that the call relies on does not exist
     +- ServerUnsuitable    the server lacks something the call needs
     +- EmbeddedUnavailable no server of its own could be started for `embedded:PATH`
     +- DuplicateKey        a unique index refused a write (rules turn it into an answer)
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

__all__ = [
    "AccessDenied",
    "AlreadyRunning",
    "AxeqError",
    "Cancel",
    "ConfigurationError",
    "DuplicateKey",
    "EmbeddedUnavailable",
    "EnqueueUnknown",
    "HandlerInvalid",
    "IndexMissing",
    "Isolated",
    "JobCancelled",
    "JobGone",
    "JobNotFound",
    "LabelTaken",
    "LeaseLost",
    "PayloadInvalid",
    "PayloadSealed",
    "PayloadTooLarge",
    "ResultInvalid",
    "Retry",
    "ServerUnsuitable",
    "Snooze",
    "StoreError",
    "StoreUnavailable",
    "TaskExists",
    "WaitTimeout",
    "redact",
]

_SCHEME = re.compile(r"(?<![a-z0-9+.-])([a-z][a-z0-9+.-]*+://)", re.IGNORECASE)


_OBJECT_ID = re.compile("[0-9a-f]{24}")


def redact(text: object) -> str:
    """Returns `text` with the credentials of every URI in it replaced by `***`."""
    before, *pieces = _SCHEME.split(str(text))
    return before + "".join(
        scheme + _without_credentials(scheme, rest) for scheme, rest in zip(pieces[::2], pieces[1::2], strict=True)
    )


def _without_credentials(scheme: str, text: str) -> str:
    """Returns what follows a scheme, up to the next one, without what stands before the last @ of its first word.

    A password for MongoDB may hold spaces: there it is the last @ of the line that may end it.
    """
    word = text.split(maxsplit=1)[0] if text and not text[0].isspace() else ""
    if "@" not in word and scheme.lower().startswith("mongodb") and ":" in word.partition("/")[0]:
        word = text.split("\n", 1)[0]
    _, at, address = word.rpartition("@")
    return f"***@{address}{text[len(word) :]}" if at else text


def _one_line(text: str) -> str:
    """Returns `text` without what could forge the next line of a log, or steer a terminal."""
    line = " ".join(text.split())
    return line if line.isprintable() else "".join(each if each.isprintable() else ascii(each)[1:-1] for each in line)


def _rebuilt(kind: type[AxeqError], arguments: tuple[Any, ...], state: dict[str, Any]) -> AxeqError:
    error = kind.__new__(kind)
    error.args = arguments
    error.__dict__.update(state)
    return error


class AxeqError(Exception):
    """The base of every error that axeq raises; its text is one line and never contains credentials."""

    def __init__(self, message: str = "") -> None:
        super().__init__(_one_line(redact(message or type(self).__doc__ or "")))

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuilt, (type(self), self.args, self.__dict__)


class ConfigurationError(AxeqError, ValueError):
    """A declaration or option cannot work; the text names the option, its value and the mend."""


class TaskExists(ConfigurationError):
    """A pool already has a task of this name."""


class HandlerInvalid(ConfigurationError):
    """A handler does not fit the model that it is bound to."""


class PayloadInvalid(AxeqError, ValueError):
    """A payload cannot be stored, or a stored one no longer validates; the text names the field."""


class PayloadTooLarge(PayloadInvalid):
    """A payload is larger than the limit. Attributes `size` and `limit` are in bytes."""

    def __init__(self, name: str, size: int, limit: int) -> None:
        super().__init__(
            f"payload of {name!r} is {size:,} bytes, the limit is {limit:,}: store the content elsewhere and "
            f"enqueue a reference, or raise `max_payload` of the queue"
        )
        self.size = size
        self.limit = limit


class PayloadSealed(AxeqError):
    """A payload or result is sealed by a codec, and the store has none or one that cannot open it; or the store's
    codec could not seal it.
    """


class ResultInvalid(AxeqError, ValueError):
    """A handler's return value cannot be stored as the task's result type."""


class LabelTaken(AxeqError):
    """A live job of the same task carries the label. Attribute `existing_id` is its id where it is known."""

    def __init__(self, name: str, label: str, *, existing_id: Any = None, aborted: bool = False) -> None:
        holder = f" by job {existing_id}" if existing_id is not None else ""
        advice = "; the transaction is aborted, run it again" if aborted else ""
        super().__init__(f"label {label!r} of {name!r} is taken{holder} until that job has ended{advice}")
        self.name = name
        self.label: str | None = label
        self.existing_id = existing_id
        self.aborted = aborted


class Isolated(LabelTaken):
    """A job of the same task and label was enqueued too short a while ago. Attribute `until` says when the next may
    be, `existing_id` is that job's id; `label` is None where the task as a whole is isolated.
    """

    def __init__(
        self, name: str, label: str | None, *, until: datetime, existing_id: Any = None, aborted: bool = False
    ) -> None:
        what = f"{name!r}" if label is None else f"label {label!r} of {name!r}"
        advice = "; the transaction is aborted, run it again" if aborted else ""
        AxeqError.__init__(self, f"{what} is isolated by job {existing_id} until {until.isoformat()}{advice}")
        self.name = name
        self.label = label
        self.until = until
        self.existing_id = existing_id
        self.aborted = aborted


class EnqueueUnknown(AxeqError):
    """The server did not say whether it stored the jobs. Attribute `ids` lists them."""

    def __init__(self, ids: Sequence[Any], cause: object) -> None:
        shown = ", ".join(str(identity) for identity in ids[:3]) + (", ..." if len(ids) > 3 else "")
        super().__init__(
            f"no answer to the enqueue of job {shown} ({cause}): look it up with `queue.get`, "
            "or enqueue again with the same `id`"
        )
        self.ids = list(ids)


class JobNotFound(AxeqError):
    """No job has this id. Attribute `id` is the one asked for."""

    def __init__(self, identity: Any, message: str | None = None) -> None:
        super().__init__(
            message or f"no job {identity}: it never existed, or its retention has passed{_hint(identity)}"
        )
        self.id = identity


def _hint(identity: Any) -> str:
    if not (isinstance(identity, str) and _OBJECT_ID.fullmatch(identity)):
        return ""
    return f"; that is text, and ids that axeq makes are bson.ObjectId({identity!r})"


class JobGone(JobNotFound):
    """The job was removed while it was waited for."""

    def __init__(self, identity: Any) -> None:
        super().__init__(identity, f"job {identity} was removed while it was waited for")


class JobCancelled(AxeqError):
    """The job that was waited for ended cancelled. Attributes `id`, `cause` and `error` say why."""

    def __init__(self, identity: Any, cause: str | None, error: Mapping[str, Any] | None) -> None:
        detail = f": {error.get('type')}: {error.get('message')}" if error else ""
        super().__init__(f"job {identity} ended cancelled ({cause or 'no cause given'}){detail}")
        self.id = identity
        self.cause = cause
        self.error = dict(error) if error else None


class WaitTimeout(AxeqError, TimeoutError):
    """The job did not end in the time given. Attribute `id` is its id, of several waited for one of theirs."""

    def __init__(self, identity: Any, seconds: float, state: str, *, others: int = 0) -> None:
        have = "1 other has" if others == 1 else f"{others} others have"
        more = f" ({have} not ended either)" if others else ""
        super().__init__(f"job {identity} is still {state} after {seconds:g} s{more}")
        self.id = identity


class LeaseLost(AxeqError):
    """The worker's lease has passed to another, or the job is gone; nothing that it writes changes the job."""

    def __init__(self, identity: Any, reason: str) -> None:
        super().__init__(f"LeaseLost: job {identity}: {reason}")
        self.id = identity


class AlreadyRunning(AxeqError):
    """The pool is running already."""


class StoreError(AxeqError):
    """The server, or the connection to it, did not do what was asked."""


class StoreUnavailable(StoreError):
    """No usable answer from the server. Attribute `host` names it.

    `sent` is False where the command certainly never left; otherwise it may or may not have been carried out.
    """

    def __init__(self, host: str, cause: object, *, sent: bool = True) -> None:
        super().__init__(f"cannot reach MongoDB at {host}: {cause}")
        self.host = host
        self.sent = sent


class AccessDenied(StoreError):
    """The server refused the credentials, or the account lacks a right."""

    def __init__(self, host: str, cause: object) -> None:
        super().__init__(f"MongoDB at {host} refused access: {cause}")
        self.host = host


class IndexMissing(StoreError):
    """An index that the call relies on does not exist. Attribute `index` is its name."""

    def __init__(self, index: str, collection: str, purpose: str) -> None:
        super().__init__(
            f"collection {collection!r} has no index {index!r}, which {purpose}: call "
            "queue.ensure_indexes(), run `axeq indexes ensure`, or apply indexes/create.js"
        )
        self.index = index


class ServerUnsuitable(StoreError):
    """The server lacks something that the call needs; the text names it."""


class EmbeddedUnavailable(StoreError):
    """No server could be started for an embedded store; the text names what was tried and how to mend it."""


class DuplicateKey(StoreError):
    """A unique index refused a write. Attribute `positions` lists which documents of a batch were refused."""

    def __init__(self, positions: Sequence[int] = (0,)) -> None:
        super().__init__("a unique index refused the write")
        self.positions = tuple(positions)


class Retry(Exception):
    """Raised by a handler to have the job tried again. It counts as an attempt.

    `delay` (`timedelta` or seconds) or `at` (aware datetime) says when; default: the task's backoff. `reason` is kept
    as the message of the failure.
    """

    def __init__(self, reason: str = "", *, delay: timedelta | float | None = None, at: datetime | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.delay = delay
        self.at = at


class Cancel(Exception):
    """Raised by a handler to end the job as cancelled, without another attempt. `reason` is kept in its events."""

    def __init__(self, reason: str = "") -> None:
        super().__init__(reason)
        self.reason = reason


class Snooze(Exception):
    """Raised by a handler to put the job back until later. The attempt is not counted.

    Exactly one of `delay` (`timedelta` or seconds) and `at` (aware datetime) is given. `data`, a payload of the
    job's own model and at most 8 MiB of BSON, replaces the payload: what the next attempt starts from. `reason` is
    kept in the job's events.
    """

    def __init__(
        self,
        *,
        delay: timedelta | float | None = None,
        at: datetime | None = None,
        data: Any = None,
        reason: str = "",
    ) -> None:
        super().__init__()  # what is pickled are the attributes
        self.delay = delay
        self.at = at
        self.data = data
        self.reason = reason
