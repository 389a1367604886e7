"""Scenarios of the fault catalogue: `@pytest.mark.fault("F01")` says which one a test shows."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.faults.arena import Arena
from tests.faults.leaks import Belongings
from tests.faults.own_server import OwnServer
from tests.faults.proxy import Proxy
from tests.faults.seeds import SEED
from tests.support.waiting import eventually


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "fault(*numbers): the entries of the fault catalogue that the test shows")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[Any]) -> Any:
    report = yield
    if report.failed and "nothing_left" in getattr(item, "fixturenames", ()):
        report.sections.append(("seed", f"AXEQ_SEED={SEED}"))
    return report


@pytest.fixture
def nothing_left(server_uri: str) -> Iterator[None]:
    """Fails a scenario that leaves a process, a thread or a socket behind."""
    before = Belongings.now()
    yield
    eventually(lambda: _nothing_new(before), timeout=60)


def _nothing_new(before: Belongings) -> None:
    assert Belongings.now().since(before) == []


@pytest.fixture
def database() -> str:
    """The name of a database of the scenario's own; the arena drops it."""
    return f"axeq_fault_{uuid.uuid4().hex[:12]}"


@pytest.fixture
def arena(nothing_left: None, server_uri: str, database: str, tmp_path: Path) -> Iterator[Callable[..., Arena]]:
    """Makes the scenario's arena; the settings are those of its workers."""
    with ExitStack() as ends:

        def make(**settings: Any) -> Arena:
            arena = Arena(server_uri, database, tmp_path, **settings)
            ends.callback(arena.close)
            return arena

        yield make


@pytest.fixture
def proxy(nothing_left: None, server_uri: str) -> Iterator[Proxy]:
    """A proxy before the tests' server."""
    with Proxy(server_uri) as proxy:
        yield proxy


@pytest.fixture
def own_server(nothing_left: None, tmp_path: Path) -> Iterator[OwnServer]:
    """A server that the scenario may kill."""
    with OwnServer(tmp_path / "own") as server:
        yield server
