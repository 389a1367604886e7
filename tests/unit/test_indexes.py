"""The indexes as data, as commands, and as the files in `indexes/`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from axeq import indexes
from axeq.errors import AccessDenied, IndexMissing
from axeq.indexes import INDEXES
from axeq.wire import Call

from .playing import given_job, matches, play

FOLDER = Path(__file__).parents[2] / "indexes"
NAMES = [index.name for index in INDEXES]
DENIED = AccessDenied("h", "not authorized")


@pytest.mark.parametrize("name", indexes.render())
def test_the_files_are_what_the_code_renders(name: str) -> None:
    assert (FOLDER / name).read_text() == indexes.render()[name]


def test_the_folder_holds_nothing_else() -> None:
    assert {path.name for path in FOLDER.iterdir()} == set(indexes.render())


def test_the_json_is_what_create_indexes_takes() -> None:
    assert json.loads(indexes.render()["jobs.json"]) == [index.specification for index in INDEXES]


def test_the_script_creates_every_index_once() -> None:
    script = indexes.render()["create.js"]

    assert [script.count(f'"name": "{name}"') for name in NAMES] == [1] * len(NAMES)
    assert script.count("db.jobs.createIndex(") == len(NAMES)


def test_the_page_says_of_every_index_what_needs_it() -> None:
    page = indexes.render()["README.md"]

    assert [index.name for index in INDEXES if index.needed_by not in page or index.shape not in page] == []


def test_labels_are_unique_among_live_jobs_only() -> None:
    (label,) = [index for index in INDEXES if index.name == "label"]
    indexed = label.options["partialFilterExpression"]

    assert label.options["unique"] is True
    assert label.keys == (("name", 1), ("label", 1))
    assert matches(indexed, given_job(label="a.jpg"))
    assert not matches(indexed, given_job())
    assert not matches(indexed, given_job(label="a.jpg", state="completed", available_at=None))


@pytest.mark.parametrize("name", ["claim", "due"])
def test_jobs_that_have_ended_do_not_burden_the_claims(name: str) -> None:
    (index,) = [index for index in INDEXES if index.name == name]

    assert matches(index.options["partialFilterExpression"], given_job())
    assert not matches(index.options["partialFilterExpression"], given_job(available_at=None))


def test_ensuring_creates_all_in_one_command() -> None:
    played = play(indexes.ensure(), [NAMES])

    (call,) = played.asked
    assert isinstance(call, Call)
    assert call.method == "create_indexes"
    assert [specification["name"] for specification in call.args[0]] == played.result == NAMES


def test_missing_indexes_are_found_by_name() -> None:
    present = [{"name": "_id_"}, *({"name": name} for name in NAMES if name != "label")]

    assert [index.name for index in play(indexes.missing(), [present]).result] == ["label"]


def test_an_account_that_may_not_create_indexes_can_rely_on_one_that_exists() -> None:
    assert play(indexes.secure("label", "jobs"), [DENIED, [{"name": "label"}]]).result is None


def test_an_index_that_is_missing_and_may_not_be_created_is_named() -> None:
    with pytest.raises(IndexMissing, match="axeq indexes ensure") as raised:
        play(indexes.secure("label", "jobs"), [DENIED, [{"name": "claim"}]])

    assert raised.value.index == "label"
