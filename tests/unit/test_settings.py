"""What the environment says: an argument wins, and a mistake names its variable and no password."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import axeq
from axeq.documents.settings import VARIABLES, setting

URI = "mongodb://db.example:27017/shop"
NONSENSE = {
    "AXEQ_URI": "user:secret@db.example/shop",
    "AXEQ_TIMEOUT": "soon",
    "AXEQ_QUEUES": "critical=high",
    "AXEQ_CONCURRENCY": "0",
    "AXEQ_LEASE": "inf",
    "AXEQ_DRAIN": "-1",
    "AXEQ_MAX_LAG": "100ms",
}


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)


def test_a_store_is_made_from_the_environment_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AXEQ_URI", "mongodb://user:secret@db.example:27017")
    monkeypatch.setenv("AXEQ_DATABASE", "shop")
    monkeypatch.setenv("AXEQ_COLLECTION", "work")
    monkeypatch.setenv("AXEQ_TIMEOUT", "PT2S")

    store = axeq.Store()

    assert (store.place.database, store.place.collection, store.place.timeout) == ("shop", "work", 2.0)
    assert store.place.host == "db.example:27017"
    assert "secret" not in repr(store)


def test_what_a_store_is_given_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, said in {"AXEQ_URI": "nonsense", "AXEQ_TIMEOUT": "nonsense"}.items():
        monkeypatch.setenv(variable, said)
    monkeypatch.setenv("AXEQ_DATABASE", "environment")
    monkeypatch.setenv("AXEQ_COLLECTION", "environment")

    given = axeq.Store(URI, database="given", collection="given", timeout=3)
    named = axeq.Store(URI, timeout=3)

    assert (given.place.database, given.place.collection, given.place.timeout) == ("given", "given", 3.0)
    assert named.place.database == "shop"


def test_the_database_of_the_environment_goes_before_that_of_its_uri(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AXEQ_URI", URI)
    assert axeq.Store().place.database == "shop"

    monkeypatch.setenv("AXEQ_DATABASE", "other")
    assert axeq.Store().place.database == "other"


def test_a_pools_durations_come_from_the_environment_unless_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AXEQ_LEASE", "7")
    monkeypatch.setenv("AXEQ_DRAIN", "PT1M")
    monkeypatch.setenv("AXEQ_MAX_LAG", "nonsense")

    pool = axeq.Pool(axeq.Store(URI), max_lag=0.5)

    assert (pool._plan.lease, pool._plan.drain, pool._plan.max_lag) == (7.0, 60.0, 0.5)


def test_an_empty_variable_counts_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AXEQ_LEASE", " ")

    assert axeq.Pool(axeq.Store(URI))._plan.lease == 30.0


@pytest.mark.parametrize("variable", NONSENSE)
def test_nonsense_is_refused_by_the_name_of_its_variable_and_without_passwords(
    monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, NONSENSE[variable])
    makers: dict[str, Callable[[], Any]] = {"AXEQ_URI": axeq.Store, "AXEQ_TIMEOUT": lambda: axeq.Store(URI)}

    with pytest.raises(axeq.ConfigurationError) as caught:
        makers.get(variable, lambda: axeq.Pool(axeq.Store(URI)))()

    assert variable in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("said", "weights"),
    [
        ("critical=6,default=3,low=1", {"critical": 6, "default": 3, "low": 1}),
        (" critical , default ", {"critical": 1, "default": 1}),
        ("default", {"default": 1}),
    ],
)
def test_queues_are_read_with_and_without_weights(
    monkeypatch: pytest.MonkeyPatch, said: str, weights: dict[str, int]
) -> None:
    monkeypatch.setenv("AXEQ_QUEUES", said)

    assert setting("AXEQ_QUEUES") == weights


def test_every_variable_is_explained_where_it_is_read() -> None:
    from axeq.documents import settings

    assert [variable for variable in VARIABLES if f"`{variable}`" not in (settings.__doc__ or "")] == []


def test_the_guide_lists_every_variable_and_no_other() -> None:
    guide = (Path(__file__).parents[2] / "docs" / "guide.md").read_text(encoding="utf-8")

    rows = [row.split("|")[1] for row in guide.splitlines() if row.startswith("| `AXEQ_")]

    assert sorted(re.findall(r"`(AXEQ_\w+)`", "".join(rows))) == sorted(VARIABLES)
