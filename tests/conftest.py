"""The server that tests run on, and stores of every kind on it."""

from __future__ import annotations

import os
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import mongomock
import motor.motor_asyncio
import pymongo
import pytest
from pymongo import pool_shared

import axeq
from axeq.documents.codec import CODEC_OPTIONS
from axeq.wire.capabilities import Capabilities, probe
from axeq.wire.embedded import open_embedded
from tests.support.driver import connect_or_close
from tests.support.features import named_tests
from tests.support.kinds import KINDS, NEEDS, why_not
from tests.support.probe import release_blocked
from tests.support.proofs import Proofs


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Proofs(named_tests()), "proofs")
    config.addinivalue_line("markers", f"kinds(*kinds): of {list(KINDS)}, those that a test's claim depends on")
    config.addinivalue_line("markers", f"needs(*what): of {sorted(NEEDS)}, what the test asks of a store")


@pytest.hookimpl(tryfirst=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Makes of `kinds` the parameters of the fixture `kind`; what a test says itself goes before its module's word."""
    chosen = metafunc.definition.get_closest_marker("kinds")
    said = any("kind" in marker.args[0] for marker in metafunc.definition.iter_markers("parametrize"))
    if chosen and not said and "kind" in metafunc.fixturenames:
        metafunc.definition.add_marker(pytest.mark.parametrize("kind", chosen.args, indirect=True))


def pytest_sessionfinish() -> None:
    release_blocked()


@pytest.fixture(scope="session", autouse=True)
def _mended_driver() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pool_shared, "_async_create_connection", connect_or_close)
        yield


@pytest.fixture(scope="session")
def server_path(tmp_path_factory: pytest.TempPathFactory) -> Path | None:
    """The directory of the embedded server; None where `AXEQ_TEST_URI` names another."""
    return None if os.environ.get("AXEQ_TEST_URI") else tmp_path_factory.mktemp("server") / "store"


@pytest.fixture(scope="session")
def server_uri(server_path: Path | None) -> Iterator[str]:
    """The URI of the server that tests run on, without a database."""
    if server_path is None:
        yield os.environ["AXEQ_TEST_URI"]
        return
    with open_embedded(server_path) as server:
        yield server.uri


@pytest.fixture(scope="session")
def server(server_uri: str) -> Iterator[pymongo.MongoClient[dict[str, Any]]]:
    """A client of the tests' own, to look at what axeq has stored."""
    with pymongo.MongoClient(server_uri) as client:
        yield client


@pytest.fixture(scope="session")
def capabilities(server: pymongo.MongoClient[dict[str, Any]]) -> Capabilities:
    """What the server really does, tried."""
    able = probe(server, "axeq_probe")
    server.drop_database("axeq_probe")
    return able


@pytest.fixture
def database(server: pymongo.MongoClient[dict[str, Any]]) -> Iterator[str]:
    """The name of a database of the test's own, dropped afterwards."""
    name = f"axeq_test_{uuid.uuid4().hex[:12]}"
    yield name
    server.drop_database(name)


@pytest.fixture
def uri(server_uri: str, database: str) -> str:
    """The URI of the test's own database."""
    return urlunsplit(urlsplit(server_uri)._replace(path=f"/{database}"))


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest, capabilities: Capabilities, server_path: Path | None) -> str:
    """The kind of store; a test that needs what this kind cannot do is skipped, saying why."""
    kind: str = request.param
    if kind == "embedded" and server_path is None:
        pytest.skip("embedded: AXEQ_TEST_URI names the server, no other is started")
    for marker in request.node.iter_markers("needs"):
        for need in marker.args:
            if reason := why_not(kind, need, capabilities):
                pytest.skip(f"{kind}: {reason}")
    return kind


@pytest.fixture
async def store(kind: str, uri: str, database: str, server_path: Path | None) -> AsyncIterator[axeq.Store]:
    """A store of each kind, on a database of the test's own."""
    async with AsyncExitStack() as clients:
        store = axeq.Store(await _target(kind, uri, database, server_path, clients), database=_override(kind, database))
        async with store:
            yield store


@pytest.fixture
def jobs(store: axeq.Store, kind: str, server: pymongo.MongoClient[dict[str, Any]], database: str) -> Any:
    """The collection of jobs behind `store`, read and written past axeq."""
    if kind == "mongomock":
        return store._given["jobs"]
    return server.get_database(database, codec_options=CODEC_OPTIONS)["jobs"]


@pytest.fixture(params=["Queue", "AsyncQueue"])
def queue(request: pytest.FixtureRequest, store: axeq.Store) -> Any:
    """Either face: what its methods return goes through `settled`."""
    return getattr(axeq, request.param)(store)


def _override(kind: str, database: str) -> str | None:
    return database if kind == "embedded" else None


async def _target(kind: str, uri: str, database: str, path: Path | None, clients: AsyncExitStack) -> Any:
    match kind:
        case "uri":
            return uri
        case "embedded":
            return f"embedded:{path}"
        case "mongomock":
            return mongomock.MongoClient()[database]
        case "sync-client":
            return clients.enter_context(pymongo.MongoClient(uri))
        case "sync-database":
            return clients.enter_context(pymongo.MongoClient(uri))[database]
        case "async-client":
            return await clients.enter_async_context(pymongo.AsyncMongoClient(uri))
        case "motor":
            return clients.enter_context(closing(motor.motor_asyncio.AsyncIOMotorClient(uri)))
    raise ValueError(kind)
