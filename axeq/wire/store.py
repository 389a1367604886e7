"""Where jobs live: a database, the clients that reach it, the server's clock and what it can do."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar
from urllib.parse import unquote
from weakref import WeakKeyDictionary

from pymongo.asynchronous.change_stream import AsyncChangeStream
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.asynchronous.mongo_client import AsyncMongoClient
from pymongo.client_session import ClientSession
from pymongo.database import Database
from pymongo.errors import CollectionInvalid, InvalidURI
from pymongo.errors import ConfigurationError as DriverConfigurationError
from pymongo.synchronous.mongo_client import MongoClient
from pymongo.write_concern import WriteConcern

from axeq.documents.codec import Codec
from axeq.documents.record import Document
from axeq.documents.settings import duration, setting
from axeq.wire.capabilities import Capabilities, from_hello
from axeq.wire.changes import Changes
from axeq.wire.clients import Clients, forget_ended, host_of
from axeq.wire.lock import ProcessLock
from axeq.wire.wire import ISOLATIONS, JOBS, AsyncWire, Op, Place, SyncWire
from axeq.words.clock import Clock, LocalClock, ServerClock
from axeq.words.duration import Duration
from axeq.words.errors import ConfigurationError, ServerUnsuitable, redact

__all__ = ["Store", "in_progress"]

if TYPE_CHECKING:
    from axeq.wire.embedded import Embedded
    from axeq.wire.simulated import SimulatedWire

T = TypeVar("T")

_DEFAULT_DATABASE = "axeq"
_LONGEST_DATABASE = 63
_DATABASE = re.compile(r'[^\s./\\$"\0]+')
_COLLECTION = re.compile(r"(?!.{201})[^.$\0]+(\.[^.$\0]+)*", re.DOTALL)
_UNESCAPED = (
    "the URI has an @ after the first / or ? behind its scheme: a user name and a password in it must be "
    "percent-encoded, as by urllib.parse.quote_plus, and so must an @ anywhere else"
)
_SIMULATED = Capabilities(streams=False, transactions=False, clock=False, freed_labels=True, version="mongomock")


class Store:
    """A MongoDB database that holds jobs.

    `target` is a URI, a pymongo `MongoClient`, `Database`, `AsyncMongoClient` or `AsyncDatabase`, a Motor
    client or database, a mongomock client or database, or `embedded:PATH` for a server that axeq runs itself on
    data in PATH. `database` overrides the one that the target names
    (default "axeq"); `collection`, default "jobs", holds the jobs and prefixes axeq's other collections.
    `timeout` (`timedelta` or seconds, default 10 s) is the deadline of every command. `codec`, an object with
    `encode(bytes)` and `decode(bytes)`, seals payloads, results and the texts of failures, as by encryption
    (docs/security.md). Nothing is connected before the first use. Raises `ConfigurationError` for a target that
    it cannot use.

    Left out, these are what the environment says: `AXEQ_URI`, `AXEQ_DATABASE` (where no `target` names one),
    `AXEQ_COLLECTION`, `AXEQ_TIMEOUT`.
    """

    def __init__(
        self,
        target: Any = None,
        *,
        database: str | None = None,
        collection: str | None = None,
        timeout: Duration | None = None,
        codec: Codec | None = None,
    ) -> None:
        self.codec = _checked_codec(codec)
        self._given: Any
        self._given, found = _environment_target() if target is None else (target, _found(target))
        name = _named(found, given=target is not None) if database is None else database
        jobs = setting("AXEQ_COLLECTION", "jobs") if collection is None else collection
        _check_names(name, jobs)
        deadline = duration(timeout, "timeout", "AXEQ_TIMEOUT", 10.0, zero=False)
        self.place = Place(name, jobs, found.host, deadline, min(found.selection, deadline))
        self.clock: Clock = ServerClock() if found.mock is None else LocalClock()
        self._lock = ProcessLock()
        self._listeners: list[Callable[[Sequence[Document]], None]] = []
        self._changes = Changes()
        self._sync_wire: SyncWire | None = None
        self._async_wires: WeakKeyDictionary[asyncio.AbstractEventLoop, AsyncWire] = WeakKeyDictionary()
        self._embedded: Embedded | None = None
        self._embedded_path = found.embedded
        self._clients = Clients(found.arguments, given=found.client) if found.arguments else None
        self._capabilities = None if found.mock is None else _SIMULATED
        self._simulated = None if found.mock is None else _simulated(found.mock[name], self.place, self.clock)

    @property
    def simulated(self) -> bool:
        """Whether the store is a stand-in inside this process (mongomock): polled, without transactions."""
        return self._simulated is not None

    @property
    def portable(self) -> bool:
        """Whether the store can go to another process: made from a URI, not from a client."""
        return isinstance(self._given, str)

    def run(self, op: Op[T], *, session: Any = None) -> T:
        """Runs a rule and returns what it returns; with a sync `session` inside that session's transaction."""
        if self._simulated is not None:
            self._refuse_session(session)
            return self._simulated.run(op)
        if session is None:
            return self.sync_wire().run(op)
        session = _sync_session(session)
        return self._joined(session).run(op)

    async def arun(self, op: Op[T], *, session: Any = None) -> T:
        """Runs a rule on the running loop; with an async or Motor `session` inside that session's transaction."""
        if self._simulated is not None:
            self._refuse_session(session)
            return await self._simulated.arun(op)
        if session is None:
            return await (await self.async_wire()).run(op)
        session = _async_session(session)
        if isinstance(session, ClientSession):  # Motor's, sync underneath
            return await asyncio.to_thread(self._joined(session).run, op)
        if self.clock.stale:
            await (await self.async_wire()).measure()
        return await AsyncWire(session.client, self.place, self.clock, session=session).run(op)

    async def async_wire(self) -> AsyncWire:
        """Returns the wire of the running loop."""
        clients = self._clients if self._clients is not None else await asyncio.to_thread(self._opened)
        client = clients.asynchronous()
        loop = asyncio.get_running_loop()
        wire = self._async_wires.get(loop)
        if wire is None or wire.client is not client:
            forget_ended(self._async_wires)
            wire = self._async_wires[loop] = AsyncWire(client, self.place, self.clock, changes=self._changes)
        return wire

    def sync_wire(self) -> SyncWire:
        """Returns the wire of this process."""
        client = self._opened().sync()
        wire = self._sync_wire
        if wire is None or wire.client is not client:
            wire = self._sync_wire = SyncWire(client, self.place, self.clock, changes=self._changes)
        return wire

    def sync_client(self) -> MongoClient[Any]:
        """Returns this process's sync client, as the store uses it."""
        if self._simulated is not None:
            raise ServerUnsuitable("mongomock is no server: there is no client to give")
        return self._opened().sync()

    def spare_wire(self, *, timeout: float) -> SyncWire | SimulatedWire:
        """Returns a hurried sync wire with a client of its own, which its user closes; `timeout` in seconds bounds each
        command.
        """
        if self._simulated is not None:
            return self._simulated
        clients = self._opened()
        return SyncWire(clients.spare(), replace(self.place, timeout=timeout), self.clock, hurried=True)

    @asynccontextmanager
    async def watch(
        self, pipeline: list[Mapping[str, Any]], *, max_await: float
    ) -> AsyncIterator[AsyncChangeStream[Any]]:
        """Opens a change stream on the jobs; see `AsyncWire.watch`."""
        async with (await self.async_wire()).watch(pipeline, max_await=max_await) as stream:
            yield stream

    @contextmanager
    def listening(self, heard: Callable[[Sequence[Document]], None]) -> Iterator[None]:
        """Has `heard` called, from any thread, with the jobs that this store's own queues have just stored."""
        self._listeners.append(heard)
        try:
            yield
        finally:
            self._listeners.remove(heard)

    def announce(self, documents: Sequence[Document]) -> None:
        """Tells pools of this process about jobs that have just been stored, so that they need not hear it from the
        server.
        """
        for heard in tuple(self._listeners):
            heard(documents)

    def capabilities(self) -> Capabilities:
        """Returns what the server can do, asked once."""
        if self._capabilities is None:
            wire = self.sync_wire()
            self._capabilities = from_hello(wire.measure(), wire.server_version())
        return self._capabilities

    async def acapabilities(self) -> Capabilities:
        """Returns what the server can do, asked once, on the running loop."""
        if self._capabilities is None:
            wire = await self.async_wire()
            self._capabilities = from_hello(await wire.measure(), await wire.server_version())
        return self._capabilities

    def close(self) -> None:
        """Closes the sync clients that the store opened and leaves the embedded server; given clients stay open."""
        forget_ended(self._async_wires)
        if self._clients is not None:
            self._clients.close()
        with self._lock:
            if self._embedded is not None:
                self._embedded.close()
                self._embedded = self._clients = None

    async def leave_loop(self) -> None:
        """Closes the client that the store opened for the running loop."""
        self._async_wires.pop(asyncio.get_running_loop(), None)
        if self._clients is not None:
            await self._clients.aclose()

    async def aclose(self) -> None:
        """Closes the running loop's client, and all that `close` closes."""
        await self.leave_loop()
        await asyncio.to_thread(self.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def __reduce__(self) -> tuple[Any, ...]:
        if not self.portable:
            raise ConfigurationError("a store made from a client cannot go to another process: make it from a URI")
        return _reopened, (self._given, self.place.database, self.place.collection, self.place.timeout, self.codec)

    def __repr__(self) -> str:
        where = f"embedded:{self._embedded_path}" if self._embedded_path is not None else self.place.host
        return redact(f"<Store {where}/{self.place.database}.{self.place.collection}>")

    def _opened(self) -> Clients:
        with self._lock:
            if self._clients is None:
                assert self._embedded_path is not None
                from axeq.wire.embedded import open_embedded  # only who uses it pays for the import

                self._embedded = open_embedded(self._embedded_path)
                arguments = {"host": self._embedded.uri}
                self.place = replace(self.place, host=host_of(arguments))
                self._clients = Clients(arguments)
                _create_collections(self._clients.sync(), self.place)
            return self._clients

    def _joined(self, session: Any) -> SyncWire:
        if self.clock.stale:
            SyncWire(self._opened().sync(), self.place, self.clock).measure()
        return SyncWire(session.client, self.place, self.clock, session=session)

    def _refuse_session(self, session: Any) -> None:
        if session is not None:
            raise ServerUnsuitable("mongomock has no transactions: leave session= out, or use a replica set")


def _simulated(database: Any, place: Place, clock: Clock) -> SimulatedWire:
    from axeq.wire.simulated import SimulatedWire  # only who uses it pays for the import

    return SimulatedWire(database, place, clock)


def _create_collections(client: MongoClient[Any], place: Place) -> None:
    """Creates the collections that have indexes, where they are not there.

    SecantusDB 0.7.0b3 deadlocks when the first insert and the first index each create one at the same time.
    """
    database = client.get_database(place.database, write_concern=WriteConcern("majority"))
    for collection in (JOBS, ISOLATIONS):
        with suppress(CollectionInvalid):
            database.create_collection(place.name(collection))


def _reopened(target: str, database: str, collection: str, timeout: float, codec: Codec | None) -> Store:
    return Store(target, database=database, collection=collection, timeout=timeout, codec=codec)


@dataclass(frozen=True, slots=True)
class _Found:
    """What a target turned out to be."""

    host: str
    arguments: Mapping[str, Any] | None = None
    client: MongoClient[Any] | AsyncMongoClient[Any] | None = None
    database: str | None = None
    selection: float = float("inf")
    embedded: Path | None = None
    mock: Any = None


def _found(target: Any) -> _Found:
    if isinstance(target, str) and target.startswith("embedded:"):
        path = Path(target.removeprefix("embedded:")).expanduser()
        return _Found(f"embedded:{path}", embedded=path)
    if isinstance(target, str):
        selection = _checked_uri(target)
        arguments = {"host": target}
        return _Found(host_of(arguments), arguments, database=_database_in(target), selection=selection)
    if _comes_from(target, "mongomock"):
        is_client = type(target).__name__ == "MongoClient"
        return _Found(
            "mongomock",
            database=None if is_client else target.name,
            mock=target if is_client else target.client,
        )
    client, database = _client_of(target.delegate if _comes_from(target, "motor") else target)
    arguments = client._init_kwargs  # the driver's own record; it names no public one
    selection = client.options.server_selection_timeout
    return _Found(host_of(arguments), arguments, client, database, selection)


def _environment_target() -> tuple[str, _Found]:
    uri = setting("AXEQ_URI")
    if uri is None:
        raise ConfigurationError(
            'no database named: give one, as in axeq.Store("mongodb://localhost:27017/shop"), or set AXEQ_URI'
        )
    try:
        return uri, _found(uri)
    except ConfigurationError as error:
        raise ConfigurationError(f"AXEQ_URI: {error}") from None


def _named(found: _Found, *, given: bool) -> str:
    """Returns the database; what a target that was `given` names goes before what the environment says."""
    names = [found.database, setting("AXEQ_DATABASE")]
    return next(filter(None, names if given else reversed(names)), _DEFAULT_DATABASE)


def _check_names(database: Any, collection: Any) -> None:
    """Refuses names that the server, or the driver, would refuse at the first use."""
    if not isinstance(database, str) or not _DATABASE.fullmatch(database) or len(database.encode()) > _LONGEST_DATABASE:
        raise ConfigurationError(
            f'database must be text of 1 to {_LONGEST_DATABASE} bytes without space and any of . $ / \\ ", '
            f"not {database!r:.100}"
        )
    if not isinstance(collection, str) or not _COLLECTION.fullmatch(collection) or collection.startswith("system."):
        raise ConfigurationError(
            f"collection must be text of 1 to 200 characters without $, no dot first, last or twice in a row, "
            f"and not of system., not {collection!r:.100}"
        )


def _checked_codec(codec: Codec | None) -> Codec | None:
    if codec is not None and not all(callable(getattr(codec, method, None)) for method in ("encode", "decode")):
        raise ConfigurationError(f"codec must be an object with encode(bytes) and decode(bytes), not a {_kind(codec)}")
    return codec


def _checked_uri(uri: str) -> float:
    """Returns the seconds that the URI gives the search for a server; raises `ConfigurationError` where it is
    no URI.
    """
    if not uri.startswith(("mongodb://", "mongodb+srv://")):
        shown = redact(uri) if "://" in uri else uri[uri.rfind("@") + 1 :]  # all before it may be a password
        raise ConfigurationError(f"{shown!r} is no store: use mongodb://..., mongodb+srv://... or embedded:PATH")
    if "@" in _path_in(uri):
        raise ConfigurationError(_UNESCAPED)
    try:
        with MongoClient[Any](uri, connect=False) as client:
            return float(client.options.server_selection_timeout)
    except (InvalidURI, DriverConfigurationError, ValueError) as error:
        if "@" in uri.partition("?")[2]:  # what the driver quotes may be the rest of a password
            raise ConfigurationError(_UNESCAPED) from None
        raise ConfigurationError(f"{redact(uri)!r}: {error}") from None


def _database_in(uri: str) -> str | None:
    name = unquote(_path_in(uri)).partition(".")[0]
    return name or None


def _path_in(uri: str) -> str:
    # As the driver reads it: a "#" in a password starts no fragment.
    return uri.partition("://")[2].partition("/")[2].partition("?")[0]


def _comes_from(target: Any, package: str) -> bool:
    return type(target).__module__.partition(".")[0] == package


def _client_of(target: Any) -> tuple[MongoClient[Any] | AsyncMongoClient[Any], str | None]:
    if isinstance(target, Database | AsyncDatabase):
        return target.client, target.name
    if isinstance(target, MongoClient | AsyncMongoClient):
        default = target.get_default_database(_DEFAULT_DATABASE)
        return target, default.name
    raise ConfigurationError(
        f"a {type(target).__module__}.{type(target).__qualname__} is no store: "
        "give a URI, a client, a database or embedded:PATH"
    )


def _sync_session(session: Any) -> ClientSession:
    if isinstance(session, ClientSession):
        _refuse_weak(session)
        return session
    raise TypeError(f"Queue takes a pymongo ClientSession, not {_kind(session)}: use AsyncQueue with async sessions")


def _async_session(session: Any) -> AsyncClientSession | ClientSession:
    if isinstance(session, AsyncClientSession):
        _refuse_weak(session)
        return session
    if _comes_from(session, "motor") and isinstance(getattr(session, "delegate", None), ClientSession):
        delegate: ClientSession = session.delegate
        _refuse_weak(delegate)
        return delegate
    raise TypeError(
        f"AsyncQueue takes a pymongo AsyncClientSession or a Motor one, not {_kind(session)}: use Queue with it"
    )


def _refuse_weak(session: ClientSession | AsyncClientSession) -> None:
    """Refuses a transaction that can be rolled back once acknowledged; unset, the server's default is majority."""
    options = session._transaction.opts if session.in_transaction else None
    concern = options.write_concern.document if options is not None and options.write_concern else {}
    if concern.get("w", "majority") != "majority":
        raise ConfigurationError(
            f"the session's transaction asks for write concern {concern['w']!r}: a job could be lost after its commit, "
            'start it with write_concern=WriteConcern("majority")'
        )


def in_progress(session: Any) -> bool:
    """Whether a session's transaction has begun at the server: what was started and has sent nothing has not."""
    session = getattr(session, "delegate", session)
    if not isinstance(session, ClientSession | AsyncClientSession):
        return False
    return session.in_transaction and not session._transaction.starting()  # the driver names no public way to ask


def _kind(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"
