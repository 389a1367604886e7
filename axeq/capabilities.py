"""What a server can do: a cheap answer from its greeting, a deep one by trying. It knows nothing of jobs."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pymongo
from pymongo.client_session import ClientSession
from pymongo.collection import Collection
from pymongo.errors import ConnectionFailure, DuplicateKeyError, OperationFailure, PyMongoError

from axeq.errors import AccessDenied, StoreUnavailable

__all__ = ["Capabilities", "from_hello", "probe"]

_STEP_DEADLINE = 10.0
_DENIED = frozenset({13, 18})


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
    Raises `StoreUnavailable` when no server answers, `AccessDenied` when it refuses the account.
    """
    promised = _greet(client)
    scratch = client[database][f"axeq_probe_{uuid.uuid4().hex}"]
    try:
        return Capabilities(
            streams=_holds(scratch, _streams),
            transactions=_holds(scratch, _transactions),
            clock=promised.clock,
            freed_labels=_holds(scratch, _freed_labels),
            version=promised.version,
        )
    finally:
        with suppress(PyMongoError), pymongo.timeout(_STEP_DEADLINE):
            scratch.drop()


def _greet(client: pymongo.MongoClient[dict[str, Any]]) -> Capabilities:
    patience = min(_STEP_DEADLINE, client.options.server_selection_timeout)
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


def _holds(scratch: Collection[dict[str, Any]], step: Callable[[Collection[dict[str, Any]]], bool]) -> bool:
    try:
        with pymongo.timeout(_STEP_DEADLINE):
            return step(scratch)
    except ConnectionFailure:
        # A server that only hung up on this step still greets; one that is gone raises here.
        _greet(scratch.database.client)
        return False
    except PyMongoError:
        return False


def _streams(scratch: Collection[dict[str, Any]]) -> bool:
    scratch.insert_one({"_id": "before"})
    until = time.monotonic() + _STEP_DEADLINE
    with scratch.watch(max_await_time_ms=200) as stream:
        scratch.insert_one({"_id": "seen"})
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
