"""The indexes as data, as commands, and as the files in `indexes/`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeGuard

import pytest

from axeq.rules import indexes
from axeq.rules.indexes import INDEXES
from axeq.wire.wire import ISOLATIONS, JOBS, Call, Find, Op, Place
from axeq.words.errors import AccessDenied, DuplicateKey, IndexMissing, StoreError

from .playing import given_job, matches, play

FOLDER = Path(__file__).parents[2] / "indexes"
NAMES = [index.name for index in INDEXES]
COLLECTIONS = list(dict.fromkeys(index.collection for index in INDEXES))
PLACE = Place("shop")
DENIED = AccessDenied("h", "not authorized")


@pytest.mark.parametrize("name", indexes.render())
def test_the_files_are_what_the_code_renders(name: str) -> None:
    assert (FOLDER / name).read_text() == indexes.render()[name]


def test_the_folder_holds_nothing_else() -> None:
    assert {path.name for path in FOLDER.iterdir()} == set(indexes.render())


def test_the_json_is_what_create_indexes_takes() -> None:
    rendered = indexes.render()

    for collection in COLLECTIONS:
        declared = [index.specification for index in INDEXES if index.collection == collection]
        assert json.loads(rendered[f"{PLACE.name(collection)}.json"]) == declared


def test_the_script_creates_every_index_once() -> None:
    script = indexes.render()["create.js"]

    assert [script.count(f'"name": "{name}"') for name in NAMES] == [1] * len(NAMES)
    assert script.count('db.getCollection("jobs").createIndex(') == sum(index.collection == JOBS for index in INDEXES)
    assert script.count(".createIndex(") == len(NAMES)


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


def names_in(collection: str) -> list[str]:
    return [index.name for index in INDEXES if index.collection == collection]


def test_ensuring_creates_all_in_one_command_for_each_collection() -> None:
    played = play(indexes.ensure(), [names_in(collection) for collection in COLLECTIONS])

    created = {call.collection: [index["name"] for index in call.args[0]] for call in played.asked if is_creation(call)}
    assert created == {collection: names_in(collection) for collection in COLLECTIONS}
    assert played.result == NAMES


def is_creation(command: Call | Find) -> TypeGuard[Call]:
    return isinstance(command, Call) and command.method == "create_indexes"


def listed(collection: str, *absent: str) -> list[dict[str, str]]:
    """Returns the reply to a listing of a collection's indexes, without those that are `absent`."""
    return [{"name": "_id_"}, *({"name": name} for name in names_in(collection) if name not in absent)]


@pytest.mark.parametrize("name", NAMES)
def test_missing_indexes_are_found_by_name(name: str) -> None:
    assert [index.name for index in play(indexes.missing(), [listed(each, name) for each in COLLECTIONS]).result] == [
        name
    ]


@pytest.mark.parametrize("rule", [indexes.ensure, lambda: indexes.secure("label", PLACE)])
def test_labels_that_live_jobs_share_already_are_said_to_keep_the_index_from_being(rule: Callable[[], Op[Any]]) -> None:
    with pytest.raises(StoreError, match=r"index 'label' .* remove all but one .* `axeq indexes ensure`") as raised:
        play(rule(), [DuplicateKey()])

    assert not isinstance(raised.value, DuplicateKey)


def test_an_account_that_may_not_create_indexes_can_rely_on_one_that_exists() -> None:
    assert play(indexes.secure("label", PLACE), [DENIED, listed(JOBS, "claim")]).result is None


def test_an_open_transaction_can_rely_on_an_index_that_exists() -> None:
    assert play(indexes.secure("label", PLACE, beside_transaction=True), [listed(JOBS, "claim")]).result is None


def test_beside_an_open_transaction_a_missing_index_is_named_and_not_created() -> None:
    with pytest.raises(IndexMissing, match=r"while your transaction is open; before you start it: call queue\.ensure"):
        play(indexes.secure("label", PLACE, beside_transaction=True), [listed(JOBS, "label")])


@pytest.mark.parametrize(("name", "collection"), [("label", JOBS), ("isolation", ISOLATIONS)])
def test_an_index_that_is_missing_and_may_not_be_created_is_named_with_its_collection(
    name: str, collection: str
) -> None:
    with pytest.raises(IndexMissing, match="axeq indexes ensure") as raised:
        play(indexes.secure(name, PLACE), [DENIED, listed(collection, name)])

    assert raised.value.index == name
    assert repr(PLACE.name(collection)) in str(raised.value)
