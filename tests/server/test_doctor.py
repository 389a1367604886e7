"""`axeq doctor`: what a server can do is tried, shown and leaves nothing behind."""

from __future__ import annotations

import time
from typing import Any

import pymongo
import pytest
from pymongo.database import Database
from pymongo.errors import OperationFailure

import axeq
from axeq.edges import cli
from axeq.wire import capabilities
from axeq.wire.capabilities import Finding, examine
from axeq.words.errors import StoreUnavailable
from tests.support.probe import Probe


@pytest.fixture
def examined(server: pymongo.MongoClient[dict[str, Any]], database: str) -> dict[str, Finding]:
    return {finding.what: finding for finding in examine(server, database, prefix="jobs")}


def contents(database: Database[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Returns every document of a database, by collection."""
    return {name: list(database[name].find()) for name in sorted(database.list_collection_names())}


def test_the_server_of_the_tests_does_what_axeq_needs(examined: dict[str, Finding]) -> None:
    assert [finding.what for finding in examined.values() if finding.needed and not finding.holds] == []


def test_the_probe_agrees_with_what_the_tests_were_told(
    examined: dict[str, Finding], capabilities: capabilities.Capabilities
) -> None:
    assert examined["change streams"].holds is capabilities.streams
    assert examined["transactions"].holds is capabilities.transactions


def test_doctor_shows_every_try_and_leaves_nothing_behind(
    server: pymongo.MongoClient[dict[str, Any]], database: str, uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with axeq.Store(uri) as store:
        axeq.Queue(store).ensure_indexes()
        axeq.Queue(store).enqueue(Probe(), label="kept", isolation=60)
    before = contents(server[database])

    code = cli.run(["doctor", uri])

    lines = capsys.readouterr().out.splitlines()
    assert code == 0
    assert lines[0].startswith("server ")
    assert len(lines) == 1 + len(capabilities._STEPS) + 2
    assert all(line.split("  ", 1)[1].split()[0] in ("yes", "no") for line in lines[1:])
    assert {name: len(documents) for name, documents in before.items()} == {"jobs": 1, "jobs.isolations": 1}
    assert contents(server[database]) == before


def test_doctor_names_missing_indexes_and_fails(uri: str, capsys: pytest.CaptureFixture[str]) -> None:
    with axeq.Store(uri) as store:
        axeq.Queue(store).enqueue(Probe())

    code = cli.run(["doctor", uri])

    assert code == 1
    missing = "claim, due, label, retention, inspection, isolation of jobs.isolations"
    assert f"NO   {missing}: run `axeq indexes ensure`" in capsys.readouterr().out


def test_doctor_says_of_which_collection_an_index_is_missing(
    server: pymongo.MongoClient[dict[str, Any]], database: str, uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with axeq.Store(uri) as store:
        axeq.Queue(store).ensure_indexes()
    server[database]["jobs.isolations"].drop_index("isolation")

    code = cli.run(["doctor", uri])

    assert code == 1
    assert "NO   isolation of jobs.isolations: run `axeq indexes ensure`" in capsys.readouterr().out


@pytest.mark.parametrize(("needed", "code", "shown"), [(True, 1, "NO   jobs fly"), (False, 0, "no   jobs fly")])
def test_doctor_fails_for_what_is_needed_alone(
    uri: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, needed: bool, code: int, shown: str
) -> None:
    def refused(scratch: Any) -> bool:
        raise OperationFailure("no such command")

    with axeq.Store(uri) as store:
        axeq.Queue(store).ensure_indexes()
    monkeypatch.setattr(capabilities, "_STEPS", (("gravity", refused, "jobs fly", needed),))

    assert cli.run(["doctor", uri]) == code
    assert shown in capsys.readouterr().out


def late(scratch: Any) -> bool:
    """A step whose time is over before the server has answered it."""
    with pymongo.timeout(0.001):
        while True:
            scratch.find_one()


@pytest.mark.parametrize(("needed", "code"), [(True, 4), (False, 0)])
def test_doctor_says_of_a_slow_server_that_it_was_slow_and_nothing_worse(
    uri: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, needed: bool, code: int
) -> None:
    with axeq.Store(uri) as store:
        axeq.Queue(store).ensure_indexes()
    monkeypatch.setattr(capabilities, "_STEPS", (("gravity", late, "jobs fly", needed),))

    assert cli.run(["doctor", uri]) == code
    shown = capsys.readouterr().out
    assert "?    no answer within" in shown
    assert "jobs fly" not in shown


def test_a_server_that_is_too_slow_for_a_probe_is_not_said_to_lack_anything(
    server: pymongo.MongoClient[dict[str, Any]], database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capabilities, "_transactions", late)

    with pytest.raises(StoreUnavailable, match="no answer within 10 s"):
        capabilities.probe(server, database)


def test_change_streams_that_stay_silent_are_none(
    server: pymongo.MongoClient[dict[str, Any]], database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (streams,) = (each for each in capabilities._STEPS if each[0] == "change streams")
    monkeypatch.setattr(capabilities, "_STEPS", (streams,))
    monkeypatch.setattr(capabilities, "_SEEN_WITHIN", 0.3)
    monkeypatch.setattr("pymongo.change_stream.ChangeStream.try_next", lambda self: time.sleep(0.05))

    (_, finding) = examine(server, database, prefix="jobs")

    assert (finding.what, finding.holds) == ("change streams", False)


@pytest.mark.parametrize(
    ("step", "method", "careless"),
    [
        ("find-and-modify has one winner", "find_one_and_update", lambda self, query, update: {"_id": query["_id"]}),
        ("documents beyond 16 MiB are refused", "update_one", lambda self, query, update: None),
        ("majority write concern", "find_one", lambda self, query: None),
    ],
)
def test_a_server_that_only_pretends_is_found_out(
    server: pymongo.MongoClient[dict[str, Any]],
    database: str,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
    method: str,
    careless: Any,
) -> None:
    monkeypatch.setattr(capabilities, "_STEPS", tuple(each for each in capabilities._STEPS if each[0] == step))
    monkeypatch.setattr(pymongo.collection.Collection, method, careless)

    (_, finding) = examine(server, database, prefix="jobs")

    assert (finding.what, finding.holds) == (step, False)
