"""What takes long is begun early."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import pymongo
import pytest

import axeq
from axeq.documents.codec import CODEC_OPTIONS
from tests.support.pools import probe_pool, running
from tests.support.probe import Probe, probe, probe_in_thread
from tests.support.sessions import Sessions
from tests.support.waiting import DEADLINE

HANDLERS = {"loop": probe, "thread": probe_in_thread}


@pytest.fixture
async def sessions(uri: str) -> AsyncIterator[Sessions]:
    async with AsyncExitStack() as clients:
        yield Sessions(uri, clients)


@pytest.fixture
def nobody_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has idle pools with a change stream look for jobs of their own accord after an hour only."""
    monkeypatch.setattr("axeq.supply.feed._POLL_WITH_STREAM", 3600.0)


@pytest.fixture
def nothing_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has pools keep what they claim ahead, though a stall makes jobs look slow: given back, it comes out of turn."""
    monkeypatch.setattr("axeq.running.lane._LONGEST_WAIT", 3600.0)


@dataclass(frozen=True)
class Aging:
    """Jobs of a database of their own: one that ended and is to be removed, one that ended so and lives again."""

    jobs: Any
    ended: Any
    revived: Any


@pytest.fixture(scope="session", autouse=True)
def aging(request: pytest.FixtureRequest) -> Iterator[Aging | None]:
    """Ends jobs whose retention is seconds as soon as the session starts: servers look for such once a minute."""
    if not any("aging_jobs" in getattr(item, "fixturenames", ()) for item in request.session.items):
        yield None
        return
    server_uri: str = request.getfixturevalue("server_uri")
    database = f"axeq_test_{uuid.uuid4().hex[:12]}"
    with pymongo.MongoClient[dict[str, Any]](server_uri) as client:
        yield _aged(urlunsplit(urlsplit(server_uri)._replace(path=f"/{database}")), client[database]["jobs"])
        client.drop_database(database)


@pytest.fixture
def aging_jobs(aging: Aging | None) -> Aging:
    assert aging is not None
    return aging


@pytest.fixture(params=HANDLERS)
def handler(request: pytest.FixtureRequest) -> Any:
    """The handler of `Probe`, async and plain."""
    return HANDLERS[request.param]


@pytest.fixture
def plain_store(uri: str) -> Iterator[axeq.Store]:
    """A store from a URI, for what does not depend on its kind."""
    with axeq.Store(uri) as store:
        yield store


@pytest.fixture
def raw(server: pymongo.MongoClient[dict[str, Any]], database: str) -> Any:
    """The jobs of the test's own database, read past axeq."""
    return server.get_database(database, codec_options=CODEC_OPTIONS)["jobs"]


def _aged(uri: str, jobs: Any) -> Aging:
    with axeq.Store(uri) as store:
        queue = axeq.Queue(store)
        # The server must not come before the second is retried, and would have removed it by the time of the first.
        made = [queue.enqueue(Probe(), retention=seconds) for seconds in (20, 15)]
        with running(probe_pool(store)):
            for job in made:
                job.wait(DEADLINE)
        made[1].retry()
        return Aging(jobs, made[0].id, made[1].id)
