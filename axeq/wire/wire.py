"""How rules reach the server: the commands they yield, and the drivers that carry them out.

This is the one place that knows sync from async. A rule is a generator of commands; `drive` and `adrive` run
any of them. Failures of the driver are thrown into the rule as axeq's own errors, so that rules know nothing of
pymongo.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar

import bson
import pymongo
from bson.raw_bson import RawBSONDocument
from pymongo import errors as driver
from pymongo.asynchronous.change_stream import AsyncChangeStream
from pymongo.asynchronous.mongo_client import AsyncMongoClient
from pymongo.read_concern import ReadConcern
from pymongo.read_preferences import ReadPreference
from pymongo.synchronous.mongo_client import MongoClient
from pymongo.write_concern import WriteConcern

from axeq.documents.codec import CODEC_OPTIONS
from axeq.wire.changes import Changes
from axeq.wire.commands import (
    CONTROL,
    ISOLATIONS,
    JOBS,
    WORKERS,
    Call,
    Change,
    Command,
    Find,
    Merge,
    Op,
    Place,
    Sleep,
    Transaction,
    Update,
)
from axeq.wire.translation import translated
from axeq.words.clock import LONG_READING, Clock
from axeq.words.errors import AxeqError

__all__ = [
    "CONTROL",
    "ISOLATIONS",
    "JOBS",
    "TERMS",
    "WORKERS",
    "AsyncWire",
    "Call",
    "Change",
    "Command",
    "Find",
    "Merge",
    "Op",
    "Place",
    "Sleep",
    "SyncWire",
    "Transaction",
    "Update",
    "adrive",
    "drive",
    "translated",
]

C = TypeVar("C")
T = TypeVar("T")

_LISTING = frozenset(("aggregate", "list_indexes"))
"""Methods whose reply is a cursor: rules get the list."""
_MOST_MERGED = 50
"""How many documents one statement of a merge changes: the search for a document's own fields is linear."""
_LARGEST_MERGE = 8 * 1024 * 1024
"""In bytes of BSON, half of what a statement may have."""


def drive(op: Generator[C, Any, T], execute: Callable[[C], Any]) -> T:
    """Runs a rule to its end and returns what it returns."""
    try:
        command = next(op)
        while True:
            try:
                reply = execute(command)
            except (AxeqError, driver.PyMongoError) as error:
                command = op.throw(error)
            else:
                command = op.send(reply)
    except StopIteration as stop:
        result: T = stop.value
        return result


async def adrive(op: Generator[C, Any, T], execute: Callable[[C], Awaitable[Any]]) -> T:
    """Runs a rule to its end and returns what it returns; `execute` is awaited."""
    try:
        command = next(op)
        while True:
            try:
                reply = await execute(command)
            except (AxeqError, driver.PyMongoError) as error:
                command = op.throw(error)
            else:
                command = op.send(reply)
    except StopIteration as stop:
        result: T = stop.value
        return result


class _Handles:
    """The collections of a place through one client, with axeq's own options and never the client's."""

    def __init__(self, client: Any, place: Place) -> None:
        self._database = client.get_database(
            place.database,
            codec_options=CODEC_OPTIONS,
            read_preference=ReadPreference.PRIMARY,
            write_concern=WriteConcern("majority"),
            read_concern=ReadConcern("majority"),
        )
        self._place = place
        self._known: dict[str, Any] = {}

    def __getitem__(self, collection: str) -> Any:
        handle = self._known.get(collection)
        if handle is None:
            handle = self._known[collection] = self._database.get_collection(self._place.name(collection))
        return handle


class _Wire(Generic[T]):
    """What both wires know: the client, the place, the clock, and the session of a transaction."""

    def __init__(
        self,
        client: T,
        place: Place,
        clock: Clock,
        *,
        session: Any = None,
        changes: Changes | None = None,
        hurried: bool = False,
    ) -> None:
        self.client = client
        self.clock = clock
        self._hurried = hurried
        self._place = place
        self._session = session
        self._changes = changes
        self._handles = _Handles(client, place)


class SyncWire(_Wire[MongoClient[Any]]):
    """Runs rules on a `MongoClient`; `hurried`, it asks for the server's time only where nothing is sure of it.

    With a `session`, every command joins its transaction, under the session's own concerns, and the driver's
    own errors pass through unchanged, so that their transaction labels still work.
    """

    def run(self, op: Op[T]) -> T:
        """Runs a rule, asking the server for its time first where that is stale."""
        topology = self.client.topology_description
        self.clock.follow(topology.max_election_id)
        if self._place.selection < self._place.timeout and not topology.has_writable_server():
            self._find_server()
        if self.clock.unsure if self._hurried else self.clock.stale:
            self.measure()
        return drive(op, self._execute)

    def close(self) -> None:
        """Closes the client; for a wire that has one of its own."""
        self.client.close()

    def measure(self) -> Mapping[str, Any]:
        """Takes a reading of the server's clock and returns its `hello`; a second one where the first took long, for
        that may have had to find the server and to connect.
        """
        hello, seconds = self._read_clock()
        return hello if seconds <= LONG_READING else self._read_clock()[0]

    def _read_clock(self) -> tuple[Mapping[str, Any], float]:
        with translated(self._place, self.clock), pymongo.timeout(self._place.timeout):
            sent = self.clock.monotonic()
            hello = self.client.admin.command("hello")
            return hello, _observe(self.clock, hello, sent)

    def server_version(self) -> str:
        """Returns the server's version."""
        with translated(self._place, self.clock), pymongo.timeout(self._place.timeout):
            return str(self.client.server_info().get("version", "unknown"))

    def _find_server(self) -> None:
        # A command's deadline would override the time that the URI gives the search.
        with translated(self._place, self.clock), pymongo.timeout(self._place.selection):
            self.client.admin.command("ping")

    def _execute(self, command: Command) -> Any:
        if isinstance(command, Sleep):
            time.sleep(command.seconds)
            return None
        if isinstance(command, Transaction):
            return self._transact(command)
        if isinstance(command, Change):
            return self._await_change(command)
        with translated(self._place, self.clock, self._session), pymongo.timeout(_deadline(command, self._place)):
            collection = self._handles[command.collection]
            if isinstance(command, Find):
                return list(_cursor(collection, command, self._session))
            reply = getattr(collection, command.method)(*_arguments(command), **_options(command, self._session))
            return list(reply) if command.method in _LISTING else reply

    def _await_change(self, command: Change) -> Any:
        if self._changes is None:
            return None
        execute = self._execute
        return self._changes.follow(
            self._handles[JOBS], command.ids, lambda: drive(command.look(), execute), command.seconds
        )

    def _transact(self, command: Transaction) -> Any:
        if self._session is not None:
            return drive(command.rule(), self._execute)
        limit = _deadline(command, self._place)
        with translated(self._place, self.clock), pymongo.timeout(limit), self.client.start_session() as session:
            joined = SyncWire(self.client, self._place, self.clock, session=session)
            return session.with_transaction(lambda _: drive(command.rule(), joined._execute), **TERMS)


class AsyncWire(_Wire[AsyncMongoClient[Any]]):
    """Runs rules on an `AsyncMongoClient`, in the loop that it belongs to. Otherwise as `SyncWire`."""

    async def run(self, op: Op[T]) -> T:
        """Runs a rule, asking the server for its time first where that is stale."""
        topology = self.client.topology_description
        self.clock.follow(topology.max_election_id)
        if self._place.selection < self._place.timeout and not topology.has_writable_server():
            await self._find_server()
        if self.clock.stale:
            await self.measure()
        return await adrive(op, self._execute)

    async def measure(self) -> Mapping[str, Any]:
        """Takes a reading of the server's clock, as `SyncWire.measure`."""
        hello, seconds = await self._read_clock()
        return hello if seconds <= LONG_READING else (await self._read_clock())[0]

    async def _read_clock(self) -> tuple[Mapping[str, Any], float]:
        with translated(self._place, self.clock), pymongo.timeout(self._place.timeout):
            sent = self.clock.monotonic()
            hello = await self.client.admin.command("hello")
            return hello, _observe(self.clock, hello, sent)

    async def server_version(self) -> str:
        """Returns the server's version."""
        with translated(self._place, self.clock), pymongo.timeout(self._place.timeout):
            return str((await self.client.server_info()).get("version", "unknown"))

    @asynccontextmanager
    async def watch(
        self, pipeline: list[Mapping[str, Any]], *, max_await: float
    ) -> AsyncIterator[AsyncChangeStream[Any]]:
        """Opens a change stream on the jobs; each read of it waits at most `max_await` seconds at the server."""
        with translated(self._place, self.clock):
            stream = await self._handles[JOBS].watch(pipeline, max_await_time_ms=int(max_await * 1000))
            try:
                yield stream
            finally:
                await stream.close()

    async def _find_server(self) -> None:
        with translated(self._place, self.clock), pymongo.timeout(self._place.selection):
            await self.client.admin.command("ping")

    async def _execute(self, command: Command) -> Any:
        if isinstance(command, Sleep):
            await asyncio.sleep(command.seconds)
            return None
        if isinstance(command, Transaction):
            return await self._transact(command)
        if isinstance(command, Change):
            return await self._await_change(command)
        with translated(self._place, self.clock, self._session), pymongo.timeout(_deadline(command, self._place)):
            collection = self._handles[command.collection]
            if isinstance(command, Find):
                return await _cursor(collection, command, self._session).to_list(None)
            reply = await getattr(collection, command.method)(*_arguments(command), **_options(command, self._session))
            return await reply.to_list(None) if command.method in _LISTING else reply

    async def _await_change(self, command: Change) -> Any:
        if self._changes is None:
            return None
        execute = self._execute
        return await self._changes.afollow(
            self._handles[JOBS], command.ids, lambda: adrive(command.look(), execute), command.seconds
        )

    async def _transact(self, command: Transaction) -> Any:
        if self._session is not None:
            return await adrive(command.rule(), self._execute)
        limit = _deadline(command, self._place)
        with translated(self._place, self.clock), pymongo.timeout(limit):
            async with self.client.start_session() as session:
                joined = AsyncWire(self.client, self._place, self.clock, session=session)
                return await session.with_transaction(lambda _: adrive(command.rule(), joined._execute), **TERMS)


TERMS: Mapping[str, Any] = {
    "read_concern": ReadConcern("snapshot"),
    "write_concern": WriteConcern("majority"),
    "read_preference": ReadPreference.PRIMARY,
}
"""On which terms axeq's own transactions run, whatever the client's are."""


def _deadline(command: Call | Find | Transaction, place: Place) -> float:
    timeout = None if isinstance(command, Find) else command.timeout
    return place.timeout if timeout is None else timeout


def _cursor(collection: Any, command: Find, session: Any) -> Any:
    # One more than the limit lets the server close the cursor with the first reply.
    return collection.find(
        command.filter,
        command.projection,
        sort=command.sort,
        limit=command.limit,
        skip=command.skip,
        batch_size=command.limit + 1 if command.limit else 0,
        session=session,
    )


def _arguments(command: Call) -> tuple[Any, ...]:
    if command.method == "bulk_write":
        writes: Sequence[Update | Merge] = command.args[0]
        return ([statement for entry in writes for statement in _statements(entry)],)
    if command.method == "create_indexes":
        return ([_index_model(specification) for specification in command.args[0]],)
    return command.args


def _statements(entry: Update | Merge) -> Iterator[pymongo.UpdateOne | pymongo.UpdateMany]:
    if isinstance(entry, Update):
        yield (pymongo.UpdateMany if entry.many else pymongo.UpdateOne)(entry.filter, entry.update)
        return
    for part in _parts(entry.fields):
        ids = list(part)
        # Each document finds its own fields by its place among the ids; a literal is stored and never evaluated.
        own = {"$arrayElemAt": [{"$literal": list(part.values())}, {"$indexOfArray": [{"$literal": ids}, "$_id"]}]}
        merged = {"$replaceWith": {"$mergeObjects": ["$$ROOT", own]}}
        yield pymongo.UpdateMany({**entry.filter, "_id": {"$in": ids}}, [merged, {"$unset": list(entry.unset)}])


def _parts(fields: Mapping[Any, Mapping[str, Any]]) -> Iterator[dict[Any, Mapping[str, Any]]]:
    """Splits a merge into parts that a statement can hold, encoded once."""
    part: dict[Any, Mapping[str, Any]] = {}
    length = 0
    for identity, own in fields.items():
        encoded = bson.encode(own, codec_options=CODEC_OPTIONS)
        if part and (len(part) == _MOST_MERGED or length + len(encoded) > _LARGEST_MERGE):
            yield part
            part, length = {}, 0
        part[identity] = RawBSONDocument(encoded)
        length += len(encoded)
    yield part


def _index_model(specification: Mapping[str, Any]) -> pymongo.IndexModel:
    options = {key: value for key, value in specification.items() if key != "key"}
    return pymongo.IndexModel(list(specification["key"].items()), **options)


def _options(command: Call, session: Any) -> Mapping[str, Any]:
    return command.kwargs if session is None else {**command.kwargs, "session": session}


def _observe(clock: Clock, hello: Mapping[str, Any], sent: float) -> float:
    """Feeds a reading to the clock, and returns how many seconds it took."""
    received = clock.monotonic()
    moment = hello.get("localTime")
    if isinstance(moment, datetime):
        clock.observe(moment if moment.tzinfo else moment.replace(tzinfo=UTC), sent, received)
    else:
        clock.observe(datetime.now(UTC), sent, received)
    return received - sent
