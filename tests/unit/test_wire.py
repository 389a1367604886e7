"""The drivers that run rules, and the driver's failures as axeq's own errors."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import bson
import mongomock
import pytest
from pymongo import errors as driver

import axeq
from axeq.wire import wire
from axeq.wire.wire import (
    JOBS,
    AsyncWire,
    Call,
    Command,
    Find,
    Op,
    Place,
    Sleep,
    SyncWire,
    Transaction,
    adrive,
    drive,
)
from axeq.words.clock import LocalClock, ServerClock
from axeq.words.errors import (
    AccessDenied,
    AxeqError,
    DuplicateKey,
    PayloadInvalid,
    ServerUnsuitable,
    StoreError,
    StoreUnavailable,
)

PLACE = Place("shop", host="db.example:27017")
COMMAND = Find(JOBS, {})


class WatchedClock(LocalClock):
    def __init__(self) -> None:
        self.doubts = 0

    def doubt(self) -> None:
        self.doubts += 1


def translated(error: BaseException, *, session: Any = None, clock: Any = None) -> BaseException:
    """Returns what the wire makes of a failure of the driver."""
    with pytest.raises(BaseException) as raised, wire.translated(PLACE, clock or LocalClock(), session):
        raise error
    return raised.value


def adding() -> Op[int]:
    first = yield Call(JOBS, "count_documents", ({},))
    second = yield Find(JOBS, {})
    return int(first) + len(second)


def surviving() -> Op[str]:
    try:
        yield COMMAND
    except StoreUnavailable as error:
        reply = yield Sleep(0.5)
        return f"{error.host} {reply}"
    return "no error"


def replying(*replies: Any) -> tuple[list[Command], Any]:
    seen: list[Command] = []
    script: Iterator[Any] = iter(replies)

    def execute(command: Command) -> Any:
        seen.append(command)
        reply = next(script)
        if isinstance(reply, BaseException):
            raise reply
        return reply

    return seen, execute


def run_sync(op: Op[Any], execute: Any) -> Any:
    return drive(op, execute)


def run_async(op: Op[Any], execute: Any) -> Any:
    async def aexecute(command: Command) -> Any:
        await asyncio.sleep(0)
        return execute(command)

    return asyncio.run(adrive(op, aexecute))


both = pytest.mark.parametrize("run", [run_sync, run_async], ids=["sync", "async"])


@both
def test_a_rule_is_sent_each_reply_and_its_result_returned(run: Any) -> None:
    seen, execute = replying(3, [{}, {}])

    assert run(adding(), execute) == 5
    assert seen == [Call(JOBS, "count_documents", ({},)), Find(JOBS, {})]


@both
def test_a_failure_is_thrown_into_the_rule_which_may_go_on(run: Any) -> None:
    seen, execute = replying(StoreUnavailable("h", "gone"), None)

    assert run(surviving(), execute) == "h None"
    assert seen == [COMMAND, Sleep(0.5)]


@both
@pytest.mark.parametrize("error", [DuplicateKey(), driver.AutoReconnect("gone")], ids=["axeq's", "the driver's"])
def test_a_failure_that_the_rule_does_not_take_reaches_the_caller(run: Any, error: Exception) -> None:
    _, execute = replying(error)

    with pytest.raises(type(error)) as raised:
        run(adding(), execute)

    assert raised.value is error


@both
def test_a_rule_that_asks_nothing_returns_at_once(run: Any) -> None:
    def silent() -> Op[int]:
        return 7
        yield COMMAND

    assert run(silent(), None) == 7


def test_a_server_that_cannot_be_found_is_told_in_one_line_with_host_and_cause() -> None:
    dump = (
        "db.example:27017: [Errno 111] Connection refused (configured timeouts: socketTimeoutMS: 20000.0ms), "
        "Timeout: 10s, Topology Description: <TopologyDescription id: 65, servers: [<ServerDescription ...>]>"
    )
    error = translated(driver.ServerSelectionTimeoutError(dump))

    assert isinstance(error, StoreUnavailable)
    assert str(error) == "cannot reach MongoDB at db.example:27017: db.example:27017: [Errno 111] Connection refused"
    assert (error.sent, error.host) == (False, "db.example:27017")


@pytest.mark.parametrize(
    ("cause", "sent"),
    [
        (driver.ServerSelectionTimeoutError("no servers found"), False),
        (driver.WaitQueueTimeoutError("no connection free"), False),
        (driver.AutoReconnect("connection closed"), True),
        (driver.NetworkTimeout("timed out"), True),
        (driver.NotPrimaryError("not primary"), True),
        (driver.ExecutionTimeout("operation exceeded time limit", 50), True),
        (driver.WTimeoutError("waiting for replication timed out", 64), True),
        (driver.OperationFailure("node is recovering", 13436), True),
        (driver.OperationFailure("interrupted at shutdown", 11600), True),
        (driver.BulkWriteError({"writeErrors": [], "writeConcernErrors": [{"code": 64}]}), True),
        (driver.BulkWriteError({"writeErrors": [{"index": 0, "code": 91}]}), True),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_passing_failure_says_whether_the_command_may_have_been_carried_out(cause: Exception, sent: bool) -> None:
    error = translated(cause)

    assert isinstance(error, StoreUnavailable)
    assert error.sent is sent
    assert "\n" not in str(error)


@pytest.mark.parametrize(
    "cause",
    [driver.ServerSelectionTimeoutError("no servers found"), driver.WaitQueueTimeoutError("no connection free")],
    ids=lambda value: type(value).__name__,
)
def test_a_commit_that_is_repeated_in_vain_may_have_been_carried_out_by_its_first_try(
    cause: driver.AutoReconnect,
) -> None:
    cause._add_error_label("UnknownTransactionCommitResult")

    error = translated(cause)

    assert isinstance(error, StoreUnavailable)
    assert error.sent is True


def test_a_passing_failure_has_the_servers_time_measured_anew() -> None:
    clock = WatchedClock()

    translated(driver.NotPrimaryError("not primary"), clock=clock)

    assert clock.doubts == 1


@pytest.mark.parametrize("code", [13, 18, 8000])
def test_a_refused_account_is_told_without_the_servers_whole_reply(code: int) -> None:
    cause = driver.OperationFailure("not authorized on shop, full error: {'ok': 0}", code, {"ok": 0})

    error = translated(cause)

    assert isinstance(error, AccessDenied)
    assert str(error) == "MongoDB at db.example:27017 refused access: not authorized on shop"


def test_a_duplicate_key_is_told_as_such() -> None:
    error = translated(driver.DuplicateKeyError("E11000 duplicate key", 11000))

    assert isinstance(error, DuplicateKey)
    assert error.positions == (0,)


def test_duplicate_keys_of_a_batch_name_their_positions() -> None:
    failures = [{"index": 1, "code": 11000}, {"index": 4, "code": 11000}]

    error = translated(driver.BulkWriteError({"writeErrors": failures}))

    assert isinstance(error, DuplicateKey)
    assert error.positions == (1, 4)


def test_a_batch_that_failed_for_another_reason_as_well_is_no_duplicate() -> None:
    failures = [{"index": 0, "code": 11000, "errmsg": "E11000"}, {"index": 1, "code": 121, "errmsg": "invalid"}]

    error = translated(driver.BulkWriteError({"writeErrors": failures}))

    assert type(error) is StoreError


def test_duplicates_that_the_majority_has_not_confirmed_are_not_taken_as_stored() -> None:
    details = {"writeErrors": [{"index": 0, "code": 11000}], "writeConcernErrors": [{"code": 64}]}

    assert isinstance(translated(driver.BulkWriteError(details)), StoreUnavailable)


def test_any_other_failure_of_the_server_is_a_store_error() -> None:
    error = translated(driver.OperationFailure("unknown operator: $foo, full error: {'ok': 0}", 2))

    assert type(error) is StoreError
    assert str(error) == "MongoDB at db.example:27017: unknown operator: $foo"


@pytest.mark.parametrize(
    "cause", [driver.DocumentTooLarge("too large"), bson.errors.InvalidDocument("no place"), OverflowError("8 bytes")]
)
def test_a_document_that_cannot_be_sent_is_an_invalid_payload(cause: Exception) -> None:
    assert isinstance(translated(cause), PayloadInvalid)


@pytest.mark.parametrize(
    "cause",
    [
        driver.AutoReconnect("gone"),
        driver.OperationFailure("write conflict", 112),
        driver.OperationFailure("not authorized", 13),
        driver.ServerSelectionTimeoutError("no servers"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_in_a_transaction_the_drivers_errors_pass_through_with_their_labels(cause: driver.PyMongoError) -> None:
    cause._add_error_label("TransientTransactionError")

    error = translated(cause, session=object())

    assert error is cause
    assert cause.has_error_label("TransientTransactionError")


def test_in_a_transaction_a_failed_batch_passes_through_with_its_labels() -> None:
    cause = driver.BulkWriteError({"writeErrors": [{"index": 0, "code": 112, "errmsg": "conflict"}]})

    assert translated(cause, session=object()) is cause


def test_in_a_transaction_a_duplicate_key_is_still_an_answer_for_the_rule() -> None:
    assert isinstance(translated(driver.DuplicateKeyError("E11000", 11000), session=object()), DuplicateKey)


@pytest.mark.parametrize("error", [KeyError("bug"), asyncio.CancelledError()], ids=["a bug", "a cancellation"])
def test_what_is_no_failure_of_the_driver_is_left_as_it_is(error: BaseException) -> None:
    assert translated(error) is error


@pytest.mark.parametrize("run", ["run", "arun"])
def test_a_store_without_transactions_says_so_and_writes_nothing(run: str) -> None:
    store = axeq.Store(mongomock.MongoClient().db)

    def inserting() -> Op[None]:
        yield Call(JOBS, "insert_one", ({"_id": 1},))

    def rule() -> Op[None]:
        yield Transaction(inserting)

    with pytest.raises(ServerUnsuitable, match="transactions"):
        store.run(rule()) if run == "run" else asyncio.run(store.arun(rule()))

    assert store.run(_counted()) == 0


def _counted() -> Op[int]:
    return (yield Call(JOBS, "count_documents", ({},)))


def test_no_error_of_the_wire_shows_credentials() -> None:
    cause = driver.OperationFailure("cannot parse mongodb://ann:s3cret@h/db", 9)

    error = translated(cause)

    assert isinstance(error, AxeqError)
    assert "s3cret" not in str(error)


def test_axeqs_other_collections_stand_beside_the_jobs() -> None:
    place = Place("shop", "tasks")

    assert (place.name(JOBS), place.name(wire.CONTROL)) == ("tasks", "tasks.control")


class SlowAtFirst:
    """Stands for a client that has to connect: its first command takes three seconds of `ticks`, each other a
    millisecond.
    """

    def __init__(self) -> None:
        self.now = 100.0
        self.hellos = 0
        self.admin = self

    def get_database(self, *_: Any, **__: Any) -> Any:
        return None

    def command(self, name: str) -> dict[str, Any]:
        assert name == "hello"
        self.hellos += 1
        self.now += 3.0 if self.hellos == 1 else 0.001
        return {"localTime": datetime(2026, 5, 4, 12, tzinfo=UTC) + timedelta(seconds=self.now)}


class SlowAtFirstAsync(SlowAtFirst):
    async def command(self, name: str) -> dict[str, Any]:  # type: ignore[override]
        return super().command(name)


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_the_time_it_takes_to_connect_does_not_make_the_clock_vague(kind: str) -> None:
    client: Any = SlowAtFirst() if kind == "sync" else SlowAtFirstAsync()
    clock = ServerClock(monotonic=lambda: client.now)

    if kind == "sync":
        SyncWire(client, PLACE, clock).measure()
    else:
        asyncio.run(AsyncWire(client, PLACE, clock).measure())

    assert clock.latest() - clock.earliest() <= timedelta(milliseconds=2)
    assert client.hellos == 2
