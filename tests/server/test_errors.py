"""Servers that are not there, or refuse: one line that says so, and no password anywhere."""

from __future__ import annotations

import asyncio
import gc
import logging
import subprocess
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pymongo
import pytest
from pymongo.errors import OperationFailure, PyMongoError

import axeq
from axeq.wire import servers
from axeq.words.errors import EmbeddedUnavailable
from tests.support.pools import python, quick_pool
from tests.support.ports import deaf_port, free_port
from tests.support.probe import Probe, probe
from tests.support.waiting import DEADLINE, eventually, settled

# The driver leaves the socket of a refused greeting to the collector, which warns of it wherever it happens to run.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")

PASSWORD = "s3cr3t-w0rd"  # a test's own
FACES = [axeq.Queue, axeq.AsyncQueue]


@pytest.fixture(params=FACES, ids=lambda face: face.__name__)
def face(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def nowhere() -> Iterator[str]:
    """The URI of a server that is not there, with a password in it."""
    with deaf_port() as port:  # it takes a moment to be refused
        yield f"mongodb://ada:{PASSWORD}@127.0.0.1:{port}/shop?serverSelectionTimeoutMS=500"


@pytest.fixture
def found_nowhere(nowhere: str) -> str:
    """As `nowhere`, looked for until the refusal has certainly been heard, which names the cause."""
    return nowhere.replace("=500", "=2000")


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server that wants credentials, started for this module."""
    try:
        found = servers.find()
    except EmbeddedUnavailable as error:
        pytest.skip(str(error))
    program = next((each for each in found if each.kind is not servers.Kind.MONGOD), None)
    if program is None:
        pytest.skip("no server program on hand that starts with --auth without a user set up first")
    home: Path = tmp_path_factory.mktemp("guarded")
    config = home / "server.conf"
    config.touch()
    port = free_port()
    command = [*program.arguments(port=port, data=home / "data", config=config), "--auth"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        eventually(lambda: not servers.is_free(port))
        yield f"127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def wrong(guarded: str) -> Iterator[str]:
    """The URI of a server that wants credentials, with wrong ones."""
    yield f"mongodb://ada:{PASSWORD}@{guarded}/shop?authSource=admin&directConnection=true"
    # The driver leaves the socket of a refused greeting to the collector, which warns of it in some later test.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.fixture
def refused(wrong: str) -> str:
    """As `wrong`, where the server answers a wrong password as MongoDB does; skipped where it does not."""
    with pymongo.MongoClient(wrong, serverSelectionTimeoutMS=10_000) as client:
        try:
            client["shop"]["jobs"].find_one()
        except OperationFailure:
            return wrong
        except PyMongoError as error:
            pytest.skip(f"the server does not even greet who has a wrong password, tried: {type(error).__name__}")
    pytest.skip("the server takes any credentials, tried")


async def test_a_server_that_is_not_there_is_one_line_with_its_address_and_the_cause(
    face: Any, found_nowhere: str
) -> None:
    async with axeq.Store(found_nowhere, timeout=3) as store:
        with pytest.raises(axeq.StoreUnavailable) as caught:
            await settled(face(store).get(1))

    message = str(caught.value)
    assert message.startswith(f"cannot reach MongoDB at {store.place.host}: ")
    assert "[Errno " in message
    assert "\n" not in message
    assert "Topology" not in message
    assert len(message) < 300
    assert caught.value.host == store.place.host
    assert caught.value.sent is False


async def test_the_uri_says_how_long_to_look_for_a_server(face: Any, nowhere: str) -> None:
    async with axeq.Store(nowhere, timeout=12) as store:
        with pytest.raises(axeq.StoreUnavailable):
            await asyncio.wait_for(asyncio.to_thread(_ask, face, store), timeout=8)


def _ask(face: Any, store: axeq.Store) -> None:
    async def ask() -> None:
        try:
            await settled(face(store).get(1))
        finally:
            await store.leave_loop()

    asyncio.run(ask())


def test_a_pool_whose_server_is_not_there_says_so_and_ends(found_nowhere: str) -> None:
    with axeq.Store(found_nowhere, timeout=3) as store:
        pool = quick_pool(store)
        pool.add(axeq.Task(Probe, probe))

        with pytest.raises(axeq.StoreUnavailable, match="Errno"):
            pool.run()

        assert not pool.ready.is_set()


async def test_wrong_credentials_are_refused_by_name(face: Any, refused: str) -> None:
    async with axeq.Store(refused) as store:
        with pytest.raises(axeq.AccessDenied, match=rf"^MongoDB at {store.place.host} refused access: ") as caught:
            await settled(face(store).get(1))

    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("source", ["nowhere", "wrong"])
async def test_a_password_appears_in_no_error_log_or_description(
    face: Any, source: str, request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="axeq")
    async with axeq.Store(request.getfixturevalue(source), timeout=1) as store:
        queue = face(store)
        pool = quick_pool(store)
        pool.add(axeq.Task(Probe, probe))
        errors: list[BaseException | None] = []
        for call in (lambda: queue.get(1), queue.stats, lambda: pool.__aenter__()):
            with pytest.raises(axeq.StoreError) as caught:
                await settled(call())
            errors.append(caught.value)

    shown = [caplog.text, repr(store), repr(queue), repr(pool)]
    for error in errors:
        while error is not None:
            shown += [str(error), repr(error), repr(error.args), repr(vars(error))]
            error = error.__cause__ or error.__context__
    assert PASSWORD not in "\n".join(shown)


@pytest.mark.parametrize(
    "target",
    [
        f"mongodb://ada:{PASSWORD}@127.0.0.1:notaport/shop",
        f"mongodb://ada:{PASSWORD}@one,two/shop?directConnection=true",
        f"mongodb+srv://ada:{PASSWORD}@one,two/shop",
        f"postgres://ada:{PASSWORD}@127.0.0.1/shop",
        f"mongodb://ada:{PASSWORD}/with/slashes@127.0.0.1/shop",
        f"mongodb://ada:{PASSWORD}@twice@127.0.0.1/shop",
    ],
    ids=["port", "option", "srv", "scheme", "unescaped slash", "unescaped at"],
)
def test_a_uri_that_cannot_be_used_is_refused_without_its_password(target: str) -> None:
    with pytest.raises(axeq.ConfigurationError) as caught:
        axeq.Store(target)

    assert PASSWORD not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_target_at_all_names_both_ways_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AXEQ_URI", raising=False)

    with pytest.raises(axeq.ConfigurationError, match=r'axeq.Store\("mongodb://.*"\), or set AXEQ_URI'):
        axeq.Store()


def test_what_is_no_store_is_refused_by_type() -> None:
    with pytest.raises(axeq.ConfigurationError, match=r"a builtins.dict is no store"):
        axeq.Store({})


@pytest.mark.parametrize("command", ["demo", "dev", "indexes", "indexes ensure", "doctor", "--help"])
def test_the_command_line_never_shows_the_password(
    command: str, nowhere: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A command that takes a path makes one.
    monkeypatch.chdir(tmp_path)

    with python("-m", "axeq.edges.cli", *command.split(), nowhere, AXEQ_URI=nowhere, AXEQ_MONGOD="/no/such") as process:
        output, errors = process.communicate(timeout=DEADLINE)

    assert output + errors != ""
    assert PASSWORD not in output + errors
