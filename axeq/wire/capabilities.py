"""What a server can do: a cheap answer from its greeting, a deep one by trying. It knows nothing of jobs."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pymongo
from bson.int64 import Int64
from pymongo.client_session import ClientSession
from pymongo.collection import Collection
from pymongo.errors import ConnectionFailure, DuplicateKeyError, OperationFailure, PyMongoError
from pymongo.write_concern import WriteConcern

from axeq.words.errors import AccessDenied, StoreUnavailable

__all__ = ["ANSWER_DEADLINE", "Capabilities", "Finding", "examine", "from_hello", "probe"]

ANSWER_DEADLINE = 10.0
"""Seconds that a server has for each step."""
_SEEN_WITHIN = ANSWER_DEADLINE / 2
_DENIED = frozenset({13, 18})
_Step = Callable[[Collection[dict[str, Any]]], bool]


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a server can do for axeq.

    `streams`: change streams. `transactions`: multi-document transactions. `clock`: it tells its time.
    `freed_labels`: a partial unique index frees its key when an update leaves the filter; None: not probed.
    `version`: what the server calls its version.
    """

    streams: bool
    transactions: bool
    clock: bool
    freed_labels: bool | None
    version: str


@dataclass(frozen=True, slots=True)
class Finding:
    """What a try at a server showed: whether it `holds` that it does `what`, None where there was no answer in time,
    and where not, what follows. axeq relies on what is `needed`.
    """

    what: str
    holds: bool | None
    without: str
    needed: bool = True


def from_hello(hello: Mapping[str, Any], version: str) -> Capabilities:
    """Returns what the reply to `hello` promises, without trying any of it."""
    replicated = "setName" in hello or hello.get("msg") == "isdbgrid"
    return Capabilities(
        streams=replicated,
        transactions=replicated,
        clock=isinstance(hello.get("localTime"), datetime),
        freed_labels=None,
        version=version,
    )


def probe(client: pymongo.MongoClient[dict[str, Any]], database: str) -> Capabilities:
    """Returns what the server really does, tried in a scratch collection of `database` and then dropped.

    Each step has 10 s; one that fails makes its capability False.
    Raises `StoreUnavailable` when no server answers in time, `AccessDenied` when it refuses the account.
    """
    promised = _greet(client)
    with _scratch(client, database, "axeq_probe") as scratch:
        return Capabilities(
            streams=_holds_now(scratch, _streams),
            transactions=_holds_now(scratch, _transactions),
            clock=promised.clock,
            freed_labels=_holds_now(scratch, _freed_labels),
            version=promised.version,
        )


def examine(client: pymongo.MongoClient[dict[str, Any]], database: str, *, prefix: str) -> list[Finding]:
    """Returns what the server does of all that axeq relies on or makes use of, each tried.

    As `probe`, in a scratch collection whose name begins with `prefix`.
    """
    clock = _greet(client).clock
    findings = [Finding("tells its time", clock, "this machine's clock decides when jobs are due")]
    for what, step, without, needed in _STEPS:
        with _scratch(client, database, f"{prefix}.probe") as scratch:
            findings.append(Finding(what, _holds(scratch, step), without, needed))
    return findings


@contextmanager
def _scratch(client: pymongo.MongoClient[Any], database: str, prefix: str) -> Iterator[Collection[dict[str, Any]]]:
    scratch = client[database][f"{prefix}_{uuid.uuid4().hex}"]
    try:
        yield scratch
    finally:
        with suppress(PyMongoError), pymongo.timeout(ANSWER_DEADLINE):
            scratch.drop()


def _greet(client: pymongo.MongoClient[dict[str, Any]]) -> Capabilities:
    patience = min(ANSWER_DEADLINE, client.options.server_selection_timeout)
    try:
        with pymongo.timeout(patience):
            hello = client.admin.command("hello")
            version = client.admin.command("buildInfo").get("version", "unknown")
    except OperationFailure as error:
        if error.code in _DENIED:
            raise AccessDenied(_host(client), error) from error
        raise StoreUnavailable(_host(client), error) from error
    except PyMongoError as error:
        raise StoreUnavailable(_host(client), error) from error
    return from_hello(hello, str(version))


def _host(client: pymongo.MongoClient[dict[str, Any]]) -> str:
    seeds = client.topology_description.server_descriptions()
    return ",".join(f"{host}:{port}" if port else host for host, port in sorted(seeds, key=str)) or "(no host)"


def _holds_now(scratch: Collection[dict[str, Any]], step: _Step) -> bool:
    holds = _holds(scratch, step)
    if holds is None:
        raise StoreUnavailable(_host(scratch.database.client), f"no answer within {ANSWER_DEADLINE:g} s")
    return holds


def _holds(scratch: Collection[dict[str, Any]], step: _Step) -> bool | None:
    """Returns whether a step shows what it is for, or None where it has no answer in time."""
    try:
        with pymongo.timeout(ANSWER_DEADLINE):
            return step(scratch)
    except ConnectionFailure as error:
        # A server that only hung up on this step still greets; one that is gone raises here.
        _greet(scratch.database.client)
        return None if error.timeout else False
    except PyMongoError as error:
        return None if error.timeout else False


def _streams(scratch: Collection[dict[str, Any]]) -> bool:
    scratch.insert_one({"_id": "before"})
    with scratch.watch(max_await_time_ms=200) as stream:
        scratch.insert_one({"_id": "seen"})
        until = time.monotonic() + _SEEN_WITHIN
        while time.monotonic() < until:
            change = stream.try_next()
            if change is not None:
                return bool(change["operationType"] == "insert" and change["documentKey"]["_id"] == "seen")
    return False


def _transactions(scratch: Collection[dict[str, Any]]) -> bool:
    # A collection made inside a transaction needs MongoDB 4.4 and is not what is asked here.
    scratch.update_one({"_id": "outside"}, {"$set": {"kept": True}}, upsert=True)
    with scratch.database.client.start_session() as session:
        isolated = _insert_and_abort(scratch, session)
    return isolated and scratch.find_one({"_id": "aborted"}) is None


def _insert_and_abort(scratch: Collection[dict[str, Any]], session: ClientSession) -> bool:
    session.start_transaction()
    try:
        scratch.insert_one({"_id": "aborted"}, session=session)
        return scratch.find_one({"_id": "aborted"}) is None
    finally:
        session.abort_transaction()


def _freed_labels(scratch: Collection[dict[str, Any]]) -> bool:
    scratch.create_index(
        [("name", 1), ("label", 1)],
        unique=True,
        partialFilterExpression={"label": {"$exists": True}, "available_at": {"$exists": True}},
    )
    due = datetime(2000, 1, 1, tzinfo=UTC)
    held = {"name": "probe", "label": "held", "available_at": due}
    scratch.insert_one({"_id": "first", **held})
    if not _refused(lambda: scratch.insert_one({"_id": "second", **held})):
        return False
    scratch.update_one({"_id": "first"}, {"$unset": {"available_at": ""}})
    if _refused(lambda: scratch.insert_one({"_id": "second", **held})):
        return False
    if not _refused(lambda: scratch.update_one({"_id": "first"}, {"$set": {"available_at": due}})):
        return False
    return scratch.count_documents({"available_at": {"$exists": True}, "name": "probe"}) == 1


def _refused(write: Callable[[], object]) -> bool:
    try:
        write()
    except DuplicateKeyError:
        return True
    return False


def _exclusive(scratch: Collection[dict[str, Any]]) -> bool:
    scratch.insert_many([{"_id": number, "free": True} for number in range(_CONTESTED)])

    def claim(_: int) -> int:
        with pymongo.timeout(ANSWER_DEADLINE):
            tries = (
                scratch.find_one_and_update({"_id": number, "free": True}, {"$set": {"free": False}})
                for number in range(_CONTESTED)
            )
            return sum(document is not None for document in tries)

    with ThreadPoolExecutor(_RIVALS) as rivals:
        return sum(rivals.map(claim, range(_RIVALS))) == _CONTESTED


def _many_exclusive(scratch: Collection[dict[str, Any]]) -> bool:
    scratch.insert_many([{"_id": number, "free": True} for number in range(_CONTESTED)])

    def claim(rival: int) -> int:
        with pymongo.timeout(ANSWER_DEADLINE):
            query = {"_id": {"$in": list(range(_CONTESTED))}, "free": True}
            return scratch.update_many(query, {"$set": {"free": False, "rival": rival}}).matched_count

    with ThreadPoolExecutor(_RIVALS) as rivals:
        claimed = list(rivals.map(claim, range(_RIVALS)))
    return claimed == [scratch.count_documents({"rival": rival}) for rival in range(_RIVALS)]


def _ordered(scratch: Collection[dict[str, Any]]) -> bool:
    scratch.create_index([("queue", 1), ("priority", 1), ("due", 1)])
    scratch.insert_many(
        {"_id": number, "queue": number % 2, "priority": number % 3, "due": -number} for number in range(60)
    )
    found = scratch.find({"queue": 1, "due": {"$lte": -3}}, {"_id": 1}, sort=[("priority", 1), ("due", 1)], limit=5)
    return [document["_id"] for document in found] == [57, 51, 45, 39, 33]


def _counted(scratch: Collection[dict[str, Any]]) -> bool:
    scratch.insert_many([{"_id": number, "kind": number % 2} for number in range(4)])
    change = {"$set": {"changed": True}}
    writes: list[pymongo.UpdateOne | pymongo.UpdateMany] = [
        pymongo.UpdateOne({"_id": 0}, change),
        pymongo.UpdateOne({"_id": "absent"}, change),
        pymongo.UpdateMany({"kind": 1}, change),
    ]
    return scratch.bulk_write(writes, ordered=False).matched_count == 3


def _majority(scratch: Collection[dict[str, Any]]) -> bool:
    safe = scratch.with_options(write_concern=WriteConcern("majority"))
    return safe.insert_one({"_id": "safe"}).acknowledged and scratch.find_one({"_id": "safe"}) is not None


def _retryable(scratch: Collection[dict[str, Any]]) -> bool:
    scratch.insert_one({"_id": "once", "count": 0})
    change = {"q": {"_id": "once"}, "u": {"$inc": {"count": 1}}}
    with scratch.database.client.start_session() as session:
        for _ in range(2):
            command = {"update": scratch.name, "updates": [change], "txnNumber": Int64(1)}
            scratch.database.command(command, session=session)
    return scratch.count_documents({"_id": "once", "count": 1}) == 1


def _expiring(scratch: Collection[dict[str, Any]]) -> bool:
    partial = {"expire_at": {"$exists": True}}
    scratch.create_index([("expire_at", 1)], name="ttl", expireAfterSeconds=0, partialFilterExpression=partial)
    return bool(scratch.index_information()["ttl"].get("expireAfterSeconds") == 0)


def _bounded(scratch: Collection[dict[str, Any]]) -> bool:
    half = "x" * (9 * 1024 * 1024)
    scratch.insert_one({"_id": "large", "half": half})
    try:
        scratch.update_one({"_id": "large"}, {"$set": {"other": half}})
    except OperationFailure:
        return scratch.count_documents({"other": {"$exists": True}}) == 0
    return False


_CONTESTED, _RIVALS = 40, 8

_STEPS: tuple[tuple[str, _Step, str, bool], ...] = (
    ("find-and-modify has one winner", _exclusive, "a job runs in several pools at once", True),
    ("update_many counts what it alone changed", _many_exclusive, "a job runs in several pools at once", True),
    ("finds are filtered, sorted and limited", _ordered, "jobs run in the wrong order", True),
    ("bulk writes count what they matched", _counted, "a lost lease goes unnoticed", True),
    ("majority write concern", _majority, "an acknowledged job can be lost", True),
    ("labels are unique and freed by an update", _freed_labels, "a label stays taken after its job has ended", True),
    ("documents beyond 16 MiB are refused", _bounded, "a job can grow beyond what can be read", True),
    ("TTL index", _expiring, "ended jobs stay for ever", False),
    ("retried writes happen once", _retryable, "a claim whose reply is lost can wait for its lease to end", False),
    ("change streams", _streams, "idle workers poll", False),
    ("transactions", _transactions, "session= is refused: run MongoDB as a replica set", False),
)
