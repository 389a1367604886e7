"""What went wrong: the failures of the driver as axeq's own errors, so that rules know nothing of pymongo."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from bson.errors import BSONError
from pymongo import errors as driver

from axeq.wire.commands import Place
from axeq.words.clock import Clock
from axeq.words.errors import (
    AccessDenied,
    AxeqError,
    DuplicateKey,
    LabelTaken,
    PayloadInvalid,
    StoreError,
    StoreUnavailable,
)

__all__ = ["passing", "translated"]

_TRANSIENT_CODES = frozenset(
    # The retryable errors of the driver specification (retryable writes), and those of an overloaded or ending server.
    {
        6,
        7,
        50,
        64,
        89,
        91,
        112,
        134,
        189,
        202,
        262,
        317,
        358,
        384,
        462,
        9001,
        10058,
        10107,
        11600,
        11602,
        13435,
        13436,
    }
)
_DENIED_CODES = frozenset({13, 18, 8000})
_DUPLICATE = 11000


@contextmanager
def translated(place: Place, clock: Clock, session: Any = None) -> Iterator[None]:
    """Turns the driver's errors into axeq's own; in a `session` only those that rules have an answer to."""
    try:
        yield
    except driver.DuplicateKeyError:
        raise DuplicateKey from None
    except driver.BulkWriteError as error:
        failure = _bulk_failure(place, error)
        if session is not None and not isinstance(failure, DuplicateKey):
            raise
        raise failure from error
    except (driver.DocumentTooLarge, BSONError, UnicodeEncodeError, OverflowError) as error:
        raise PayloadInvalid(f"the server cannot store it: {type(error).__name__}") from None
    except driver.PyMongoError as error:
        if session is not None:
            raise
        if _is_transient(error):
            clock.doubt()
            raise StoreUnavailable(place.host, _brief(error), sent=not _is_unsent(error)) from error
        if isinstance(error, driver.OperationFailure) and error.code in _DENIED_CODES:
            raise AccessDenied(place.host, _brief(error)) from None
        raise StoreError(f"MongoDB at {place.host}: {_brief(error)}") from error


def passing(error: BaseException) -> bool:
    """Whether the transaction that `error` ended would have succeeded at another moment, as without the writer that
    it collided with.
    """
    if isinstance(error, driver.PyMongoError):
        return error.has_error_label("TransientTransactionError")
    if isinstance(error, LabelTaken):
        return error.aborted
    return isinstance(error, AxeqError) and error.__cause__ is not None and passing(error.__cause__)


def _is_unsent(error: driver.PyMongoError) -> bool:
    # Of a commit that is sent again, for all that is known the first try went through.
    unsent = isinstance(error, driver.ServerSelectionTimeoutError | driver.WaitQueueTimeoutError)
    return unsent and not error.has_error_label("UnknownTransactionCommitResult")


def _is_transient(error: driver.PyMongoError) -> bool:
    if isinstance(error, driver.ConnectionFailure | driver.WTimeoutError | driver.ExecutionTimeout) or error.timeout:
        return True
    return isinstance(error, driver.OperationFailure) and error.code in _TRANSIENT_CODES


def _bulk_failure(place: Place, error: driver.BulkWriteError) -> AxeqError:
    details = error.details or {}
    failures: list[Mapping[str, Any]] = details.get("writeErrors") or []
    codes = {failure.get("code") for failure in failures}
    if failures and codes == {_DUPLICATE} and not details.get("writeConcernErrors"):
        return DuplicateKey([int(failure["index"]) for failure in failures])
    if codes <= _TRANSIENT_CODES | {_DUPLICATE}:
        return StoreUnavailable(place.host, "a bulk write was not confirmed")
    first = failures[0].get("errmsg", "") if failures else "a bulk write failed"
    return StoreError(f"MongoDB at {place.host}: {first}")


def _brief(error: BaseException) -> str:
    """Returns the cause without the driver's dump of the whole topology."""
    text = str(error).split(" (configured timeouts")[0].split(", Timeout:")[0].split(", full error")[0]
    return " ".join(text.split()) or type(error).__name__
